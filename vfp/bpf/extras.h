/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* What rules ask for beside forwarding: counting on meters, records, copies. */
#pragma once

#include "drop.h"

/* Exact: each CPU counts for itself, and softirqs do not nest. */
static __always_inline void count_on_meter(struct __sk_buff *skb, __u32 id, int way)
{
	struct meter *meter = id ? bpf_map_lookup_elem(&meters, &id) : 0;
	__u32 segments = skb->gso_segs;

	if (!meter)
		return;
	meter->packets[way & 1] += segments ? segments : 1;
	meter->bytes[way & 1] += skb->len;
}

/* One when a flow begins; or of each `log_every`th packet of this half of it, `packets` with this one. */
static __always_inline int is_logged(const struct extras *x, __u8 passage, __u64 packets, __u32 segments)
{
	if (!x->log_cookie)
		return 0;
	if (passage == PASSAGE_ALONE)
		return 1;
	if (!x->log_every)
		return passage == PASSAGE_FIRST;
	return packets % x->log_every < segments;
}

static __always_inline void log_packet(struct __sk_buff *skb, const struct scratch *s, const struct flow *f)
{
	struct told told = {
		.kind = EVENT_LOG,
		.cookie = f->extras.log_cookie,
		.port = f->extras.log_port,
		.layer = 0xff,
	};
	__u32 segments = skb->gso_segs;

	if (is_logged(&f->extras, s->passage, f->packets, segments ? segments : 1))
		tell(skb, s, &told);
}

/*
 * A copy leaves by the host's side of the port's veth, where TC egress runs vfp_port_in on it before
 * bpf_clone_redirect returns: `copying` tells that run, which must not touch the scratch, to let it through unjudged.
 */
static __always_inline void copy_packet(struct __sk_buff *skb, struct scratch *s, __u32 id)
{
	struct port *port = id ? bpf_map_lookup_elem(&ports, &id) : 0;

	if (!port || !port->ifindex)
		return;
	if (s->probe) {		/* interfaces of a test's policy are not there */
		skb->mark = port->ifindex;
		return;
	}
	s->copying = port->ifindex;
	bpf_clone_redirect(skb, port->ifindex, 0);
	s->copying = 0;
}

static __always_inline int is_copy(const struct __sk_buff *skb, const struct scratch *s)
{
	return s->copying && s->copying == skb->ifindex;
}

static __always_inline void do_extras(struct __sk_buff *skb, struct scratch *s, const struct flow *f)
{
	int way = !!(f->flags & FLOW_REPLY);

	count_on_meter(skb, f->extras.meters[0], way);
	if (f->extras.meters[1] != f->extras.meters[0])
		count_on_meter(skb, f->extras.meters[1], way);
	log_packet(skb, s, f);
	copy_packet(skb, s, f->extras.mirror);
}
