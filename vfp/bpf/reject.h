/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Tell the sender of a rejected packet: TCP by a reset (RFC 9293 3.5.2), the rest by ICMP "administratively prohibited"
 * (RFC 1812 5.2.7.1, RFC 4443 3.1); that of a packet which is too big by ICMP with the MTU (RFC 1191 4, RFC 4443 3.2).
 * The answer is made beside the packet, put in its place, and sent to where it came from.
 */
#pragma once

#include "transpose.h"

#define ANSWER_TTL 64
#define QUOTE_MAX (576 - 20 - 8)	/* RFC 1812 4.3.2.3: the error is at most 576 bytes */
#define QUOTE6_MAX (1280 - 40 - 8)	/* RFC 4443 2.4 (c) */
#define PROHIBITED 13			/* ICMP code; of ICMPv6: 1 */
#define PROHIBITED6 1
#define ICMP6_TOO_BIG 2
#define INTERNETWORK_CONTROL 0xc0	/* RFC 1812 4.3.2.5 */
#define SUM_BYTES 512			/* that bpf_csum_diff takes at once */
#define SUM_CHUNKS 3
#define PULL_MAX 4095			/* that bpf_skb_adjust_room takes */

/* Two bytes before a frame align its IP header. */
struct frame_start {
	__u16 pad;
	struct ethhdr eth;
};

struct reset4 {
	struct frame_start start;
	struct iphdr ip;
	struct tcphdr tcp;
};

struct reset6 {
	struct frame_start start;
	struct ipv6_header ip;
	struct tcphdr tcp;
};

struct error4 {
	struct frame_start start;
	struct iphdr ip;
	struct icmp_header icmp;
	__u8 quote[SUM_CHUNKS * SUM_BYTES];
};

struct error6 {
	struct frame_start start;
	struct ipv6_header ip;
	struct icmp_header icmp;
	__u8 quote[SUM_CHUNKS * SUM_BYTES];
};

#define FRAME offsetof(struct frame_start, eth)

union answer {
	struct frame_start start;
	struct reset4 reset4;
	struct reset6 reset6;
	struct error4 error4;
	struct error6 error6;
};

/* Has no fields: an adopted map's layout is compared, and the kernel's headers have bit-fields. */
struct answer_room {
	__u64 words[sizeof(union answer) / 8];
};

_Static_assert(sizeof(struct answer_room) == sizeof(union answer), "an answer fills its room");

/* Where an answer is made; too large for the stack, and rarer than what is in `scratches`. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct answer_room);
	__uint(max_entries, 1);
} answers SEC(".maps");

/* RFC 1122 3.2.2, RFC 4443 2.4 (e); what is not known to be no error counts as one, and neighbours are not told. */
static __always_inline int is_no_question(const struct headers *h)
{
	__u8 type = h->icmp_type;

	if (!is_icmp(h->key.family, h->key.protocol))
		return 0;
	if (h->key.family == 6)
		return type < ICMP6_ECHO || (type >= ND_FIRST && type <= ND_LAST);
	return type == ICMP_DEST_UNREACH || type == ICMP_SOURCE_QUENCH || type == ICMP_REDIRECT ||
	       type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB || type > ICMP_LAST;
}

/* An address of one host, not of a link or a group, and not of everybody. */
static __always_inline int is_somebody(const struct address *address, __u8 family)
{
	__u32 first = bpf_ntohl(address->w[0]) >> 24;

	if (family == 4)
		return first && first != 127 && first < 224;
	return !is_multicast(address) &&
	       (address->w[0] | address->w[1] | address->w[2] || bpf_ntohl(address->w[3]) > 1);
}

static __always_inline int may_answer(const struct scratch *s)
{
	const struct headers *h = &s->pkt;

	if (!h->key.family || s->fragment_kind == LATER_FRAGMENT || (h->smac[0] | h->dmac[0]) & 1)
		return 0;
	if (!is_somebody(&h->key.src, h->key.family) || !is_somebody(&h->key.dst, h->key.family))
		return 0;
	if (h->key.protocol == IPPROTO_TCP)
		return !(h->tcp_flags & TCP_RST);
	return !is_no_question(h);
}

