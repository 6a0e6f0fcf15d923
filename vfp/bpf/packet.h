/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* What is known of the packet in hand, and the per-CPU room where a decision is made. */
#pragma once

#include "maps.h"

/* How far an ICMP error has come. */
enum error_kind {
	NO_ERROR = 0,
	ERROR_SEEN = 1,		/* it may be about a flow */
	ERROR_STALE = 2,	/* it is, and the flow must be decided again */
	ERROR_AGAIN = 3,	/* that was done */
	ERROR_UNRELATED = 4,	/* layers judge it as any packet */
};

enum probe {
	NO_PROBE = 0,
	PROBE = 1,		/* run by BPF_PROG_TEST_RUN: report in skb->cb */
	PROBE_DRY = 2,		/* and change nothing: decide as if there were no flow and no fragment */
};

/* How a packet comes by what rules ask for beside forwarding. */
enum passage {
	PASSAGE_HIT = 0,
	PASSAGE_FIRST = 1,	/* it made its flow */
	PASSAGE_ALONE = 2,	/* it has none */
	PASSAGE_SEEN = 3,	/* it made its flow, and user space has seen it since */
};

enum fragment_kind {
	NOT_FRAGMENT = 0,
	FIRST_FRAGMENT = 1,
	LATER_FRAGMENT = 2,
};

enum inspected {
	NOT_INSPECTED = 0,
	INSPECTED = 1,
	INSPECTED_ENOUGH = 3,	/* and need not see more of its flow */
};

/* All that rules can match on. */
struct headers {
	struct flow_key key;
	__u32 vtep;		/* outer source, host order; 0: unknown or not from the overlay */
	__u16 ethertype;	/* host byte order */
	__u8 smac[6];
	__u8 dmac[6];
	__u8 dscp;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 arp_sender_is_source;
	__u8 nd;		/* neighbour solicitation or advertisement */
	__u8 nd_sender_is_source;
	__u8 has_ports;		/* TCP, UDP, SCTP */
	__u8 tracked;		/* may have a flow */
	__u8 fragment;		/* of a datagram, whichever part */
	__u8 pad[2];
};

/* Whose layers are run, and where the port goes in the flow's dependencies. */
struct leg {
	__u32 port;			/* 0: nobody's */
	__u8 in;
	__u8 slot;			/* 0 sender, 1 receiver */
	__u8 pad[2];
};

struct decision {
	struct flow_key cur;		/* the tuple as layers have rewritten it */
	struct mapping via;		/* found at the uplink */
	__u64 cookie;			/* of the rule that denied */
	struct extras extras;
	__u32 ports[2];
	__u32 generations[2];
	__u32 drop_port;
	__u32 uplink;
	__u32 turn;			/* read once: one policy judges the packet at all ports */
	__u8 reason;
	__u8 layer;
	__u8 by_mapping;		/* it came by a static mapping, which is in `via` */
	__u8 by_prefix;			/* `via` is the image of the destination by its prefix */
	__u8 stateless;
	__u8 translated;
	__u8 strict;			/* a port that was asked wants TCP to fit */
	__u8 routed;
	__u8 arp;			/* answer with place.mac */
	__u8 where;			/* enum place */
	__u8 by_sport;			/* another source port, or a later packet, might be decided otherwise */
	__u8 by_set;			/* a condition on a set was decisive, or could have been */
	__u8 hits;			/* rules that matched; those in `hit` */
	__u8 marked;			/* packets leave with `dscp` */
	__u8 dscp;
	__u8 inspect;
	__u8 queue;			/* of the last rule that said so ... */
	__u8 fail_open;			/* ... and whether all of them did */
	__u8 by_binding;		/* `via` is of a binding, and not of a mapping */
	__u8 switched;			/* it goes by its destination MAC, and keeps it */
	__u16 bound;			/* FLOW_BOUND, FLOW_CONTACT: if it leaves from `s->external` */
	__u16 behind;			/* FLOW_BEHIND, FLOW_CONTACTED */
	__u32 sets_generation;		/* when the decision began */
	__u32 hop;			/* that a rule wants for the uplink: key of `hops`; 0: by route */
	struct segment_key segment;	/* of what is flooded */
	__u8 bridged;			/* by an uplink in its name, and not routed */
	__u8 pad[3];
	struct location place;
	struct location source;		/* of what came by the overlay */
	struct leg leg;
	__u32 exit;			/* the port that is the way out of the space, or into it; 0: none */
};

/* A set that is asked for an address: `vfp/bpf/sets.h`. */
struct asked {
	struct set_lengths_key of;
	struct set_lengths lengths;	/* still to be tried */
	struct set_key key;
	struct address address;
	__u32 found;
};

/* Room to count and to release a binding in: the sweep has its own. */
struct releasing {
	struct external_key key;
	struct external was;
	struct use_key use;
	struct share_key share;
	struct block_key block;
};

/* Blocks, and ports of one, in one loop: two would be one call too deep. */
struct block_search {
	__u32 start;		/* block that is tried first ... */
	__u32 count;		/* ... of so many */
	__u32 low;
	__u32 size;
	__u32 holds;
	__u32 number;		/* blocks done */
	__u32 port;		/* ports of this one done, plus one; 0: it was not looked at */
	__u32 offset;		/* port that is tried first */
	__s32 own;		/* blocks of ours that were not met yet */
	__u32 taking;		/* 0: in our own; 1: in a new one */
	int outcome;
};

/* Where a binding is looked for. */
struct binding_scratch {
	struct external_key sought;	/* `find_binding`: whose external side ... */
	struct contact_key contact;	/* ... and for which remote */
	struct held_key held;
	struct block block;
	struct block_search search;
	struct binding made;
	struct releasing gone;
};

