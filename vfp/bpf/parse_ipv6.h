/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* IPv6 (RFC 8200): the fixed header, and the chain of extension headers. */
#pragma once

#include "parse_transport.h"

static __always_inline int is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_FRAGMENT || next == IPPROTO_AH ||
	       next == IPPROTO_DSTOPTS;
}

/* A way through extension headers: offsets from the start of the frame. */
struct chain {
	__u32 at;
	__u32 end;
	__u32 body;		/* what is fragmented begins here */
	__u32 fragment;		/* offset and flag of the fragment header, host byte order */
	__be32 id;
	__u8 next;
	__u8 fragmented;	/* there was a fragment header */
	__u16 unused;		/* no holes: who is given this may read all of it */
};

/*
 * Go to the transport header, or to what follows the fragment header of a later fragment. Returns a drop reason. Not
 * static: the verifier goes all the ways through the loop once, and not again for each with what follows it.
 */
__noinline int walk_extensions(struct __sk_buff *skb, struct chain *c)
{
	__u8 head[8];
	__u32 length;

	if (!c)
		return ENGINE_ERROR;
	for (int i = 0; i < EXTENSIONS_MAX; i++) {
		if (!is_extension(c->next))
			return NONE;
		if ((c->next == IPPROTO_HOPOPTS && i) || (c->next == IPPROTO_FRAGMENT && c->fragmented))
			return MALFORMED_IPV6;
		if (c->at + sizeof(head) > c->end)
			return c->fragment ? FRAGMENT_TINY : MALFORMED_IPV6;
		if (bpf_skb_load_bytes(skb, c->at, head, sizeof(head)))
			return ENGINE_ERROR;
		length = (head[1] + 1) * 8U;
		if (c->next == IPPROTO_AH) {
			length = (head[1] + 2) * 4U;
		} else if (c->next == IPPROTO_FRAGMENT) {
			length = sizeof(head);
			c->fragmented = 1;
			c->fragment = (head[2] << 8 | head[3]) & ~6U;
			c->id = load32(head + 4);
		} else if (c->next == IPPROTO_ROUTING && !head[2] && head[3]) {
			return MALFORMED_IPV6;		/* RFC 5095: type 0 goes nowhere */
		}
		if (c->at + length > c->end)
			return c->fragment && c->next != IPPROTO_FRAGMENT ? FRAGMENT_TINY : MALFORMED_IPV6;
		c->at += length;
		if (c->next == IPPROTO_FRAGMENT)
			c->body = c->at;
		c->next = head[0];
		if (c->fragment > 1)
			return NONE;
	}
	return is_extension(c->next) ? MALFORMED_IPV6 : NONE;
}

static __always_inline int parse_extensions(struct __sk_buff *skb, struct scratch *s, struct headers *h)
{
	struct chain c = {.at = s->l4, .end = s->l4 + s->length, .next = h->key.protocol};
	__u32 left, part = 0, first;
	__u8 head[20] = {};
	int reason = walk_extensions(skb, &c);

	if (reason)
		return reason;
	left = c.end - c.at;
	s->l4 = c.at;
	s->length = left;
	s->fragmented = c.fragmented;
	h->key.protocol = c.next;
	if (c.fragment) {
		part = c.end - c.body;
		first = c.fragment >> 3;
		if (!part || (c.fragment & 1 && part % 8) || first * 8 + part > IP_BYTES_MAX)
			return MALFORMED_IPV6;
		h->fragment = 1;
		s->fragment_kind = first ? LATER_FRAGMENT : FIRST_FRAGMENT;
		if (first)
			return parse_later(s, h, c.id, first, first + (part + 7) / 8, !(c.fragment & 1));
	}
	if (left >= 20)
		reason = bpf_skb_load_bytes(skb, c.at, head, 20);
	else if (left >= 12)
		reason = bpf_skb_load_bytes(skb, c.at, head, 12);
	else if (left >= 8)
		reason = bpf_skb_load_bytes(skb, c.at, head, 8);
	if (reason)
		return ENGINE_ERROR;
	reason = parse_transport(skb, s, h, head, head + sizeof(head), left, 1);
	return reason || !c.fragment ? reason : first_fragment(s, h, c.id, part / 8);
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct scratch *s, struct headers *h, void *at, void *end,
				      __u32 left, int full)
{
	struct ipv6_header *ip = at;
	__u32 start, length;

	if (left < sizeof(*ip))
		return MALFORMED_IPV6;
	if ((void *)(ip + 1) > end)
		return ODD;
	start = bpf_ntohl(ip->start);
	length = bpf_ntohs(ip->length);
	if (start >> 28 != 6 || length > left - sizeof(*ip))
		return MALFORMED_IPV6;
	h->key.family = 6;
	h->key.protocol = ip->next;
	h->key.src = ip->src;
	h->key.dst = ip->dst;
	h->dscp = start >> 22 & 0x3f;
	h->tracked = 1;
	s->ttl = ip->hops;
	s->l4 = L3 + sizeof(*ip);
	s->length = length;
	if (is_extension(ip->next))
		return full ? parse_extensions(skb, s, h) : ODD;
	return parse_transport(skb, s, h, ip + 1, end, length, full);
}
