/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* From a forward tuple (`s->h`) to a verdict and both halves of its flow (`s->forward`, `s->reply`). */
#pragma once

#include "layers.h"
#include "vxlan.h"

static __always_inline int decide_from_port(struct scratch *s, __u32 number)
{
	struct decision *d = &s->d;
	int reason = run_layers(s, number, 0, 0);

	if (reason)
		return reason;
	d->layer = 0xff;
	if (!d->where)
		return NO_ROUTE;
	if (d->where != PLACE_PORT)
		return NONE;
	return run_layers(s, d->place.port, 1, 1);
}

/* No host is trusted beyond its own endpoints: the inner source must be mapped to the outer one. */
static __always_inline int decide_from_overlay(struct scratch *s, __u32 vni)
{
	struct decision *d = &s->d;
	struct space_key key = {.space = vni, .family = address_family(&s->h.key), .address = s->h.key.src};
	struct location *location = bpf_map_lookup_elem(&spaces, &key);

	if (!location || location->kind != LOCATION_REMOTE)
		return UNKNOWN_SOURCE;
	if (s->h.vtep && s->h.vtep != location->vtep)
		return WRONG_VTEP;
	d->place = *location;		/* of the source: the reply goes there */
	key.address = s->h.key.dst;
	location = bpf_map_lookup_elem(&spaces, &key);
	if (!location || location->kind != LOCATION_PORT)
		return flood_from_overlay(s, vni);
	d->where = PLACE_PORT;
	return run_layers(s, location->port, 1, 1);
}

/* The binding under whose external side a packet came in. */
static __always_inline int find_sender(struct scratch *s, __u32 uplink)
{
	seek(s);
	s->nat.contact.remote = s->h.key.src;
	return find_binding(s, uplink);
}

static __always_inline int decide_from_uplink(struct scratch *s, __u32 uplink)
{
	struct decision *d = &s->d;
	struct uplink *link;
	int reason;

	/* The host's own, whatever came by a wire with it. */
	if (is_loopback(s->h.key.family, &s->h.key.src)) {
		link = bpf_map_lookup_elem(&uplinks, &uplink);
		if (!link || !(link->ifindex & UPLINK_LOOPBACK))
			return NO_MAPPING;
	}
	if (take_from_wire(s, uplink))
		return d->where == PLACE_PORT ? run_layers(s, d->place.port, 1, 1) : NONE;
	if (!s->h.tracked)
		return NO_MAPPING;
	s->mapping.uplink = uplink;
	if (!find_mapping(s)) {
		reason = find_sender(s, uplink);
		if (reason == NO_MAPPING && find_prefix(s, uplink))
			reason = NONE;
		if (reason)
			return reason;
	}
	d->routed = 1;
	d->where = PLACE_PORT;
	return run_layers(s, d->via.port, 1, 1);
}

/*
 * Fills `s->d`; returns a drop reason. At an uplink, NO_MAPPING means that the packet is not ours. Not static, for the
 * verifier, like `sets_match`.
 */
__noinline int decide(struct scratch *s)
{
	struct settings *settings;
	struct decision *d;
	__u32 number, zero = 0;

	if (!s)
		return ENGINE_ERROR;
	number = ZONE_NUMBER(s->h.key.zone);
	settings = bpf_map_lookup_elem(&config, &zero);
	d = &s->d;
	__builtin_memset(d, 0, sizeof(*d));
	d->cur = s->h.key;
	d->layer = 0xff;
	if (!settings)
		return ENGINE_ERROR;
	d->sets_generation = settings->sets_generation;
	d->turn = settings->turn;
	switch (ZONE_KIND(s->h.key.zone)) {
	case ZONE_PORT:
		d->drop_port = number;
		return decide_from_port(s, number);
	case ZONE_OVERLAY:
		return decide_from_overlay(s, number);
	case ZONE_UPLINK:
		return decide_from_uplink(s, number);
	case ZONE_HOST:
		d->drop_port = number;
		d->where = PLACE_STACK;
		return run_layers(s, number, 1, 1);
	}
	return ENGINE_ERROR;
}

