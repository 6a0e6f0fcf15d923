/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Every drop is counted by reason and told once to whoever listens. */
#pragma once

#include <linux/pkt_cls.h>

#include "capture.h"
#include "events.h"

#define PROBE_WALKS 1		/* skb->mark of a test-run: ask the layers, whatever is remembered */

enum probe_cb {			/* words of skb->cb that a test-run reads */
	CB_ZONE = 0,		/* and in its two highest bits enum inspected */
	CB_VTEP = 1,
	CB_VERDICT = 2,		/* enum place; PLACE_NONE: dropped */
	CB_REASON = 3,
	CB_TARGET = 4,		/* interface index, or VNI */
};

/* Returns whether that is all there is to do: a dry run goes nowhere. */
static __always_inline int report(struct __sk_buff *skb, struct scratch *s, __u32 place, __u32 reason, __u32 target)
{
	if (!s->probe)
		return 0;
	skb->cb[CB_VERDICT] = place;
	skb->cb[CB_REASON] = reason;
	skb->cb[CB_TARGET] = target;
	return is_dry(s);
}

static __always_inline int trace_drop(struct scratch *s)
{
	__u32 zero = 0;
	struct trace *trace = bpf_map_lookup_elem(&traced, &zero);

	if (trace) {
		trace->cookie = s->d.cookie;
		trace->port = s->d.drop_port;
		trace->layer = s->d.layer;
	}
	return TC_ACT_SHOT;
}

static __always_inline int drop(struct __sk_buff *skb, struct scratch *s, __u32 reason)
{
	struct told told = {
		.kind = EVENT_DROP,
		.reason = reason,
		.cookie = s->d.cookie,
		.port = s->d.drop_port,
		.layer = s->d.layer,
	};
	__u32 index = reason;
	__u64 *count;

	if (report(skb, s, PLACE_NONE, reason, 0))
		return trace_drop(s);
	capture_drop(skb, s, reason);
	count = bpf_map_lookup_elem(&drops, &index);
	if (count)
		*count += 1;
	tell(skb, s, &told);
	return TC_ACT_SHOT;
}

/* A drop that no layer is asked about; `port`: whose doing it is. */
static __always_inline int drop_at(struct __sk_buff *skb, struct scratch *s, __u32 port, __u32 reason)
{
	s->d.cookie = 0;
	s->d.layer = 0xff;
	s->d.drop_port = port;
	return drop(skb, s, reason);
}

/* A drop before any layer was asked. */
static __always_inline int drop_early(struct __sk_buff *skb, struct scratch *s, __u32 reason)
{
	__u32 kind = ZONE_KIND(s->pkt.key.zone);

	return drop_at(skb, s, kind == ZONE_PORT || kind == ZONE_HOST ? ZONE_NUMBER(s->pkt.key.zone) : 0, reason);
}
