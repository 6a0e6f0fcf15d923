/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* The way of inspected packets to user space, and back into the engine. */
#pragma once

#include "enter.h"

/* A hit of a flow that user space sees first; or one that it has seen. */
SEC("tc")
int vfp_inspect(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct settings *settings;
	__u32 zero = 0;
	struct flow *f;
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	f = bpf_map_lookup_elem(&flows, &s->pkt.key);
	settings = bpf_map_lookup_elem(&config, &zero);
	if (!f || !settings)
		return drop_early(skb, s, ENGINE_ERROR);
	if (f->from_vtep != s->pkt.vtep)
		return drop_early(skb, s, WRONG_VTEP);
	if (skb->mark == MARK_INSPECTED) {
		skb->mark = 0;
	} else if (!s->inspected) {
		if (!is_inspectable(s))
			return drop_early(skb, s, INSPECT_REFUSED);
		if (settings->inspect_ifindex)
			return send_to_inspect(skb, s, f, settings->inspect_ifindex);
		if (!f->extras.fail_open)
			return drop_early(skb, s, INSPECT_UNAVAILABLE);
	}
	s->passage = f->packets || f->flags & FLOW_REPLY ? PASSAGE_HIT : PASSAGE_SEEN;
	reason = enter_flow(skb, f, &s->pkt);
	if (reason)
		return drop_early(skb, s, reason);
	return jump(skb, s, JUMP_LEAVE);
}

/* Ingress of the host's link of the second pair: goes on where it left for the detour. */
SEC("tc")
int vfp_inspected(struct __sk_buff *skb)
{
	__u32 mark = read_inspect_mac(skb);
	struct scratch *s = scratch();

	if (!s)
		return TC_ACT_SHOT;
	begin_packet(s);
	count_inspection(skb, INSPECT_RETURNED);
	return come_back(skb, s, mark & INSPECT_ZONE, mark & INSPECT_RELEASE ? INSPECTED_ENOUGH : INSPECTED);
}

/* ... now that it is parsed. */
SEC("tc")
int vfp_come_back(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flow *f;

	if (!s)
		return TC_ACT_SHOT;
	f = s->pkt.tracked ? bpf_map_lookup_elem(&flows, &s->pkt.key) : 0;
	if (!f)			/* it has aged, or user space made another flow's packet of it */
		return drop_early(skb, s, INSPECT_REFUSED);
	if (restore_macs(skb, s, f))
		return drop_early(skb, s, ENGINE_ERROR);
	s->pkt.vtep = f->from_vtep;	/* that was compared before */
	if (s->inspected == INSPECTED_ENOUGH && f->flags & FLOW_INSPECT)
		release(f);
	if (f->out.place == PLACE_STACK && !s->probe)
		return enter_again(skb, s);
	return look_up(skb, s);
}