static __always_inline int to_port(struct transposition *t, __u32 id, int routed)
{
	struct port *port = bpf_map_lookup_elem(&ports, &id);

	if (!port || !port->ifindex)
		return UNKNOWN_PORT;
	t->place = port->flags & (PORT_TAP | PORT_QUEUED) ? PLACE_TAP : PLACE_PORT;
	t->ifindex = port->ifindex;
	t->mtu = port->mtu;
	t->flags |= SET_DMAC;
	copy_mac(t->dmac, port->mac);
	if (routed) {
		t->flags |= SET_SMAC;
		copy_mac(t->smac, port->gateway_mac);
	}
	return NONE;
}

static __always_inline int to_uplink(struct transposition *t, __u32 id)
{
	struct uplink *uplink = bpf_map_lookup_elem(&uplinks, &id);

	if (!uplink || !uplink->ifindex)
		return NO_ROUTE;
	t->place = PLACE_UPLINK;
	t->ifindex = uplink->ifindex & ~UPLINK_LOOPBACK;
	t->mtu = uplink->mtu;
	if (uplink->ifindex & UPLINK_LOOPBACK) {	/* the address of the loopback device is all zeros, as are the MACs here */
		t->place = PLACE_LOOPBACK;
		t->mtu = 0;
		t->flags |= SET_SMAC | SET_DMAC;
	}
	return NONE;
}

/* The frame keeps its MACs. */
static __always_inline int to_wire(struct transposition *t, __u32 id)
{
	int reason = to_uplink(t, id);

	t->place = PLACE_WIRE;
	return reason;
}

/* To whom a packet that came by a proxy wire is from: the host's routes know, or, of one of ours, who sent it on. */
static __always_inline int back_to_wire(struct scratch *s, struct transposition *t, __u32 id)
{
	struct uplink *uplink = bpf_map_lookup_elem(&uplinks, &id);

	if (!came_round(s, id) || !uplink)
		return to_uplink(t, id);
	t->flags |= SET_SMAC | SET_DMAC;
	copy_mac(t->smac, uplink->mac);
	copy_mac(t->dmac, s->h.smac);
	return to_wire(t, id);
}

/* By way of a router that a rule named. */
static __always_inline int to_hop(struct transposition *t, __u32 id, __u8 family)
{
	struct hop *hop = id ? bpf_map_lookup_elem(&hops, &id) : 0;

	t->vtep = id;
	return id && (!hop || hop->family != family) ? NO_ROUTE : NONE;
}

/* `sender`: whose packets these are; 0: none of our ports'. */
static __always_inline int to_tunnel(struct transposition *t, const struct location *remote, __u32 sender)
{
	struct port *port = sender ? bpf_map_lookup_elem(&ports, &sender) : 0;
	__u32 zero = 0, six = is_ipv6_vtep(remote->vtep);
	struct settings *settings = bpf_map_lookup_elem(&config, &zero);

	if (!settings || !settings->tunnel_ifindex)
		return NO_ROUTE;
	t->place = PLACE_TUNNEL;
	t->ifindex = settings->tunnel_ifindex;
	t->vni = remote->vni;
	t->vtep = remote->vtep;
	t->underlay = port && port->underlays[six] ? port->underlays[six] : settings->underlays[six];
	t->flags |= SET_DMAC;
	copy_mac(t->dmac, remote->mac);
	return NONE;
}

/* What the layers changed between the tuple that came and the one that leaves. */
static __always_inline void diff(struct transposition *t, const struct flow_key *from, const struct flow_key *to)
{
	t->src = to->src;
	t->dst = to->dst;
	t->sport = to->sport;
	t->dport = to->dport;
	if (!same_address(&from->src, &to->src))
		t->flags |= SET_SRC;
	if (!same_address(&from->dst, &to->dst))
		t->flags |= SET_DST;
	if (from->sport != to->sport)
		t->flags |= SET_SPORT;
	if (from->dport != to->dport)
		t->flags |= SET_DPORT;
}

