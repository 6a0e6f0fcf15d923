/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Flows whose policy has changed are decided again. */
#pragma once

#include "decide.h"
#include "enter.h"

static __always_inline void carry_over(struct flow *to, const struct flow *from)
{
	to->packets = from->packets;
	to->bytes = from->bytes;
	to->created_ns = from->created_ns;
	to->seen_ns = from->seen_ns;
}

/*
 * A change of policy makes every flow decide again at its next packet. Each CPU spends so much of its time on that and no
 * more, so that new flows do not wait for a million old ones.
 */
static __always_inline int may_decide_again(struct scratch *s)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct settings *settings;
	__u32 zero = 0;

	settings = bpf_map_lookup_elem(&config, &zero);
	if (!settings || s->redecide_ns > now + settings->redecide_burst_ns)
		return 0;
	s->redecide_ns = (s->redecide_ns > now ? s->redecide_ns : now) + settings->redecide_cost_ns;
	return 1;
}

/* A port's id is another port's now. */
static __always_inline int is_of_former(const struct flow *f)
{
	for (int i = 0; i < 2; i++) {
		__u32 id = f->ports[i];
		struct port *port = id ? bpf_map_lookup_elem(&ports, &id) : 0;

		if (port && is_former(port, f->generations[i]))
			return 1;
	}
	return 0;
}

/* The packet's own key, or that of what it quotes. */
static __always_inline struct flow_key *stale_key(struct scratch *s)
{
	return s->error ? &s->related : &s->pkt.key;
}

/*
 * Into `s->h`, the packet that made the flow of which `f` is a half. Returns 0 if there is no such flow any more. No pointer
 * into the table outlives this: the verifier would walk the layers once for each that may be null.
 */
static __always_inline int recall(struct scratch *s, const struct flow_key *key, struct flow *f)
{
	struct headers *h = &s->h;

	s->from_reply = f->flags & FLOW_REPLY;
	h->key = *key;
	if (s->from_reply) {
		h->key = f->pair;
		f = bpf_map_lookup_elem(&flows, &h->key);
		if (!f)
			return 0;
	}
	h->ethertype = h->key.family == 6 ? ETH_P_IPV6 : ETH_P_IP;
	h->dscp = f->dscp;
	h->tcp_flags = f->tcp_flags;
	h->icmp_type = f->icmp_type;
	h->icmp_code = f->icmp_code;
	h->has_ports = has_ports(h->key.protocol);
	h->fragment = f->flags & FLOW_FRAGMENT ? 1 : 0;
	h->tracked = 1;
	h->arp_sender_is_source = 0;
	h->nd = 0;
	h->nd_sender_is_source = 0;
	copy_mac(h->smac, f->smac);
	copy_mac(h->dmac, f->dmac);
	h->vtep = s->from_reply ? 0 : s->pkt.vtep;
	s->deciding_again = 1;
	return 1;
}

/* It may be at other ports now, which have no say in that. */
static __always_inline void move_connection(const struct flow *from, const struct flow *to)
{
	if (from->ports[0] == to->ports[0] && from->ports[1] == to->ports[1])
		return;
	count_connection(parties_of(from), -1);
	count_connection(parties_of(to), 1);
}

/* The pair as it was decided now, with the counters and the state that it had. Returns a drop reason. */
static __always_inline int store_again(struct scratch *s)
{
	struct flow *forward = bpf_map_lookup_elem(&flows, &s->h.key);
	int single = is_stateless(&s->d), stays = 0;
	struct flow *reply;

	if (!forward)		/* it left while we decided */
		return FLOW_CHANGED;
	carry_over(&s->forward, forward);
	move_connection(forward, &s->forward);
	s->forward.state = forward->state & ~STATE_SINGLE;
	s->reply.state = mirrored(s->forward.state);
	if (!(forward->state & STATE_SINGLE)) {
		reply = bpf_map_lookup_elem(&flows, &forward->pair);
		if (reply) {
			carry_over(&s->reply, reply);
			stays = !single && same_key(&s->forward.pair, &forward->pair);
		}
	}
	if (forward->flags & FLOW_RELEASED && s->d.inspect && forward->extras.queue == s->d.queue) {
		s->forward.flags |= FLOW_RELEASED;
		s->reply.flags |= FLOW_RELEASED;
	}
	return store(s, single, stays ? STORE_OVER : STORE_AGAIN);
}

/* Who began the flow is no longer where it was: not behind the overlay, or its port is gone. */
static __always_inline int has_left(const struct scratch *s, int reason)
{
	__u32 id = ZONE_NUMBER(s->h.key.zone);
	struct port *port;

	if (reason != UNKNOWN_PORT || ZONE_KIND(s->h.key.zone) != ZONE_PORT)
		return reason == UNKNOWN_SOURCE;
	port = bpf_map_lookup_elem(&ports, &id);
	return !port || !port->ifindex;
}

/* Half of a pair that is nobody's any more: the pair goes, and the packet is one like any other. */
static __always_inline int start_over(struct __sk_buff *skb, struct scratch *s, const struct flow *f)
{
	s->displaced = f->pair;
	s->parties = *parties_of(f);
	forget(stale_key(s), &s->displaced, f->state, &s->parties);
	return s->inspected ? drop_early(skb, s, INSPECT_REFUSED) : jump(skb, s, JUMP_SLOW);
}

/*
 * A flow whose policy changed, that this packet, or the packet that it quotes, is of: its forward tuple is decided again,
 * whichever side the packet is from. A connection that the new policy forbids ends here.
 */
SEC("tc")
int vfp_stale(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flow *f;
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	f = bpf_map_lookup_elem(&flows, stale_key(s));
	if (!f)			/* it left in the meantime */
		return jump(skb, s, JUMP_SLOW);
	if (is_of_former(f))
		return start_over(skb, s, f);
	if (!recall(s, stale_key(s), f)) {	/* half a pair is no flow: see what the packet itself may do */
		bpf_map_delete_elem(&flows, stale_key(s));
		return jump(skb, s, JUMP_SLOW);
	}
	if (!may_decide_again(s))
		return drop_early(skb, s, REDECIDE_LATER);
	reason = decide(s);
	if (!reason)
		reason = compose(s);
	if (s->from_reply && has_left(s, reason)) {
		f = bpf_map_lookup_elem(&flows, stale_key(s));
		return f ? start_over(skb, s, f) : jump(skb, s, JUMP_SLOW);
	}
	/* The pair stays, stale: without it, the next packet of the other side would look like a new flow. */
	if (reason)
		return drop_decided(skb, s, reason);
	reason = store_again(s);
	if (!reason && s->from_reply && (s->single || !same_key(&s->forward.pair, stale_key(s))))
		reason = FLOW_CHANGED;
	if (reason)
		return drop_early(skb, s, reason);
	if (s->error) {
		s->error = ERROR_AGAIN;
		return jump(skb, s, JUMP_RELATED);
	}
	return jump(skb, s, JUMP_DECIDED);
}

/* A packet of a flow that was just decided again: apart from that, so that the verifier need not walk both at once. */
SEC("tc")
int vfp_decided(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flow *f;
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	f = bpf_map_lookup_elem(&flows, &s->pkt.key);
	if (!f)
		return drop_early(skb, s, ENGINE_ERROR);
	if (is_to_inspect(f))
		return jump(skb, s, JUMP_INSPECT);
	reason = enter_flow(skb, f, &s->pkt);
	if (reason)
		return drop_early(skb, s, reason);
	s->passage = PASSAGE_HIT;
	return jump(skb, s, JUMP_LEAVE);
}
