/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * The detour by user space. A packet of a flow that is to be inspected leaves as it came, through a pair of links into a
 * namespace that routes everything out of a second pair; on the way there NFQUEUE hands it to user space. Who it is goes
 * along in 32 bits: in the Ethernet source on the links, for they scrub marks, and in skb->mark inside.
 */
#pragma once

#include "flow_table.h"
#include "transpose.h"

/* skb->mark inside the namespace: zone (26 bits), queue (4), and two flags. */
#define INSPECT_ZONE ((1U << 26) - 1)
#define INSPECT_QUEUE_SHIFT 26
#define INSPECT_FAIL_OPEN (1U << 30)
#define INSPECT_RELEASE (1U << 31)	/* set by user space: it has seen enough of the flow */

#define INSPECT_MAC 0x06		/* first byte of the Ethernet source; local, and of no endpoint */
#define ROUTABLE_TTL 64			/* inside, of a packet that would die there */
#define HAS_TTL 0x100			/* skb->tc_index inside: this, and the packet's own TTL */

struct inspect_mac {
	__u8 kind;
	__u8 zero;
	__be32 mark;
} __attribute__((packed));

/* What the namespace, a router like any, would not forward. */
static __always_inline int is_unroutable(const struct flow_key *key, const struct address *address)
{
	__u32 first = bpf_ntohl(address->w[0]);

	if (key->family == 6)	/* multicast, link-local, loopback, unspecified */
		return first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6 ||
		       !(address->w[0] | address->w[1] | address->w[2]);
	return first >> 24 == 0 || first >> 24 == 127 || first >> 24 >= 224;
}

static __always_inline int is_inspectable(const struct scratch *s)
{
	const struct flow_key *key = &s->pkt.key;

	return s->fragment_kind == NOT_FRAGMENT && !key->vlan && !is_unroutable(key, &key->src) && !is_unroutable(key, &key->dst);
}

/* Interface index of where packets leave for user space; 0: there is none. */
static __always_inline __u32 inspect_device(void)
{
	struct settings *settings;
	__u32 zero = 0;

	settings = bpf_map_lookup_elem(&config, &zero);
	return settings ? settings->inspect_ifindex : 0;
}

static __always_inline int is_to_inspect(const struct flow *f)
{
	return (f->flags & (FLOW_INSPECT | FLOW_RELEASED)) == FLOW_INSPECT;
}

static __always_inline void count_inspection(struct __sk_buff *skb, __u32 which)
{
	__u64 *count = bpf_map_lookup_elem(&inspections, &which);

	if (count)
		*count += skb->gso_segs ? skb->gso_segs : 1;
}

/* Out of the host's link of the first pair. */
static __always_inline int send_to_inspect(struct __sk_buff *skb, struct scratch *s, const struct flow *f, __u32 ifindex)
{
	struct inspect_mac mac = {.kind = INSPECT_MAC};

	mac.mark = bpf_htonl(s->pkt.key.zone | (__u32)f->extras.queue << INSPECT_QUEUE_SHIFT |
			     (f->extras.fail_open ? INSPECT_FAIL_OPEN : 0));
	report(skb, s, PLACE_INSPECT, NONE, f->extras.queue);
	if (s->probe)		/* it shows the packet as it came */
		return TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_source), &mac, sizeof(mac), 0))
		return drop_early(skb, s, ENGINE_ERROR);
	count_inspection(skb, INSPECT_SENT);
	return bpf_redirect(ifindex, 0);
}

/* Of the frame in hand: 0, or its mark. */
static __always_inline __u32 read_inspect_mac(struct __sk_buff *skb)
{
	struct inspect_mac mac;

	if (bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_source), &mac, sizeof(mac)) || mac.kind != INSPECT_MAC)
		return 0;
	return bpf_ntohl(mac.mark);
}

/* Where the TTL or hop limit is, and what it is; 0: there is none. */
static __always_inline __u32 read_ttl(struct __sk_buff *skb, __u8 *ttl)
{
	__u32 at = skb->protocol == bpf_htons(ETH_P_IP) ? IPV4_TTL :
		   skb->protocol == bpf_htons(ETH_P_IPV6) ? IPV6_HOPS : 0;

	return at && !bpf_skb_load_bytes(skb, at, ttl, 1) ? at : 0;
}

static __always_inline int write_ttl(struct __sk_buff *skb, __u32 at, __u8 from, __u8 to)
{
	if (from == to)
		return 0;
	if (at == IPV6_HOPS)
		return bpf_skb_store_bytes(skb, at, &to, 1, BPF_F_RECOMPUTE_CSUM);
	return bpf_l3_csum_replace(skb, IPV4_CHECK, bpf_htons(from << 8), bpf_htons(to << 8), 2) ||
	       bpf_skb_store_bytes(skb, at, &to, 1, 0);
}

/* Back from user space, the packet gets the addresses that it had on its link: layers have judged them. */
static __always_inline int restore_macs(struct __sk_buff *skb, struct scratch *s, const struct flow *f)
{
	__u8 macs[12];

	copy_mac(macs, f->dmac);
	copy_mac(macs + 6, f->smac);
	copy_mac(s->pkt.dmac, f->dmac);
	copy_mac(s->pkt.smac, f->smac);
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

static __always_inline void release(struct flow *f)
{
	struct flow *pair;

	f->flags |= FLOW_RELEASED;
	if (f->state & STATE_SINGLE)
		return;
	pair = bpf_map_lookup_elem(&flows, &f->pair);
	if (pair)
		pair->flags |= FLOW_RELEASED;
}

/* Ingress of the namespace's first link. A packet without a mark of ours is nobody's: it goes no further. */
SEC("tc")
int vfp_inspect_in(struct __sk_buff *skb)
{
	__u32 mark = read_inspect_mac(skb), at;
	__u8 ttl;

	if (!mark)
		return TC_ACT_SHOT;
	skb->mark = mark;
	at = read_ttl(skb, &ttl);
	if (!at)
		return TC_ACT_SHOT;
	skb->tc_index = HAS_TTL | ttl;
	if (ttl <= 1 && write_ttl(skb, at, ttl, ROUTABLE_TTL))
		return TC_ACT_SHOT;
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	return TC_ACT_UNSPEC;
}

/* Egress of its second link: what the namespace did to the packet as a router is undone. */
SEC("tc")
int vfp_inspect_out(struct __sk_buff *skb)
{
	struct inspect_mac mac = {.kind = INSPECT_MAC, .mark = bpf_htonl(skb->mark)};
	__u32 at, was = skb->tc_index;
	__u8 ttl;

	if (!skb->mark)		/* the namespace's own */
		return TC_ACT_SHOT;
	at = read_ttl(skb, &ttl);
	if (!at || (was & HAS_TTL && write_ttl(skb, at, ttl, was)))
		return TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_source), &mac, sizeof(mac), 0))
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}
