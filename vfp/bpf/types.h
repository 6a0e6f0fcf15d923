/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Structs that the data path shares with its Python twin (vfp/layout.py); a test compares the two through BTF. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#define MAX_STAGES 32		/* groups of all layers of a port, one direction */
#define MAX_TUPLES 60		/* masks of one group: an element of `groups` is just under 2 KiB */
#define POOL_ADDRESSES 16
#define FRAGMENT_RANGES 4	/* parts of a datagram with holes between them */
#define MEMORIES 1024		/* decisions remembered, by CPU */
#define MEMORY_HITS 8		/* rules of a remembered decision */
#define VLAN_BITS 12

enum zone_kind {
	ZONE_PORT = 0,		/* from an endpoint */
	ZONE_OVERLAY = 1,	/* from the VXLAN device; number is the VNI */
	ZONE_UPLINK = 2,	/* from an uplink */
	ZONE_HOST = 3,		/* from the host's stack or a bridge, towards an endpoint */
};

#define ZONE_SHIFT 24
#define ZONE_NUMBER(z) ((z) & ((1U << ZONE_SHIFT) - 1))
#define ZONE_KIND(z) ((z) >> ZONE_SHIFT)
#define MAKE_ZONE(kind, number) (((__u32)(kind) << ZONE_SHIFT) | (number))

/* IPv4 is in w[0], the rest zero. */
struct address {
	__be32 w[4];
};

struct flow_key {
	__u32 zone;
	__u8 family;		/* 4, 6; 0: not IP */
	__u8 protocol;
	__u16 vlan;		/* 802.1Q tag; 0: none */
	__be16 sport;		/* ICMP echo request: the identifier; an echo reply has it as destination port */
	__be16 dport;
	struct address src;	/* of what is asked or told about a neighbour: who asks, or what is told ... */
	struct address dst;	/* ... what is asked for, or whom it is told */
};

enum place {
	PLACE_NONE = 0,
	PLACE_STACK = 1,	/* leave to the host's stack */
	PLACE_PORT = 2,		/* peer of a local port's veth */
	PLACE_UPLINK = 3,	/* route and neighbour of an uplink */
	PLACE_TUNNEL = 4,	/* VXLAN device with a tunnel key */
	PLACE_REPLY = 5,	/* answered on the spot */
	PLACE_INSPECT = 6,	/* user space sees it first */
	PLACE_LOOPBACK = 7,	/* uplink to the host's own sockets */
	PLACE_TAP = 8,		/* local port whose machine is behind the device itself */
	PLACE_WIRE = 9,		/* out of an uplink as the frame is */
	PLACE_FLOOD = 10,	/* to many: see flood.h */
};

enum transposition_flags {
	SET_SRC = 1 << 0,
	SET_DST = 1 << 1,
	SET_SPORT = 1 << 2,
	SET_DPORT = 1 << 3,
	SET_SMAC = 1 << 4,
	SET_DMAC = 1 << 5,
	DEC_TTL = 1 << 6,
	SET_DSCP = 1 << 7,
};

#define SET_TUPLE (SET_SRC | SET_DST | SET_SPORT | SET_DPORT)

/* The one header change that all layers of a flow amount to. */
struct transposition {
	__u16 flags;
	__u8 place;
	__u8 dscp;
	__u32 ifindex;		/* PLACE_FLOOD: number of a segment's key, the kind is in `vni` */
	struct address src;
	struct address dst;
	__be16 sport;
	__be16 dport;
	__u8 smac[6];
	__u8 dmac[6];
	__u32 vni;		/* PLACE_FLOOD: kind of the segment */
	__u32 vtep;		/* IPv4 in host byte order, or the id of an IPv6 one: tunnel.h; PLACE_UPLINK: key of `hops`, 0: by route */
	__u16 mtu;		/* bytes of the largest IP packet that may leave so; 0: not known. In a tunnel: its underlay's */
	__u8 underlay;		/* PLACE_TUNNEL: number of the outer source; 0: by route, and the VXLAN device sends it */
	__u8 pad;
};

