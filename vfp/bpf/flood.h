/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Frames to groups, a copy to each who may want it. Those to ports leave by the egress of their links, where vfp_port_in
 * judges each on its own; it runs before bpf_clone_redirect returns, and in the same scratch: what is needed
 * after the first copy is on the stack.
 */
#pragma once

#include "enter.h"
#include "vxlan.h"

#define FLOODED_MAX 1024

struct flood {
	struct __sk_buff *skb;
	struct flooded_key key;
	__u32 space;		/* whose VTEPs get one */
	__u32 sender;		/* gets no copy */
	__u32 vlan;
};

/* A token bucket for each CPU and segment. */
static __always_inline int may_flood(const struct segment_key *key, const struct segment *segment)
{
	__u64 now = bpf_ktime_get_ns(), first = 0, *until;

	until = bpf_map_lookup_elem(&flooding, key);
	if (!until) {
		bpf_map_update_elem(&flooding, key, &first, BPF_NOEXIST);
		until = bpf_map_lookup_elem(&flooding, key);
	}
	if (!until || *until > now + segment->flood_burst_ns)
		return 0;
	*until = (*until > now ? *until : now) + segment->flood_ns;
	return 1;
}

static long flood_port(__u32 i, void *context)
{
	struct flood *flood = context;
	struct flooded_key key = flood->key;
	struct scratch *s = scratch();
	struct port *port;
	__u32 *id;

	key.index = i;
	id = bpf_map_lookup_elem(&flooded, &key);
	if (!id || !s || *id == flood->sender || (flood->vlan && !has_vlan(*id, flood->vlan)))
		return 0;
	port = bpf_map_lookup_elem(&ports, id);
	if (!port || !port->ifindex)
		return 0;
	s->flooding = port->ifindex;
	bpf_clone_redirect(flood->skb, port->ifindex, 0);
	s->flooding = 0;
	return 0;
}

static long flood_vtep(__u32 i, void *context)
{
	struct flood *flood = context;
	struct flooded_key key = flood->key;
	struct scratch *s = scratch();
	struct settings *settings;
	__u32 *vtep, zero = 0;

	if (!s)
		return 1;
	key.number = flood->space;
	key.kind = SEGMENT_VTEPS;
	key.index = i;
	vtep = bpf_map_lookup_elem(&flooded, &key);
	settings = bpf_map_lookup_elem(&config, &zero);
	if (!vtep || !settings || !settings->tunnel_ifindex)
		return 0;
	s->tunnel.vtep = *vtep;
	s->tunnel.underlay = settings->underlays[is_ipv6_vtep(*vtep)];
	if (tell_device(flood->skb, &s->tunnel, underlay_of(s->tunnel.underlay)))
		bpf_clone_redirect(flood->skb, settings->tunnel_ifindex, 0);
	return 0;
}

static __always_inline void flood_wire(struct __sk_buff *skb, __u32 id)
{
	struct uplink *uplink = bpf_map_lookup_elem(&uplinks, &id);

	if (uplink && uplink->ifindex)
		bpf_clone_redirect(skb, uplink->ifindex & ~UPLINK_LOOPBACK, 0);
}

/* A decided frame to a group, rewritten by nobody yet. Of what came by an uplink the host's stack has one, too. */
SEC("tc")
int vfp_flood(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flood flood = {.skb = skb};
	__u32 kind, ports, wire, vteps;
	struct segment *segment;
	struct segment_key key;

	if (!s)
		return TC_ACT_SHOT;
	kind = ZONE_KIND(s->pkt.key.zone);
	key.number = s->forward.out.ifindex;
	key.kind = s->forward.out.vni;
	segment = bpf_map_lookup_elem(&segments, &key);
	if (!segment)
		return drop_early(skb, s, NOT_FLOODED);
	if (!is_dry(s) && !may_flood(&key, segment)) {
		drop_early(skb, s, NOT_FLOODED);
		return kind == ZONE_UPLINK ? leave_to_stack(skb, s) : TC_ACT_SHOT;
	}
	if (rewrite_packet(skb, s, &s->forward.out))
		return drop_early(skb, s, ENGINE_ERROR);
	capture_after(skb, s, TC_ACT_OK);
	report(skb, s, PLACE_FLOOD, NONE, key.number);
	if (s->probe)		/* links of a test's policy are not there */
		return TC_ACT_OK;
	flood.space = key.number;
	flood.key.number = segment->of.number;
	flood.key.kind = segment->of.kind;
	flood.sender = kind == ZONE_PORT ? ZONE_NUMBER(s->pkt.key.zone) : 0;
	ports = segment->ports;
	wire = kind == ZONE_PORT ? segment->wire : 0;
	vteps = kind == ZONE_PORT && !s->pkt.key.vlan ? segment->vteps : 0;
	flood.vlan = s->pkt.key.vlan;
	if (wire)
		flood_wire(skb, wire);
	if (vteps) {
		s->tunnel.vni = segment->vni;
		s->tunnel.family = s->pkt.key.family;
		s->tunnel.fragments = 1;
		bpf_loop(vteps < FLOODED_MAX ? vteps : FLOODED_MAX, flood_vtep, &flood, 0);
	}
	bpf_loop(ports < FLOODED_MAX ? ports : FLOODED_MAX, flood_port, &flood, 0);
	return kind == ZONE_UPLINK ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}
