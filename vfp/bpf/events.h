/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Records of single packets for whoever listens. */
#pragma once

#include "packet.h"

struct told {
	__u64 cookie;		/* of the rule; 0: none */
	__u32 port;		/* whose rule; 0: none */
	__u8 kind;		/* enum event_kind */
	__u8 reason;
	__u8 layer;		/* 0xff: none */
};

/* When nobody keeps up, records are lost, and counters still count. */
static __always_inline void tell(struct __sk_buff *skb, const struct scratch *s, const struct told *told)
{
	const struct headers *h = &s->pkt;
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		count_lost(RING_EVENTS);
		return;
	}
	event->time_ns = bpf_ktime_get_ns();
	event->cookie = told->cookie;
	event->zone = h->key.zone;
	event->port = told->port;
	event->src = h->key.src;
	event->dst = h->key.dst;
	event->sport = h->key.sport;
	event->dport = h->key.dport;
	event->ethertype = h->ethertype;
	event->protocol = h->key.protocol;
	event->family = h->key.family;
	copy_mac(event->smac, h->smac);
	copy_mac(event->dmac, h->dmac);
	event->reason = told->reason;
	event->layer = told->layer;
	event->kind = told->kind;
	event->pad = 0;
	event->length = skb->len;
	bpf_ringbuf_submit(event, 0);
}
