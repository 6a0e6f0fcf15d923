/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* TCP, UDP, SCTP, ICMP (RFC 792, 4443), neighbour discovery (RFC 4861), and what later fragments have in their stead. */
#pragma once

#include "fragments.h"
#include "headers.h"

/* A request and its reply differ in more than who speaks: allowing one direction of each opens nothing else. */
static __always_inline void parse_icmp(struct scratch *s, struct headers *h, const struct icmp_header *icmp)
{
	h->icmp_type = icmp->type;
	h->icmp_code = icmp->code;
	switch (icmp->type) {
	case ICMP_ECHO:
		h->key.sport = icmp->id;
		return;
	case ICMP_ECHOREPLY:
		h->key.dport = icmp->id;
		return;
	case ICMP_DEST_UNREACH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		if (!s->fragment_kind)
			s->error = ERROR_SEEN;
	}
	h->tracked = 0;
}

/*
 * What RFC 4861 7.1 asks of a solicitation (target in `h->key.dst`, as in ARP) or an advertisement (target in
 * `h->key.src`: what it speaks for). A link-layer address that is given, and the IPv6 source of an advertisement, are
 * the sender's own, or layers are told. Not static, for the verifier.
 */
__noinline int parse_nd(struct __sk_buff *skb, struct scratch *s)
{
	struct address source, target;
	struct nd_header nd;
	int solicits, reads_own = 1;
	struct headers *h;
	__u8 wanted, option[8];
	__u32 at, end;

	if (!s)
		return ENGINE_ERROR;
	h = &s->pkt;
	solicits = h->icmp_type == ND_SOLICITATION;
	wanted = solicits ? ND_SOURCE_LINK : ND_TARGET_LINK;
	source = h->key.src;
	at = s->l4 + sizeof(struct nd_header);
	end = s->l4 + s->length;
	h->nd = 1;
	h->tracked = 0;
	if (s->fragmented || s->length < sizeof(nd) || s->ttl != 255 || h->icmp_code)
		return MALFORMED_ND;
	if (bpf_skb_load_bytes(skb, s->l4, &nd, sizeof(nd)))
		return ENGINE_ERROR;
	target = nd.target;
	if (is_multicast(&target))
		return MALFORMED_ND;
	if (solicits && is_unspecified(&source) && !is_solicited_node(&h->key.dst))
		return MALFORMED_ND;
	if (!solicits && is_multicast(&h->key.dst) && nd.flags & ND_SOLICITED)
		return MALFORMED_ND;
	for (int i = 0; i < ND_OPTIONS_MAX; i++) {
		if (at == end)
			break;
		if (at + sizeof(option) > end)
			return MALFORMED_ND;
		if (bpf_skb_load_bytes(skb, at, option, sizeof(option)))
			return ENGINE_ERROR;
		if (!option[1] || (solicits && option[0] == ND_SOURCE_LINK && is_unspecified(&source)))
			return MALFORMED_ND;
		if (option[0] == wanted && !(option[1] == 1 && same_mac(option + 2, h->smac)))
			reads_own = 0;
		at += option[1] * 8U;
	}
	if (at != end)
		return MALFORMED_ND;
	if (solicits)
		h->key.dst = target;
	else
		h->key.src = target;
	h->nd_sender_is_source = reads_own && (solicits || same_address(&source, &target));
	return NONE;
}

static __always_inline int parse_icmp6(struct __sk_buff *skb, struct scratch *s, struct headers *h,
				       const struct icmp_header *icmp, int full)
{
	h->icmp_type = icmp->type;
	h->icmp_code = icmp->code;
	switch (icmp->type) {
	case ICMP6_ECHO:
		h->key.sport = icmp->id;
		return NONE;
	case ICMP6_ECHOREPLY:
		h->key.dport = icmp->id;
		return NONE;
	case ND_SOLICITATION:
	case ND_ADVERTISEMENT:
		return full ? parse_nd(skb, s) : ODD;
	case ICMP6_FIRST_ERROR ... ICMP6_LAST_ERROR:
		if (!s->fragment_kind)
			s->error = ERROR_SEEN;
	}
	h->tracked = 0;
	return NONE;
}

