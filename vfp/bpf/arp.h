/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Answer an ARP request in place (RFC 826): nobody floods, nobody learns. */
#pragma once

#include "transpose.h"

static __always_inline int reply_arp(struct __sk_buff *skb, struct scratch *s)
{
	const struct headers *h = &s->pkt;
	struct {
		struct ethhdr eth;
		struct arp_ipv4 arp;
	} __attribute__((packed)) frame = {};
	__be32 sender = s->d.cur.dst.w[0], target = h->key.src.w[0];

	copy_mac(frame.eth.h_dest, h->smac);
	copy_mac(frame.eth.h_source, s->d.place.mac);
	frame.eth.h_proto = bpf_htons(ETH_P_ARP);
	frame.arp.hardware_type = bpf_htons(1);
	frame.arp.protocol_type = bpf_htons(ETH_P_IP);
	frame.arp.hardware_length = 6;
	frame.arp.protocol_length = 4;
	frame.arp.opcode = bpf_htons(2);
	copy_mac(frame.arp.sender_mac, s->d.place.mac);
	__builtin_memcpy(frame.arp.sender, &sender, 4);
	copy_mac(frame.arp.target_mac, h->smac);
	__builtin_memcpy(frame.arp.target, &target, 4);
	if (bpf_skb_store_bytes(skb, 0, &frame, sizeof(frame), 0))
		return drop_early(skb, s, ENGINE_ERROR);
	if (report(skb, s, PLACE_REPLY, NONE, 0))
		return TC_ACT_OK;
	return back_to_asker(skb, s);
}
