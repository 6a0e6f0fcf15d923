/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* The walk over a port's layers: at most one action a layer that ends it, folded into `s->d`. */
#pragma once

#include "classify.h"
#include "modifiers.h"
#include "nat.h"
#include "prefix.h"
#include "space.h"
#include "switch.h"

struct walk {
	struct scratch *s;
	struct stage *stages;
	__u32 port;
	__u32 decided;		/* layer that has acted, plus one */
	__u32 kind;		/* of the packet */
	__u32 slot;		/* of the port in the flow's dependencies: 0 sender, 1 receiver */
};

static __always_inline void trace_hit(const struct hit_key *key)
{
	__u32 zero = 0;
	struct trace *trace = bpf_map_lookup_elem(&traced, &zero);

	if (!trace || trace->count >= 2 * MAX_STAGES)
		return;
	trace->hits[trace->count] = *key;
	trace->count += 1;
}

/* Not inline: its keys are off the stack while rules are searched, like those of `act`. */
static __noinline void count_hit(struct scratch *s, __u32 port, __u64 cookie, int dropped)
{
	struct hit_key key = {.cookie = cookie, .port = port};
	struct hits *hits, first = {.hits = 1, .drops = dropped};

	if (is_dry(s)) {
		trace_hit(&key);
		return;
	}
	hits = bpf_map_lookup_elem(&rule_hits, &key);
	if (!hits) {
		if (!bpf_map_update_elem(&rule_hits, &key, &first, BPF_NOEXIST))
			return;
		hits = bpf_map_lookup_elem(&rule_hits, &key);
		if (!hits)	/* table full: the total by reason is still right */
			return;
	}
	__sync_fetch_and_add(&hits->hits, 1);
	if (dropped)
		__sync_fetch_and_add(&hits->drops, 1);
}

/* For whoever remembers the decision. */
static __always_inline void note_hit(struct scratch *s, __u32 port, __u64 cookie)
{
	__u32 i = s->d.hits;

	if (i < MEMORY_HITS) {
		s->hit[i].cookie = cookie;
		s->hit[i].port = port;
	}
	s->d.hits = i + 1;
}

/* Of what is sent to a gateway that every host is: a whole echo request, which makes no flow. */
static __always_inline int is_answered(const struct scratch *s)
{
	return is_echo_request(&s->h) && !s->deciding_again && s->fragment_kind == NOT_FRAGMENT &&
	       s->l4 == L3 + (s->h.key.family == 6 ? sizeof(struct ipv6_header) : sizeof(struct iphdr));
}

static __always_inline int find_place(struct scratch *s, __u32 space)
{
	seek_place(s, space, &s->d.cur, &s->d.cur.dst);
	if (!find_location(s))
		return NO_MAPPING;
	s->d.place = s->found;
	s->d.routed = 0;		/* an earlier layer may have said: by an uplink */
	switch (s->found.kind) {
	case LOCATION_VIRTUAL:
		s->d.where = PLACE_REPLY;
		return is_answered(s) ? NONE : NO_MAPPING;
	case LOCATION_PORT:
		s->d.where = PLACE_PORT;
		return NONE;
	case LOCATION_REMOTE:
		s->d.where = PLACE_TUNNEL;
		return NONE;
	case LOCATION_HOST:
		s->d.where = PLACE_STACK;
		return NONE;
	}
	return ENGINE_ERROR;
}

/* A port is not told that its own address is taken (RFC 5227, RFC 4862 5.4). */
static __always_inline int answer_arp(struct scratch *s, __u64 arg, __u32 port)
{
	__u32 space = arg, proxy = arg >> 32;
	struct location *location;
	struct port *asking;

	if (!is_asking(&s->h) || same_address(&s->d.cur.src, &s->d.cur.dst))
		return ARP_UNANSWERED;
	seek_place(s, space, &s->d.cur, &s->d.cur.dst);
	location = bpf_map_lookup_elem(&spaces, &s->space);
	if (location && location->kind == LOCATION_PORT && location->port == port)
		return ARP_UNANSWERED;
	if (location) {
		s->d.place = *location;
	} else {
		/* A probe for an address that is on the wire at most: nobody here defends it. */
		asking = bpf_map_lookup_elem(&ports, &port);
		if (!proxy || !asking || is_unspecified(&s->d.cur.src))
			return ARP_UNANSWERED;
		copy_mac(s->d.place.mac, asking->gateway_mac);
	}
	s->d.where = PLACE_REPLY;
	s->d.routed = 0;
	return NONE;
}