/* One answer each `answer_ns` on a CPU, `answer_burst_ns` of them at once: a token bucket, kept as a time. */
static __always_inline int take_token(struct scratch *s)
{
	__u64 now = bpf_ktime_get_ns(), until = s->answers_ns;
	__u32 zero = 0;
	struct settings *settings = bpf_map_lookup_elem(&config, &zero);

	if (!settings)
		return 0;
	if (until < now)
		until = now;
	if (until - now > settings->answer_burst_ns)
		return 0;
	s->answers_ns = until + settings->answer_ns;
	return 1;
}

static __always_inline __be16 fold(__u64 sum)
{
	for (int i = 0; i < 4; i++)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Of `size` bytes, a multiple of 4. */
static __always_inline __be16 checksum(const void *data, __u32 size, __be32 seed)
{
	__s64 sum = seed;

	for (int i = 0; i < SUM_CHUNKS; i++) {
		if (size <= SUM_BYTES) {
			sum = bpf_csum_diff(0, 0, (__be32 *)(data + i * SUM_BYTES), size, sum);
			break;
		}
		sum = bpf_csum_diff(0, 0, (__be32 *)(data + i * SUM_BYTES), SUM_BYTES, sum);
		size -= SUM_BYTES;
	}
	return fold((__u32)sum);
}

static __always_inline void answer_ethernet(struct ethhdr *eth, const struct headers *h)
{
	copy_mac(eth->h_dest, h->smac);
	copy_mac(eth->h_source, h->dmac);
	eth->h_proto = bpf_htons(h->ethertype);
}

/* Of an ICMP error: the gateway of the port that is told, if it has one, else whom the packet was meant for. */
static __always_inline const struct address *answerer(const struct headers *h)
{
	__u32 id = ZONE_NUMBER(h->key.zone), six = h->key.family == 6;
	struct gateways *known = ZONE_KIND(h->key.zone) == ZONE_PORT ? bpf_map_lookup_elem(&gateways, &id) : 0;

	return known && !is_unspecified(&known->of[six]) ? &known->of[six] : &h->key.dst;
}

static __always_inline void answer_ipv4(struct iphdr *ip, const struct headers *h, const struct address *from,
					__u8 protocol, __u8 tos, __u32 length)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = tos;
	ip->tot_len = bpf_htons(sizeof(*ip) + length);
	ip->frag_off = bpf_htons(IP_DONT_FRAGMENT);
	ip->ttl = ANSWER_TTL;
	ip->protocol = protocol;
	ip->saddr = from->w[0];
	ip->daddr = h->key.src.w[0];
	ip->check = checksum(ip, sizeof(*ip), 0);
}

static __always_inline void answer_ipv6(struct ipv6_header *ip, const struct headers *h, const struct address *from,
					__u8 protocol, __u32 length)
{
	ip->start = bpf_htonl(6U << 28);
	ip->length = bpf_htons(length);
	ip->next = protocol;
	ip->hops = ANSWER_TTL;
	ip->src = *from;
	ip->dst = h->key.src;
}

/* A reset that the sender's connection accepts: at the number it expects, or for what it has just sent. */
static __always_inline int answer_tcp(struct __sk_buff *skb, const struct scratch *s, struct tcphdr *tcp)
{
	const struct headers *h = &s->pkt;
	struct tcphdr came;
	__u32 length;

	if (bpf_skb_load_bytes(skb, s->l4, &came, sizeof(came)))
		return 0;
	length = s->length - came.doff * 4U + !!(h->tcp_flags & TCP_SYN) + !!(h->tcp_flags & TCP_FIN);
	__builtin_memset(tcp, 0, sizeof(*tcp));
	tcp->source = h->key.dport;
	tcp->dest = h->key.sport;
	tcp->doff = sizeof(*tcp) / 4;
	tcp->rst = 1;
	if (h->tcp_flags & TCP_ACK) {
		tcp->seq = came.ack_seq;
	} else {
		tcp->ack = 1;
		tcp->ack_seq = bpf_htonl(bpf_ntohl(came.seq) + length);
	}
	return 1;
}