enum flow_flags {
	FLOW_REPLY = 1 << 0,	/* this half is the reply of its pair */
	FLOW_BY_SET = 1 << 1,	/* a condition on a set was tested: `sets_generation` counts */
	FLOW_EXTRAS = 1 << 2,	/* `extras` asks for more than forwarding */
	FLOW_INSPECT = 1 << 3,	/* user space sees its packets first */
	FLOW_RELEASED = 1 << 4,	/* user space has seen enough */
	FLOW_FRAGMENT = 1 << 5,	/* made by a fragment */
	FLOW_STRICT = 1 << 6,	/* TCP segments must fit the connection */
	/* Of the forward half, what it keeps alive: */
	FLOW_BOUND = 1 << 7,	/* the binding that is its source as it leaves ... */
	FLOW_BEHIND = 1 << 8,	/* the binding that is its destination as it came ... */
	FLOW_CONTACT = 1 << 9,	/* and the contacts of the one ... */
	FLOW_CONTACTED = 1 << 10,	/* and the other */
	FLOW_HAIRPIN = 1 << 11,	/* by an external side: that is whom it contacts */
	/* Of each half, which frames are of it by their destination MAC: */
	FLOW_TO_MAC = 1 << 12,	/* those to `dmac` ... */
	FLOW_TO_WIRE = 1 << 13,	/* those to no group: whom a reply goes to, its sender knows */
};

/*
 * What either side has sent so far, in the bits of the TCP header's flags: in the low byte who sends this half's packets, in
 * the high byte the other. A SYN counts without ACK only.
 */
enum flow_state {
	STATE_FIN = 0x0001,
	STATE_SYN = 0x0002,
	STATE_RST = 0x0004,
	STATE_ACK = 0x0010,
	STATE_SINGLE = 0x0040,		/* stateless: there is no other half */
	STATE_ASSURED = 0x0080,		/* a reply was seen */
	STATE_PEER_FIN = 0x0100,
	STATE_PEER_SYN = 0x0200,
	STATE_PEER_RST = 0x0400,
	STATE_PEER_ACK = 0x1000,
};

#define STATE_PEER_SHIFT 8
#define STATE_SENT (STATE_FIN | STATE_SYN | STATE_RST | STATE_ACK)

/* What rules ask for beside forwarding; the same in both halves. */
struct extras {
	__u64 log_cookie;	/* of the rule that asks for records; 0: none */
	__u32 meters[2];	/* of the sender's layers, of the receiver's; 0: none */
	__u32 mirror;		/* port id; 0: none */
	__u32 log_every;	/* packets to a record; 0: the first only */
	__u32 log_port;		/* whose rule asks for records */
	__u8 queue;		/* of FLOW_INSPECT */
	__u8 fail_open;
	__u8 pad[2];
};

/* One half of a pair. `ports` and `generations` say under which policies it was decided. What a hit needs comes first. */
struct flow {
	__u64 packets;
	__u64 bytes;
	__u64 seen_ns;
	__u32 ports[2];			/* sender, receiver; 0: none */
	__u32 generations[2];
	__u32 from_vtep;		/* overlay: the only outer source that may use this entry; host order */
	__u16 flags;
	__u16 state;
	__u32 sets_generation;
	__u8 smac[6];			/* of the packet that made the flow, as all below: for re-decision */
	__u8 dscp;
	__u8 tcp_flags;
	struct transposition out;
	__u64 created_ns;
	struct flow_key pair;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 dmac[6];
	__u32 pad;
	struct extras extras;
};

enum port_flags {
	PORT_STRICT_TCP = 1 << 0,
	PORT_CAPTURE = 1 << 1,		/* somebody looks at its packets */
	PORT_TAP = 1 << 2,		/* no veth */
	PORT_SHAPED = 1 << 3,		/* what it sends goes by the shaper's queues */
	PORT_QUEUED = 1 << 4,		/* what it gets leaves by the egress of its link, where a queue is */
	PORT_RATE_OUT = 1 << 5,
	PORT_RATE_IN = 1 << 6,
	PORT_CAPPED = 1 << 7,		/* `connections` counts */
	PORT_EXIT = 1 << 15,		/* no link: the way out of a space */
};

#define LINK_PARTICULAR (1U << 31)	/* beside a port's id in `links`: it is shaped, or limited in what it sends */

/* A token bucket as a time, in 1/256 ns. */
struct rate {
	__u64 cost;		/* of a packet */
	__u64 burst;		/* how far the bucket may be ahead of the clock */
};

#define UPLINK_LOOPBACK (1U << 31)	/* beside an uplink's interface index */