static __always_inline int rewrite(struct scratch *s, __u64 id)
{
	struct rewrite *to = bpf_map_lookup_elem(&rewrites, &id);
	struct flow_key *cur = &s->d.cur;

	if (!to)
		return ENGINE_ERROR;
	/* SCTP's CRC32c covers its ports and cannot be mended in place; ICMP and the rest have none. */
	if (s->h.nd || (to->flags & SET_SRC && to->src_family != cur->family) ||
	    (to->flags & SET_DST && to->dst_family != cur->family))
		return NAT_UNSUPPORTED;
	if (!cur->family || (to->flags & (SET_SPORT | SET_DPORT) &&
			     cur->protocol != IPPROTO_TCP && cur->protocol != IPPROTO_UDP))
		return NAT_UNSUPPORTED;
	if (to->flags & SET_SRC)
		cur->src = to->src;
	if (to->flags & SET_DST)
		cur->dst = to->dst;
	if (to->flags & SET_SPORT) {
		cur->sport = to->sport;
		s->d.by_sport = 1;
	}
	if (to->flags & SET_DPORT)
		cur->dport = to->dport;
	s->d.translated = 1;
	return NONE;
}

/* What the world sends to is somewhere else in here. Of an echo request the port is the identifier. */
static __always_inline void go_inside(struct scratch *s)
{
	struct decision *d = &s->d;

	d->cur.dst = d->via.internal;
	d->translated = 1;
	if (d->via.whole)
		return;
	if (is_icmp(d->cur.family, d->cur.protocol))
		d->cur.sport = d->via.internal_port;
	else
		d->cur.dport = d->via.internal_port;
}

/*
 * The static mapping of an external destination, `s->mapping.uplink` being whose: that of the protocol and port, or that of
 * the whole address. Found: it is in `via`. Not static, for the verifier.
 */
__noinline int find_mapping(struct scratch *s)
{
	struct mapping *mapping = 0;
	struct mapping_key *key;
	struct decision *d;

	if (!s)
		return 0;
	d = &s->d;
	key = &s->mapping;
	key->external = d->cur.dst;
	key->family = d->cur.family;
	key->protocol = d->cur.protocol;
	key->port = is_echo_request(&s->h) ? d->cur.sport : d->cur.dport;
	if (!s->h.tracked)
		return 0;
	if (s->h.has_ports || is_echo_request(&s->h))
		mapping = bpf_map_lookup_elem(&mappings, key);
	if (!mapping) {
		key->protocol = 0;
		key->port = 0;
		mapping = bpf_map_lookup_elem(&mappings, key);
	}
	if (!mapping)
		return 0;
	d->via = *mapping;
	d->by_mapping = 1;
	d->by_sport |= mapping->whole;	/* one of its ports may be added */
	if (d->via.cookie) {
		note_hit(s, 0, d->via.cookie);
		if (!is_dry(s))
			count_hit(s, 0, d->via.cookie, 0);
	}
	return 1;
}

/* What `act` says beside a drop reason: the walk goes on as after Pass; it ends here. */
#define ACT_PASSED (-1)
#define ACT_ENDED (-2)

/* The packet's destination as it came may be the external side of a binding. */
static __always_inline void seek(struct scratch *s)
{
	const struct flow_key *key = &s->h.key;

	s->nat.sought.address = key->dst;
	s->nat.sought.port = key->dport;
	s->nat.sought.protocol = key->protocol;
	s->nat.sought.family = key->family;
}

/* Nobody rewrote it on the way: the sweep knows the binding by what came. */
static __always_inline int is_sought(const struct scratch *s)
{
	return same_address(&s->d.cur.dst, &s->nat.sought.address) && s->d.cur.dport == s->nat.sought.port;
}

/*
 * To the external side of a mapping or binding: it is reached from inside, as if by the way out and in again (RFC 4787
 * REQ-9). The remote that a binding's filter sees is the sender's own external side.
 */
static __always_inline int hairpin(struct scratch *s, __u32 port, __u32 pool_id)
{
	struct pool *pool = bpf_map_lookup_elem(&pools, &pool_id);
	struct decision *d = &s->d;
	int reason, mapped;
	__u32 uplink;

	if (!pool)
		return ENGINE_ERROR;
	uplink = pool->uplink;
	s->mapping.uplink = uplink;
	mapped = find_mapping(s);
	seek(s);
	if (!mapped && !(is_sought(s) && is_bound(s, uplink))) {
		d->by_sport = 1;	/* one that is added concerns no flow, but new ones */
		return ACT_PASSED;
	}
	reason = translate_source(s, port, pool_id);
	if (reason)
		return reason;
	d->bound |= FLOW_HAIRPIN;
	if (!mapped) {
		s->nat.contact.remote = d->cur.src;
		reason = find_binding(s, uplink);
		if (reason)
			return reason;
	}
	go_inside(s);
	d->where = PLACE_PORT;
	d->place.port = d->via.port;
	d->routed = 1;
	d->bridged = d->switched = 0;
	return ACT_ENDED;
}

/*
 * What a rule says. Not static, for the verifier, like `sets_match`; and so that its keys are off the stack while rules
 * are searched, which is where the stack is deepest: of 512 bytes, each call taking a multiple of 32.
 */
