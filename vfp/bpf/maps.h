/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Every map of the data path. Sizes here are for tests; the loader sets those of the configuration. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "reasons.h"
#include "types.h"

enum jump {
	JUMP_SLOW = 0,		/* misses, and what has no flow */
	JUMP_ODD = 1,		/* what the short parser does not know */
	JUMP_RELATED = 2,	/* ICMP errors */
	JUMP_LEAVE = 3,		/* what was decided, and hits that ask for more than forwarding */
	JUMP_REJECT = 4,	/* answers to what was rejected */
	JUMP_FULL = 5,		/* a new flow that has no room */
	JUMP_STALE = 6,		/* flows whose policy has changed */
	JUMP_DECIDED = 7,	/* their packets, once that is done */
	JUMP_INSPECT = 8,	/* packets of flows that user space sees first */
	JUMP_INSPECTED = 9,	/* what comes back from user space */
	JUMP_FLOOD = 10,	/* frames to groups */
	JUMP_ENCAPSULATE = 12,	/* into a tunnel */
	JUMP_DECAPSULATE = 13,	/* out of one */
	JUMP_PARTICULAR = 14,	/* from a port that is shaped, or limited in what it sends */
	JUMPS = 16,
};

enum ring {
	RING_EVENTS = 0,
	RING_CAPTURES = 1,
	RING_BINDINGS = 2,
	RINGS = 3,
};

#define MAP(name_, type_, key_, value_, entries_, flags_)	\
	struct {						\
		__uint(type, type_);				\
		__type(key, key_);				\
		__type(value, value_);				\
		__uint(max_entries, entries_);			\
		__uint(map_flags, flags_);			\
	} name_ SEC(".maps")

#define QUEUE(name_, value_, entries_)				\
	struct {						\
		__uint(type, BPF_MAP_TYPE_QUEUE);		\
		__type(value, value_);				\
		__uint(max_entries, entries_);			\
	} name_ SEC(".maps")

