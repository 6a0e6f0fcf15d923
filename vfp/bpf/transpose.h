/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Apply a transposition to the packet's bytes (checksums by RFC 1624) and send it where it goes. */
#pragma once

#include <linux/if_packet.h>
#include <stddef.h>

#include "mss.h"
#include "vxlan.h"

#define IPV4_CHECK (L3 + offsetof(struct iphdr, check))
#define IPV4_TTL (L3 + offsetof(struct iphdr, ttl))
#define IPV4_DST (L3 + offsetof(struct iphdr, daddr))
#define IPV6_HOPS (L3 + offsetof(struct ipv6_header, hops))
#define GSO_BY_FRAGS 0xffff
#define AF_INET 2
#define AF_INET6 10
#define MARK_INSPECTED 0x51ce1a57	/* of a packet that enters again at its link */
#define IPV6_SRC (L3 + offsetof(struct ipv6_header, src))

/* Zero is "none" in its checksum (RFC 768), or cannot be (RFC 3828). */
static __always_inline int is_udp(__u8 protocol)
{
	return protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE;
}

/* Of an echo: the source port of a request, the destination port of a reply. */
static __always_inline int set_identifier(struct __sk_buff *skb, struct scratch *s, const struct transposition *t)
{
	__be16 from = t->flags & SET_SPORT ? s->pkt.key.sport : s->pkt.key.dport;
	__be16 to = t->flags & SET_SPORT ? t->sport : t->dport;

	if (bpf_l4_csum_replace(skb, s->l4 + offsetof(struct icmp_header, check), from, to, 2) ||
	    bpf_skb_store_bytes(skb, s->l4 + offsetof(struct icmp_header, id), &to, 2, 0))
		return ENGINE_ERROR;
	return NONE;
}

/*
 * Addresses are in the pseudo header and ports are not: with an offloaded (partial) checksum only the first may be
 * folded in, so the two go through separate calls.
 */
static __always_inline int set_ports(struct __sk_buff *skb, struct scratch *s, const struct transposition *t)
{
	const struct flow_key *key = &s->pkt.key;
	__u64 udp = key->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u32 check = s->l4 + (udp ? offsetof(struct udphdr, check) : offsetof(struct tcphdr, check));

	if (is_icmp(key->family, key->protocol))
		return set_identifier(skb, s, t);
	if (t->flags & SET_SPORT) {
		if (bpf_l4_csum_replace(skb, check, key->sport, t->sport, udp | 2) ||
		    bpf_skb_store_bytes(skb, s->l4, &t->sport, 2, 0))
			return ENGINE_ERROR;
	}
	if (t->flags & SET_DPORT) {
		if (bpf_l4_csum_replace(skb, check, key->dport, t->dport, udp | 2) ||
		    bpf_skb_store_bytes(skb, s->l4 + 2, &t->dport, 2, 0))
			return ENGINE_ERROR;
	}
	return NONE;
}

/*
 * There is no header checksum that a change of addresses would cancel in, so a complete checksum of the whole packet is
 * told of it by BPF_F_RECOMPUTE_CSUM; that of the transport then takes it back.
 */
static __always_inline int set_ipv6_addresses(struct __sk_buff *skb, struct scratch *s, const struct transposition *t)
{
	const struct flow_key *key = &s->pkt.key;
	__u64 udp = is_udp(key->protocol) ? BPF_F_MARK_MANGLED_0 : 0;
	__s64 change = bpf_csum_diff((__be32 *)&key->src, 32, (__be32 *)&t->src, 32, 0);
	__u32 check = 0;

	if (key->protocol == IPPROTO_TCP)
		check = s->l4 + offsetof(struct tcphdr, check);
	else if (udp)
		check = s->l4 + offsetof(struct udphdr, check);
	else if (key->protocol == IPPROTO_ICMPV6)
		check = s->l4 + offsetof(struct icmp_header, check);
	if (check && s->fragment_kind != LATER_FRAGMENT &&
	    bpf_l4_csum_replace(skb, check, 0, change, BPF_F_PSEUDO_HDR | udp))
		return ENGINE_ERROR;
	if (bpf_skb_store_bytes(skb, IPV6_SRC, &t->src, 32, BPF_F_RECOMPUTE_CSUM))
		return ENGINE_ERROR;
	return NONE;
}

