/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Bytes to headers: Ethernet, ARP (RFC 826), IPv4 (RFC 791), IPv6 (RFC 8200), TCP, UDP, SCTP, ICMP (RFC 792, 4443).
 * First failure wins. The hooks parse what comes every day; fragments, extension headers, neighbour discovery and
 * headers outside the linear part of a packet are `ODD`, and left to a program that has all of this.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#include "fragments.h"
#include "packet.h"

#define L3 sizeof(struct ethhdr)	/* offset of the network header: tagged frames are refused */
#define IP_OFFSET_MASK 0x1fff
#define IP_MORE_FRAGMENTS 0x2000
#define IP_BYTES_MAX 65535
#define HEADERS_MAX (L3 + 60 + 60)	/* IPv4 and TCP with all options */
#define ODD (-1)			/* not for the short parser */

#define EXTENSIONS_MAX 8		/* extension headers of one packet */

#define ICMP6_FIRST_ERROR 1		/* unreachable, too big, time exceeded, parameter problem */
#define ICMP6_LAST_ERROR 4
#define ICMP6_ECHO 128
#define ICMP6_ECHOREPLY 129
#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_SOLICITED 0x40
#define ND_OVERRIDE 0x20
#define ND_SOURCE_LINK 1
#define ND_TARGET_LINK 2
#define ND_OPTIONS_MAX 8

#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

/* RFC 792. linux/icmp.h draws in libc headers that a BPF build does not have. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 check;
	__be16 id;
	__be16 sequence;
};

struct ipv6_header {
	__be32 start;		/* version, traffic class, flow label */
	__be16 length;
	__u8 next;
	__u8 hops;
	struct address src;
	struct address dst;
};

/* RFC 4861 4.3, 4.4; options follow. */
struct nd_header {
	__u8 type;
	__u8 code;
	__be16 check;
	__u8 flags;
	__u8 reserved[3];
	struct address target;
};

