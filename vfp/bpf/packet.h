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

enum fragment_kind {
	NOT_FRAGMENT = 0,
	FIRST_FRAGMENT = 1,
	LATER_FRAGMENT = 2,
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

struct decision {
	struct flow_key cur;		/* the tuple as layers have rewritten it */
	struct mapping via;		/* found at the uplink */
	__u64 cookie;			/* of the rule that denied */
	__u32 ports[2];
	__u32 generations[2];
	__u32 drop_port;
	__u32 uplink;
	__u8 reason;
	__u8 layer;
	__u8 by_mapping;
	__u8 stateless;
	__u8 translated;
	__u8 routed;
	__u8 arp;			/* answer with place.mac */
	__u8 where;			/* enum place */
	struct location place;
};

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
	struct fragment_key fragment;
	struct flow_key related;	/* of the flow that an ICMP error is about, as its packets come here */
	__u16 l4;			/* offset of the transport header */
	__u16 length;			/* bytes from there to the end of the IP packet */
	__u8 ttl;
	__u8 fragment_kind;
	__u8 fragmented;		/* IPv6: there is a fragment header */
	__u8 error;			/* enum error_kind */
	__u8 single;			/* the flow just stored has one half */
	__u8 probe;			/* enum probe */
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
		enum flow_flags flow_flags;
		enum port_flags port_flags;
		enum rule_flags rule_flags;
		enum event_kind event_kind;
		struct capture capture;
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
	return a->zone == b->zone && a->family == b->family && a->protocol == b->protocol && a->sport == b->sport &&
	       a->dport == b->dport && same_address(&a->src, &b->src) && same_address(&a->dst, &b->dst);
}
