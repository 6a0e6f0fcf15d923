/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* The unified flow table: pairs, their TCP state, and whether the policy that made them still holds. */
#pragma once

#include "budget.h"
#include "packet.h"

/* Of a port that had this id before: nothing of it is the new one's. */
static __always_inline int is_former(const struct port *port, __u32 generation)
{
	return port->born && (__s32)(generation - port->born) < 0;
}

#include "limits.h"

static __always_inline int sets_are_current(const struct flow *f)
{
	__u32 zero = 0;
	struct settings *settings = bpf_map_lookup_elem(&config, &zero);

	return settings && settings->sets_generation == f->sets_generation;
}

/* `flags` gets those of the flow's ports, which are read anyway. */
static __always_inline int is_current(const struct flow *f, __u32 *flags)
{
	*flags = 0;
	if (f->flags & FLOW_BY_SET && !sets_are_current(f))
		return 0;
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

/* Frames that are switched go by their destination MAC, which keys do not have. */
static __always_inline int is_meant(const struct flow *f, const struct headers *h)
{
	return f->flags & FLOW_TO_MAC ? same_mac(f->dmac, h->dmac) : !(h->dmac[0] & 1);
}

/* Nobody uses a flow under another source MAC than the one that was judged: layers match MACs, keys do not. */
static __always_inline int is_senders(const struct flow *f, const struct headers *h)
{
	if (f->flags & (FLOW_TO_MAC | FLOW_TO_WIRE) && !is_meant(f, h))
		return 0;
	return ZONE_KIND(h->key.zone) != ZONE_PORT || same_mac(f->smac, h->smac);
}

/* A new connection on the ports of one that has ended. */
static __always_inline int is_reopened(const struct flow *f, const struct headers *h)
{
	return (h->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN && is_closed(f->state);
}

/* Full queues are no harm: the sweep over all flows finds what is not in them. */
static __always_inline void tell_closed(const struct flow_key *key, __u16 state)
{
	struct closed closed = {.key = *key, .since_ns = bpf_ktime_get_coarse_ns()};

	if (is_reset(state))
		bpf_map_push_elem(&resets, &closed, BPF_ANY);
	else
		bpf_map_push_elem(&time_waits, &closed, BPF_ANY);
}

/* Events of a connection's life are told to the other half, so that a hit needs one look-up only. */
static __always_inline void change_state(struct flow *f, const struct headers *h, __u16 mine)
{
	__u16 before = f->state, after = before | mine;
	struct flow *pair;

	f->state = after;
	if (!(before & STATE_SINGLE)) {
		pair = bpf_map_lookup_elem(&flows, &f->pair);
		if (pair)
			pair->state |= mirrored(mine);
	}
	if (h->key.protocol != IPPROTO_TCP)
		return;
	if (after & ~before & STATE_ASSURED)
		give_place(IPPROTO_TCP, before);
	if (is_closed(after) && !is_closed(before))
		tell_closed(&h->key, after);
}

/* A hit's `flags` seldom are news. */
static __always_inline void track(struct flow *f, const struct headers *h, __u8 flags)
{
	__u16 mine = sent(flags);

	if (f->flags & FLOW_REPLY)
		mine |= STATE_ASSURED;
	if ((f->state & mine) != mine)
		change_state(f, h, mine);
}

static __always_inline void count_packet(struct __sk_buff *skb, struct flow *f)
{
	__u32 segments = skb->gso_segs;

	__sync_fetch_and_add(&f->packets, segments ? segments : 1);
	__sync_fetch_and_add(&f->bytes, skb->len);
	f->seen_ns = bpf_ktime_get_coarse_ns();
}

/* Track and count a packet of `f`. Returns a drop reason. */
static __always_inline int enter_flow(struct __sk_buff *skb, struct flow *f, const struct headers *h)
{
	__u8 flags = h->tcp_flags;

	if (f->from_vtep != h->vtep)
		return WRONG_VTEP;
	if (f->flags & FLOW_STRICT) {
		int fitness = fits(f->state, flags);

		if (fitness == FITS_NOT)
			return OUT_OF_STATE;
		if (fitness == FITS_UNSEEN)
			flags = 0;
	}
	track(f, h, flags);
	count_packet(skb, f);
	return NONE;
}

/* Take a pair out. A single half's reply key may be a stranger's. */
static __always_inline void forget(struct flow_key *key, struct flow_key *pair, __u16 state, const struct parties *of)
{
	if (bpf_map_delete_elem(&flows, key))
		return;
	give_place(key->protocol, state);
	count_connection(of, -1);
	if (!(state & STATE_SINGLE))
		bpf_map_delete_elem(&flows, pair);
}

/*
 * There are no half pairs: an entry that gives way to one of another pair takes its own other half along. `mine`: the entry
 * that is there is of the pair itself.
 */
static __always_inline void displace(struct scratch *s, struct flow_key *key, const struct flow_key *mate, int mine,
				     int single)
{
	struct flow *old = bpf_map_lookup_elem(&flows, key);
	int mates;

	if (!old)
		return;
	mates = !(old->state & STATE_SINGLE) && same_key(&old->pair, mate);
	if (!mine && !(mates && key == &s->forward.pair)) {	/* then the forward half was it already */
		give_place(key->protocol, old->state);
		count_connection(parties_of(old), -1);
	}
	if (old->state & STATE_SINGLE || (mates && !single))
		return;
	s->displaced = old->pair;
	bpf_map_delete_elem(&flows, &s->displaced);
}

enum storing {
	STORE_NEW = 0,
	STORE_AGAIN = 1,	/* decided again; the reply has another key now */
	STORE_OVER = 2,		/* decided again, and both halves are where they were */
};

/*
 * Both halves or none. `s->reply.pair` and `s->forward.pair` are each other's keys. Most new pairs find nothing in their
 * place: that is tried first. Not inline: the stack is full where a policy is decided, and this is not; nor static, for the
 * verifier.
 */
__noinline int store(struct scratch *s, int single, enum storing how)
{
	int fresh = how == STORE_NEW;
	struct flow_key *forward, *reply;
	const struct parties *parties;
	int reason;

	if (!s)
		return ENGINE_ERROR;
	forward = &s->reply.pair;
	reply = &s->forward.pair;
	parties = parties_of(&s->forward);
	/* A packet to itself with equal ports: its answer has its own key. */
	single |= same_key(forward, reply);
	s->single = single;
	if (single)
		s->forward.state |= STATE_SINGLE;
	if (fresh) {
		reason = take_connection(parties);
		if (reason)
			return reason;
		reason = take_place(forward->protocol);
		if (reason) {
			count_connection(parties, -1);
			return reason;
		}
	}
	if (!fresh || bpf_map_update_elem(&flows, forward, &s->forward, BPF_NOEXIST)) {
		if (how != STORE_OVER)
			displace(s, forward, reply, !fresh, single);
		if (bpf_map_update_elem(&flows, forward, &s->forward, BPF_ANY))
			goto full;
	}
	if (single || (fresh && !bpf_map_update_elem(&flows, reply, &s->reply, BPF_NOEXIST)))
		return NONE;
	if (how != STORE_OVER)
		displace(s, reply, forward, 0, 0);
	if (!bpf_map_update_elem(&flows, reply, &s->reply, BPF_ANY))
		return NONE;
	bpf_map_delete_elem(&flows, forward);
full:
	count_connection(parties, -1);
	give_place(forward->protocol, s->forward.state);
	return FLOW_TABLE_FULL;
}
