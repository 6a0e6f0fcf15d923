/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Bytes to headers: Ethernet, ARP (RFC 826), IPv4 (RFC 791), TCP, UDP, SCTP, ICMP. First failure wins. */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#include "packet.h"

#define L3 sizeof(struct ethhdr)	/* offset of the network header: tagged frames are refused */
#define IP_OFFSET_MASK 0x1fff
#define IP_MORE_FRAGMENTS 0x2000
#define HEADERS_MAX (L3 + 60 + 60)	/* IPv4 and TCP with all options */
#define NEED_PULL (-1)			/* a header is not in the linear part of the packet */

#define ICMP_ECHO 8
#define ICMP_ECHOREPLY 0

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
		return NEED_PULL;
	if (arp->hardware_type != bpf_htons(1) || arp->protocol_type != bpf_htons(ETH_P_IP) ||
	    arp->hardware_length != 6 || arp->protocol_length != 4)
		return MALFORMED_ARP;
	h->key.protocol = bpf_ntohs(arp->opcode) & 0xff;
	h->key.src.w[0] = load32(arp->sender);
	h->key.dst.w[0] = load32(arp->target);
	h->arp_sender_is_source = same_mac(arp->sender_mac, h->smac);
	return NONE;
}

/* `left`: bytes of IP payload by the total length; `linear` is checked by each header on its own. */
static __always_inline int parse_transport(struct headers *h, void *l4, void *end, __u32 left, int first)
{
	switch (h->key.protocol) {
	case IPPROTO_TCP: {
		struct tcphdr *tcp = l4;

		if (left < sizeof(*tcp))
			return MALFORMED_TRANSPORT;
		if ((void *)(tcp + 1) > end)
			return NEED_PULL;
		if (tcp->doff < 5 || tcp->doff * 4U > left)
			return MALFORMED_TRANSPORT;
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
			return MALFORMED_TRANSPORT;
		if ((void *)(udp + 1) > end)
			return NEED_PULL;
		length = bpf_ntohs(udp->len);
		if (length < sizeof(*udp) || (length > left && !first))
			return MALFORMED_TRANSPORT;
		h->key.sport = udp->source;
		h->key.dport = udp->dest;
		h->has_ports = 1;
		return NONE;
	}
	case IPPROTO_SCTP: {
		__be16 *sctp = l4;

		if (left < 12)
			return MALFORMED_TRANSPORT;
		if ((void *)(sctp + 6) > end)
			return NEED_PULL;
		h->key.sport = sctp[0];
		h->key.dport = sctp[1];
		h->has_ports = 1;
		return NONE;
	}
	case IPPROTO_ICMP: {
		struct icmp_header *icmp = l4;

		if (left < sizeof(*icmp))
			return MALFORMED_TRANSPORT;
		if ((void *)(icmp + 1) > end)
			return NEED_PULL;
		h->icmp_type = icmp->type;
		h->icmp_code = icmp->code;
		if (icmp->type == ICMP_ECHO || icmp->type == ICMP_ECHOREPLY) {
			h->key.sport = icmp->id;
			h->key.dport = icmp->id;
		} else {
			h->tracked = 0;
		}
		return NONE;
	}
	}
	return NONE;
}

/* Ports, and ICMP type and code, of later fragments are those of the first. */
static __always_inline int parse_fragment(struct scratch *s, struct headers *h, __be16 id)
{
	struct fragment *known;
	struct fragment ports = {};

	s->fragment.zone = h->key.zone;
	s->fragment.src = h->key.src;
	s->fragment.dst = h->key.dst;
	s->fragment.id = id;
	s->fragment.protocol = h->key.protocol;
	s->fragment.pad = 0;
	if (s->fragment_kind == FIRST_FRAGMENT) {
		ports.sport = h->key.sport;
		ports.dport = h->key.dport;
		ports.icmp_type = h->icmp_type;
		ports.icmp_code = h->icmp_code;
		bpf_map_update_elem(&fragments, &s->fragment, &ports, BPF_ANY);
		return NONE;
	}
	known = bpf_map_lookup_elem(&fragments, &s->fragment);
	if (!known)
		return FRAGMENT_UNKNOWN;
	h->key.sport = known->sport;
	h->key.dport = known->dport;
	h->icmp_type = known->icmp_type;
	h->icmp_code = known->icmp_code;
	if (h->key.protocol == IPPROTO_ICMP && h->icmp_type != ICMP_ECHO && h->icmp_type != ICMP_ECHOREPLY)
		h->tracked = 0;
	h->has_ports = h->key.protocol == IPPROTO_TCP || h->key.protocol == IPPROTO_UDP ||
		       h->key.protocol == IPPROTO_SCTP;
	return NONE;
}

static __always_inline int parse_ipv4(struct scratch *s, struct headers *h, void *at, void *end, __u32 left)
{
	struct iphdr *ip = at;
	__u32 header, total;
	__u16 fragment;
	int reason;

	if (left < sizeof(*ip))
		return MALFORMED_IPV4;
	if ((void *)(ip + 1) > end)
		return NEED_PULL;
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
	fragment = bpf_ntohs(ip->frag_off);
	if (fragment & IP_OFFSET_MASK) {
		s->fragment_kind = LATER_FRAGMENT;
	} else {
		s->fragment_kind = fragment & IP_MORE_FRAGMENTS ? FIRST_FRAGMENT : NOT_FRAGMENT;
		reason = parse_transport(h, at + header, end, total - header, s->fragment_kind);
		if (reason)
			return reason;
	}
	if (s->fragment_kind)
		return parse_fragment(s, h, ip->id);
	return NONE;
}

static __always_inline int parse_linear(struct __sk_buff *skb, struct scratch *s, __u32 zone)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct headers *h = &s->pkt;
	__u32 length = skb->len;

	__builtin_memset(h, 0, sizeof(*h));
	h->key.zone = zone;
	s->fragment_kind = NOT_FRAGMENT;
	s->ttl = 0;
	if (length < sizeof(*eth))
		return MALFORMED_ETHERNET;
	if ((void *)(eth + 1) > end)
		return NEED_PULL;
	copy_mac(h->smac, eth->h_source);
	copy_mac(h->dmac, eth->h_dest);
	h->ethertype = bpf_ntohs(eth->h_proto);
	if (skb->vlan_present || h->ethertype == ETH_P_8021Q || h->ethertype == ETH_P_8021AD)
		return VLAN_TAGGED;
	if (h->ethertype == ETH_P_IP)
		return parse_ipv4(s, h, eth + 1, end, length - L3);
	if (h->ethertype == ETH_P_ARP)
		return parse_arp(h, eth + 1, end, length - L3);
	return NONE;
}

/* Fill `s->pkt`. Returns a drop reason. */
static __always_inline int parse(struct __sk_buff *skb, struct scratch *s, __u32 zone)
{
	int reason = parse_linear(skb, s, zone);

	if (reason != NEED_PULL)
		return reason;
	/* Rare: some driver left headers in page fragments. */
	if (bpf_skb_pull_data(skb, skb->len < HEADERS_MAX ? skb->len : HEADERS_MAX))
		return ENGINE_ERROR;
	reason = parse_linear(skb, s, zone);
	return reason == NEED_PULL ? ENGINE_ERROR : reason;
}
