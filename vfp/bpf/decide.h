/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* From a forward tuple (`s->h`) to a verdict and both halves of its flow (`s->forward`, `s->reply`). */
#pragma once

#include "layers.h"
#include "vxlan.h"

/* These say whose layers are asked first, and where the packet goes if they let it. Return a drop reason. */

static __always_inline int ask(struct decision *d, __u32 port, int in, int slot)
{
	d->leg.port = port;
	d->leg.in = in;
	d->leg.slot = slot;
	return NONE;
}

/* The space that a port is the way out of: its record; 0 if it is no exit. */
static __always_inline struct port *exit_of(__u32 id)
{
	struct port *port = bpf_map_lookup_elem(&ports, &id);

	return port && port->flags & PORT_EXIT ? port : 0;
}

/* What its own OUT layers say decides. */
static __always_inline int ask_exit(struct decision *d, __u32 port, int slot)
{
	d->exit = port;
	d->where = PLACE_NONE;
	d->routed = d->bridged = d->switched = 0;
	return ask(d, port, 0, slot);
}

/* No host is trusted beyond its own endpoints: the inner source must be mapped to the outer one. */
static __always_inline int decide_from_overlay(struct scratch *s, __u32 vni)
{
	struct decision *d = &s->d;
	struct location *location;

	seek_place(s, vni, &s->h.key, &s->h.key.src);
	if (!find_location(s) || s->found.kind != LOCATION_REMOTE)
		return UNKNOWN_SOURCE;
	if (s->h.vtep && s->h.vtep != s->found.vtep)
		return WRONG_VTEP;
	d->source = s->found;
	seek_place(s, vni, &s->h.key, &s->h.key.dst);
	location = bpf_map_lookup_elem(&spaces, &s->space);
	if (location && is_asking(&s->h) &&
	    (location->kind == LOCATION_PORT || location->kind == LOCATION_VIRTUAL)) {
		d->place = *location;
		d->where = PLACE_REPLY;
		return NONE;
	}
	if ((!location || location->kind != LOCATION_PORT) && !flood_from_overlay(s, vni))
		return NONE;
	if (!find_location(s))
		return NO_MAPPING;
	switch (s->found.kind) {
	case LOCATION_PORT:
		if (exit_of(s->found.port))
			return ask_exit(d, s->found.port, 0);
		d->where = PLACE_PORT;
		return ask(d, s->found.port, 1, 1);
	case LOCATION_REMOTE:
		return MOVED;
	case LOCATION_VIRTUAL:
		d->place = s->found;
		d->where = PLACE_REPLY;
		return is_answered(s) ? NONE : NO_MAPPING;
	}
	return NO_MAPPING;
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
		return d->where != PLACE_PORT ? NONE : exit_of(d->place.port) ? UNKNOWN_PORT : ask(d, d->place.port, 1, 1);
	if (!s->h.tracked || s->h.key.vlan)
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
	if (exit_of(d->via.port)) {
		d->exit = d->via.port;
		return ask(d, d->via.port, 1, 0);
	}
	return ask(d, d->via.port, 1, 1);
}

/* What came in by a way out goes on in its space. NO_MAPPING would mean that the packet is not ours. */
static __always_inline int enter_space(struct scratch *s)
{
	struct port *exit = exit_of(s->d.exit);
	struct decision *d = &s->d;

	if (!exit)
		return UNKNOWN_PORT;
	seek_place(s, exit->space, &d->cur, &d->cur.dst);
	if (!find_location(s))
		return NO_ROUTE;
	d->place = s->found;
	if (s->found.kind == LOCATION_REMOTE) {
		d->where = PLACE_TUNNEL;
		return ask(d, 0, 0, 0);
	}
	if (s->found.kind != LOCATION_PORT || exit_of(s->found.port))
		return NO_ROUTE;
	return ask(d, s->found.port, 1, 1);
}