struct uplink {
	__u32 ifindex;		/* and UPLINK_LOOPBACK; 0: there is none */
	__u32 mtu;		/* 0: not known */
	__u8 mac[6];		/* that the wire's proxied addresses are told to have */
	__u16 flags;		/* enum uplink_flags */
};

enum uplink_flags {
	UPLINK_STATIONS = 1 << 0,	/* a wire: some MACs there are of ports of ours */
	UPLINK_PROXY = 1 << 1,		/* some addresses there are of ports of ours, with the uplink's MAC */
};

/*
 * What one uplink stands for to its neighbours, as if it were a space: addresses of the spaces whose wire it is. No other
 * space has such a number.
 */
#define WIRE_SPACE 0xffffff00U

enum segment_kind {
	SEGMENT_SPACE = 0,	/* of a space by itself */
	SEGMENT_WIRE = 1,	/* of all spaces that are on one uplink's wire */
	SEGMENT_VTEPS = 2,	/* of `flooded` only: the other hosts of a space */
};

struct segment_key {
	__u32 number;
	__u32 kind;
};

/* Stations that see each other's frames. Found by space, and by wire. */
struct segment {
	struct segment_key of;	/* where its stations are */
	__u64 flood_ns;		/* time of one frame to a group, of the time that a CPU has for them ... */
	__u64 flood_burst_ns;	/* ... and how far it may be ahead of its time */
	__u32 wire;		/* uplink; 0: none */
	__u32 vni;		/* of what is flooded to VTEPs */
	__u32 ports;		/* that get frames to groups */
	__u32 vteps;		/* likewise */
	__u32 floods;		/* 0: frames to groups are dropped */
	__u32 pad;
};

struct station_key {
	__u32 number;		/* as in a segment_key */
	__u16 kind;
	__u8 mac[6];
};

struct flooded_key {
	__u32 number;
	__u32 kind;
	__u32 index;
};

/* A router that packets of an uplink go to, whatever the host's routes. */
struct hop {
	struct address address;
	__u32 family;		/* 4, 6 */
};

#define UNDERLAYS 16		/* and one that is never used: 0 */

/* An outer address of ours. */
struct underlay {
	struct address address;
	__u32 ifindex;		/* 0: outer headers are the VXLAN device's business */
	__u16 mtu;		/* of outer packets; 0: not known */
	__u8 family;		/* 0: there is none */
	__u8 pad;
};

struct underlay_key {
	struct address address;
	__u8 family;
	__u8 pad[3];
};

struct port {
	__u32 generation;
	__u32 ifindex;
	__u8 mac[6];
	__u8 gateway_mac[6];
	__u16 flags;
	__u16 timeouts;		/* number in the map of that name; 0: the engine's own */
	__u32 born;		/* generation at which the id became this port's: flows of older ones are of another */
	__u16 mtu;		/* bytes of the largest packet that the endpoint takes; 0: not known */
	__u8 underlays[2];	/* outer source of what it sends, of IPv4 and of IPv6; 0: the host's */
	__u32 connections;	/* pairs that it may have */
	__u32 space;		/* PORT_EXIT: whose way out it is */
	struct rate rates[2];	/* of what it sends, of what it gets */
};

/* From whom ICMP errors to a port are, in IPv4 and in IPv6; all zero: from whom the packet was meant for. */
struct gateways {
	struct address of[2];
};

/* Coarse kinds of packets: a group is not searched for a packet of a kind that none of its rules can match. */
enum packet_kind {
	KIND_ARP = 1 << 0,
	KIND_TCP4 = 1 << 1,
	KIND_UDP4 = 1 << 2,
	KIND_IPV4 = 1 << 3,	/* neither TCP nor UDP */
	KIND_TCP6 = 1 << 4,
	KIND_UDP6 = 1 << 5,
	KIND_IPV6 = 1 << 6,
	KIND_OTHER = 1 << 7,
};

/* One group of a layer, in the order of the walk. `group` 0: the layer has none. */
struct stage {
	__u64 group;
	__u8 layer;		/* index in the port's OUT order */
	__u8 last;		/* last group of its layer */
	__u8 deny;		/* the layer's default */
	__u8 kinds;		/* of packets that its rules can match */
	__u8 pad[4];
};

/* A port's whole policy. */
struct program {
	__u32 generation;	/* 0: no such port */
	__u8 out_count;
	__u8 in_count;
	__u8 out_fussy;		/* kinds of packets of which rules test more than a memory knows */
	__u8 in_fussy;
	struct stage out[MAX_STAGES];
	struct stage in[MAX_STAGES];
};

