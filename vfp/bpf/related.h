/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * ICMP errors about a flow (RFC 792, 1122 3.2.2, 5508 REQ-3..5): the packet that an error quotes left by here, so its
 * reversed tuple is the key of those that come. The error goes where they go, with the quotation translated back.
 */
#pragma once

#include "flow_table.h"
#include "transpose.h"

#define QUOTED_TRANSPORT 8	/* bytes of transport that every error quotes (RFC 792) */

/* Where things are in the frame; 0: not there. */
struct quotation {
	__u32 ip;
	__u32 l4;
	__u32 check;		/* of the transport */
	__u32 sport;		/* ICMP: the identifier */
	__u32 dport;
	__u8 protocol;
	__u8 pseudo;		/* `check` covers the addresses, too */
	__u8 is_reply;		/* of an echo */
};

/* What of a quotation changes, or sums what changes. */
struct quoted {
	struct address src;
	struct address dst;
	__be16 check;
	__be16 ip_check;
	__be16 sport;
	__be16 dport;
};

/* Ports of what was quoted, into `s->related`, which is reversed. Returns 0 if it is of no flow. */
static __always_inline int read_quoted_ports(struct __sk_buff *skb, struct scratch *s, struct quotation *q)
{
	__u32 end = s->l4 + s->length;
	struct flow_key *key = &s->related;
	union {
		struct icmp_header icmp;
		__be16 ports[QUOTED_TRANSPORT / 2];
	} head;

	if (!is_icmp(key->family, q->protocol) && !has_ports(q->protocol) && q->protocol != IPPROTO_UDPLITE)
		return 1;
	if (q->l4 + QUOTED_TRANSPORT > end || bpf_skb_load_bytes(skb, q->l4, &head, sizeof(head)))
		return 0;
	if (q->protocol == IPPROTO_UDPLITE) {
		q->check = q->l4 + offsetof(struct udphdr, check);
		q->pseudo = 1;
		return 1;
	}
	if (!has_ports(q->protocol)) {
		int six = key->family == 6;

		q->check = q->l4 + offsetof(struct icmp_header, check);
		q->sport = q->l4 + offsetof(struct icmp_header, id);
		q->pseudo = six;
		if (head.icmp.type == (six ? ICMP6_ECHO : ICMP_ECHO)) {
			key->dport = head.icmp.id;
			return 1;
		}
		q->is_reply = 1;
		key->sport = head.icmp.id;
		return head.icmp.type == (six ? ICMP6_ECHOREPLY : ICMP_ECHOREPLY);
	}
	key->dport = head.ports[0];
	key->sport = head.ports[1];
	q->sport = q->l4;
	q->dport = q->l4 + 2;
	q->pseudo = 1;
	if (q->protocol == IPPROTO_UDP)
		q->check = q->l4 + offsetof(struct udphdr, check);
	else if (q->protocol == IPPROTO_TCP && q->l4 + offsetof(struct tcphdr, check) + 2 <= end)
		q->check = q->l4 + offsetof(struct tcphdr, check);
	return 1;
}

static __always_inline int read_quoted_ipv4(struct __sk_buff *skb, struct scratch *s, struct quotation *q)
{
	struct flow_key *key = &s->related;
	struct iphdr ip;
	__u32 header;

	q->ip = s->l4 + sizeof(struct icmp_header);
	if (q->ip + sizeof(ip) > s->l4 + s->length || bpf_skb_load_bytes(skb, q->ip, &ip, sizeof(ip)))
		return 0;
	header = ip.ihl * 4U;
	if (ip.version != 4 || header < sizeof(ip) || bpf_ntohs(ip.tot_len) < header ||
	    ip.frag_off & bpf_htons(IP_OFFSET_MASK))
		return 0;
	q->l4 = q->ip + header;
	if (q->l4 > s->l4 + s->length)
		return 0;
	q->protocol = key->protocol = ip.protocol;
	key->src.w[0] = ip.daddr;
	key->dst.w[0] = ip.saddr;
	return read_quoted_ports(skb, s, q);
}

static __always_inline int read_quoted_ipv6(struct __sk_buff *skb, struct scratch *s, struct quotation *q)
{
	struct flow_key *key = &s->related;
	struct ipv6_header ip;
	struct chain c = {};

	q->ip = s->l4 + sizeof(struct icmp_header);
	if (q->ip + sizeof(ip) > s->l4 + s->length || bpf_skb_load_bytes(skb, q->ip, &ip, sizeof(ip)))
		return 0;
	if (bpf_ntohl(ip.start) >> 28 != 6)
		return 0;
	c.at = q->ip + sizeof(ip);
	c.end = s->l4 + s->length;
	c.next = ip.next;
	if (walk_extensions(skb, &c) || c.fragment > 1)
		return 0;
	q->l4 = c.at;
	q->protocol = key->protocol = c.next;
	key->src = ip.dst;
	key->dst = ip.src;
	return read_quoted_ports(skb, s, q);
}

/* Fill `s->related`. Returns 0 if the error quotes nothing that could be of a flow. */
static __always_inline int read_quotation(struct __sk_buff *skb, struct scratch *s, struct quotation *q)
{
	__builtin_memset(&s->related, 0, sizeof(s->related));
	s->related.zone = s->pkt.key.zone;
	s->related.family = s->pkt.key.family;
	s->related.vlan = s->pkt.key.vlan;
	return s->pkt.key.family == 6 ? read_quoted_ipv6(skb, s, q) : read_quoted_ipv4(skb, s, q);
}

