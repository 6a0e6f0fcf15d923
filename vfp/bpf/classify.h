/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Tuple space search (Srinivasan, Suri, Varghese, SIGCOMM 1999) with merged tuples: a group has a few masks; a packet
 * is masked by each and looked up; the bucket's rules are verified in full. Since every rule is verified, a mask
 * that is coarser than a rule is never wrong, only slower: merging is the compiler's business alone.
 */
#pragma once

#include "parse.h"
#include "sets.h"

struct search {
	struct scratch *s;
	struct group *group;
	struct rule *best;
	__u64 pair;		/* first words of source and destination */
	__u64 rest;		/* ports, protocol, ethertype */
	__u64 asked;		/* least priority of a rule that only a set could keep from matching */
	__u32 first;		/* of the bucket in hand */
	__u32 version;
	__u32 filter_mask;
};

static __always_inline int in_prefix(const struct address *address, const struct address *prefix, __u8 bits)
{
	if ((address->w[0] ^ prefix->w[0]) & mask32(bits))
		return 0;
	if (bits <= 32)
		return 1;
	return !(((address->w[1] ^ prefix->w[1]) & mask32(bits - 32)) |
		 ((address->w[2] ^ prefix->w[2]) & mask32(bits - 64)) |
		 ((address->w[3] ^ prefix->w[3]) & mask32(bits - 96)));
}

/* What few rules ask for: one test lets all others pass by. */
#define IF_SELDOM (IF_DMAC | IF_ICMP_TYPE | IF_ICMP_CODE | IF_TCP_FLAGS | IF_DSCP | IF_ARP_SENDER | IF_ND_SENDER | IF_VNI | \
		   IF_FRAGMENT | IF_MAPPED | IF_SRC_SET | IF_DST_SET)

static __always_inline int seldom_matches(const struct rule *r, const struct headers *h, const struct decision *d,
					  __u8 family)
{
	const struct flow_key *cur = &d->cur;
	__u32 conditions = r->conditions;

	if (conditions & (IF_ICMP_TYPE | IF_ICMP_CODE) && !is_icmp(h->key.family, cur->protocol))
		return 0;
	if (conditions & IF_ICMP_TYPE && r->icmp_type != h->icmp_type)
		return 0;
	if (conditions & IF_ICMP_CODE && r->icmp_code != h->icmp_code)
		return 0;
	if (conditions & IF_TCP_FLAGS &&
	    (!h->key.family || cur->protocol != IPPROTO_TCP || (h->tcp_flags & r->tcp_mask) != r->tcp_value))
		return 0;
	if (conditions & IF_DSCP && (!h->key.family || r->dscp != h->dscp))
		return 0;
	if (conditions & IF_DMAC && !same_mac(r->dmac, h->dmac))
		return 0;
	if (conditions & IF_ARP_SENDER && !h->arp_sender_is_source)
		return 0;
	if (conditions & IF_ND_SENDER && !h->nd_sender_is_source)
		return 0;
	if (conditions & IF_VNI && (ZONE_KIND(h->key.zone) != ZONE_OVERLAY || r->vni != ZONE_NUMBER(h->key.zone)))
		return 0;
	if (conditions & IF_FRAGMENT && (!h->key.family || r->fragment != h->fragment))
		return 0;
	if (conditions & IF_MAPPED && r->mapped != d->by_mapping)
		return 0;
	return !(conditions & (IF_SRC_SET | IF_DST_SET)) || family;
}

/*
 * The conditions of `r` on sets hold. They come last, as they cost look-ups. Not static: the verifier then sees it once,
 * and not again for every way that leads here; and for that it wants to see that the pointers are none.
 */
__noinline int sets_match(struct scratch *s, const struct rule *r)
{
	__u8 family;

	if (!s || !r)
		return 0;
	family = address_family(&s->d.cur);
	if (r->conditions & IF_SRC_SET && !in_set(s, &s->d.cur.src, r->src_set, family))
		return 0;
	return !(r->conditions & IF_DST_SET) || in_set(s, &s->d.cur.dst, r->dst_set, family);
}

