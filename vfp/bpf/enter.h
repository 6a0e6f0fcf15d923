/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* From a packet to the flow that it is of: a hit, or one jump away from what it is. */
#pragma once

#include "flow_table.h"
#include "inspect.h"
#include "transpose.h"

static __always_inline int leave_to_stack(struct __sk_buff *skb, struct scratch *s)
{
	report(skb, s, PLACE_STACK, NONE, 0);
	return TC_ACT_UNSPEC;
}

/* What is not ours at an uplink is the host's own business. */
static __always_inline int refuse(struct __sk_buff *skb, struct scratch *s, int reason)
{
	if (ZONE_KIND(s->pkt.key.zone) == ZONE_UPLINK && !s->inspected)
		return leave_to_stack(skb, s);
	return drop_early(skb, s, reason);
}

static __always_inline int jump(struct __sk_buff *skb, struct scratch *s, __u32 to)
{
	bpf_tail_call(skb, &jumps, to);
	return drop_early(skb, s, ENGINE_ERROR);
}

/* Some of what comes by the uplink without a flow is for ports of ours. */
static __always_inline int is_wired(struct scratch *s)
{
	__u32 id = ZONE_NUMBER(s->pkt.key.zone);
	struct uplink *uplink = bpf_map_lookup_elem(&uplinks, &id);

	return uplink && uplink->flags;
}

/* A parsed packet: a hit, or one jump away from what it is. */
static __always_inline int look_up(struct __sk_buff *skb, struct scratch *s)
{
	struct flow *f;
	__u32 flags;

	if (s->pkt.tracked) {
		f = bpf_map_lookup_elem(&flows, &s->pkt.key);
		if (f && is_senders(f, &s->pkt) && !is_reopened(f, &s->pkt)) {
			int reason;

			if (!is_current(f, &flags))
				return jump(skb, s, JUMP_STALE);
			if (is_to_inspect(f))
				return jump(skb, s, JUMP_INSPECT);
			reason = enter_flow(skb, f, &s->pkt);
			if (reason)
				return drop_early(skb, s, reason);
			if (f->flags & FLOW_EXTRAS || flags & (PORT_CAPTURE | PORT_RATE_IN)) {
				s->passage = PASSAGE_HIT;
				return jump(skb, s, JUMP_LEAVE);
			}
			return transpose(skb, s, &f->out);
		}
	} else if (s->error) {
		return jump(skb, s, JUMP_RELATED);
	} else if (ZONE_KIND(s->pkt.key.zone) == ZONE_UPLINK && !is_wired(s)) {
		return leave_to_stack(skb, s);
	}
	return jump(skb, s, JUMP_SLOW);
}

static __always_inline int enter(struct __sk_buff *skb, struct scratch *s, __u32 zone, __u32 vtep)
{
	int reason = parse(skb, s, zone, 0);

	s->pkt.vtep = vtep;
	if (reason == ODD)
		return jump(skb, s, JUMP_ODD);
	if (reason)
		return refuse(skb, s, reason);
	return look_up(skb, s);
}

/* User space has seen a packet. Whatever it made of it is parsed anew, by the program that knows all. */
static __always_inline int come_back(struct __sk_buff *skb, struct scratch *s, __u32 zone, __u32 inspected)
{
	__builtin_memset(&s->pkt, 0, sizeof(s->pkt));
	s->pkt.key.zone = zone;
	s->inspected = inspected;
	return jump(skb, s, JUMP_ODD);
}

/* A packet that is not parsed; what of it is known is told. */
static __always_inline int drop_arrived(struct __sk_buff *skb, struct scratch *s, __u32 zone, __u32 reason)
{
	parse(skb, s, zone, 0);
	return drop_early(skb, s, reason);
}

static __always_inline int drop_unknown(struct __sk_buff *skb, struct scratch *s, __u32 kind)
{
	__builtin_memset(&s->pkt, 0, sizeof(s->pkt));
	s->pkt.key.zone = MAKE_ZONE(kind, 0);
	return drop_early(skb, s, UNKNOWN_PORT);
}

/* Reasons that are a layer's doing keep its number; the others have none. */
static __always_inline int drop_decided(struct __sk_buff *skb, struct scratch *s, int reason)
{
	if (reason != DENIED && reason != REJECTED && reason != LAYER_DEFAULT && reason != NAT_EXHAUSTED &&
	    reason != NAT_UNSUPPORTED && reason != NAT_QUOTA && reason != NAT_FILTERED && reason != ARP_UNANSWERED)
		s->d.layer = 0xff;
	drop(skb, s, reason);
	s->mtu = 0;
	if (reason == REJECTED && !is_dry(s))
		bpf_tail_call(skb, &jumps, JUMP_REJECT);
	return TC_ACT_SHOT;
}