static __always_inline void reverse(struct flow_key *to, const struct flow_key *from, __u32 zone)
{
	to->zone = zone;
	to->family = from->family;
	to->protocol = from->protocol;
	to->pad = 0;
	to->sport = from->dport;
	to->dport = from->sport;
	to->src = from->dst;
	to->dst = from->src;
}

static __always_inline int forward_out(struct scratch *s, __u32 *reply_zone)
{
	struct transposition *t = &s->forward.out;
	struct decision *d = &s->d;
	int reason;

	switch (d->where) {
	case PLACE_PORT:
		reason = to_port(t, d->ports[1], d->routed | d->bridged);
		if (d->switched)
			t->flags &= ~(SET_SMAC | SET_DMAC);
		*reply_zone = MAKE_ZONE(ZONE_PORT, d->ports[1]);
		return reason;
	case PLACE_TUNNEL:
		*reply_zone = MAKE_ZONE(ZONE_OVERLAY, d->place.vni);
		s->reply.from_vtep = d->place.vtep;
		return to_tunnel(t, &d->place, d->ports[0]);
	case PLACE_UPLINK:
		if (!s->h.key.family || s->h.nd)
			return NO_ROUTE;
		*reply_zone = MAKE_ZONE(ZONE_UPLINK, d->uplink);
		reason = to_hop(t, d->hop, s->h.key.family);
		return reason ? reason : to_uplink(t, d->uplink);
	case PLACE_WIRE:
		*reply_zone = MAKE_ZONE(ZONE_UPLINK, d->uplink);
		return to_wire(t, d->uplink);
	case PLACE_FLOOD:
		t->place = PLACE_FLOOD;
		t->ifindex = d->segment.number;
		t->vni = d->segment.kind;
		return s->deciding_again ? NOT_FLOODED : NONE;
	case PLACE_STACK:
		t->place = PLACE_STACK;
		/* From a port to the stack, or from the stack to a port: the answer takes the other of the two. */
		if (ZONE_KIND(s->h.key.zone) == ZONE_HOST)
			*reply_zone = MAKE_ZONE(ZONE_PORT, ZONE_NUMBER(s->h.key.zone));
		else
			*reply_zone = MAKE_ZONE(ZONE_HOST, ZONE_NUMBER(s->h.key.zone));
		return NONE;
	case PLACE_REPLY:
		t->place = PLACE_REPLY;
		return NONE;
	}
	return NO_ROUTE;
}

static __always_inline int reply_out(struct scratch *s)
{
	struct transposition *t = &s->reply.out;
	struct decision *d = &s->d;
	int reason;

	switch (ZONE_KIND(s->h.key.zone)) {
	case ZONE_PORT:
		if (d->where == PLACE_STACK) {
			t->place = PLACE_STACK;
			return NONE;
		}
		reason = to_port(t, ZONE_NUMBER(s->h.key.zone), d->routed | d->bridged);
		if (d->switched)
			t->flags &= ~(SET_SMAC | SET_DMAC);
		return reason;
	case ZONE_OVERLAY:
		s->forward.from_vtep = d->place.vtep;
		return to_tunnel(t, &d->place, d->ports[1]);
	case ZONE_UPLINK:
		if (d->switched)
			return to_wire(t, ZONE_NUMBER(s->h.key.zone));
		if (d->bridged)
			return back_to_wire(s, t, ZONE_NUMBER(s->h.key.zone));
		return to_uplink(t, ZONE_NUMBER(s->h.key.zone));
	case ZONE_HOST:
		t->place = PLACE_STACK;
		return NONE;
	}
	return ENGINE_ERROR;
}

