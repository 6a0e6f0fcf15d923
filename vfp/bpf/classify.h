/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Tuple space search (Srinivasan, Suri, Varghese, SIGCOMM 1999) with merged tuples: a group has a few masks; a packet
 * is masked by each and looked up; the bucket's rules are verified in full. Since every rule is verified, a mask
 * that is coarser than a rule is never wrong, only slower: merging is the compiler's business alone.
 */
#pragma once

#include "parse.h"

struct search {
	struct scratch *s;
	struct group *group;
	struct rule *best;
	__u32 first;		/* of the bucket in hand */
};

static __always_inline __be32 mask32(int bits)
{
	if (bits <= 0)
		return 0;
	if (bits >= 32)
		return 0xffffffff;
	return bpf_htonl(~0U << (32 - bits));
}

static __always_inline void mask_address(struct address *to, const struct address *from, __u8 bits)
{
	to->w[0] = from->w[0] & mask32(bits);
	to->w[1] = from->w[1] & mask32(bits - 32);
	to->w[2] = from->w[2] & mask32(bits - 64);
	to->w[3] = from->w[3] & mask32(bits - 96);
}

static __always_inline int in_prefix(const struct address *address, const struct address *prefix, __u8 bits)
{
	return !(((address->w[0] ^ prefix->w[0]) & mask32(bits)) |
		 ((address->w[1] ^ prefix->w[1]) & mask32(bits - 32)) |
		 ((address->w[2] ^ prefix->w[2]) & mask32(bits - 64)) |
		 ((address->w[3] ^ prefix->w[3]) & mask32(bits - 96)));
}

/* All conditions of `r` hold for the headers with the tuple as rewritten so far. */
static __always_inline int rule_matches(const struct rule *r, const struct headers *h, const struct flow_key *cur)
{
	__u32 conditions = r->conditions;
	/* An ARP tuple carries IPv4 addresses. */
	__u8 family = h->ethertype == ETH_P_ARP ? 4 : h->key.family;

	if (conditions & IF_ETHERTYPE && r->ethertype != h->ethertype)
		return 0;
	if (conditions & (IF_SRC | IF_DST) && r->family != family)
		return 0;
	if (conditions & IF_SRC && !in_prefix(&cur->src, &r->src, r->src_len))
		return 0;
	if (conditions & IF_DST && !in_prefix(&cur->dst, &r->dst, r->dst_len))
		return 0;
	if (conditions & IF_PROTOCOL && (!family || r->protocol != cur->protocol))
		return 0;
	if (conditions & IF_SPORT) {
		__u16 port = bpf_ntohs(cur->sport);

		if (!h->has_ports || port < r->sport_low || port > r->sport_high)
			return 0;
	}
	if (conditions & IF_DPORT) {
		__u16 port = bpf_ntohs(cur->dport);

		if (!h->has_ports || port < r->dport_low || port > r->dport_high)
			return 0;
	}
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
	if (conditions & IF_SMAC && !same_mac(r->smac, h->smac))
		return 0;
	if (conditions & IF_DMAC && !same_mac(r->dmac, h->dmac))
		return 0;
	if (conditions & IF_ARP_SENDER && !h->arp_sender_is_source)
		return 0;
	if (conditions & IF_ND_SENDER && !h->nd_sender_is_source)
		return 0;
	return 1;
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
	if (!rule_matches(r, &search->s->h, &search->s->d.cur))
		return 0;
	search->best = r;
	return 1;
}

static long try_tuple(__u32 i, void *context)
{
	struct search *search = context;
	struct scratch *s = search->s;
	struct bucket_key *key = &s->bucket;
	struct bucket *bucket;
	struct tuple *t;

	if (i >= MAX_TUPLES)
		return 1;
	t = &search->group->tuples[i];
	if (search->best && t->best_priority >= search->best->priority)
		return 1;
	key->tuple = i;
	key->ethertype = t->fields & FIELD_ETHERTYPE ? s->h.ethertype : 0;
	key->protocol = t->fields & FIELD_PROTOCOL ? s->d.cur.protocol : 0;
	key->sport = t->fields & FIELD_SPORT ? s->d.cur.sport : 0;
	key->dport = t->fields & FIELD_DPORT ? s->d.cur.dport : 0;
	mask_address(&key->src, &s->d.cur.src, t->src_len);
	mask_address(&key->dst, &s->d.cur.dst, t->dst_len);
	bucket = bpf_map_lookup_elem(&buckets, key);
	if (!bucket)
		return 0;
	search->first = bucket->first;
	bpf_loop(bucket->count, try_rule, search, 0);
	return 0;
}

/* The matching rule with the lowest priority number, or NULL. */
static __always_inline struct rule *classify(struct scratch *s, __u64 id)
{
	struct search search = {.s = s};

	search.group = bpf_map_lookup_elem(&groups, &id);
	if (!search.group)
		return 0;
	s->bucket.group = id;
	bpf_loop(search.group->count, try_tuple, &search, 0);
	return search.best;
}