static __always_inline int is_icmp(__u8 family, __u8 protocol)
{
	return family == 6 ? protocol == IPPROTO_ICMPV6 : family == 4 && protocol == IPPROTO_ICMP;
}

static __always_inline int is_echo_request(const struct headers *h)
{
	return is_icmp(h->key.family, h->key.protocol) && h->icmp_type == (h->key.family == 6 ? ICMP6_ECHO : ICMP_ECHO);
}

static __always_inline int is_echo_reply(const struct headers *h)
{
	return is_icmp(h->key.family, h->key.protocol) &&
	       h->icmp_type == (h->key.family == 6 ? ICMP6_ECHOREPLY : ICMP_ECHOREPLY);
}

/* `left`: bytes of IP payload by the total length; what is linear is checked by each header on its own. */
static __always_inline int parse_transport(struct __sk_buff *skb, struct scratch *s, struct headers *h, void *l4,
					   void *end, __u32 left, int full)
{
	/* RFC 1858: a filter must see the whole header. */
	int truncated = s->fragment_kind ? FRAGMENT_TINY : MALFORMED_TRANSPORT;

	switch (h->key.protocol) {
	case IPPROTO_TCP: {
		struct tcphdr *tcp = l4;

		if (left < sizeof(*tcp))
			return truncated;
		if ((void *)(tcp + 1) > end)
			return ODD;
		if (tcp->doff < 5)
			return MALFORMED_TRANSPORT;
		if (tcp->doff * 4U > left)
			return truncated;
		h->key.sport = tcp->source;
		h->key.dport = tcp->dest;
		h->tcp_flags = ((__u8 *)tcp)[13];
		h->has_ports = 1;
		return NONE;
	}
	case IPPROTO_UDP: {
		struct udphdr *udp = l4;
		__u32 length;

		if (left < sizeof(*udp))
			return truncated;
		if ((void *)(udp + 1) > end)
			return ODD;
		length = bpf_ntohs(udp->len);
		if (length < sizeof(*udp) || (length > left && !s->fragment_kind))
			return MALFORMED_TRANSPORT;
		h->key.sport = udp->source;
		h->key.dport = udp->dest;
		h->has_ports = 1;
		return NONE;
	}
	case IPPROTO_SCTP: {
		__be16 *sctp = l4;

		if (left < 12)
			return truncated;
		if ((void *)(sctp + 6) > end)
			return ODD;
		h->key.sport = sctp[0];
		h->key.dport = sctp[1];
		h->has_ports = 1;
		return NONE;
	}
	case IPPROTO_UDPLITE:		/* goes by its addresses, but they are in its checksum */
		return left < UDPLITE_BYTES ? truncated : NONE;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: {
		struct icmp_header *icmp = l4;

		if (!is_icmp(h->key.family, h->key.protocol))
			return NONE;
		if (left < sizeof(*icmp))
			return truncated;
		if ((void *)(icmp + 1) > end)
			return ODD;
		if (h->key.family == 6)
			return parse_icmp6(skb, s, h, icmp, full);
		parse_icmp(s, h, icmp);
		return NONE;
	}
	}
	return NONE;
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

/* A later fragment is of its first one's flow, if that one is of any. */
static __always_inline int parse_later(struct scratch *s, struct headers *h, __be32 id, __u32 from, __u32 to, int last)
{
	int reason = later_fragment(s, h, id, from, to, last);

	if (reason)
		return reason;
	if (is_icmp(h->key.family, h->key.protocol) && !is_echo_request(h) && !is_echo_reply(h))
		h->tracked = 0;
	h->has_ports = has_ports(h->key.protocol);
	return NONE;
}
