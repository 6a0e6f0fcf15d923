/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * VXLAN (RFC 7348) without the VXLAN device: outer headers of single packets are made here, and taken off here. Packets
 * that an offload has made of several go by the device: nobody but the kernel can say of them that they are in a tunnel.
 */
#pragma once

#include "drop.h"
#include "parse.h"
#include "tunnel.h"

#define VXLAN_VNI_VALID 0x08000000	/* the only flag that there is */
#define OUTER_TTL 64
#define EVERY_LINK (L3 + 576)		/* bytes of a frame that are never too big: one compare for most packets */
#define SOURCE_PORT_LOW 49152		/* RFC 7348 5; the VXLAN device is given the same range (`ensure_tunnel`) */
#define SOURCE_PORT_HIGH 65535
#define BY_DEVICE_NS 11000000ULL	/* longer than the coarse clock stands still */
#define OVERHEAD4 (sizeof(struct outer4))
#define OVERHEAD6 (sizeof(struct outer6))
#define DECAP_L3_IPV4 (1ULL << 7)	/* BPF_F_ADJ_ROOM_DECAP_L3_*, of Linux 6.3 */
#define DECAP_L3_IPV6 (1ULL << 8)
#define ECN_MASK 3
#define ECN_ECT1 1
#define ECN_ECT0 2
#define ECN_CE 3

struct vxlan_header {
	__be32 flags;
	__be32 vni;			/* and a reserved byte */
};

/* From behind the outer Ethernet header to the end of the inner one. */
struct outer_rest {
	struct udphdr udp;
	struct vxlan_header vxlan;
	struct ethhdr eth;
} __attribute__((packed));

struct outer4 {
	struct iphdr ip;
	struct outer_rest rest;
} __attribute__((packed));

struct outer6 {
	struct ipv6_header ip;
	struct outer_rest rest;
} __attribute__((packed));

static __always_inline struct underlay *underlay_of(__u32 number)
{
	struct underlay *underlay = number ? bpf_map_lookup_elem(&underlays, &number) : 0;

	return underlay && underlay->family ? underlay : 0;
}

/* Of an IPv4 header without options. */
static __always_inline __be16 header_sum(const void *ip)
{
	const __u16 *words = ip;
	__u32 sum = 0;

	for (unsigned int i = 0; i < sizeof(struct iphdr) / 2; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* As the kernel makes it (udp_flow_src_port), so that all packets of a flow have the same, whoever sends them. */
static __always_inline __be16 source_port(struct __sk_buff *skb)
{
	__u32 hash = bpf_get_hash_recalc(skb);

	hash ^= hash << 16;
	return bpf_htons(((__u64)hash * (SOURCE_PORT_HIGH - SOURCE_PORT_LOW) >> 32) + SOURCE_PORT_LOW);
}

/* The byte of DSCP and ECN. */
static __always_inline int traffic_class(struct __sk_buff *skb, __u8 family, __u8 *class)
{
	__be16 start;

	if (family == 4)
		return bpf_skb_load_bytes(skb, L3 + 1, class, 1);
	if (bpf_skb_load_bytes(skb, L3, &start, 2))
		return -1;
	*class = bpf_ntohs(start) >> 4;
	return 0;
}

/* What the VXLAN device shall do with a packet. Returns whether it was told: not of a VTEP that the policy no longer knows. */
static __always_inline int tell_device(struct __sk_buff *skb, const struct into_tunnel *to, const struct underlay *from)
{
	struct bpf_tunnel_key key = {.tunnel_id = to->vni, .tunnel_ttl = OUTER_TTL};
	__u64 flags = BPF_F_ZERO_CSUM_TX | (from && from->mtu && !to->fragments ? BPF_F_DONT_FRAGMENT : 0);
	__u32 vtep = to->vtep;
	struct address *address;

	if (to->family && !traffic_class(skb, to->family, &key.tunnel_tos))
		key.tunnel_tos &= ~ECN_MASK;	/* which the device adds */
	if (is_ipv6_vtep(vtep)) {
		address = bpf_map_lookup_elem(&vtep_addresses, &vtep);
		if (!address)
			return 0;
		__builtin_memcpy(key.remote_ipv6, address, sizeof(*address));
		if (from)
			__builtin_memcpy(key.local_ipv6, &from->address, sizeof(from->address));
		flags |= BPF_F_TUNINFO_IPV6;
	} else {
		key.remote_ipv4 = vtep;
		if (from)
			key.local_ipv4 = bpf_ntohl(from->address.w[0]);
	}
	return !bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags);
}

static __always_inline void make_rest(struct __sk_buff *skb, struct outer_rest *rest, const struct into_tunnel *to,
				      __be16 port, __u32 length)
{
	rest->udp.source = source_port(skb);
	rest->udp.dest = port;
	rest->udp.len = bpf_htons(length);
	rest->udp.check = 0;		/* RFC 7348 5; over IPv6, RFC 6935 */
	rest->vxlan.flags = bpf_htonl(VXLAN_VNI_VALID);
	rest->vxlan.vni = bpf_htonl(to->vni << 8);
}

/* These return whether the packet is in the tunnel; if not, it is as it was. */
static __always_inline int encapsulate4(struct __sk_buff *skb, const struct into_tunnel *to, const struct underlay *from,
					__be16 port)
{
	__u64 how = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethhdr)) |
		    BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
	__u32 length = skb->len + sizeof(struct udphdr) + sizeof(struct vxlan_header);
	struct outer4 outer = {};

	/* RFC 6040 4.1, normal mode: ECN as it is inside. DSCP, too: RFC 2983 3.1. */
	if (traffic_class(skb, to->family, &outer.ip.tos) ||
	    bpf_skb_load_bytes(skb, 0, &outer.rest.eth, sizeof(outer.rest.eth)))
		return 0;
	outer.ip.version = 4;
	outer.ip.ihl = 5;
	outer.ip.tot_len = bpf_htons(length + sizeof(outer.ip));
	outer.ip.frag_off = from->mtu ? bpf_htons(IP_DONT_FRAGMENT) : 0;
	outer.ip.ttl = OUTER_TTL;
	outer.ip.protocol = IPPROTO_UDP;
	outer.ip.saddr = from->address.w[0];
	outer.ip.daddr = bpf_htonl(to->vtep);
	outer.ip.check = header_sum(&outer.ip);
	make_rest(skb, &outer.rest, to, port, length);
	return !bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, how) &&
	       !bpf_skb_store_bytes(skb, L3, &outer, sizeof(outer), 0);
}