/* An error comes to who sent what it quotes; from an endpoint, only about what was sent to itself. */
static __always_inline int is_plausible(const struct scratch *s)
{
	__u32 kind = ZONE_KIND(s->pkt.key.zone);

	if (!same_address(&s->pkt.key.dst, &s->related.dst))
		return 0;
	return kind == ZONE_UPLINK || kind == ZONE_HOST || same_address(&s->pkt.key.src, &s->related.src);
}

static __always_inline int read_changing(struct __sk_buff *skb, const struct scratch *s, const struct quotation *q,
					 struct quoted *to)
{
	__builtin_memset(to, 0, sizeof(*to));
	if (s->pkt.key.family == 6) {
		if (bpf_skb_load_bytes(skb, q->ip + offsetof(struct ipv6_header, src), &to->src, 32))
			return ENGINE_ERROR;
	} else if (bpf_skb_load_bytes(skb, q->ip + offsetof(struct iphdr, saddr), &to->src.w[0], 4) ||
	    bpf_skb_load_bytes(skb, q->ip + offsetof(struct iphdr, daddr), &to->dst.w[0], 4) ||
	    bpf_skb_load_bytes(skb, q->ip + offsetof(struct iphdr, check), &to->ip_check, 2)) {
		return ENGINE_ERROR;
	}
	if ((q->check && bpf_skb_load_bytes(skb, q->check, &to->check, 2)) ||
	    (q->sport && bpf_skb_load_bytes(skb, q->sport, &to->sport, 2)) ||
	    (q->dport && bpf_skb_load_bytes(skb, q->dport, &to->dport, 2)))
		return ENGINE_ERROR;
	return NONE;
}

static __always_inline int set_quoted_addresses(struct __sk_buff *skb, const struct scratch *s,
						const struct quotation *q, const struct quoted *is, __s64 change)
{
	__be32 to[2] = {is->src.w[0], is->dst.w[0]};

	if (s->pkt.key.family == 6)
		return bpf_skb_store_bytes(skb, q->ip + offsetof(struct ipv6_header, src), &is->src, 32, 0) ?
		       ENGINE_ERROR : NONE;
	if (bpf_l3_csum_replace(skb, q->ip + offsetof(struct iphdr, check), 0, change, 0) ||
	    bpf_skb_store_bytes(skb, q->ip + offsetof(struct iphdr, saddr), to, sizeof(to), 0))
		return ENGINE_ERROR;
	return NONE;
}

static __always_inline int set_quoted_port(struct __sk_buff *skb, const struct quotation *q, __u32 at, __be16 from,
					   __be16 to, __u64 udp)
{
	if (q->check && bpf_l4_csum_replace(skb, q->check, from, to, udp | 2))
		return ENGINE_ERROR;
	return bpf_skb_store_bytes(skb, at, &to, 2, 0) ? ENGINE_ERROR : NONE;
}

/* `t` is for the packets that come; what is quoted went the other way. */
static __always_inline int translate_quotation(struct __sk_buff *skb, struct scratch *s, const struct quotation *q,
					       const struct transposition *t)
{
	__u64 udp = is_udp(q->protocol) ? BPF_F_MARK_MANGLED_0 : 0;
	__be16 sport = q->is_reply ? t->sport : t->dport;
	struct quoted was, is;
	__s64 change;
	int reason;

	if (read_changing(skb, s, q, &was))
		return ENGINE_ERROR;
	is = was;
	is.src = t->dst;
	is.dst = t->src;
	if (t->flags & (SET_SRC | SET_DST)) {
		change = bpf_csum_diff(&was.src.w[0], 32, &is.src.w[0], 32, 0);
		if (q->check && q->pseudo && bpf_l4_csum_replace(skb, q->check, 0, change, udp))
			return ENGINE_ERROR;
		reason = set_quoted_addresses(skb, s, q, &is, change);
		if (reason)
			return reason;
	}
	if (q->sport && sport != was.sport && set_quoted_port(skb, q, q->sport, was.sport, sport, udp))
		return ENGINE_ERROR;
	if (q->dport && t->sport != was.dport && set_quoted_port(skb, q, q->dport, was.dport, t->sport, udp))
		return ENGINE_ERROR;
	if (read_changing(skb, s, q, &is))
		return ENGINE_ERROR;
	change = bpf_csum_diff(&was.src.w[0], sizeof(was), &is.src.w[0], sizeof(is), 0);
	if (bpf_l4_csum_replace(skb, s->l4 + offsetof(struct icmp_header, check), 0, change, 0))
		return ENGINE_ERROR;
	return NONE;
}

/* The error itself: to who sent what it quotes; its source is told as the flow's is, if it is that one. */
static __always_inline int pass_error(struct __sk_buff *skb, struct scratch *s, const struct quotation *q,
				      const struct flow *f)
{
	const struct flow_key *key = &s->pkt.key;
	struct transposition *t = &s->forward.out;
	int reason;

	*t = f->out;
	if (t->flags & SET_TUPLE) {
		reason = translate_quotation(skb, s, q, t);
		if (reason)
			return drop_early(skb, s, reason);
	}
	t->flags &= ~(SET_SPORT | SET_DPORT);
	if (!same_address(&key->src, &s->related.src)) {
		t->src = key->src;
		t->flags &= ~SET_SRC;
	}
	return transpose(skb, s, t);
}
