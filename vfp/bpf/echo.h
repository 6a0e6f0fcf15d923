/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Answer an echo request in place (RFC 792, RFC 4443 4.2), in the name of a gateway that every host is. */
#pragma once

#include "transpose.h"

#define ECHO_TTL 64

/* The checksums stay right: addresses change places, and of the rest they are told. */
static __always_inline int reply_echo4(struct __sk_buff *skb, const struct scratch *s)
{
	__be32 addresses[2] = {s->pkt.key.dst.w[0], s->pkt.key.src.w[0]};
	__u8 ttl = ECHO_TTL, type = ICMP_ECHOREPLY;

	return bpf_l3_csum_replace(skb, IPV4_CHECK, bpf_htons(s->ttl << 8), bpf_htons(ECHO_TTL << 8), 2) ||
	       bpf_skb_store_bytes(skb, IPV4_TTL, &ttl, 1, 0) ||
	       bpf_skb_store_bytes(skb, L3 + offsetof(struct iphdr, saddr), addresses, sizeof(addresses), 0) ||
	       bpf_l4_csum_replace(skb, s->l4 + offsetof(struct icmp_header, check), bpf_htons(ICMP_ECHO << 8),
				   bpf_htons(ICMP_ECHOREPLY << 8), 2) ||
	       bpf_skb_store_bytes(skb, s->l4, &type, 1, 0);
}

static __always_inline int reply_echo6(struct __sk_buff *skb, const struct scratch *s)
{
	__u8 hops = ECHO_TTL, type = ICMP6_ECHOREPLY;

	return bpf_skb_store_bytes(skb, IPV6_HOPS, &hops, 1, BPF_F_RECOMPUTE_CSUM) ||
	       bpf_skb_store_bytes(skb, IPV6_SRC, &s->pkt.key.dst, sizeof(struct address), BPF_F_RECOMPUTE_CSUM) ||
	       bpf_skb_store_bytes(skb, IPV6_SRC + sizeof(struct address), &s->pkt.key.src, sizeof(struct address),
				   BPF_F_RECOMPUTE_CSUM) ||
	       bpf_l4_csum_replace(skb, s->l4 + offsetof(struct icmp_header, check), bpf_htons(ICMP6_ECHO << 8),
				   bpf_htons(ICMP6_ECHOREPLY << 8), 2) ||
	       bpf_skb_store_bytes(skb, s->l4, &type, 1, BPF_F_RECOMPUTE_CSUM);
}

static __always_inline int reply_echo(struct __sk_buff *skb, struct scratch *s)
{
	__u8 macs[12];

	copy_mac(macs, s->pkt.smac);
	copy_mac(macs + 6, s->d.place.mac);
	if ((s->pkt.key.family == 6 ? reply_echo6(skb, s) : reply_echo4(skb, s)) ||
	    bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return drop_early(skb, s, ENGINE_ERROR);
	if (report(skb, s, PLACE_REPLY, NONE, 0))
		return TC_ACT_OK;
	return back_to_asker(skb, s);
}
