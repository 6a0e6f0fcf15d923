/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* What a port may have: packets a second, and pairs of flows. A port without limits pays for the test of a bit. */
#pragma once

#include <stddef.h>

#include "packet.h"

#define RATE_SHIFT 8			/* struct rate counts in 1/256 ns */
#define GSO_MAX_SEGMENTS 65536

enum rate_way {
	RATE_OUT = 0,
	RATE_IN = 1,
};

/*
 * Whether a packet may pass; if so, what it costs is taken. Packets that were made one by an offload pass together, and the
 * bucket is in debt. What lies further ahead than that can be is of another rate, or of a clock that has come round.
 */
static __always_inline int take_tokens(__u32 id, const struct port *port, enum rate_way way, __u32 segments)
{
	struct usage *usage = bpf_map_lookup_elem(&usages, &id);
	__u64 now = bpf_ktime_get_ns() << RATE_SHIFT, cost = port->rates[way].cost, burst = port->rates[way].burst;
	__u64 until, ahead;
	int passes;

	if (!usage)
		return 0;
	bpf_spin_lock(&usage->lock);
	until = usage->until[way];
	ahead = until - now;
	if ((__s64)ahead < 0)
		ahead = 0;
	else if (ahead > burst + GSO_MAX_SEGMENTS * cost)
		ahead = burst;
	passes = ahead <= burst;
	if (passes)
		usage->until[way] = now + ahead + (segments ? segments : 1) * cost;
	bpf_spin_unlock(&usage->lock);
	return passes;
}

/* Of what a former port with that id had, nothing counts. */
static __always_inline struct usage *capped(__u32 id, __u32 generation, __u32 *most)
{
	struct port *port = id ? bpf_map_lookup_elem(&ports, &id) : 0;

	if (!port || !(port->flags & PORT_CAPPED) || is_former(port, generation))
		return 0;
	*most = port->connections;
	return bpf_map_lookup_elem(&usages, &id);
}

/* The ports of a pair, and under which generations it was decided; as in struct flow. */
static __always_inline const struct parties *parties_of(const struct flow *f)
{
	_Static_assert(offsetof(struct flow, generations) - offsetof(struct flow, ports) ==
		       offsetof(struct parties, generations), "a part of struct flow");
	return (const struct parties *)f->ports;
}

/* Not inline: the stack is full where a policy is decided. */
static __noinline int count_connection(const struct parties *of, int by)
{
	__u32 most;

	for (int i = 0; i < 2; i++) {
		struct usage *usage;

		if (i && of->ports[1] == of->ports[0])
			break;
		usage = capped(of->ports[i], of->generations[i], &most);
		if (usage)
			__sync_fetch_and_add(&usage->connections.now, by);
	}
	return 0;
}

/* For a new pair. Returns a drop reason. CPUs that ask at the same moment may all get the last one. */
static __noinline int take_connection(const struct parties *of)
{
	__u32 most;

	for (int i = 0; i < 2; i++) {
		struct usage *usage = capped(of->ports[i], of->generations[i], &most);

		if (usage && usage->connections.now >= (__s64)most)
			return CONNECTION_LIMIT;
	}
	return count_connection(of, 1);
}