__noinline int act(struct scratch *s, struct rule *r, __u32 port, int slot)
{
	struct decision *d;

	if (!s || !r)
		return ENGINE_ERROR;
	d = &s->d;
	switch (r->action) {
	case ACTION_ALLOW:
		d->stateless |= r->flags & RULE_STATELESS;
		return NONE;
	case ACTION_DENY:
		d->cookie = r->cookie;
		return DENIED;
	case ACTION_TRANSLATE_SOURCE:
		/* In, it is for what else had an address that the endpoint cannot answer: the host's own of loopback. */
		if (d->leg.in && ZONE_KIND(s->h.key.zone) != ZONE_UPLINK)
			return NAT_UNSUPPORTED;
		return translate_source(s, port, r->arg);
	case ACTION_TRANSLATE_PREFIX:
		return translate_prefix(s, r->arg);
	case ACTION_HAIRPIN:
		return hairpin(s, port, r->arg);
	case ACTION_UNTRANSLATE:
		if (d->by_mapping || d->by_binding || d->by_prefix)
			go_inside(s);
		return NONE;
	case ACTION_FORWARD:
		d->bridged = d->switched = 0;
		return find_place(s, r->arg);
	case ACTION_TO_UPLINK:
		d->where = PLACE_UPLINK;
		d->uplink = r->arg & 0xff;
		d->bridged = r->arg >> 8 & 1;
		d->routed = !d->bridged;
		d->switched = 0;
		d->hop = r->arg >> 32;
		return NONE;
	case ACTION_SWITCH:
		return switch_frame(s, r->arg, port);
	case ACTION_ANSWER_ARP:
		d->bridged = d->switched = 0;
		return answer_arp(s, r->arg, port);
	case ACTION_REWRITE:
		return rewrite(s, r->arg);
	case ACTION_REJECT:
		d->cookie = r->cookie;
		return REJECTED;
	case ACTION_INSPECT:
		d->fail_open = (d->inspect ? d->fail_open : 1) & (r->arg >> 8 & 1);
		d->inspect = 1;
		d->queue = r->arg & 0xff;
		d->stateless |= r->flags & RULE_STATELESS;
		return NONE;
	}
	return modify(d, r, port, slot);
}

static long run_stage(__u32 i, void *context)
{
	struct walk *walk = context;
	struct scratch *s = walk->s;
	struct stage *stage;
	struct rule *r;
	int reason;

	if (i >= MAX_STAGES)
		return 1;
	stage = &walk->stages[i];
	if (walk->decided == stage->layer + 1U)
		return 0;
	s->d.layer = stage->layer;
	r = stage->kinds & walk->kind ? classify(s, stage->group) : 0;
	if (s->d.reason)
		return 1;
	if (r) {
		note_hit(s, walk->port, r->cookie);
		count_hit(s, walk->port, r->cookie, r->action == ACTION_DENY || r->action == ACTION_REJECT);
		if (r->action != ACTION_PASS) {
			reason = act(s, r, walk->port, walk->slot);
			if (reason == ACT_ENDED)
				return 1;
			if (reason > NONE) {
				s->d.reason = reason;
				return 1;
			}
			if (reason != ACT_PASSED && !(r->flags & RULE_CONTINUE)) {
				walk->decided = stage->layer + 1U;
				return 0;
			}
		}
	}
	if (stage->last && stage->deny) {
		s->d.reason = LAYER_DEFAULT;
		return 1;
	}
	return 0;
}

/* Protocols are not rewritten, so a packet is of one kind on all of its way. */
static __always_inline __u32 kind_of(const struct headers *h)
{
	switch (h->ethertype) {
	case ETH_P_IP:
		return h->key.protocol == IPPROTO_TCP ? KIND_TCP4 : h->key.protocol == IPPROTO_UDP ? KIND_UDP4 : KIND_IPV4;
	case ETH_P_IPV6:
		return h->key.protocol == IPPROTO_TCP ? KIND_TCP6 : h->key.protocol == IPPROTO_UDP ? KIND_UDP6 : KIND_IPV6;
	case ETH_P_ARP:
		return KIND_ARP;
	}
	return KIND_OTHER;
}

/* Run the layers of a leg on `s->d.cur`. */
static __always_inline int run_layers(struct scratch *s)
{
	__u32 port = s->d.leg.port, slot = s->d.leg.slot & 1;
	struct programs *both = bpf_map_lookup_elem(&programs, &port);
	struct port *record = bpf_map_lookup_elem(&ports, &port);
	struct walk walk = {.s = s, .port = port, .slot = slot, .kind = kind_of(&s->h)};
	struct program *program;

	s->d.drop_port = port;
	if (!both || !record)
		return UNKNOWN_PORT;
	program = &both->turns[s->d.turn & 1];
	if (!program->generation)
		return UNKNOWN_PORT;
	s->d.strict |= record->flags & PORT_STRICT_TCP;
	s->d.ports[slot] = port;
	s->d.generations[slot] = program->generation;
	s->d.reason = NONE;
	s->d.by_sport |= (s->d.leg.in ? program->in_fussy : program->out_fussy) & walk.kind ? 1 : 0;
	if (s->d.leg.in) {
		walk.stages = program->in;
		bpf_loop(program->in_count, run_stage, &walk, 0);
	} else {
		walk.stages = program->out;
		bpf_loop(program->out_count, run_stage, &walk, 0);
	}
	return s->d.reason;
}
