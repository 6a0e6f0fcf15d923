/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Where addresses are: by a space's entries, and by its routes for what has none. */
#pragma once

#include "packet.h"

static __always_inline void seek_place(struct scratch *s, __u32 space, const struct flow_key *of,
				       const struct address *address)
{
	s->space.space = space;
	s->space.family = address_family(of);
	s->space.address = *address;
}

/*
 * What there is for `s->space`, into `s->found`. Returns 0 if there is nothing. A next hop has an entry: routes do not lead to
 * routes. Not static, for the verifier, like `sets_match`.
 */
__noinline int find_location(struct scratch *s)
{
	struct location *location;
	struct route *route;

	if (!s)
		return 0;
	location = bpf_map_lookup_elem(&spaces, &s->space);
	if (!location) {
		s->route.length = 8 * (sizeof(s->route) - sizeof(s->route.length));
		s->route.space = s->space.space;
		s->route.family = s->space.family;
		s->route.address = s->space.address;
		route = bpf_map_lookup_elem(&routes, &s->route);
		if (!route)
			return 0;
		location = &route->to;
		if (location->kind == LOCATION_VIA) {
			s->space.address = route->via;
			location = bpf_map_lookup_elem(&spaces, &s->space);
			if (!location)
				return 0;
		}
	}
	s->found = *location;
	return 1;
}