static __always_inline int is_stateless(const struct decision *d)
{
	return d->stateless && !d->translated;
}

/* Build both halves from the decision. Returns a drop reason. */
static __always_inline int compose(struct scratch *s)
{
	struct flow *f = &s->forward, *r = &s->reply;
	struct headers *h = &s->h;
	struct decision *d = &s->d;
	__u32 reply_zone = 0;
	__u64 now = bpf_ktime_get_coarse_ns();
	int reason;

	__builtin_memset(f, 0, sizeof(*f));
	__builtin_memset(r, 0, sizeof(*r));
	f->ports[0] = r->ports[0] = d->ports[0];
	f->ports[1] = r->ports[1] = d->ports[1];
	reason = forward_out(s, &reply_zone);
	if (reason)
		return reason;
	if (has_extras(&d->extras)) {
		f->extras = r->extras = d->extras;
		f->flags = FLOW_EXTRAS;
	}
	if (f->out.place == PLACE_REPLY)
		return NONE;
	if (f->out.place != PLACE_FLOOD) {
		reason = reply_out(s);
		if (reason)
			return reason;
	}
	keep_bindings(s, f);
	diff(&f->out, &h->key, &d->cur);
	reverse(&f->pair, &d->cur, reply_zone);
	r->pair = h->key;
	reverse(&s->d.cur, &h->key, 0);	/* what a reply must look like when it leaves */
	diff(&r->out, &f->pair, &s->d.cur);
	if (d->routed) {
		f->out.flags |= DEC_TTL;
		r->out.flags |= DEC_TTL;
	}
	if (d->marked && h->key.family) {
		f->out.flags |= SET_DSCP;
		r->out.flags |= SET_DSCP;
		f->out.dscp = r->out.dscp = d->dscp;
	}
	f->created_ns = f->seen_ns = r->created_ns = r->seen_ns = now;
	f->generations[0] = r->generations[0] = d->generations[0];
	f->generations[1] = r->generations[1] = d->generations[1];
	f->dscp = h->dscp;
	f->tcp_flags = h->tcp_flags;
	f->icmp_type = h->icmp_type;
	f->icmp_code = h->icmp_code;
	copy_mac(f->smac, h->smac);
	copy_mac(f->dmac, h->dmac);
	if (ZONE_KIND(reply_zone) == ZONE_PORT) {
		__u32 id = ZONE_NUMBER(reply_zone);
		struct port *port = bpf_map_lookup_elem(&ports, &id);

		if (!port)
			return UNKNOWN_PORT;
		copy_mac(r->smac, d->switched ? h->dmac : port->mac);
	}
	/* On the way to user space and back a packet loses its MACs: an answer gets those of who it is from. */
	if (ZONE_KIND(reply_zone) != ZONE_PORT)
		copy_mac(r->smac, f->out.flags & SET_DMAC ? f->out.dmac : h->dmac);
	copy_mac(r->dmac, f->out.flags & SET_SMAC ? f->out.smac : h->smac);
	if (d->inspect) {
		f->flags |= FLOW_INSPECT;
		f->extras.queue = r->extras.queue = d->queue;
		f->extras.fail_open = r->extras.fail_open = d->fail_open;
	}
	if (d->by_set) {
		f->flags |= FLOW_BY_SET;
		f->sets_generation = r->sets_generation = d->sets_generation;
	}
	if (h->fragment)
		f->flags |= FLOW_FRAGMENT;
	/* Of a stateless flow nothing is known that a segment could fit. */
	if (d->strict && h->key.protocol == IPPROTO_TCP && !is_stateless(d))
		f->flags |= FLOW_STRICT;
	r->flags = FLOW_REPLY | f->flags;
	if (d->switched) {
		f->flags |= FLOW_TO_MAC;
		r->flags |= ZONE_KIND(h->key.zone) == ZONE_UPLINK ? FLOW_TO_WIRE : FLOW_TO_MAC;
	}
	return NONE;
}