/* The second leg, if there is one: the receiver's, or that of a way out. Returns a drop reason. */
static __always_inline int go_on(struct scratch *s)
{
	__u32 kind = ZONE_KIND(s->h.key.zone);
	struct decision *d = &s->d;

	if (kind == ZONE_UPLINK && d->exit)
		return enter_space(s);
	if (d->leg.in)
		return ask(d, 0, 0, 0);
	d->layer = 0xff;
	if (!d->where)
		return NO_ROUTE;
	if (d->where == PLACE_PORT) {
		if (!exit_of(d->place.port))
			return d->exit && d->switched ? NO_ROUTE : ask(d, d->place.port, 1, 1);
		return d->exit || d->routed ? NO_ROUTE : ask_exit(d, d->place.port, 1);
	}
	if (d->exit && d->where != PLACE_UPLINK && d->where != PLACE_TUNNEL)
		return NO_ROUTE;
	return ask(d, 0, 0, 0);
}

/* Both legs, by the way that `decide_from_*` have found. */
static __always_inline int run_legs(struct scratch *s)
{
	struct decision *d = &s->d;
	int reason;

	if (!d->leg.port)
		return NONE;
	reason = run_layers(s);
	if (!reason)
		reason = go_on(s);
	if (reason || !d->leg.port)
		return reason;
	reason = run_layers(s);
	if (reason || d->leg.in)
		return reason;
	d->layer = 0xff;
	return d->where == PLACE_UPLINK || d->where == PLACE_TUNNEL ? NONE : NO_ROUTE;
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
	int reason = ENGINE_ERROR;

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
		reason = exit_of(number) ? UNKNOWN_PORT : ask(d, number, 0, 0);
		break;
	case ZONE_OVERLAY:
		reason = decide_from_overlay(s, number);
		break;
	case ZONE_UPLINK:
		reason = decide_from_uplink(s, number);
		break;
	case ZONE_HOST:
		d->drop_port = number;
		d->where = PLACE_STACK;
		reason = exit_of(number) ? UNKNOWN_PORT : ask(d, number, 1, 1);
		break;
	}
	return reason ? reason : run_legs(s);
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

/*
 * `sender`: whose packets these are; 0: none of our ports'. What is routed, or sent on, by a way out is its own, and comes
 * from the gateway.
 */
static __always_inline int to_tunnel(struct transposition *t, const struct decision *d, const struct location *remote,
				     __u32 sender)
{
	struct port *exit = d->routed | d->bridged ? exit_of(d->exit) : 0, *port;
	__u32 zero = 0, six = is_ipv6_vtep(remote->vtep), from = d->exit ? d->exit : sender;
	struct settings *settings = bpf_map_lookup_elem(&config, &zero);

	if (!settings || !settings->tunnel_ifindex)
		return NO_ROUTE;
	port = from ? bpf_map_lookup_elem(&ports, &from) : 0;
	t->place = PLACE_TUNNEL;
	t->ifindex = settings->tunnel_ifindex;
	t->vni = remote->vni;
	t->vtep = remote->vtep;
	t->underlay = port && port->underlays[six] ? port->underlays[six] : settings->underlays[six];
	t->flags |= SET_DMAC;
	copy_mac(t->dmac, remote->mac);
	if (exit) {
		t->flags |= SET_SMAC;
		copy_mac(t->smac, exit->gateway_mac);
	}
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
	to->vlan = from->vlan;
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
		return to_tunnel(t, d, &d->place, d->ports[0]);
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
		return ZONE_KIND(s->h.key.zone) == ZONE_OVERLAY ?
		       to_tunnel(&s->reply.out, d, &d->source, d->place.port) : NONE;
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
		s->forward.from_vtep = d->source.vtep;
		return to_tunnel(t, d, &d->source, d->ports[1]);
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

/* Tags are for frames that are switched, and only ports that may have them get them. */
static __always_inline int may_keep_tag(const struct headers *h, const struct decision *d)
{
	if (d->where == PLACE_PORT)
		return d->switched && has_vlan(d->ports[1], h->key.vlan);
	return d->where == PLACE_WIRE || d->where == PLACE_FLOOD || ZONE_KIND(h->key.zone) == ZONE_HOST;
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
	if (h->key.vlan && !may_keep_tag(h, d))
		return VLAN_TAGGED;
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