/* All conditions of `r` hold for the headers with the tuple as rewritten so far, but for those on sets. */
static __always_inline int rule_matches(const struct rule *r, const struct headers *h, const struct decision *d)
{
	const struct flow_key *cur = &d->cur;
	__u32 conditions = r->conditions;
	/* An ARP tuple carries IPv4 addresses. */
	__u8 family = h->ethertype == ETH_P_ARP ? 4 : h->key.family;

	if (conditions & IF_ETHERTYPE && r->ethertype != h->ethertype)
		return 0;
	if (conditions & (IF_SRC | IF_DST)) {
		if (r->family != family)
			return 0;
		if (conditions & IF_SRC && !in_prefix(&cur->src, &r->src, r->src_len))
			return 0;
		if (conditions & IF_DST && !in_prefix(&cur->dst, &r->dst, r->dst_len))
			return 0;
	}
	if (conditions & IF_PROTOCOL && (!family || r->protocol != cur->protocol))
		return 0;
	if (conditions & (IF_SPORT | IF_DPORT)) {
		__u16 sport = bpf_ntohs(cur->sport), dport = bpf_ntohs(cur->dport);

		if (!h->has_ports)
			return 0;
		if (conditions & IF_SPORT && (sport < r->sport_low || sport > r->sport_high))
			return 0;
		if (conditions & IF_DPORT && (dport < r->dport_low || dport > r->dport_high))
			return 0;
	}
	if (conditions & IF_SMAC && !same_mac(r->smac, h->smac))
		return 0;
	return !(conditions & IF_SELDOM) || seldom_matches(r, h, d, family);
}

static long try_rule(__u32 i, void *context)
{
	struct search *search = context;
	__u32 index = search->first + i;
	struct rule *r = bpf_map_lookup_elem(&rules, &index);

	if (!r)
		return 1;
	if (search->best && r->priority >= search->best->priority)
		return 1;
	if (search->version - r->born >= r->died - r->born)
		return 0;
	if (!rule_matches(r, &search->s->h, &search->s->d))
		return 0;
	if (r->conditions & (IF_SRC_SET | IF_DST_SET)) {
		if (r->priority < search->asked)
			search->asked = r->priority;
		if (!sets_match(search->s, r))
			return 0;
	}
	search->best = r;
	return 1;
}

/* Twin of `mix` in vfp/tuples.py. */
static __always_inline __u64 mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 32;
}

static __always_inline __u64 wide_word(__be32 src, __be32 dst, const struct tuple *t, int offset)
{
	return (__u64)(src & mask32(t->src_len - offset)) << 32 | (dst & mask32(t->dst_len - offset));
}

static long try_tuple(__u32 i, void *context)
{
	struct search *search = context;
	struct flow_key *cur = &search->s->d.cur;
	struct bucket *bucket;
	__u64 hash, *bits;
	struct tuple *t;
	__u32 word;

	if (i >= MAX_TUPLES)
		return 1;
	t = &search->group->tuples[i];
	if (search->best && t->best_priority >= search->best->priority)
		return 1;
	hash = mix(mix(t->seed, search->pair & t->pair), search->rest & t->rest);
	if (t->wide) {
		hash = mix(hash, wide_word(cur->src.w[1], cur->dst.w[1], t, 32));
		hash = mix(hash, wide_word(cur->src.w[2], cur->dst.w[2], t, 64));
		hash = mix(hash, wide_word(cur->src.w[3], cur->dst.w[3], t, 96));
	}
	word = (hash >> 6) & search->filter_mask;
	bits = bpf_map_lookup_elem(&filter, &word);
	if (!bits || !(*bits >> (hash & 63) & 1))
		return 0;
	bucket = bpf_map_lookup_elem(&buckets, &hash);
	if (!bucket)
		return 0;
	search->first = bucket->first;
	bpf_loop(bucket->count, try_rule, search, 0);
	return 0;
}

/* The matching rule with the lowest priority number, or NULL. If the group is not there, `s->d.reason` says so. */
static __always_inline struct rule *classify(struct scratch *s, __u64 id)
{
	struct flow_key *cur = &s->d.cur;
	struct search search = {
		.s = s,
		.pair = (__u64)cur->src.w[0] << 32 | cur->dst.w[0],
		.rest = (__u64)s->h.ethertype << 40 | (__u64)cur->protocol << 32 | (__u32)cur->dport << 16 |
			cur->sport,
		.asked = ~0ULL,
	};

	search.group = bpf_map_lookup_elem(&groups, &id);
	if (!search.group) {		/* a program without its group is half a policy */
		s->d.reason = ENGINE_ERROR;
		return 0;
	}
	search.version = search.group->version;
	search.filter_mask = search.group->filter_mask;
	bpf_loop(search.group->count, try_tuple, &search, 0);
	/* A rule behind the one that matched may have been asked by chance: nothing depends on it. */
	if (search.asked != ~0ULL && (!search.best || search.asked <= search.best->priority))
		s->d.by_set = 1;
	return search.best;
}