/* The header from TTL to addresses, which lie side by side. */
struct ipv4_rest {
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__be32 src;
	__be32 dst;
};

/*
 * Two of the helpers' calls are a fifth of a hit with translation, so the header's checksum is made here (RFC 1624
 * equation 3), and all that changes in the header is one write.
 */
static __always_inline int set_ipv4(struct __sk_buff *skb, struct scratch *s, const struct transposition *t)
{
	const struct flow_key *key = &s->pkt.key;
	struct ipv4_rest rest = {.ttl = s->ttl, .protocol = key->protocol, .src = key->src.w[0], .dst = key->dst.w[0]};
	__u64 sum = (__u16)~s->check;

	if (t->flags & (SET_SRC | SET_DST)) {
		__u64 change = (__u64)(__u32)~rest.src + (__u32)~rest.dst + t->src.w[0] + t->dst.w[0];

		change = (change & 0xffffffff) + (change >> 32);
		change = (change & 0xffffffff) + (change >> 32);
		if (s->fragment_kind != LATER_FRAGMENT && (key->protocol == IPPROTO_TCP || is_udp(key->protocol))) {
			__u64 udp = is_udp(key->protocol) ? BPF_F_MARK_MANGLED_0 : 0;
			__u32 check = s->l4 + (udp ? offsetof(struct udphdr, check) : offsetof(struct tcphdr, check));

			if (bpf_l4_csum_replace(skb, check, 0, change, BPF_F_PSEUDO_HDR | udp))
				return ENGINE_ERROR;
		}
		rest.src = t->src.w[0];
		rest.dst = t->dst.w[0];
		sum += change;
	}
	if (t->flags & DEC_TTL) {
		rest.ttl--;
		sum += (__u16)~bpf_htons(1 << 8);
	}
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	rest.check = ~sum;
	return bpf_skb_store_bytes(skb, IPV4_TTL, &rest, sizeof(rest), 0) ? ENGINE_ERROR : NONE;
}

static __always_inline int set_ipv6(struct __sk_buff *skb, struct scratch *s, const struct transposition *t)
{
	__u8 hops = s->ttl - 1;

	if (t->flags & (SET_SRC | SET_DST)) {
		int reason = set_ipv6_addresses(skb, s, t);

		if (reason)
			return reason;
	}
	if (t->flags & DEC_TTL && bpf_skb_store_bytes(skb, IPV6_HOPS, &hops, 1, BPF_F_RECOMPUTE_CSUM))
		return ENGINE_ERROR;
	return NONE;
}

/* Of the byte, the lower two bits are ECN's (RFC 3168). */
static __always_inline int set_dscp(struct __sk_buff *skb, struct scratch *s, __u8 dscp)
{
	__be16 start, to;
	__u8 tos, new;

	if (s->pkt.dscp == dscp || !s->pkt.key.family)
		return NONE;
	if (s->pkt.key.family == 6) {	/* between version and flow label */
		if (bpf_skb_load_bytes(skb, L3, &start, 2))
			return ENGINE_ERROR;
		to = (start & bpf_htons(0xf03f)) | bpf_htons(dscp << 6);
		return bpf_skb_store_bytes(skb, L3, &to, 2, BPF_F_RECOMPUTE_CSUM) ? ENGINE_ERROR : NONE;
	}
	if (bpf_skb_load_bytes(skb, L3 + 1, &tos, 1))
		return ENGINE_ERROR;
	new = (tos & 3) | dscp << 2;
	if (bpf_l3_csum_replace(skb, IPV4_CHECK, bpf_htons(tos), bpf_htons(new), 2) ||
	    bpf_skb_store_bytes(skb, L3 + 1, &new, 1, 0))
		return ENGINE_ERROR;
	return NONE;
}

