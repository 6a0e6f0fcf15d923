/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Ageing, run by the agent, off the packet path. vfp_reap looks at the pairs that closed, in the order in which they did,
 * and stops at the first that has time left: it costs what there is to do. vfp_sweep looks at every flow: pairs that were
 * idle too long, those of ports that are gone, what the queues had no room for; then at external ports that no flow uses.
 */
#pragma once

#include "flow_table.h"
#include "sweep_bindings.h"

#define NSEC_PER_SEC 1000000000ULL
#define REAP_BATCH (1 << 20)
#define RECLAIM_BATCH 8	/* of each queue, for one new flow */

static __always_inline void count_pair(struct budgets *pairs, const struct flow_key *key, __u16 state)
{
	if (key->protocol != IPPROTO_TCP)
		pairs->udp++;
	else if (!(state & STATE_ASSURED))
		pairs->half_open++;
}

/* Those of the first of the flow's ports that has its own. `orphan`: one of its ports is gone. */
static __always_inline struct timeouts *timeouts_of(const struct flow *f, int *orphan)
{
	__u32 number = 0;

	*orphan = 0;
	for (int i = 0; i < 2; i++) {
		__u32 id = f->ports[i];
		struct port *port = id ? bpf_map_lookup_elem(&ports, &id) : 0;

		if (!port)
			continue;
		*orphan |= !is_there(port) || is_former(port, f->generations[i]);
		number = number ? number : port->timeouts;
	}
	return bpf_map_lookup_elem(&timeouts, &number);
}

static __always_inline __u64 tcp_limit(const struct timeouts *times, __u16 state)
{
	if (is_reset(state))
		return times->tcp_reset_ns;
	if (is_closed(state))
		return times->tcp_time_wait_ns;
	if (state & (STATE_FIN | STATE_PEER_FIN))
		return times->tcp_fin_wait_ns;
	if (is_established(state))
		return times->tcp_established_ns;
	return state & STATE_ASSURED ? times->tcp_syn_received_ns : times->tcp_opening_ns;
}

static __always_inline __u64 idle_limit(const struct timeouts *times, const struct flow_key *key, __u16 state)
{
	switch (key->protocol) {
	case IPPROTO_TCP:
		return tcp_limit(times, state);
	case IPPROTO_UDP:
		return state & STATE_ASSURED ? times->udp_ns : times->udp_new_ns;
	}
	return is_icmp(key->family, key->protocol) ? times->icmp_ns : times->other_ns;
}

/* When the younger half was used. */
static __always_inline __u64 last_used(const struct flow *f)
{
	struct flow *other;

	if (f->state & STATE_SINGLE)
		return f->seen_ns;
	other = bpf_map_lookup_elem(&flows, &f->pair);
	return other && other->seen_ns > f->seen_ns ? other->seen_ns : f->seen_ns;
}

/* A pair is as idle as its younger half. */
static __always_inline int is_idle(const struct flow *f, __u64 limit, __u64 now)
{
	return f->seen_ns + limit <= now && last_used(f) + limit <= now;
}

static __always_inline void remove_pair(struct sweep *sweep, const struct flow_key *key, const struct flow *f)
{
	struct flow_key own = *key, pair = f->pair;
	struct parties parties = *parties_of(f);

	sweep->flows_removed++;
	forget(&own, &pair, f->state, &parties);
}

static __always_inline void count_at_ports(const struct flow *f, int gone)
{
	__u32 most;

	for (int i = 0; i < 2; i++) {
		struct usage *usage;

		if (i && f->ports[1] == f->ports[0])
			break;
		usage = capped(f->ports[i], f->generations[i], &most);
		if (usage && gone)
			usage->connections.gone++;
		else if (usage)
			usage->connections.found++;
	}
}

/* These two go over all ports, before and after flows are counted. */
static long begin_port(void *map, __u32 *id, struct port *port, struct sweeping *sweeping)
{
	__u32 own = *id;
	struct usage *usage = port->flags & PORT_CAPPED ? bpf_map_lookup_elem(&usages, &own) : 0;

	if (usage) {
		sweeping->capped = 1;
		begin_tally(&usage->connections);
	}
	return 0;
}

static long end_port(void *map, __u32 *id, struct port *port, struct sweeping *sweeping)
{
	__u32 own = *id;
	struct usage *usage = port->flags & PORT_CAPPED ? bpf_map_lookup_elem(&usages, &own) : 0;

	if (usage)
		mend_tally(&usage->connections);
	return 0;
}

static long sweep_flow(void *map, struct flow_key *key, struct flow *f, struct sweeping *sweeping)
{
	struct sweep *sweep = sweeping->sweep;
	struct timeouts *times;
	__u64 limit;
	int orphan;

	sweep->flows_seen++;
	times = timeouts_of(f, &orphan);
	if (!times)
		return 0;
	limit = idle_limit(times, key, f->state);
	/* The forward half speaks for both; a reply whose forward half is gone is as idle as itself. */
	if (f->flags & FLOW_REPLY) {
		struct flow_key own = *key;

		if (f->seen_ns + limit <= sweeping->now && !bpf_map_lookup_elem(&flows, &f->pair))
			bpf_map_delete_elem(&flows, &own);
		return 0;
	}
	/* Nothing can use a flow of a port that is gone; what comes for it is decided anew. */
	if (orphan || is_idle(f, limit, sweeping->now)) {
		count_pair(&sweeping->gone, key, f->state);
		if (sweeping->capped)
			count_at_ports(f, 1);
		remove_pair(sweep, key, f);
		return 0;
	}
	count_pair(&sweeping->left, key, f->state);
	if (sweeping->capped)
		count_at_ports(f, 0);
	if (f->flags & (FLOW_BOUND | FLOW_BEHIND))
		stamp_bindings(key, f, sweeping->now);
	return 0;
}