static __always_inline int encapsulate6(struct __sk_buff *skb, const struct into_tunnel *to, const struct underlay *from,
					__be16 port)
{
	__u64 how = BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethhdr)) |
		    BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
	__u32 length = skb->len + sizeof(struct udphdr) + sizeof(struct vxlan_header), vtep = to->vtep;
	struct address *there = bpf_map_lookup_elem(&vtep_addresses, &vtep);
	struct outer6 outer = {};
	__u8 class;

	if (!there || traffic_class(skb, to->family, &class) ||
	    bpf_skb_load_bytes(skb, 0, &outer.rest.eth, sizeof(outer.rest.eth)))
		return 0;
	outer.ip.start = bpf_htonl(6U << 28 | (__u32)class << 20);
	outer.ip.length = bpf_htons(length);
	outer.ip.next = IPPROTO_UDP;
	outer.ip.hops = OUTER_TTL;
	outer.ip.src = from->address;
	outer.ip.dst = *there;
	make_rest(skb, &outer.rest, to, port, length);
	return !bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC, how) &&
	       !bpf_skb_store_bytes(skb, L3, &outer, sizeof(outer), 0);
}

/*
 * Into the tunnel that `s->tunnel` says. What is no IP, or was in a tunnel before, the kernel makes no room in; that, and what
 * must, or may have to, be fragmented outside, goes by the device.
 */
SEC("tc")
int vfp_encapsulate(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct settings *settings;
	struct underlay *from;
	__u32 zero = 0;
	int done;

	if (!s)
		return TC_ACT_SHOT;
	settings = bpf_map_lookup_elem(&config, &zero);
	from = underlay_of(s->tunnel.underlay);
	if (!settings)
		return drop_early(skb, s, ENGINE_ERROR);
	if (from && from->ifindex && s->tunnel.family && !skb->gso_size && !s->tunnel.fragments &&
	    (from->mtu || skb->len <= EVERY_LINK)) {
		if (from->family == 6)
			done = encapsulate6(skb, &s->tunnel, from, settings->tunnel_port);
		else
			done = encapsulate4(skb, &s->tunnel, from, settings->tunnel_port);
		if (done)
			return bpf_redirect_neigh(from->ifindex, 0, 0, 0);
	}
	if (!tell_device(skb, &s->tunnel, from))
		return drop_early(skb, s, NO_MAPPING);
	return bpf_redirect(settings->tunnel_ifindex, 0);
}

/*
 * Whether a frame of an underlay's link is one that is taken off here: a single packet to the tunnel's port. What comes from
 * the VXLAN device comes later than what does not, so a packet that follows one of those, on this CPU, takes the same way.
 */
static __always_inline int is_tunnelled(struct __sk_buff *skb, struct scratch *s)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct settings *settings;
	struct ethhdr *eth = data;
	struct udphdr *udp;
	__u32 zero = 0;

	settings = bpf_map_lookup_elem(&config, &zero);
	if (!settings || !settings->tunnel_port)
		return 0;
	if ((void *)(eth + 1) > end || skb->vlan_present)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->protocol != IPPROTO_UDP ||
		    ip->frag_off & bpf_htons(IP_OFFSET_MASK | IP_MORE_FRAGMENTS))
			return 0;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6_header *ip = (void *)(eth + 1);

		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > end || ip->next != IPPROTO_UDP)
			return 0;
	} else {
		return 0;
	}
	if (udp->dest != settings->tunnel_port)
		return 0;
	if (!skb->gso_size)
		return !s->by_device_ns || bpf_ktime_get_coarse_ns() - s->by_device_ns > BY_DEVICE_NS;
	s->by_device_ns = bpf_ktime_get_coarse_ns();
	return 0;
}

