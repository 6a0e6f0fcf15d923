/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Frames by their destination MAC: to the station that has it, to the wire, or to many. */
#pragma once

#include "headers.h"

static __always_inline int is_group(const __u8 *mac)
{
	return mac[0] & 1;
}

/* Keys are in the scratch: the stack is deep where layers act. */
static __always_inline struct segment *find_segment(struct scratch *s, __u32 number, __u32 kind)
{
	s->segment.number = number;
	s->segment.kind = kind;
	return bpf_map_lookup_elem(&segments, &s->segment);
}

/* The port behind a frame's destination; 0: none. */
static __always_inline __u32 find_station(struct scratch *s, const struct segment_key *of)
{
	__u32 *port;

	s->station.number = of->number;
	s->station.kind = of->kind;
	copy_mac(s->station.mac, s->h.dmac);
	port = bpf_map_lookup_elem(&stations, &s->station);
	return port ? *port : 0;
}

static __always_inline int is_switchable(const struct headers *h)
{
	return h->key.family || h->ethertype == ETH_P_ARP;
}

/* Where the frame of a port goes in a space. Not static, for the verifier, and off the stack, like `translate_source`. */
__noinline int switch_frame(struct scratch *s, __u32 space, __u32 port)
{
	struct segment *segment;
	struct decision *d;
	__u32 to;

	if (!s)
		return ENGINE_ERROR;
	d = &s->d;
	segment = find_segment(s, space, SEGMENT_SPACE);
	if (!is_switchable(&s->h))
		return NO_ROUTE;
	d->switched = 1;
	d->bridged = 0;
	d->routed = 0;
	if (is_group(s->h.dmac)) {
		if (!segment || !segment->floods)
			return NOT_FLOODED;
		d->where = PLACE_FLOOD;
		d->segment = s->segment;
		return NONE;
	}
	if (!segment)
		return NO_MAPPING;
	to = find_station(s, &segment->of);
	if (to && to != port) {
		d->where = PLACE_PORT;
		d->place.port = to;
		return NONE;
	}
	if (to || !segment->wire)
		return NO_MAPPING;
	d->where = PLACE_WIRE;
	d->uplink = segment->wire;
	return NONE;
}

/*
 * What came over the overlay for a group, from who may speak there: stations get it. Not static, for the verifier.
 */
__noinline int flood_from_overlay(struct scratch *s, __u32 vni)
{
	struct segment *segment;

	if (!s)
		return NO_MAPPING;
	if (!is_group(s->h.dmac) || !is_switchable(&s->h))
		return NO_MAPPING;
	segment = find_segment(s, vni, SEGMENT_SPACE);
	if (!segment || !segment->floods)
		return NO_MAPPING;
	s->d.where = PLACE_FLOOD;
	s->d.segment = s->segment;
	return NONE;
}

static __always_inline struct location *find_proxied(struct scratch *s, __u32 uplink)
{
	struct location *location;

	s->space.space = WIRE_SPACE | uplink;
	s->space.family = address_family(&s->h.key);
	s->space.address = s->h.key.dst;
	location = bpf_map_lookup_elem(&spaces, &s->space);
	return location && location->kind == LOCATION_PORT ? location : 0;
}

/* Whoever is on the wire and asks for an address of ours is told the uplink's MAC. */
static __always_inline int answer_wire(struct scratch *s, const struct uplink *link)
{
	if (same_address(&s->h.key.src, &s->h.key.dst))
		return 0;
	copy_mac(s->d.place.mac, link->mac);
	s->d.where = PLACE_REPLY;
	return 1;
}

/*
 * What comes by a wire for ours: 1, if `s->d` says where it goes (a port: `s->d.place`); else 0, and it is the host's own
 * business, or what it was before there was a wire. Not static, for the verifier.
 */
__noinline int take_from_wire(struct scratch *s, __u32 uplink)
{
	struct location *location;
	struct segment *segment;
	struct uplink *link;
	struct decision *d;
	__u32 port;

	if (!s)
		return 0;
	d = &s->d;
	link = bpf_map_lookup_elem(&uplinks, &uplink);
	if (!link || !link->flags || !is_switchable(&s->h))
		return 0;
	segment = link->flags & UPLINK_STATIONS ? find_segment(s, uplink, SEGMENT_WIRE) : 0;
	if (segment && !is_group(s->h.dmac)) {
		port = find_station(s, &segment->of);
		if (port) {
			d->where = PLACE_PORT;
			d->place.port = port;
			d->switched = 1;
			return 1;
		}
	}
	location = link->flags & UPLINK_PROXY && !s->h.key.vlan ? find_proxied(s, uplink) : 0;
	if (location && is_asking(&s->h))
		return answer_wire(s, link);
	if (location && !is_group(s->h.dmac) && s->h.key.family && !s->h.nd) {
		d->where = PLACE_PORT;
		d->place.port = location->port;
		d->bridged = 1;
		return 1;
	}
	if (segment && segment->floods && is_group(s->h.dmac)) {
		d->where = PLACE_FLOOD;
		d->segment = s->segment;
		return 1;
	}
	return 0;
}

/* From a frame's sender, who may be behind the same wire: by way of somebody there. */
static __always_inline int came_round(struct scratch *s, __u32 uplink)
{
	struct location *location;

	s->space.space = WIRE_SPACE | uplink;
	s->space.family = address_family(&s->h.key);
	s->space.address = s->h.key.src;
	location = bpf_map_lookup_elem(&spaces, &s->space);
	return location && location->kind == LOCATION_PORT;
}