/* Where a packet goes that leaves by a tunnel. */
struct into_tunnel {
	__u32 vni;
	__u32 vtep;
	__u8 underlay;			/* 0: by route */
	__u8 family;			/* of the packet inside; 0: no IP */
	__u8 fragments;			/* too big, and its sender does not mind: its outer packet may be fragmented */
	__u8 pad;
};

/* Whose a pair is. */
struct parties {
	__u32 ports[2];
	__u32 generations[2];
};

#define TCP_OPTIONS 40

struct scratch {
	struct headers pkt;		/* the packet in hand */
	struct headers h;		/* the tuple being decided: the packet's, or its flow's forward one */
	struct decision d;
	struct flow forward;
	struct flow reply;
	struct flow_key displaced;
	struct binding_key binding;
	struct external_key external;
	struct external holder;
	struct prefix_key prefix;
	struct space_key space;		/* what is looked for in a space: `find_location` ... */
	struct route_key route;
	struct location found;		/* ... and what it is */
	struct binding_scratch nat;
	struct mapping_key mapping;
	struct segment_key segment;
	struct station_key station;
	struct hit_key hit[MEMORY_HITS];
	struct fragment_key fragment;
	struct flow_key related;	/* of the flow that an ICMP error is about, as its packets come here */
	struct asked asked;
	__u16 l4;			/* offset of the transport header */
	__u16 length;			/* bytes from there to the end of the IP packet */
	__u16 check;			/* IPv4: of the header, as it came */
	__u8 ttl;
	__u8 fragment_kind;
	__u8 fragmented;		/* IPv6: there is a fragment header */
	__u8 error;			/* enum error_kind */
	__u8 from_reply;		/* the packet is of the reply half of a flow that is decided again */
	__u8 single;			/* the flow just stored has one half */
	__u8 passage;			/* enum passage */
	__u64 redecide_ns;		/* until when the time for re-decisions is spent */
	__u8 probe;			/* enum probe */
	__u8 forgetful;			/* decisions are neither remembered nor recalled */
	__u8 inspected;			/* user space has seen it: enum inspected */
	__u8 shaped;			/* it has been through the shaper's queues */
	__u8 deciding_again;		/* the tuple is that of a flow that exists */
	__u8 flooded;			/* a copy of a frame to a group: it makes no flow */
	__u32 copying;			/* interface to which a copy is on its way at this moment */
	__u32 flooding;			/* likewise, and its hook shall judge it */
	__u32 mtu;			/* that an answer tells; 0: it tells of a rejection */
	__u64 answers_ns;		/* until when this CPU's ICMP answers are spent */
	struct into_tunnel tunnel;
	struct parties parties;		/* of the pair that is taken out */
	__u8 options[TCP_OPTIONS];	/* of a SYN */
	__u64 by_device_ns;		/* when a packet was last left to the VXLAN device to be taken out of its tunnel */
	__u32 watched[2];		/* sender, receiver: being captured, and told BEFORE; 0: not */
	/* Takes no room: names types that no map uses, so that BTF has them for the layout test. */
	struct {
		struct event event;
		enum drop_reason reason;
		enum zone_kind zone;
		enum place place;
		enum flow_state state;
		enum rule_condition condition;
		enum rule_action action;
		enum location_kind location;
		enum packet_kind kind;
		enum flow_flags flow_flags;
		enum port_flags port_flags;
		enum rule_flags rule_flags;
		enum event_kind event_kind;
		struct capture capture;
		struct binding_event binding_event;
		enum filtering filtering;
		enum uplink_flags uplink_flags;
		enum segment_kind segment_kind;
		enum pool_flags pool_flags;
		enum binding_event_kind binding_event_kind;
		enum capture_stage capture_stage;
		enum ring ring;
	} twins[0];
};

/* Not re-entrant, and need not be: TC programs run with bottom halves off. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct scratch);
	__uint(max_entries, 1);
} scratches SEC(".maps");

/* A packet at a real hook. */
static __always_inline void begin_packet(struct scratch *s)
{
	s->probe = NO_PROBE;
	s->forgetful = 0;
	s->inspected = 0;
	s->shaped = 0;
	s->flooded = 0;
}

static __always_inline struct scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

/* A trace: whatever counts, remembers or tells leaves it alone. */
static __always_inline int is_dry(const struct scratch *s)
{
	return s->probe == PROBE_DRY;
}

static __noinline int count_lost(__u32 ring)
{
	__u64 *count = bpf_map_lookup_elem(&lost, &ring);

	if (count)
		*count += 1;
	return 0;
}

/* Of the addresses: an ARP tuple carries IPv4 ones, and what has none has those of nobody. */
static __always_inline __u8 address_family(const struct flow_key *key)
{
	return key->family == 6 ? 6 : 4;
}

/* A record of a port that is gone has neither. */
static __always_inline int is_there(const struct port *port)
{
	return port->ifindex || port->flags & PORT_EXIT;
}

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) | (a[5] ^ b[5]));
}

static __always_inline void copy_mac(__u8 *to, const __u8 *from)
{
	__builtin_memcpy(to, from, 6);
}

static __always_inline int same_address(const struct address *a, const struct address *b)
{
	return !((a->w[0] ^ b->w[0]) | (a->w[1] ^ b->w[1]) | (a->w[2] ^ b->w[2]) | (a->w[3] ^ b->w[3]));
}

static __always_inline int same_key(const struct flow_key *a, const struct flow_key *b)
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;
	__u32 differs = 0;

	/* Without a branch for each field, each of which doubles what the verifier walks after it. */
	for (unsigned int i = 0; i < sizeof(*a) / sizeof(*x); i++)
		differs |= x[i] ^ y[i];
	return !differs;
}