/* RFC 6040 4.2: what the inner packet's ECN becomes; negative: it is dropped. */
static __always_inline int ecn_of(__u8 outer, __u8 inner)
{
	outer &= ECN_MASK;
	inner &= ECN_MASK;
	if (outer == ECN_CE)
		return inner ? ECN_CE : -1;
	return outer == ECN_ECT1 && inner == ECN_ECT0 ? ECN_ECT1 : inner;
}

/* Where it stands in the packet in hand, which is no longer in a tunnel. */
static __always_inline int set_ecn(struct __sk_buff *skb, __u8 family, __u8 from, __u8 to)
{
	__u8 class = (from & ~ECN_MASK) | to;
	__be16 start;

	if (family == 4)
		return bpf_l3_csum_replace(skb, L3 + offsetof(struct iphdr, check), bpf_htons(from), bpf_htons(class), 2) ||
		       bpf_skb_store_bytes(skb, L3 + 1, &class, 1, 0);
	if (bpf_skb_load_bytes(skb, L3, &start, 2))
		return -1;
	start = (start & bpf_htons(0xf00f)) | bpf_htons(class << 4);
	return bpf_skb_store_bytes(skb, L3, &start, 2, BPF_F_RECOMPUTE_CSUM);
}

/* What comes off with the outer headers. */
struct taken_off {
	struct ethhdr eth;		/* the inner one */
	__u32 vni;
	__u32 vtep;
	__u8 family;			/* of the inner packet */
	__u8 inner;			/* traffic classes */
	__u8 outer;
	__u8 pad;
};

/* The part behind the outer IP header, which says that `length` bytes follow it. */
static __always_inline int read_rest(const struct outer_rest *rest, void *end, __u32 length, struct taken_off *off)
{
	const __u8 *inner = (const __u8 *)(rest + 1);

	if ((void *)(inner + sizeof(struct iphdr)) > end || rest->udp.check || bpf_ntohs(rest->udp.len) != length ||
	    rest->vxlan.flags != bpf_htonl(VXLAN_VNI_VALID) || rest->vxlan.vni & bpf_htonl(0xff))
		return 0;
	off->eth = rest->eth;
	off->vni = bpf_ntohl(rest->vxlan.vni) >> 8;
	switch (rest->eth.h_proto) {
	case bpf_htons(ETH_P_IP):
		off->family = 4;
		off->inner = inner[1];
		return 1;
	case bpf_htons(ETH_P_IPV6):
		off->family = 6;
		off->inner = inner[0] << 4 | inner[1] >> 4;
		return 1;
	}
	return 0;
}

static __always_inline int is_own(const struct underlay_key *key)
{
	return bpf_map_lookup_elem(&underlay_numbers, key) != 0;
}

/* Returns whether it may be taken off here: whatever is unusual about it is for the kernel to judge. */
static __always_inline int read_outer4(struct __sk_buff *skb, struct taken_off *off)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct outer4 *outer = data + L3;
	struct underlay_key key = {};

	if ((void *)(outer + 1) > end || bpf_ntohs(outer->ip.tot_len) != skb->len - L3 || header_sum(&outer->ip))
		return 0;
	key.family = 4;
	key.address.w[0] = outer->ip.daddr;
	off->vtep = ipv4_vtep(bpf_ntohl(outer->ip.saddr));
	off->outer = outer->ip.tos;
	return is_own(&key) && read_rest(&outer->rest, end, skb->len - L3 - sizeof(outer->ip), off);
}

static __always_inline int read_outer6(struct __sk_buff *skb, struct taken_off *off)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct outer6 *outer = data + L3;
	struct underlay_key key = {};
	struct address source;
	__u32 length;

	if ((void *)(outer + 1) > end)
		return 0;
	length = bpf_ntohs(outer->ip.length);
	if (length != skb->len - L3 - sizeof(outer->ip) || bpf_ntohl(outer->ip.start) >> 28 != 6)
		return 0;
	key.family = 6;
	key.address = outer->ip.dst;
	source = outer->ip.src;
	off->outer = bpf_ntohl(outer->ip.start) >> 20;
	if (!read_rest(&outer->rest, end, length, off) || !is_own(&key))
		return 0;
	off->vtep = ipv6_vtep(&source);
	return 1;
}

/* Returns whether the outer headers are gone; if not, the frame is as it was. */
static __always_inline int take_off(struct __sk_buff *skb, const struct taken_off *off, __u32 bytes, __u8 outer_family)
{
	__u64 how = off->family == outer_family ? 0 : off->family == 4 ? DECAP_L3_IPV4 : DECAP_L3_IPV6;

	return !bpf_skb_adjust_room(skb, -(__s32)bytes, BPF_ADJ_ROOM_MAC, how) &&
	       !bpf_skb_store_bytes(skb, 0, &off->eth, sizeof(off->eth), 0);
}
