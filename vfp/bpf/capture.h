/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Copies of the packets of ports that somebody looks at: as they came, as they left, and why not. A hit of another port
 * pays for one bit of a record that it reads anyway; all of this is beyond a tail call, or where time does not count.
 */
#pragma once

#include "packet.h"

#define CAPTURE_BYTES 9216	/* of one packet, at most: a jumbo frame */

struct copy {
	struct capture head;
	__u8 data[CAPTURE_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct copy);
	__uint(max_entries, 1);
} copies SEC(".maps");

static __always_inline __u32 bytes_to_copy(void)
{
	__u32 zero = 0, *bytes = bpf_map_lookup_elem(&capturing, &zero);

	return bytes ? *bytes : 0;
}

/* `id`, if somebody looks at that port. */
static __always_inline __u32 if_watched(__u32 id)
{
	struct port *port = id ? bpf_map_lookup_elem(&ports, &id) : 0;

	return port && port->flags & PORT_CAPTURE ? id : 0;
}

/* Not inlined: a drop has many places; nor static, as what is next, that the verifier looks at it once for all of them. */
__noinline int capture_packet(struct __sk_buff *skb, struct scratch *s, __u32 stage, __u32 reason)
{
	__u32 zero = 0, length = skb->len;
	__u64 bytes = bytes_to_copy();
	struct copy *copy = bpf_map_lookup_elem(&copies, &zero);

	if (!copy || !s)
		return 0;
	if (bytes > length)
		bytes = length;
	if (bytes > CAPTURE_BYTES)
		bytes = CAPTURE_BYTES;
	copy->head.time_ns = bpf_ktime_get_ns();
	copy->head.zone = s->pkt.key.zone;
	copy->head.ports[0] = s->watched[0];
	copy->head.ports[1] = s->watched[1];
	copy->head.length = length;
	copy->head.captured = bytes;
	copy->head.stage = stage;
	copy->head.reason = reason;
	asm volatile("" : "+r"(bytes));		/* the bound must be on the register that the helpers get */
	if (!bytes || bytes > CAPTURE_BYTES || bpf_skb_load_bytes(skb, 0, copy->data, bytes))
		return 0;
	if (bpf_ringbuf_output(&captures, copy, sizeof(copy->head) + bytes, 0))
		count_lost(RING_CAPTURES);
	return 0;
}

/* The packet is as it came; it goes from `sender` to `receiver`, 0: no port of ours. */
static __always_inline void capture_before(struct __sk_buff *skb, struct scratch *s, __u32 sender, __u32 receiver)
{
	if (!bytes_to_copy() || is_dry(s))
		return;
	s->watched[0] = if_watched(sender);
	s->watched[1] = if_watched(receiver);
	if (s->watched[0] | s->watched[1])
		capture_packet(skb, s, CAPTURE_BEFORE, NONE);
}

/* Returns `verdict`. A packet that was dropped has told so itself. */
static __always_inline int capture_after(struct __sk_buff *skb, struct scratch *s, int verdict)
{
	if (s->watched[0] | s->watched[1]) {
		capture_packet(skb, s, CAPTURE_AFTER, NONE);
		s->watched[0] = s->watched[1] = 0;
	}
	return verdict;
}

/* `s->d.drop_port` is whose layers were asked. What was already told as it came is told again, as it ended. */
__noinline int capture_drop(struct __sk_buff *skb, struct scratch *s, __u32 reason)
{
	__u32 zone, stage = CAPTURE_AFTER, from, to;

	if (!s || !bytes_to_copy() || is_dry(s))
		return 0;
	zone = s->pkt.key.zone;
	if (!(s->watched[0] | s->watched[1])) {
		stage = CAPTURE_BEFORE;
		from = ZONE_KIND(zone) == ZONE_PORT ? ZONE_NUMBER(zone) : 0;
		to = s->d.drop_port == from ? 0 : s->d.drop_port;
		s->watched[0] = if_watched(from);
		s->watched[1] = if_watched(to);
	}
	if (s->watched[0] | s->watched[1])
		capture_packet(skb, s, stage, reason);
	s->watched[0] = s->watched[1] = 0;
	return 0;
}