/* These make an answer and return its length, or 0. */
static __always_inline __u32 make_reset(struct __sk_buff *skb, const struct scratch *s, union answer *a)
{
	const __be32 pseudo = bpf_htonl(IPPROTO_TCP + sizeof(struct tcphdr));

	if (s->pkt.key.family == 6) {
		if (!answer_tcp(skb, s, &a->reset6.tcp))
			return 0;
		answer_ipv6(&a->reset6.ip, &s->pkt, &s->pkt.key.dst, IPPROTO_TCP, sizeof(struct tcphdr));
		a->reset6.tcp.check = checksum(&a->reset6.ip.src, 32 + sizeof(struct tcphdr), pseudo);
		return sizeof(a->reset6) - FRAME;
	}
	if (!answer_tcp(skb, s, &a->reset4.tcp))
		return 0;
	answer_ipv4(&a->reset4.ip, &s->pkt, &s->pkt.key.dst, IPPROTO_TCP, 0, sizeof(struct tcphdr));
	a->reset4.tcp.check = checksum(&a->reset4.ip.saddr, 8 + sizeof(struct tcphdr), pseudo);
	return sizeof(a->reset4) - FRAME;
}

/* The head of the IP packet as it came, and zeros up to the next multiple of 4. Returns how much of it, at most `max`. */
static __always_inline __u32 quote(struct __sk_buff *skb, const struct scratch *s, __u8 *to, __u32 max)
{
	__u32 length = s->l4 - L3 + s->length;

	if (length > max)
		length = max;
	if (!length)		/* for the verifier: there is a header */
		return 0;
	__builtin_memset(to + (length & ~3U), 0, 4);
	return bpf_skb_load_bytes(skb, L3, to, length) ? 0 : length;
}

static __always_inline __u32 padded(__u32 length)
{
	return (length + 3) & ~3U;
}

static __always_inline __u32 make_error(struct __sk_buff *skb, const struct scratch *s, struct error4 *a)
{
	__u32 length = quote(skb, s, a->quote, QUOTE_MAX);

	if (!length)
		return 0;
	__builtin_memset(&a->icmp, 0, sizeof(a->icmp));
	a->icmp.type = ICMP_DEST_UNREACH;
	a->icmp.code = s->mtu ? ICMP_FRAG_NEEDED : PROHIBITED;
	a->icmp.sequence = bpf_htons(s->mtu);
	a->icmp.check = checksum(&a->icmp, sizeof(a->icmp) + padded(length), 0);
	answer_ipv4(&a->ip, &s->pkt, answerer(&s->pkt), IPPROTO_ICMP, INTERNETWORK_CONTROL, sizeof(a->icmp) + length);
	return offsetof(struct error4, quote) - FRAME + length;
}

static __always_inline __u32 make_error6(struct __sk_buff *skb, const struct scratch *s, struct error6 *a)
{
	__u32 length = quote(skb, s, a->quote, QUOTE6_MAX), body = sizeof(a->icmp) + length;

	if (!length)
		return 0;
	__builtin_memset(&a->icmp, 0, sizeof(a->icmp));
	a->icmp.type = s->mtu ? ICMP6_TOO_BIG : ICMP6_UNREACHABLE;
	a->icmp.code = s->mtu ? 0 : PROHIBITED6;
	a->icmp.sequence = bpf_htons(s->mtu);	/* the lower half of a word whose upper one is zero */
	answer_ipv6(&a->ip, &s->pkt, answerer(&s->pkt), IPPROTO_ICMPV6, body);
	a->icmp.check = checksum(&a->ip.src, 32 + sizeof(a->icmp) + padded(length), bpf_htonl(IPPROTO_ICMPV6 + body));
	return offsetof(struct error6, quote) - FRAME + length;
}

/*
 * In the packet's place. bpf_skb_change_tail linearizes it and makes it no GSO packet; then as much is pulled from its head
 * as reaches past its transport checksum, whereupon the kernel forgets that this was yet to be computed: the
 * answer's are complete.
 */