/*
 * A port's policy in both turns. Whose turn it is holds for the whole host (`settings.turn`): a change is written to the
 * other turn of every port that it touches, and comes into force on all of them at once.
 */
struct programs {
	struct program turns[2];
};

/* Which bits of a packet are hashed to find the bucket of rules that could match it. */
struct tuple {
	__u64 seed;
	__u64 pair;		/* mask of the first words of source and destination */
	__u64 rest;		/* mask of ports, protocol and ethertype */
	__u32 best_priority;	/* of all its rules: tuples are sorted by it, so the search can stop early */
	__u8 src_len;
	__u8 dst_len;
	__u8 wide;		/* a length is over 32: the other words count too */
	__u8 pad;
};

/*
 * One content of a group. Its rules are those of `instance` that live at `version`: contents that differ by a few rules
 * share buckets and rules.
 */
struct group {
	__u32 count;		/* tuples */
	__u32 instance;
	__u32 version;
	__u32 rules;
	__u32 filter_mask;	/* words of `filter`, less one */
	__u32 pad;
	struct tuple tuples[MAX_TUPLES];
};

/* A run of `rules`, by ascending priority. The key is a 64-bit hash: rules are verified, so a collision is harmless. */
struct bucket {
	__u32 first;
	__u16 count;
	__u16 instance;		/* whose it is: for whoever tidies up */
};

enum rule_condition {
	IF_ETHERTYPE = 1 << 0,
	IF_SMAC = 1 << 1,
	IF_DMAC = 1 << 2,
	IF_SRC = 1 << 3,
	IF_DST = 1 << 4,
	IF_PROTOCOL = 1 << 5,
	IF_SPORT = 1 << 6,
	IF_DPORT = 1 << 7,
	IF_ICMP_TYPE = 1 << 8,
	IF_ICMP_CODE = 1 << 9,
	IF_TCP_FLAGS = 1 << 10,
	IF_DSCP = 1 << 11,
	IF_ARP_SENDER = 1 << 12,
	IF_ND_SENDER = 1 << 13,
	IF_SRC_SET = 1 << 14,
	IF_DST_SET = 1 << 15,
	IF_VNI = 1 << 16,
	IF_FRAGMENT = 1 << 17,
	IF_MAPPED = 1 << 18,
};

enum rule_action {
	ACTION_ALLOW = 0,
	ACTION_DENY = 1,
	ACTION_PASS = 2,
	ACTION_TRANSLATE_SOURCE = 3,
	ACTION_UNTRANSLATE = 4,
	ACTION_FORWARD = 5,
	ACTION_TO_UPLINK = 6,
	ACTION_ANSWER_ARP = 7,
	ACTION_REWRITE = 8,
	ACTION_REJECT = 9,
	ACTION_MARK = 10,
	ACTION_METER = 11,
	ACTION_LOG = 12,
	ACTION_MIRROR = 13,
	ACTION_INSPECT = 14,
	ACTION_HAIRPIN = 15,
	ACTION_TRANSLATE_PREFIX = 16,
	ACTION_SWITCH = 17,
};

enum rule_flags {
	RULE_STATELESS = 1 << 0,
	RULE_CONTINUE = 1 << 1,		/* not terminating: the next group of the layer goes on */
};

/* What is compared comes first: the search seldom touches a second cache line. */
struct rule {
	struct address src;	/* masked */
	struct address dst;
	__u32 born;		/* it lives at versions born <= v < died of its instance */
	__u32 died;
	__u32 priority;
	__u32 conditions;
	__u16 ethertype;
	__u16 sport_low;	/* host byte order, inclusive */
	__u16 sport_high;
	__u16 dport_low;
	__u16 dport_high;
	__u8 src_len;
	__u8 dst_len;
	__u8 family;		/* of src or dst: 4 or 6 */
	__u8 protocol;
	__u8 icmp_type;
	__u8 icmp_code;
	__u64 cookie;
	__u64 arg;		/* pool, space, uplink, key of `rewrites` or `translations`, DSCP, meter, packets to a record, port, queue | fail_open << 8, uplink | bridged << 8 | hop << 32, space | proxy << 32 */
	__u32 src_set;
	__u32 dst_set;
	__u32 vni;
	__u8 smac[6];
	__u8 dmac[6];
	__u8 tcp_mask;
	__u8 tcp_value;
	__u8 dscp;
	__u8 fragment;		/* what IF_FRAGMENT wants: 0 or 1 */
	__u8 action;
	__u8 flags;
	__u8 mapped;		/* what IF_MAPPED wants: 0 or 1 */
	__u8 pad;
};

