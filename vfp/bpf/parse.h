/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Bytes to headers: Ethernet, ARP (RFC 826), IPv4 (RFC 791), IPv6 (RFC 8200), TCP, UDP, SCTP, ICMP (RFC 792, 4443).
 * First failure wins. The hooks parse what comes every day; fragments, extension headers, neighbour discovery and
 * headers outside the linear part of a packet are `ODD`, and left to a program that has all of this.
 */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
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

/* `left`: bytes of IP payload by the total length; what is linear is checked by each header on its own. */
static __always_inline int parse_transport(struct scratch *s, struct headers *h, void *l4, void *end, __u32 left)
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
	case IPPROTO_ICMP: {
		struct icmp_header *icmp = l4;

		if (left < sizeof(*icmp))
			return truncated;
		if ((void *)(icmp + 1) > end)
			return ODD;
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
	if (h->key.protocol == IPPROTO_ICMP && h->icmp_type != ICMP_ECHO && h->icmp_type != ICMP_ECHOREPLY)
		h->tracked = 0;
	h->has_ports = has_ports(h->key.protocol);
	return NONE;
}

static __always_inline int parse_ipv4_fragment(struct scratch *s, struct headers *h, struct iphdr *ip, void *end,
					       __u32 header)
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
	reason = parse_transport(s, h, (void *)ip + header, end, left);
	return reason ? reason : first_fragment(s, h, id, left / 8);
}

static __always_inline int parse_ipv4(struct scratch *s, struct headers *h, void *at, void *end, __u32 left, int full)
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
		return full ? parse_ipv4_fragment(s, h, ip, end, header) : ODD;
	return parse_transport(s, h, at + header, end, total - header);
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
		return parse_ipv4(s, h, eth + 1, end, length - L3, full);
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
