/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* The unified flow table: pairs, their TCP state, and whether the policy that made them still holds. */
#pragma once

#include "packet.h"

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* `flags` gets those of the flow's ports, which are read anyway. */
static __always_inline int is_current(const struct flow *f, __u32 *flags)
{
	*flags = 0;
	for (int i = 0; i < 2; i++) {
		__u32 id = f->ports[i];
		struct port *port;

		if (!id)
			continue;
		port = bpf_map_lookup_elem(&ports, &id);
		if (!port || port->generation != f->generations[i])
			return 0;
		*flags |= port->flags;
	}
	return 1;
}

/* Of the packets of this half: `ports` are those of the pair. */
static __always_inline __u32 sender_of(const struct flow *f)
{
	return f->ports[f->flags & FLOW_REPLY ? 1 : 0];
}

static __always_inline __u32 receiver_of(const struct flow *f)
{
	return f->ports[f->flags & FLOW_REPLY ? 0 : 1];
}

/* Nobody uses a flow under another source MAC than the one that was judged: layers match MACs, keys do not. */
static __always_inline int is_senders(const struct flow *f, const struct headers *h)
{
	return ZONE_KIND(h->key.zone) != ZONE_PORT || same_mac(f->smac, h->smac);
}

static __always_inline int is_closed(__u16 state)
{
	return state & STATE_RST || (state & STATE_FIN && state & STATE_PEER_FIN);
}

/* A new connection on the ports of one that has ended. */
static __always_inline int is_reopened(const struct flow *f, const struct headers *h)
{
	return (h->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN && is_closed(f->state);
}

/* Events of a connection's life are told to the other half, so that a hit needs one look-up only. */
static __always_inline void track(struct flow *f, const struct headers *h)
{
	__u16 mine = 0, theirs = 0;
	struct flow *pair;

	if (f->flags & FLOW_REPLY)
		mine = theirs = STATE_ASSURED;
	if (h->tcp_flags & TCP_FIN) {
		mine |= STATE_FIN;
		theirs |= STATE_PEER_FIN;
	}
	if (h->tcp_flags & TCP_RST) {
		mine |= STATE_RST;
		theirs |= STATE_RST;
	}
	if ((f->state & mine) == mine)
		return;
	f->state |= mine;
	if (f->state & STATE_SINGLE)
		return;
	pair = bpf_map_lookup_elem(&flows, &f->pair);
	if (pair)
		pair->state |= theirs;
}

static __always_inline void count_packet(struct __sk_buff *skb, struct flow *f)
{
	__u32 segments = skb->gso_segs;

	__sync_fetch_and_add(&f->packets, segments ? segments : 1);
	__sync_fetch_and_add(&f->bytes, skb->len);
	f->seen_ns = bpf_ktime_get_coarse_ns();
}

/* Take a pair out. A single half's reply key may be a stranger's. */
static __always_inline void forget(struct flow_key *key, struct flow_key *pair, __u16 state)
{
	bpf_map_delete_elem(&flows, key);
	if (!(state & STATE_SINGLE))
		bpf_map_delete_elem(&flows, pair);
}

/* There are no half pairs: an entry that gives way to one of another pair takes its own other half along. */
static __always_inline void displace(struct scratch *s, struct flow_key *key, const struct flow_key *mate, int single)
{
	struct flow *old = bpf_map_lookup_elem(&flows, key);

	if (!old || old->state & STATE_SINGLE || (!single && same_key(&old->pair, mate)))
		return;
	s->displaced = old->pair;
	bpf_map_delete_elem(&flows, &s->displaced);
}

/* Both halves or none. `s->reply.pair` and `s->forward.pair` are each other's keys. */
static __always_inline int store(struct scratch *s, int single)
{
	/* A packet to itself with equal ports: its answer has its own key. */
	single |= same_key(&s->reply.pair, &s->forward.pair);
	s->single = single;
	displace(s, &s->reply.pair, &s->forward.pair, single);
	if (single)
		s->forward.state |= STATE_SINGLE;
	else
		displace(s, &s->forward.pair, &s->reply.pair, 0);
	if (bpf_map_update_elem(&flows, &s->reply.pair, &s->forward, BPF_ANY))
		return FLOW_TABLE_FULL;
	if (single)
		return NONE;
	if (bpf_map_update_elem(&flows, &s->forward.pair, &s->reply, BPF_ANY)) {
		bpf_map_delete_elem(&flows, &s->reply.pair);
		return FLOW_TABLE_FULL;
	}
	return NONE;
}
