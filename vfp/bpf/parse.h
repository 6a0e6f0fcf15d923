/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Bytes to headers: Ethernet, ARP (RFC 826), IPv4 (RFC 791), IPv6 (RFC 8200), TCP, UDP, SCTP, ICMP (RFC 792, 4443).
 * First failure wins. The hooks parse what comes every day; fragments, extension headers, neighbour discovery and
 * headers outside the linear part of a packet are `ODD`, and left to a program that has all of this.
 */
#pragma once

#include "parse_ipv6.h"
#include "parse_transport.h"

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

static __always_inline int parse_ipv4_fragment(struct __sk_buff *skb, struct scratch *s, struct headers *h,
					       struct iphdr *ip, void *end, __u32 header)
{
	__u32 field = bpf_ntohs(ip->frag_off), first = field & IP_OFFSET_MASK, left = s->length;
	int more = field & IP_MORE_FRAGMENTS, reason;
	__be32 id = ip->id;

	if (!left || (more && left % 8) || header + first * 8 + left > IP_BYTES_MAX)
		return MALFORMED_IPV4;
	h->fragment = 1;
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
	s->check = ip->check;
	s->l4 = L3 + header;
	s->length = total - header;
	if (ip->frag_off & bpf_htons(IP_OFFSET_MASK | IP_MORE_FRAGMENTS))
		return full ? parse_ipv4_fragment(skb, s, h, ip, end, header) : ODD;
	return parse_transport(skb, s, h, at + header, end, total - header, full);
}

#define VLAN_MASK 0xfff
#define VLAN_BYTES 4
#define VLAN_LAST 4094

static __always_inline int is_tag(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD);
}

/*
 * Whether a tag is anybody's there. At an uplink, those with a wire; whose it is, the destination will say. Not static, for the
 * verifier, as the next one.
 */
__noinline int may_be_tagged(__u32 zone, __u32 vlan)
{
	__u32 number = ZONE_NUMBER(zone);
	struct uplink *uplink;

	if (!vlan || vlan > VLAN_LAST)
		return 0;
	switch (ZONE_KIND(zone)) {
	case ZONE_PORT:
	case ZONE_HOST:
		return has_vlan(number, vlan);
	case ZONE_UPLINK:
		uplink = bpf_map_lookup_elem(&uplinks, &number);
		return uplink && uplink->flags & UPLINK_STATIONS;
	}
	return 0;
}

/* A tag that is still in the frame's bytes goes to where the kernel has those of other frames. */
__noinline int lift_tag(struct __sk_buff *skb, __u32 zone)
{
	struct {
		__be16 outer, tci, inner;
	} tag;
	__u16 tci;

	if (skb->vlan_present || skb->len < L3 + VLAN_BYTES || bpf_skb_load_bytes(skb, L3 - 2, &tag, sizeof(tag)))
		return 0;
	tci = bpf_ntohs(tag.tci);
	if (tag.outer != bpf_htons(ETH_P_8021Q) || is_tag(tag.inner) || !may_be_tagged(zone, tci & VLAN_MASK))
		return 0;
	return bpf_skb_vlan_pop(skb) ? 0 : !bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), tci);
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
	if (skb->vlan_present || is_tag(eth->h_proto)) {
		if (!full)
			return ODD;
		if (is_tag(eth->h_proto) || skb->vlan_proto != bpf_htons(ETH_P_8021Q) ||
		    !may_be_tagged(zone, skb->vlan_tci & VLAN_MASK))
			return VLAN_TAGGED;
		h->key.vlan = skb->vlan_tci & VLAN_MASK;
	}
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

	lift_tag(skb, zone);
	if (bpf_skb_pull_data(skb, skb->len < HEADERS_MAX ? skb->len : HEADERS_MAX))
		return ENGINE_ERROR;
	reason = parse(skb, s, zone, 1);
	return reason == ODD ? ENGINE_ERROR : reason;
}