static __always_inline int begin(struct sweeping *sweeping, struct sweep *sweep)
{
	__u32 zero = 0;

	sweeping->sweep = sweep;
	sweeping->settings = bpf_map_lookup_elem(&config, &zero);
	sweeping->now = sweep->now_ns ? sweep->now_ns : bpf_ktime_get_ns();
	return sweeping->settings != 0;
}

static long tally_flow(void *map, struct flow_key *key, struct flow *f, struct sweeping *sweeping)
{
	if (!(f->flags & FLOW_REPLY))
		count_at_ports(f, 0);
	return 0;
}

/* Run when a port has got a limit of connections: it may have some already. */
SEC("syscall")
int vfp_tally(struct sweep *sweep)
{
	struct sweeping sweeping = {};

	if (!begin(&sweeping, sweep))
		return 1;
	bpf_for_each_map_elem(&ports, begin_port, &sweeping, 0);
	bpf_for_each_map_elem(&flows, tally_flow, &sweeping, 0);
	bpf_for_each_map_elem(&ports, end_port, &sweeping, 0);
	return 0;
}

SEC("syscall")
int vfp_sweep(struct sweep *sweep)
{
	struct budgets *taken = all_budgets(), before;
	struct sweeping sweeping = {};

	if (!taken || !begin(&sweeping, sweep))
		return 1;
	before = *taken;
	bpf_for_each_map_elem(&ports, begin_port, &sweeping, 0);
	bpf_for_each_map_elem(&flows, sweep_flow, &sweeping, 0);
	if (sweeping.capped)
		bpf_for_each_map_elem(&ports, end_port, &sweeping, 0);
	mend(&taken->half_open, before.half_open - sweeping.gone.half_open, sweeping.left.half_open);
	mend(&taken->udp, before.udp - sweeping.gone.udp, sweeping.left.udp);
	sweep_bindings(&sweeping);
	return 0;
}

/* Run when ports or pools are gone: nothing of theirs is left for who gets their number. */
SEC("syscall")
int vfp_purge(struct sweep *sweep)
{
	struct sweeping sweeping = {};

	if (!begin(&sweeping, sweep))
		return 1;
	purge_bindings(&sweeping);
	return 0;
}

#define LOOK_AGAIN_NS (8 * NSEC_PER_SEC)	/* its time may have become shorter meanwhile */

/* One whose time is over leaves; one that was opened again is no longer our business. */
static __always_inline void reap_pair(struct sweeping *sweeping, struct closed *closed)
{
	struct flow *f = bpf_map_lookup_elem(&flows, &closed->key);
	struct timeouts *times;
	__u64 due;
	int orphan;

	sweeping->sweep->flows_seen++;
	if (!f || !is_closed(f->state))
		return;
	times = timeouts_of(f, &orphan);
	if (!times)
		return;
	due = last_used(f) + tcp_limit(times, f->state);
	if (due <= sweeping->now) {
		remove_pair(sweeping->sweep, &closed->key, f);
		return;
	}
	if (due > sweeping->now + LOOK_AGAIN_NS)
		due = sweeping->now + LOOK_AGAIN_NS;
	closed->due_s = due / NSEC_PER_SEC;
	closed->since_ns = sweeping->now;
	bpf_map_push_elem(&lingering, closed, BPF_ANY);
}

/* The queue is in the order in which pairs closed: when the shortest time in use is not over for the first, it is for none. */
static __always_inline int reap_head(struct sweeping *sweeping, void *queue, __u64 shortest)
{
	struct closed closed;

	if (bpf_map_peek_elem(queue, &closed) || closed.since_ns + shortest > sweeping->now)
		return 1;
	if (!bpf_map_pop_elem(queue, &closed))
		reap_pair(sweeping, &closed);
	return 0;
}

static long reap_time_wait(__u32 i, void *context)
{
	struct sweeping *sweeping = context;

	return reap_head(sweeping, &time_waits, sweeping->settings->reap_time_wait_ns);
}

static long reap_reset(__u32 i, void *context)
{
	struct sweeping *sweeping = context;

	return reap_head(sweeping, &resets, sweeping->settings->reap_reset_ns);
}

/* Those whose time is longer than the shortest, or that had packets since. What comes here in this run is at the end. */
static long reap_lingering(__u32 i, void *context)
{
	struct sweeping *sweeping = context;
	struct closed closed;

	if (bpf_map_peek_elem(&lingering, &closed) || closed.since_ns == sweeping->now ||
	    bpf_map_pop_elem(&lingering, &closed))
		return 1;
	if (closed.due_s <= sweeping->now / NSEC_PER_SEC) {
		reap_pair(sweeping, &closed);
		return 0;
	}
	closed.since_ns = sweeping->now;
	bpf_map_push_elem(&lingering, &closed, BPF_ANY);
	return 0;
}

SEC("syscall")
int vfp_reap(struct sweep *sweep)
{
	struct sweeping sweeping = {};

	if (!begin(&sweeping, sweep))
		return 1;
	bpf_loop(REAP_BATCH, reap_lingering, &sweeping, 0);
	bpf_loop(REAP_BATCH, reap_time_wait, &sweeping, 0);
	bpf_loop(REAP_BATCH, reap_reset, &sweeping, 0);
	return 0;
}
