/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Source translation with endpoint-independent mapping (RFC 4787 REQ-1): one internal address and port has one
 * external port in a pool, whoever it talks to. `externals` is the reservation (inserted only if absent, so two CPUs
 * cannot take one port); `bindings` finds it again from inside.
 */
#pragma once

#include "parse.h"

#define FNV_OFFSET 2166136261U
#define FNV_PRIME 16777619U

static __always_inline __u32 fnv1a(__u32 hash, const void *data, int length)
{
	const __u8 *p = data;

	for (int i = 0; i < length; i++)
		hash = (hash ^ p[i]) * FNV_PRIME;
	return hash;
}

/* Where the search for a free port starts; the reference engine computes the same. */
static __always_inline __u32 binding_hash(const struct binding_key *key)
{
	__u32 hash = FNV_OFFSET;

	hash = fnv1a(hash, &key->port, 4);
	hash = fnv1a(hash, &key->protocol, 1);
	hash = fnv1a(hash, &key->src, 4);
	if (key->family == 6)
		hash = fnv1a(hash, &key->src.w[1], 12);
	return fnv1a(hash, &key->sport, 2);
}

struct port_search {
	struct scratch *s;
	__u32 start;		/* offset in the pool */
	__u32 low;
	__u32 size;
	__u32 found;
};

static __always_inline int reserve_port(struct scratch *s, __u16 port)
{
	s->external.port = bpf_htons(port);
	if (is_dry(s))
		return !bpf_map_lookup_elem(&externals, &s->external);
	return !bpf_map_update_elem(&externals, &s->external, &s->holder, BPF_NOEXIST);
}

static long try_port(__u32 i, void *context)
{
	struct port_search *search = context;
	__u32 offset = search->start + i;

	if (offset >= search->size)	/* start < size, and i is below the size too */
		offset -= search->size;
	if (!reserve_port(search->s, search->low + offset))
		return 0;
	search->found = 1;
	return 1;
}

/* An echo reply without a flow answers nothing that we have translated. */
static __always_inline int is_translatable(const struct scratch *s)
{
	switch (s->d.cur.protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		return s->h.tracked;
	}
	return is_echo_request(&s->h);
}

/* Rewrite the source of `d->cur`. Returns a drop reason. Not static, for the verifier. */
__noinline int translate_source(struct scratch *s, __u32 port, __u32 pool_id)
{
	struct decision *d;
	struct binding_key *key;
	struct port_search search = {.s = s};
	struct binding *known, made = {};
	struct pool *pool;
	__u16 wanted;

	if (!s)
		return ENGINE_ERROR;
	d = &s->d;
	key = &s->binding;
	if (!is_translatable(s))
		return NAT_UNSUPPORTED;
	pool = bpf_map_lookup_elem(&pools, &pool_id);
	if (!pool || pool->high < pool->low)
		return ENGINE_ERROR;
	if (pool->family != d->cur.family)
		return NAT_UNSUPPORTED;
	key->port = port;
	key->pool = pool_id;
	key->src = d->cur.src;
	key->sport = d->cur.sport;
	key->protocol = d->cur.protocol;
	key->family = d->cur.family;
	s->external.protocol = key->protocol;
	s->external.family = key->family;
	known = bpf_map_lookup_elem(&bindings, key);
	if (known) {
		wanted = bpf_ntohs(known->external_port);
		if (same_address(&known->external, &pool->address) && wanted >= pool->low && wanted <= pool->high) {
			made.external_port = known->external_port;
			goto found;
		}
		/* The pool has changed since: the old external port is free again. */
		s->external.address = known->external;
		s->external.port = known->external_port;
		if (!is_dry(s)) {
			bpf_map_delete_elem(&externals, &s->external);
			bpf_map_delete_elem(&bindings, key);
		}
	}
	s->external.address = pool->address;
	s->holder.holder = *key;
	s->holder.pad = 0;
	s->holder.seen_ns = bpf_ktime_get_coarse_ns();
	wanted = bpf_ntohs(key->sport);
	if (wanted < pool->low || wanted > pool->high || !reserve_port(s, wanted)) {
		search.low = pool->low;
		search.size = pool->high - pool->low + 1U;
		search.start = binding_hash(key) % search.size;
		bpf_loop(search.size < NAT_PROBES ? search.size : NAT_PROBES, try_port, &search, 0);
		if (!search.found)
			return NAT_EXHAUSTED;
	}
	made.external = pool->address;
	made.external_port = s->external.port;
	if (!is_dry(s) && bpf_map_update_elem(&bindings, key, &made, BPF_ANY)) {
		bpf_map_delete_elem(&externals, &s->external);
		return NAT_EXHAUSTED;
	}
found:
	d->by_sport = 1;
	d->cur.src = pool->address;
	d->cur.sport = made.external_port;
	d->translated = 1;
	return NONE;
}