static __always_inline int set_macs(struct __sk_buff *skb, struct scratch *s, const struct transposition *t)
{
	struct headers *h = &s->pkt;
	__u8 macs[12];

	/* Most frames already carry the right ones. */
	if ((!(t->flags & SET_DMAC) || same_mac(h->dmac, t->dmac)) &&
	    (!(t->flags & SET_SMAC) || same_mac(h->smac, t->smac)))
		return NONE;
	copy_mac(macs, t->flags & SET_DMAC ? t->dmac : h->dmac);
	copy_mac(macs + 6, t->flags & SET_SMAC ? t->smac : h->smac);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return ENGINE_ERROR;
	return NONE;
}

static __always_inline int rewrite_packet(struct __sk_buff *skb, struct scratch *s, const struct transposition *t)
{
	int reason;

	if (t->flags & (SET_SPORT | SET_DPORT) && s->fragment_kind != LATER_FRAGMENT) {
		reason = set_ports(skb, s, t);
		if (reason)
			return reason;
	}
	if (t->flags & (SET_SRC | SET_DST | DEC_TTL)) {
		reason = s->pkt.key.family == 6 ? set_ipv6(skb, s, t) : set_ipv4(skb, s, t);
		if (reason)
			return reason;
	}
	if (t->flags & SET_DSCP) {
		reason = set_dscp(skb, s, t->dscp);
		if (reason)
			return reason;
	}
	return set_macs(skb, s, t);
}

/* Outer headers are made beyond a tail call; a test run shows the packet without them. */
static __always_inline int into_tunnel(struct __sk_buff *skb, struct scratch *s, __u32 vni, __u32 vtep, __u8 underlay,
				       __u8 fragments)
{
	s->tunnel.vni = vni;
	s->tunnel.vtep = vtep;
	s->tunnel.underlay = underlay;
	s->tunnel.fragments = fragments;
	s->tunnel.family = s->pkt.key.family;
	if (s->probe)
		return TC_ACT_OK;
	bpf_tail_call(skb, &jumps, JUMP_ENCAPSULATE);
	return drop_early(skb, s, ENGINE_ERROR);
}

/*
 * What the engine itself sends by way of a link that has a hook of it: an answer that the host's stack gets by ingress of
 * a port's link, what goes to the host's sockets by that of the loopback device, and to a tap by its egress. The hook knows
 * it by its mark. What an endpoint sends has none: the kernel clears it between namespaces, and a tap gives none.
 */
static __always_inline __u32 engine_mark(void)
{
	__u32 zero = 0;
	struct settings *settings = bpf_map_lookup_elem(&config, &zero);

	return settings ? (__u32)settings->secret[0] | 1 : 0;
}

static __always_inline int is_engines(struct __sk_buff *skb)
{
	if (!skb->mark || skb->mark != engine_mark())
		return 0;
	skb->mark = 0;
	return 1;
}

static __always_inline int past_hook(struct __sk_buff *skb, const struct scratch *s, __u32 ifindex, __u64 flags)
{
	if (!s->probe)
		skb->mark = engine_mark();
	return bpf_redirect(ifindex, flags);
}