struct rewrite {
	struct address src;
	struct address dst;
	__be16 sport;
	__be16 dport;
	__u16 flags;		/* SET_* */
	__u8 src_family;
	__u8 dst_family;
};

/* From one prefix to another (RFC 6296): of a rule, outwards, or of an uplink, inwards. */
struct prefix {
	struct address from;	/* both masked */
	struct address to;
	__be16 adjustment;	/* one's complement: sum of `from` less that of `to` */
	__u8 length;
	__u8 pad;
	__u32 space;		/* of an uplink: where the new destination is looked for */
};

/* Of a longest-prefix match: `length` counts the bits of both fields. */
struct prefix_key {
	__u32 length;
	__u32 uplink;
	struct address external;
};

struct space_key {
	__u32 space;
	__u8 family;
	__u8 pad[3];
	struct address address;
};

enum location_kind {
	LOCATION_PORT = 1,
	LOCATION_REMOTE = 2,
	LOCATION_HOST = 3,
	LOCATION_VIRTUAL = 4,
	LOCATION_VIA = 5,	/* of a route: wherever another address is */
};

struct location {
	__u8 kind;
	__u8 mac[6];
	__u8 pad;
	__u32 port;
	__u32 vni;
	__u32 vtep;		/* as in struct transposition */
};

/* Of a longest-prefix match: `length` counts the bits of all fields. */
struct route_key {
	__u32 length;
	__u32 space;
	__u32 family;
	struct address address;
};

/* Where a space has what it has no place for. */
struct route {
	struct location to;
	struct address via;	/* LOCATION_VIA: of the next hop */
};

/* A member of a set, by prefix length; the address is masked. */
struct set_key {
	__u32 set;
	__u8 family;
	__u8 length;
	__u16 pad;
	struct address address;
};

struct set_member {
	__u64 expires_ns;	/* of CLOCK_MONOTONIC; 0: never */
	__u32 turns;		/* of `struct programs`, as bits: in which it is a member */
	__u32 pad;
};

struct set_lengths_key {
	__u32 set;
	__u8 family;
	__u8 pad[3];
};

/* Bit n: the set has members of prefix length n. */
struct set_lengths {
	__u64 bits[3];
};

/* Who may send to the external side of a binding (RFC 4787 5). */
enum filtering {
	FILTER_NOBODY = 0,	/* endpoint-independent */
	FILTER_ADDRESS = 1,	/* who was sent to */
	FILTER_ADDRESS_PORT = 2,	/* nobody but by a flow */
};

enum pool_flags {
	POOL_LOG = 1 << 0,	/* tell what begins and ends */
	POOL_HOLDS = 1 << 1,	/* some ports are in `held` */
};

struct pool {
	struct address addresses[POOL_ADDRESSES];
	__u32 uplink;
	__u32 range;		/* number of the ports that it gives: pools with the same ports have the same */
	__u32 quota;		/* bindings of one port of ours; 0: no limit */
	__u16 low;		/* host byte order, inclusive */
	__u16 high;
	__u16 block;		/* ports in a block; 0: no blocks */
	__u16 held_tcp;		/* ports of the range that are in `held` */
	__u16 held_udp;
	__u16 held_echo;
	__u8 family;
	__u8 count;		/* addresses */
	__u8 filtering;		/* enum filtering */
	__u8 flags;		/* enum pool_flags */
};