static __always_inline int replace(struct __sk_buff *skb, const struct scratch *s, const union answer *a, __u32 length)
{
	__u32 pull = s->l4 + sizeof(struct tcphdr);

	if (pull > PULL_MAX || length > sizeof(*a) - FRAME || !length)
		return 0;
	return !bpf_skb_change_tail(skb, pull + length, 0) &&
	       !bpf_skb_adjust_room(skb, -(__s32)pull, BPF_ADJ_ROOM_MAC, 0) &&
	       !bpf_skb_store_bytes(skb, 0, &a->start.eth, length, BPF_F_RECOMPUTE_CSUM);
}

/* To a MAC of ours, and so from one that the host may know nothing of. */
static __always_inline int is_on_wire(struct scratch *s, const struct uplink *uplink, __u32 number)
{
	if (!(uplink->flags & UPLINK_STATIONS))
		return 0;
	s->station.number = number;
	s->station.kind = SEGMENT_WIRE;
	copy_mac(s->station.mac, s->pkt.dmac);
	return bpf_map_lookup_elem(&stations, &s->station) != 0;
}

/* To where the packet came from. */
static __always_inline int send_back(struct __sk_buff *skb, struct scratch *s)
{
	__u32 number = ZONE_NUMBER(s->pkt.key.zone), zero = 0, reason = s->mtu ? TOO_BIG : REJECTED;
	struct settings *settings = bpf_map_lookup_elem(&config, &zero);
	struct port *port;
	struct uplink *uplink;

	switch (ZONE_KIND(s->pkt.key.zone)) {
	case ZONE_PORT:
		port = bpf_map_lookup_elem(&ports, &number);
		if (!port || !port->ifindex)	/* gone */
			return TC_ACT_SHOT;
		report(skb, s, PLACE_PORT, reason, port->ifindex);
		return to_endpoint(skb, s, port->ifindex, port->flags & (PORT_TAP | PORT_QUEUED));
	case ZONE_OVERLAY:
		if (!settings || !settings->tunnel_ifindex)
			return TC_ACT_SHOT;
		report(skb, s, PLACE_TUNNEL, reason, number);
		return into_tunnel(skb, s, number, s->pkt.vtep, settings->underlays[is_ipv6_vtep(s->pkt.vtep)], 0);
	case ZONE_UPLINK:
		uplink = bpf_map_lookup_elem(&uplinks, &number);
		if (!uplink || !uplink->ifindex)
			return TC_ACT_SHOT;
		if (is_on_wire(s, uplink, number)) {
			report(skb, s, PLACE_WIRE, reason, uplink->ifindex);
			return bpf_redirect(uplink->ifindex, 0);
		}
		report(skb, s, PLACE_UPLINK, reason, uplink->ifindex & ~UPLINK_LOOPBACK);
		if (uplink->ifindex & UPLINK_LOOPBACK)
			return past_hook(skb, s, uplink->ifindex & ~UPLINK_LOOPBACK, BPF_F_INGRESS);
		return bpf_redirect_neigh(uplink->ifindex, 0, 0, 0);
	case ZONE_HOST:
		report(skb, s, PLACE_STACK, reason, 0);
		return past_hook(skb, s, skb->ifindex, BPF_F_INGRESS);
	}
	return TC_ACT_SHOT;
}

/* The packet is dropped; if an answer may be given and can be made, that is what becomes of its buffer. */
static __always_inline int reject(struct __sk_buff *skb, struct scratch *s)
{
	__u32 zero = 0, length;
	union answer *a = (void *)bpf_map_lookup_elem(&answers, &zero);

	if (!a || !may_answer(s))
		return TC_ACT_SHOT;
	if (s->pkt.key.protocol == IPPROTO_TCP && !s->mtu)
		length = make_reset(skb, s, a);
	else if (!take_token(s))
		return TC_ACT_SHOT;
	else if (s->pkt.key.family == 6)
		length = make_error6(skb, s, &a->error6);
	else
		length = make_error(skb, s, &a->error4);
	answer_ethernet(&a->start.eth, &s->pkt);
	if (!replace(skb, s, a, length))
		return TC_ACT_SHOT;
	return send_back(skb, s);
}