struct arp_ipv4 {
	__be16 hardware_type;
	__be16 protocol_type;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 opcode;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

static __always_inline __be32 load32(const __u8 *p)
{
	__be32 value;

	__builtin_memcpy(&value, p, sizeof(value));
	return value;
}

static __always_inline int is_multicast(const struct address *address)
{
	return (address->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline int is_unspecified(const struct address *address)
{
	return !(address->w[0] | address->w[1] | address->w[2] | address->w[3]);
}

/* ff02::1:ff00:0/104 (RFC 4291 2.7.1) */
static __always_inline int is_solicited_node(const struct address *address)
{
	return address->w[0] == bpf_htonl(0xff020000) && !address->w[1] && address->w[2] == bpf_htonl(1) &&
	       (address->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline int parse_arp(struct headers *h, void *at, void *end, __u32 left)
{
	struct arp_ipv4 *arp = at;

	if (left < sizeof(*arp))
		return MALFORMED_ARP;
	if ((void *)(arp + 1) > end)
		return ODD;
	if (arp->hardware_type != bpf_htons(1) || arp->protocol_type != bpf_htons(ETH_P_IP) ||
	    arp->hardware_length != 6 || arp->protocol_length != 4)
		return MALFORMED_ARP;
	h->key.protocol = bpf_ntohs(arp->opcode) & 0xff;
	h->key.src.w[0] = load32(arp->sender);
	h->key.dst.w[0] = load32(arp->target);
	h->arp_sender_is_source = same_mac(arp->sender_mac, h->smac);
	return NONE;
}

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
 * the sender's own, or layers are told.
 */
static __always_inline int parse_nd(struct __sk_buff *skb, struct scratch *s, struct headers *h)
{
	int solicits = h->icmp_type == ND_SOLICITATION, reads_own = 1;
	__u32 at = s->l4 + sizeof(struct nd_header), end = s->l4 + s->length;
	struct address source = h->key.src, target;
	__u8 wanted = solicits ? ND_SOURCE_LINK : ND_TARGET_LINK;
	struct nd_header nd;
	__u8 option[8];

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
		return full ? parse_nd(skb, s, h) : ODD;
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

static __always_inline int parse_ipv4_fragment(struct __sk_buff *skb, struct scratch *s, struct headers *h,
					       struct iphdr *ip, void *end, __u32 header)
{
	__u32 field = bpf_ntohs(ip->frag_off), first = field & IP_OFFSET_MASK, left = s->length;
	int more = field & IP_MORE_FRAGMENTS, reason;
	__be32 id = ip->id;

	if (!left || (more && left % 8) || header + first * 8 + left > IP_BYTES_MAX)
		return MALFORMED_IPV4;
	if (first) {
		s->fragment_kind = LATER_FRAGMENT;
		return parse_later(s, h, id, first, first + (left + 7) / 8, !more);
	}
	s->fragment_kind = FIRST_FRAGMENT;
	reason = parse_transport(skb, s, h, (void *)ip + header, end, left, 1);
	return reason ? reason : first_fragment(s, h, id, left / 8);
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct scratch *s, struct headers *h, void *at, void *end,
				      __u32 left, int full)
{
	struct iphdr *ip = at;
	__u32 header, total;

	if (left < sizeof(*ip))
		return MALFORMED_IPV4;
	if ((void *)(ip + 1) > end)
		return ODD;
	header = ip->ihl * 4U;
	total = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || total < header || total > left)
		return MALFORMED_IPV4;
	h->key.family = 4;
	h->key.protocol = ip->protocol;
	h->key.src.w[0] = ip->saddr;
	h->key.dst.w[0] = ip->daddr;
	h->dscp = ip->tos >> 2;
	h->tracked = 1;
	s->ttl = ip->ttl;
	s->l4 = L3 + header;
	s->length = total - header;
	if (ip->frag_off & bpf_htons(IP_OFFSET_MASK | IP_MORE_FRAGMENTS))
		return full ? parse_ipv4_fragment(skb, s, h, ip, end, header) : ODD;
	return parse_transport(skb, s, h, at + header, end, total - header, full);
}

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
};

/* Go to the transport header, or to what follows the fragment header of a later fragment. Returns a drop reason. */
static __always_inline int walk_extensions(struct __sk_buff *skb, struct chain *c)
{
	__u8 head[8];
	__u32 length;

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

/* Fill `s->pkt`. Returns a drop reason; `full`: never `ODD`, unless a header is not in the linear part. */
static __always_inline int parse(struct __sk_buff *skb, struct scratch *s, __u32 zone, int full)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct headers *h = &s->pkt;
	__u32 length = skb->len;

	__builtin_memset(h, 0, sizeof(*h));
	h->key.zone = zone;
	s->fragment_kind = NOT_FRAGMENT;
	s->error = NO_ERROR;
	s->fragmented = 0;
	s->ttl = 0;
	if (length < sizeof(*eth))
		return MALFORMED_ETHERNET;
	if ((void *)(eth + 1) > end)
		return ODD;
	copy_mac(h->smac, eth->h_source);
	copy_mac(h->dmac, eth->h_dest);
	h->ethertype = bpf_ntohs(eth->h_proto);
	if (skb->vlan_present || h->ethertype == ETH_P_8021Q || h->ethertype == ETH_P_8021AD)
		return VLAN_TAGGED;
	if (h->ethertype == ETH_P_IP)
		return parse_ipv4(skb, s, h, eth + 1, end, length - L3, full);
	if (h->ethertype == ETH_P_IPV6)
		return parse_ipv6(skb, s, h, eth + 1, end, length - L3, full);
	if (h->ethertype == ETH_P_ARP)
		return parse_arp(h, eth + 1, end, length - L3);
	return NONE;
}

/* All there is to know of any packet. Rare. */
static __always_inline int parse_odd(struct __sk_buff *skb, struct scratch *s, __u32 zone)
{
	int reason;

	if (bpf_skb_pull_data(skb, skb->len < HEADERS_MAX ? skb->len : HEADERS_MAX))
		return ENGINE_ERROR;
	reason = parse(skb, s, zone, 1);
	return reason == ODD ? ENGINE_ERROR : reason;
}
