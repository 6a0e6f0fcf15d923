/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Ageing: pairs that were idle too long, then external ports that no flow uses. Run by the agent, off the packet path. */
#pragma once

#include "flow_table.h"
#include "parse.h"

struct sweeping {
	struct sweep *sweep;
	struct settings *settings;
	__u64 now;
};

static __always_inline __u64 idle_limit(const struct settings *settings, const struct flow_key *key, __u16 state)
{
	switch (key->protocol) {
	case IPPROTO_TCP:
		if (is_closed(state))
			return settings->tcp_closed_ns;
		if (state & (STATE_FIN | STATE_PEER_FIN))
			return settings->tcp_closing_ns;
		return state & STATE_ASSURED ? settings->tcp_established_ns : settings->tcp_new_ns;
	case IPPROTO_UDP:
		return state & STATE_ASSURED ? settings->udp_ns : settings->udp_new_ns;
	}
	return is_icmp(key->family, key->protocol) ? settings->icmp_ns : settings->other_ns;
}

/* A live flow holds its external port. */
static __always_inline void stamp_binding(const struct flow_key *key, const struct flow *f, __u64 now)
{
	struct external_key external = {.address = f->out.src, .port = f->out.sport, .protocol = key->protocol,
					.family = key->family};
	struct external *held;

	if (f->flags & FLOW_REPLY || !(f->out.flags & (SET_SRC | SET_SPORT)))
		return;
	held = bpf_map_lookup_elem(&externals, &external);
	if (held)
		held->seen_ns = now;
}

/* Nothing can use a flow of a port that is gone; what comes for it is decided anew. */
static __always_inline int is_orphan(const struct flow *f)
{
	for (int i = 0; i < 2; i++) {
		__u32 id = f->ports[i];
		struct port *port = id ? bpf_map_lookup_elem(&ports, &id) : 0;

		if (port && !port->ifindex)
			return 1;
	}
	return 0;
}

static long sweep_flow(void *map, struct flow_key *key, struct flow *f, struct sweeping *sweeping)
{
	struct flow_key own = *key, pair = f->pair;
	__u64 limit = idle_limit(sweeping->settings, key, f->state);
	struct flow *other;

	sweeping->sweep->flows_seen++;
	if (is_orphan(f))
		goto dead;
	if (f->seen_ns + limit > sweeping->now)
		goto alive;
	other = f->state & STATE_SINGLE ? 0 : bpf_map_lookup_elem(&flows, &pair);
	if (other && other->seen_ns + limit > sweeping->now)
		goto alive;
dead:
	forget(&own, &pair, f->state);
	sweeping->sweep->flows_removed++;
	return 0;
alive:
	stamp_binding(key, f, sweeping->now);
	return 0;
}

static long sweep_external(void *map, struct external_key *key, struct external *held,
			   struct sweeping *sweeping)
{
	struct external_key own = *key;
	struct binding_key holder = held->holder;

	sweeping->sweep->bindings_seen++;
	if (held->seen_ns + sweeping->settings->binding_ns > sweeping->now)
		return 0;
	bpf_map_delete_elem(&bindings, &holder);
	bpf_map_delete_elem(&externals, &own);
	sweeping->sweep->bindings_removed++;
	return 0;
}

SEC("syscall")
int vfp_sweep(struct sweep *sweep)
{
	__u32 zero = 0;
	struct sweeping sweeping = {.sweep = sweep};

	sweeping.settings = bpf_map_lookup_elem(&config, &zero);
	if (!sweeping.settings)
		return 1;
	sweeping.now = sweep->now_ns ? sweep->now_ns : bpf_ktime_get_ns();
	bpf_for_each_map_elem(&flows, sweep_flow, &sweeping, 0);
	bpf_for_each_map_elem(&externals, sweep_external, &sweeping, 0);
	return 0;
}
