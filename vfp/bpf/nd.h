/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Answer a neighbour solicitation in place (RFC 4861 7.2.4), as arp.h does a request. */
#pragma once

#include "transpose.h"

struct nd_answer {
	struct ethhdr eth;
	struct ipv6_header ip;
	struct nd_header nd;
	__u8 option;
	__u8 option_length;
	__u8 mac[6];
} __attribute__((packed));

/* To who asked, or, when it has no address yet (a probe, RFC 4862), to all nodes. */
static __always_inline int reply_nd(struct __sk_buff *skb, struct scratch *s)
{
	const __u32 body = sizeof(struct nd_header) + 8;
	const struct headers *h = &s->pkt;
	struct nd_answer *a = (void *)&s->forward;	/* too large for the stack, and no flow is made */
	int probe = is_unspecified(&h->key.src);
	__s64 sum;

	_Static_assert(sizeof(*a) <= sizeof(s->forward), "an answer is made in the room of a flow");
	__builtin_memset(a, 0, sizeof(*a));
	a->ip.src = s->d.cur.dst;
	a->ip.dst = h->key.src;
	copy_mac(a->eth.h_dest, h->smac);
	if (probe) {
		a->ip.dst.w[0] = bpf_htonl(0xff020000);
		a->ip.dst.w[3] = bpf_htonl(1);
		a->eth.h_dest[0] = a->eth.h_dest[1] = 0x33;
		a->eth.h_dest[2] = a->eth.h_dest[3] = a->eth.h_dest[4] = 0;
		a->eth.h_dest[5] = 1;
	}
	copy_mac(a->eth.h_source, s->d.place.mac);
	a->eth.h_proto = bpf_htons(ETH_P_IPV6);
	a->ip.start = bpf_htonl(6U << 28);
	a->ip.length = bpf_htons(body);
	a->ip.next = IPPROTO_ICMPV6;
	a->ip.hops = 255;
	a->nd.type = ND_ADVERTISEMENT;
	a->nd.flags = probe ? ND_OVERRIDE : ND_SOLICITED | ND_OVERRIDE;
	a->nd.target = a->ip.src;
	a->option = ND_TARGET_LINK;
	a->option_length = 1;
	copy_mac(a->mac, s->d.place.mac);
	if (bpf_skb_change_tail(skb, sizeof(*a), 0) || bpf_skb_store_bytes(skb, 0, a, sizeof(*a), 0))
		return drop_early(skb, s, ENGINE_ERROR);
	/* The pseudo header (RFC 8200 8.1) without its addresses, then these and the body, which lie side by side. */
	sum = bpf_csum_diff(0, 0, (void *)a + offsetof(struct nd_answer, ip.src), 32 + body, bpf_htonl(body + IPPROTO_ICMPV6));
	if (sum < 0 || bpf_l4_csum_replace(skb, L3 + sizeof(struct ipv6_header) + 2, 0, sum, 0))
		return drop_early(skb, s, ENGINE_ERROR);
	if (report(skb, s, PLACE_REPLY, NONE, 0))
		return TC_ACT_OK;
	return back_to_asker(skb, s);
}