/* Unified flow table: both halves of every pair. */
MAP(flows, BPF_MAP_TYPE_HASH, struct flow_key, struct flow, 65536, 0);
/* Interface index to the number of its zone: port id or uplink id. */
MAP(links, BPF_MAP_TYPE_HASH, __u32, __u32, 8192, 0);
/* Port id to generation, interface, MACs. */
MAP(ports, BPF_MAP_TYPE_ARRAY, __u32, struct port, 4096, 0);
/* By port id. */
MAP(usages, BPF_MAP_TYPE_ARRAY, __u32, struct usage, 4096, 0);
/* Ports that have any. */
MAP(gateways, BPF_MAP_TYPE_HASH, __u32, struct gateways, 4096, BPF_F_NO_PREALLOC);
/* Port id to policy. A hash map, because its element is replaced in one step. */
MAP(programs, BPF_MAP_TYPE_HASH, __u32, struct programs, 4096, BPF_F_NO_PREALLOC);
/* Compiled group, by content hash: ports with equal groups share one. */
MAP(groups, BPF_MAP_TYPE_HASH, __u64, struct group, 8192, BPF_F_NO_PREALLOC);
/* Hash of a masked header to a run of rules. */
MAP(buckets, BPF_MAP_TYPE_HASH, __u64, struct bucket, 65536, BPF_F_NO_PREALLOC);
/* One bit for each key of `buckets`, and a few without: most masks of a group have no bucket for a packet. */
MAP(filter, BPF_MAP_TYPE_ARRAY, __u32, __u64, 16384, 0);
/* Conditions and actions, in runs. */
MAP(rules, BPF_MAP_TYPE_ARRAY, __u32, struct rule, 65536, 0);
/* Arguments of rewrite actions, by content hash. */
MAP(rewrites, BPF_MAP_TYPE_HASH, __u64, struct rewrite, 4096, BPF_F_NO_PREALLOC);
/* Arguments of prefix translations, by content hash ... */
MAP(translations, BPF_MAP_TYPE_HASH, __u64, struct prefix, 4096, BPF_F_NO_PREALLOC);
/* ... and what they are from outside, by uplink and external prefix. */
MAP(prefixes, BPF_MAP_TYPE_LPM_TRIE, struct prefix_key, struct prefix, 4096, BPF_F_NO_PREALLOC);
/* Address to place. */
MAP(spaces, BPF_MAP_TYPE_HASH, struct space_key, struct location, 65536, BPF_F_NO_PREALLOC);
/* Prefix to place, for addresses that have none. */
MAP(routes, BPF_MAP_TYPE_LPM_TRIE, struct route_key, struct route, 65536, BPF_F_NO_PREALLOC);
/* Segments by space and by wire ... */
MAP(segments, BPF_MAP_TYPE_HASH, struct segment_key, struct segment, 1024, BPF_F_NO_PREALLOC);
/* ... the ports behind their MACs ... */
MAP(stations, BPF_MAP_TYPE_HASH, struct station_key, __u32, 8192, BPF_F_NO_PREALLOC);
/* ... whom frames to groups go to: ports, or VTEPs ... */
MAP(flooded, BPF_MAP_TYPE_HASH, struct flooded_key, __u32, 16384, BPF_F_NO_PREALLOC);
/* ... and until when a CPU's time for them is spent. */
MAP(flooding, BPF_MAP_TYPE_LRU_PERCPU_HASH, struct segment_key, __u64, 1024, 0);
/* Tags that ports may have: port << VLAN_BITS | tag. */
MAP(vlans, BPF_MAP_TYPE_HASH, __u32, __u8, 8192, BPF_F_NO_PREALLOC);
/* Routers that rules name. */
MAP(hops, BPF_MAP_TYPE_HASH, __u32, struct hop, 1024, BPF_F_NO_PREALLOC);
/* Underlay addresses of IPv6 hosts by id ... */
MAP(vtep_addresses, BPF_MAP_TYPE_HASH, __u32, struct address, 65536, BPF_F_NO_PREALLOC);
/* ... and back. */
MAP(vtep_ids, BPF_MAP_TYPE_HASH, struct address, __u32, 65536, BPF_F_NO_PREALLOC);
/* Members of sets ... */
MAP(sets, BPF_MAP_TYPE_HASH, struct set_key, struct set_member, 65536, BPF_F_NO_PREALLOC);
/* ... and the prefix lengths to look for. */
MAP(set_lengths, BPF_MAP_TYPE_HASH, struct set_lengths_key, struct set_lengths, 4096, BPF_F_NO_PREALLOC);
/* External address and ports of source translation. */
MAP(pools, BPF_MAP_TYPE_HASH, __u32, struct pool, 16384, BPF_F_NO_PREALLOC);
/* Uplink id to interface and MTU. */
MAP(uplinks, BPF_MAP_TYPE_ARRAY, __u32, struct uplink, 256, 0);
/* Addresses of the underlay by number, from 1 ... */
MAP(underlays, BPF_MAP_TYPE_ARRAY, __u32, struct underlay, UNDERLAYS, 0);
/* ... and back. */
MAP(underlay_numbers, BPF_MAP_TYPE_HASH, struct underlay_key, __u32, UNDERLAYS, 0);
/* Bytes of the largest outer packet to a VTEP, where that is less than what the underlay's links take. */
MAP(paths, BPF_MAP_TYPE_HASH, __u32, __u32, 4096, BPF_F_NO_PREALLOC);
/* Static inbound translations. */
MAP(mappings, BPF_MAP_TYPE_HASH, struct mapping_key, struct mapping, 65536, BPF_F_NO_PREALLOC);
/* Source translations in use, from inside ... */
MAP(bindings, BPF_MAP_TYPE_HASH, struct binding_key, struct binding, 65536, BPF_F_NO_PREALLOC);
/* ... and from outside: the one that reserves the port. */
MAP(externals, BPF_MAP_TYPE_HASH, struct external_key, struct external, 65536, BPF_F_NO_PREALLOC);
/* External ports that pools never give. */
MAP(held, BPF_MAP_TYPE_HASH, struct held_key, __u8, 65536, BPF_F_NO_PREALLOC);
/* How many bindings there are at an address: a full one is not searched. */
MAP(uses, BPF_MAP_TYPE_HASH, struct use_key, struct tally, 65536, BPF_F_NO_PREALLOC);
/* How many a port of ours has in a pool. */
MAP(shares, BPF_MAP_TYPE_HASH, struct share_key, struct share, 65536, BPF_F_NO_PREALLOC);
/* External ports that are given out together. */
MAP(blocks, BPF_MAP_TYPE_HASH, struct block_key, struct block, 65536, BPF_F_NO_PREALLOC);
/* Whom bindings with address-dependent filtering know. */
MAP(contacts, BPF_MAP_TYPE_HASH, struct contact_key, struct contact, 65536, BPF_F_NO_PREALLOC);
/* Datagrams that come in fragments. */
MAP(fragments, BPF_MAP_TYPE_LRU_HASH, struct fragment_key, struct fragment, 8192, 0);
/* Decisions of late. */
MAP(memories, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct memory, MEMORIES, 0);
/* Pairs that closed: the sweep of every second looks only at these. By both FINs ... */
QUEUE(time_waits, struct closed, 16384);
/* ... by RST ... */
QUEUE(resets, struct closed, 16384);
/* ... and those that had packets since. */
QUEUE(lingering, struct closed, 16384);
/* Pairs by budget. */
MAP(budgets, BPF_MAP_TYPE_ARRAY, __u32, struct budgets, 1, 0);
/* Drops by reason. */
MAP(drops, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, DROP_REASONS, 0);
/* Packets to user space, and back: enum inspect_count. */
MAP(inspections, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, INSPECT_COUNTS, 0);
/* Decisions by rule. */
MAP(rule_hits, BPF_MAP_TYPE_HASH, struct hit_key, struct hits, 65536, BPF_F_NO_PREALLOC);
/* Packets and bytes by meter id. An element is there before any rule that names it. */
MAP(meters, BPF_MAP_TYPE_PERCPU_HASH, __u32, struct meter, 4096, BPF_F_NO_PREALLOC);
/* Timeouts: the engine's own ([0]), and those that ports have. */
MAP(timeouts, BPF_MAP_TYPE_ARRAY, __u32, struct timeouts, 256, 0);
/* Bounds, the tunnel device, and what else holds for the whole host. */
MAP(config, BPF_MAP_TYPE_ARRAY, __u32, struct settings, 1, 0);
/* What is rare, reached by tail call: enum jump. */
MAP(jumps, BPF_MAP_TYPE_PROG_ARRAY, __u32, __u32, JUMPS, 0);

/* Of a dry run. */
MAP(traced, BPF_MAP_TYPE_ARRAY, __u32, struct trace, 1, 0);
/* Bytes to copy of each packet of a port with PORT_CAPTURE; 0: there is none. */
MAP(capturing, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);
/* Records that found no room, by enum ring. */
MAP(lost, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, RINGS, 0);

/* Copies of packets, for people. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} captures SEC(".maps");

/* Bindings and blocks that began or ended, for who must keep records. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} bindings_log SEC(".maps");

/* Packets that were dropped, or that a rule wants told. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");