/* A port that a pool never gives. */
struct held_key {
	__u32 pool;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

/* Protocol and port 0: any protocol, and its ports stay. */
struct mapping_key {
	__u32 uplink;
	struct address external;
	__be16 port;		/* of ICMP: the identifier of an echo request */
	__u8 protocol;
	__u8 family;
};

struct mapping {
	struct address internal;
	__u32 port;
	__be16 internal_port;
	__u8 whole;		/* of any protocol: the port stays */
	__u8 pad;
	__u64 cookie;		/* of its hits, at port 0; 0: not counted */
};

/* Internal side of a source translation (endpoint-independent: the remote is no part of it). */
struct binding_key {
	__u32 port;
	__u32 pool;
	struct address src;
	__be16 sport;
	__u8 protocol;
	__u8 family;
};

struct binding {
	struct address external;
	__be16 external_port;
	__u16 pad;
};

struct external_key {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 family;
};

enum external_flags {
	EXTERNAL_TOLD = 1 << 0,	/* its beginning was: its end will be */
};

/* Who holds an external port; the sweep stamps `seen_ns` while a flow uses it. */
struct external {
	struct binding_key holder;
	__u32 range;		/* of the pool, when it was given */
	__u64 seen_ns;
	__u16 block;		/* first port of the block that it is in ... */
	__u16 block_size;	/* ... 0: it is in none */
	__u32 flags;		/* enum external_flags */
};

/* A number that is kept by atomic additions. The sweep puts right what races made wrong. */
struct tally {
	__s64 now;
	__s64 before;		/* these are the sweep's: when it began ... */
	__s64 found;		/* ... what it saw and left ... */
	__s64 gone;		/* ... and took away */
};

/* What a port has used up of what it may have. */
struct usage {
	struct bpf_spin_lock lock;
	__u32 pad;
	__u64 until[2];			/* of `rates`: the bucket is empty until then */
	struct tally connections;
};

/* Bindings at an address, by the ports that may be given. */
struct use_key {
	struct address address;
	__u32 range;
	__u8 protocol;
	__u8 family;
	__u16 pad;
};

/* A port of ours in a pool. */
struct share_key {
	__u32 port;
	__u32 pool;
};

struct share {
	struct tally bindings;
	struct tally blocks;
};

/* Ports that one share has together. */
struct block_key {
	struct address address;
	__u16 first;		/* host byte order */
	__u16 size;
	__u8 family;
	__u8 pad[3];
};

struct block {
	struct share_key holder;
	__u64 seen_ns;		/* when it last gave a port */
	struct tally used[3];	/* of TCP, UDP, ICMP */
	__u32 flags;		/* enum external_flags */
	__u32 pad;
};

/* Whom the internal side of a binding has sent to. */
struct contact_key {
	struct binding_key inside;
	struct address remote;
};

struct contact {
	__u64 seen_ns;
};

enum binding_event_kind {
	BINDING_BOUND = 0,
	BINDING_RELEASED = 1,
	BINDING_BLOCK_TAKEN = 2,
	BINDING_BLOCK_RELEASED = 3,
};

/* One record of the `bindings_log` ring. */
struct binding_event {
	__u64 time_ns;
	__u32 port;
	__u32 pool;
	struct address internal;	/* of a block: nobody's */
	struct address external;
	__be16 internal_port;
	__be16 external_port;	/* of a block: its first */
	__u16 size;		/* of a block: ports */
	__u8 kind;		/* enum binding_event_kind */
	__u8 protocol;
	__u8 family;
	__u8 pad[7];
};

/* Which datagram a fragment is of. IPv6 does not count the protocol in (RFC 8200 4.5): 0. */
struct fragment_key {
	__u32 zone;
	__be32 id;
	__u8 family;
	__u8 protocol;
	__u16 vlan;
	struct address src;
	struct address dst;
};

/* A run of a datagram's payload, in units of 8 bytes; `to` is exclusive, 0 for none. */
struct fragment_range {
	__u16 from;
	__u16 to;
};

/* A datagram under way: what its first fragment said, and which parts of it were seen. */
struct fragment {
	__u64 first_ns;
	__u16 length;		/* of the whole payload, in units; 0: the last fragment was not seen */
	__u16 pad;
	__be16 sport;
	__be16 dport;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 tcp_flags;
	__u8 protocol;
	struct fragment_range seen[FRAGMENT_RANGES];
};

struct hit_key {
	__u64 cookie;
	__u32 port;
	__u32 pad;
};

struct hits {
	__u64 hits;
	__u64 drops;
};

/* How long a pair may be idle, by its state. */
struct timeouts {
	__u64 tcp_opening_ns;
	__u64 tcp_syn_received_ns;
	__u64 tcp_established_ns;
	__u64 tcp_fin_wait_ns;
	__u64 tcp_time_wait_ns;
	__u64 tcp_reset_ns;
	__u64 udp_new_ns;
	__u64 udp_ns;
	__u64 icmp_ns;
	__u64 other_ns;
	__u64 binding_ns;	/* of a source translation that no flow uses */
};

struct settings {
	__u64 reap_time_wait_ns;	/* the shortest of all timeouts in use: when the head of a queue is looked at */
	__u64 reap_reset_ns;
	__u64 half_open_max;	/* pairs */
	__u64 udp_max;
	__u64 redecide_cost_ns;	/* of one re-decision, of the time that a CPU has for them ... */
	__u64 redecide_burst_ns;	/* ... and how far it may be ahead of its time */
	__u64 secret[2];	/* key of group ids: nobody can craft a group that has the id of another */
	__u32 tunnel_ifindex;
	__u32 inspect_ifindex;
	__u32 sets_generation;
	__u32 dirty;		/* a change was begun and its generations were not yet raised */
	__u32 turn;		/* of `struct programs`: 0 or 1 */
	__u32 shaper_ifindex;	/* its egress has the queues of shaped ports; 0: there is none */
	__be16 tunnel_port;	/* UDP; 0: no outer headers are taken off here */
	__u8 underlays[2];	/* outer source of whatever has none of its own; 0: by route */
	__u32 pad;
	__u64 answer_ns;	/* time between two ICMP answers of a CPU to what was rejected */
	__u64 answer_burst_ns;	/* time that a CPU may be ahead of that */
};

/* What a meter has counted, one way ([0]) and the other, on one CPU. */
struct meter {
	__u64 packets[2];
	__u64 bytes[2];
};

/* The detour by user space, wire packets each: what is sent and does not return was dropped there. */
enum inspect_count {
	INSPECT_SENT = 0,
	INSPECT_RETURNED = 1,
	INSPECT_COUNTS = 2,
};

/* What a dry run met: the rules that matched, in order, and where it ended. */
struct trace {
	__u64 cookie;		/* of the rule that denied; 0: none */
	__u32 port;		/* whose layers were running when it was dropped; 0: none */
	__u32 layer;		/* index in the port's OUT order; 0xff: none */
	__u32 count;		/* of `hits` */
	__u32 pad;
	struct hit_key hits[2 * MAX_STAGES];
};

enum capture_stage {
	CAPTURE_BEFORE = 0,	/* as it came */
	CAPTURE_AFTER = 1,	/* transposed */
};

/* Head of a record of the `captures` ring; `captured` bytes of the packet follow. */
struct capture {
	__u64 time_ns;
	__u32 zone;
	__u32 ports[2];		/* sender, receiver, if somebody looks at its packets; else 0 */
	__u32 length;
	__u32 captured;
	__u8 stage;
	__u8 reason;		/* it was dropped */
	__u8 pad[2];
};

enum event_kind {
	EVENT_DROP = 0,
	EVENT_LOG = 1,
};

/* One record of the `events` ring: a packet that was dropped, or that a rule wants told. */
struct event {
	__u64 time_ns;
	__u64 cookie;		/* of the rule that denied, or asked; 0: none */
	__u32 zone;
	__u32 port;		/* whose layer decided; 0: none */
	struct address src;
	struct address dst;
	__be16 sport;
	__be16 dport;
	__u16 ethertype;
	__u8 protocol;
	__u8 family;
	__u8 smac[6];
	__u8 dmac[6];
	__u8 reason;
	__u8 layer;
	__u8 kind;
	__u8 pad;
	__u32 length;
};

/* A decision that was made, and will be again for another source port. */
struct memory {
	__u32 tag;		/* of the question */
	__u32 vtep;
	__u8 whole;		/* 0: asked once, not kept yet */
	__u8 stateless;
	__u8 hits;
	__u8 pad[5];
	struct hit_key hit[MEMORY_HITS];
	struct flow forward;
	struct flow reply;
};

/* A pair that closed, in the order of time. */
struct closed {
	struct flow_key key;	/* of either half */
	__u32 due_s;		/* of one that lingers: before that it need not be looked at again */
	__u64 since_ns;
};

/* Pairs that count against a budget of their own. The full sweep puts right what races made wrong. */
struct budgets {
	__s64 half_open;	/* TCP, no reply seen */
	__s64 udp;		/* all that is not TCP */
};

/* Argument and result of the sweep programs. */
struct sweep {
	__u64 now_ns;		/* 0: the clock */
	__u32 flows_removed;
	__u32 bindings_removed;
	__u32 flows_seen;
	__u32 bindings_seen;
};
