/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Fragments: what the first one says of a datagram holds for the rest, and no part of it comes twice (RFC 1858, 3128,
 * 5722, 7112). Whoever reassembles must see what was judged.
 */
#pragma once

#include <linux/in.h>

#include "packet.h"

#define FRAGMENT_NS 30000000000ULL	/* from the first one; what Linux gives a reassembly, too */

/*
 * Take [from, to) into `f`. Returns whether it was new and fits. LRU maps have no locks: two CPUs at once may lose a
 * range, but never the first fragment's, which only ever grows, so its header stays what it was. Not static, for the
 * verifier, as what is next.
 */
__noinline int take_range(struct fragment *f, __u32 from, __u32 to, int last)
{
	int before = -1, after = -1, empty = -1;
	__u32 highest = 0;

	if (!f)
		return 0;
	for (int i = 0; i < FRAGMENT_RANGES; i++) {
		__u32 low = f->seen[i].from, high = f->seen[i].to;

		if (from < high && low < to)
			return 0;
		if (high > highest)
			highest = high;
		if (!high)
			empty = i;
		else if (high == from)
			before = i;
		else if (low == to)
			after = i;
	}
	if (f->length ? last || to > f->length : last && highest > to)
		return 0;
	if (before < 0 && after < 0 && empty < 0)
		return 0;
	if (last)
		f->length = to;
	/* Each index is a constant once the loop is unrolled, which is what the verifier wants to see. */
	for (int i = 0; i < FRAGMENT_RANGES; i++) {
		if (i == before) {
			f->seen[i].to = to;
		} else if (i == after) {
			if (before < 0)
				f->seen[i].from = from;
		} else if (i == empty && before < 0 && after < 0) {
			f->seen[i].from = from;
			f->seen[i].to = to;
		}
	}
	if (before < 0 || after < 0)
		return 1;
	for (int i = 0; i < FRAGMENT_RANGES; i++) {
		if (i == after) {
			highest = f->seen[i].to;
			f->seen[i].from = 0;
			f->seen[i].to = 0;
		}
	}
	for (int i = 0; i < FRAGMENT_RANGES; i++) {
		if (i == before)
			f->seen[i].to = highest;
	}
	return 1;
}

__noinline int is_whole(const struct fragment *f)
{
	if (!f || !f->length)
		return 0;
	for (int i = 0; i < FRAGMENT_RANGES; i++) {
		if (!f->seen[i].from && f->seen[i].to == f->length)
			return 1;
	}
	return 0;
}

static __always_inline void name_datagram(struct scratch *s, const struct headers *h, __be32 id)
{
	struct fragment_key *key = &s->fragment;

	key->zone = h->key.zone;
	key->id = id;
	key->family = h->key.family;
	key->protocol = h->key.family == 4 ? h->key.protocol : 0;
	key->vlan = h->key.vlan;
	key->src = h->key.src;
	key->dst = h->key.dst;
}

/* A first fragment of `to` units: `h` is complete. */
static __always_inline int first_fragment(struct scratch *s, const struct headers *h, __be32 id, __u32 to)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct fragment *known, new = {
		.first_ns = now,
		.sport = h->key.sport,
		.dport = h->key.dport,
		.icmp_type = h->icmp_type,
		.icmp_code = h->icmp_code,
		.tcp_flags = h->tcp_flags,
		.protocol = h->key.protocol,
		.seen = {{.from = 0, .to = to}},
	};

	if (is_dry(s))
		return NONE;
	name_datagram(s, h, id);
	known = bpf_map_lookup_elem(&fragments, &s->fragment);
	if (known && known->first_ns + FRAGMENT_NS > now)
		return FRAGMENT_OVERLAP;
	bpf_map_update_elem(&fragments, &s->fragment, &new, BPF_ANY);
	return NONE;
}

/* A later one: `h` gets what the first said. */
static __always_inline int later_fragment(struct scratch *s, struct headers *h, __be32 id, __u32 from, __u32 to,
					  int last)
{
	struct fragment *known;
	int taken, whole = 0;

	if (is_dry(s))
		return FRAGMENT_UNKNOWN;
	name_datagram(s, h, id);
	known = bpf_map_lookup_elem(&fragments, &s->fragment);
	if (!known || known->first_ns + FRAGMENT_NS <= bpf_ktime_get_coarse_ns())
		return FRAGMENT_UNKNOWN;
	if (known->protocol == IPPROTO_TCP && from == 1)
		return FRAGMENT_TINY;
	taken = take_range(known, from, to, last);
	if (taken)
		whole = is_whole(known);
	if (!taken)
		return FRAGMENT_OVERLAP;
	h->key.sport = known->sport;
	h->key.dport = known->dport;
	h->key.protocol = known->protocol;
	h->icmp_type = known->icmp_type;
	h->icmp_code = known->icmp_code;
	h->tcp_flags = known->tcp_flags;
	/* All of it was seen: the identification may be used again. */
	if (whole)
		bpf_map_delete_elem(&fragments, &s->fragment);
	return NONE;
}