static __always_inline int to_endpoint(struct __sk_buff *skb, const struct scratch *s, __u32 ifindex, int tap)
{
	if (tap)
		return past_hook(skb, s, ifindex, 0);
	/* The frame was addressed to the endpoint, not to the link it came in on. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	return bpf_redirect_peer(ifindex, 0);
}

/* An answer to what a port asked, or somebody over the overlay. */
static __always_inline int back_to_asker(struct __sk_buff *skb, struct scratch *s)
{
	__u32 id = ZONE_NUMBER(s->pkt.key.zone);
	struct port *port;

	if (ZONE_KIND(s->pkt.key.zone) == ZONE_OVERLAY) {
		return into_tunnel(skb, s, id, s->reply.out.vtep, s->reply.out.underlay, 0);
	}
	if (ZONE_KIND(s->pkt.key.zone) == ZONE_UPLINK)
		return bpf_redirect(skb->ifindex, 0);
	port = bpf_map_lookup_elem(&ports, &id);
	if (!port || !port->ifindex)
		return drop_early(skb, s, UNKNOWN_PORT);
	return to_endpoint(skb, s, port->ifindex, port->flags & (PORT_TAP | PORT_QUEUED));
}

/* To the host's stack, of what came by the shaper: at the port's own link, past its hook. */
static __always_inline int from_shaper(struct __sk_buff *skb, struct scratch *s)
{
	__u32 id = ZONE_NUMBER(s->pkt.key.zone);
	struct port *port = bpf_map_lookup_elem(&ports, &id);

	if (!port || !port->ifindex)
		return drop_early(skb, s, UNKNOWN_PORT);
	return past_hook(skb, s, port->ifindex, BPF_F_INGRESS);
}

/*
 * To the host's stack after inspection: at the link where it came from, as the stack expects it there. Endpoints cannot
 * forge the mark: it does not cross from their namespace.
 */
static __always_inline int enter_again(struct __sk_buff *skb, struct scratch *s)
{
	__u32 id = ZONE_NUMBER(s->pkt.key.zone);
	struct port *port = bpf_map_lookup_elem(&ports, &id);

	if (!port || !port->ifindex)
		return drop_early(skb, s, UNKNOWN_PORT);
	skb->mark = MARK_INSPECTED;
	return bpf_redirect(port->ifindex, ZONE_KIND(s->pkt.key.zone) == ZONE_HOST ? 0 : BPF_F_INGRESS);
}

enum size {
	SIZE_FITS = 0,
	SIZE_FRAGMENTS = 1,	/* too big, and may be fragmented outside */
	SIZE_TOO_BIG = 2,
};

/* Bytes of the largest IP packet that may leave so; 0: not known. */
static __always_inline __u32 mtu_of(const struct transposition *t)
{
	__u32 mtu, vtep = t->vtep, *path;
	struct underlay *from;

	if (t->place != PLACE_TUNNEL)
		return t->mtu;
	from = underlay_of(t->underlay);
	if (!from || !from->mtu)
		return 0;
	mtu = from->mtu;
	path = bpf_map_lookup_elem(&paths, &vtep);
	if (path && *path < mtu)
		mtu = *path;
	return mtu - (from->family == 6 ? OVERHEAD6 : OVERHEAD4);
}

/*
 * Whether what leaves is more than there is room for; of an offloaded packet, what each of its segments will be. Those
 * of SCTP (GSO_BY_FRAGS) differ, and their sender knows its path.
 */
static __always_inline int exceeds(struct __sk_buff *skb, const struct scratch *s, __u32 mtu)
{
	__u32 length = skb->len - L3, segment = skb->gso_size;
	__u8 offset;

	if (!mtu || length <= mtu || segment == GSO_BY_FRAGS)
		return 0;
	if (!segment)
		return 1;
	if (s->pkt.key.protocol != IPPROTO_TCP)
		return s->l4 - L3 + sizeof(struct udphdr) + segment > mtu;
	if (bpf_skb_load_bytes(skb, s->l4 + 12, &offset, 1))
		return 1;
	return s->l4 - L3 + (offset >> 4) * 4U + segment > mtu;
}

/* An IPv4 packet that may be fragmented is so in a tunnel over IPv4 only: nothing else that the engine sends by does it. */
static __always_inline int size_of(struct __sk_buff *skb, struct scratch *s, const struct transposition *t)
{
	__u32 mtu = mtu_of(t);
	__be16 field = 0;

	if (!exceeds(skb, s, mtu))
		return SIZE_FITS;
	s->mtu = mtu;
	if (t->place == PLACE_TUNNEL && !is_ipv6_vtep(t->vtep) && s->pkt.key.family == 4 &&
	    !bpf_skb_load_bytes(skb, L3 + offsetof(struct iphdr, frag_off), &field, sizeof(field)) &&
	    !(field & bpf_htons(IP_DONT_FRAGMENT)))
		return SIZE_FRAGMENTS;
	return SIZE_TOO_BIG;
}

/* bpf_redirect_neigh does not fragment and does not tell: the device, or the next one, loses the packet. */
static __always_inline int drop_too_big(struct __sk_buff *skb, struct scratch *s)
{
	drop_early(skb, s, TOO_BIG);
	if (!is_dry(s))
		bpf_tail_call(skb, &jumps, JUMP_REJECT);
	return TC_ACT_SHOT;
}

/* To the router that a rule named, whatever the host's routes. */
static __always_inline int by_hop(const struct transposition *t)
{
	struct bpf_redir_neigh to = {};
	__u32 id = t->vtep;
	struct hop *hop = bpf_map_lookup_elem(&hops, &id);

	if (!hop)
		return TC_ACT_SHOT;
	to.nh_family = hop->family == 6 ? AF_INET6 : AF_INET;
	__builtin_memcpy(to.ipv6_nh, &hop->address, sizeof(hop->address));
	return bpf_redirect_neigh(t->ifindex, &to, sizeof(to), 0);
}

/* Returns a TC verdict. */
static __always_inline int transpose(struct __sk_buff *skb, struct scratch *s, const struct transposition *t)
{
	int reason, size = SIZE_FITS;

	if (t->flags & DEC_TTL) {
		if (s->ttl <= 1)
			return drop_early(skb, s, TTL_EXCEEDED);
	}
	/* Sent to everyone on its link, so no router's to pass on (RFC 1812 5.3.4); the kernel would not, either. */
	if ((t->place == PLACE_UPLINK || t->place == PLACE_LOOPBACK) && s->pkt.dmac[0] & 1)
		return drop_early(skb, s, NO_ROUTE);
	if (skb->len > EVERY_LINK) {
		size = size_of(skb, s, t);
		if (size == SIZE_TOO_BIG)
			return drop_too_big(skb, s);
	}
	if (s->pkt.tcp_flags & TCP_SYN)
		clamp_mss(skb, s, mtu_of(t));
	reason = rewrite_packet(skb, s, t);
	if (reason)
		return drop_early(skb, s, reason);
	if (report(skb, s, t->place, NONE, t->place == PLACE_TUNNEL ? t->vni : t->ifindex)) {
		skb->cb[CB_VTEP] = t->vtep;
		return TC_ACT_OK;
	}
	switch (t->place) {
	case PLACE_PORT:
		return to_endpoint(skb, s, t->ifindex, 0);
	case PLACE_TUNNEL:
		return into_tunnel(skb, s, t->vni, t->vtep, t->underlay, size == SIZE_FRAGMENTS);
	case PLACE_UPLINK:
		return t->vtep ? by_hop(t) : bpf_redirect_neigh(t->ifindex, 0, 0, 0);
	case PLACE_WIRE:
		return bpf_redirect(t->ifindex, 0);
	case PLACE_STACK:
		if (s->inspected && !s->probe)	/* whose mark says where a copy went */
			return enter_again(skb, s);
		if (s->shaped)
			return from_shaper(skb, s);
		return TC_ACT_UNSPEC;	/* let the filters of others see it */
	case PLACE_TAP:
		return past_hook(skb, s, t->ifindex, 0);
	case PLACE_LOOPBACK:
		return past_hook(skb, s, t->ifindex, BPF_F_INGRESS);
	}
	return drop_early(skb, s, ENGINE_ERROR);
}
