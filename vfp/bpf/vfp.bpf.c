// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * The data path: one program a hook. Each parses, looks the flow up and, on a hit, transposes: one hash look-up however
 * many layers there are. Everything else is one tail call away. docs/engine.md says what it does.
 */
#include "arp.h"
#include "detour.h"
#include "echo.h"
#include "extras.h"
#include "flood.h"
#include "memory.h"
#include "nd.h"
#include "reject.h"
#include "related.h"
#include "stale.h"
#include "sweep.h"

/* Links that carry packets of one zone. An uplink nobody told us of is left alone; a port is closed. */
static __always_inline int enter_link(struct __sk_buff *skb, __u32 kind)
{
	__u32 ifindex = skb->ifindex;
	struct scratch *s = scratch();
	__u32 *number;

	if (!s)
		return TC_ACT_SHOT;
	if (kind == ZONE_HOST && is_copy(skb, s))
		return TC_ACT_UNSPEC;
	if (is_engines(skb))
		return TC_ACT_UNSPEC;
	begin_packet(s);
	s->flooded = kind == ZONE_HOST && s->flooding == ifindex;
	number = bpf_map_lookup_elem(&links, &ifindex);
	if (!number)
		return kind == ZONE_UPLINK ? TC_ACT_UNSPEC : drop_unknown(skb, s, kind);
	if (kind == ZONE_PORT && *number & LINK_PARTICULAR)
		bpf_tail_call(skb, &jumps, JUMP_PARTICULAR);
	return enter(skb, s, MAKE_ZONE(kind, *number & ~LINK_PARTICULAR), 0);
}

SEC("tc")
int vfp_port_out(struct __sk_buff *skb)
{
	return enter_link(skb, ZONE_PORT);
}

#define SHAPED_MARK (~0xffffU)		/* bits of a mark that say that it is ours; the others are the port */
#define SHAPED_MAJOR (1U << 16)		/* of the queues' handle */

static __always_inline __u32 shaped_mark(const struct settings *settings)
{
	return (__u32)settings->secret[1] & SHAPED_MARK;
}

static __always_inline int may_send(struct __sk_buff *skb, __u32 id, const struct port *port)
{
	return !(port->flags & PORT_RATE_OUT) || take_tokens(id, port, RATE_OUT, skb->gso_segs);
}

/* From a port that is shaped, or limited in what it sends. What comes back from user space was counted, and has waited. */
SEC("tc")
int vfp_particular(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, zero = 0, id, *number;
	struct scratch *s = scratch();
	struct settings *settings;
	struct port *port;

	number = bpf_map_lookup_elem(&links, &ifindex);
	settings = bpf_map_lookup_elem(&config, &zero);
	if (!s || !number || !settings)
		return TC_ACT_SHOT;
	id = *number & ~LINK_PARTICULAR;
	port = bpf_map_lookup_elem(&ports, &id);
	if (port && skb->mark != MARK_INSPECTED) {
		if (!may_send(skb, id, port))
			return drop_arrived(skb, s, MAKE_ZONE(ZONE_PORT, id), RATE_LIMITED);
		if (port->flags & PORT_SHAPED && settings->shaper_ifindex) {
			skb->priority = SHAPED_MAJOR | id;
			skb->mark = shaped_mark(settings) | id;
			return bpf_redirect(settings->shaper_ifindex, 0);
		}
	}
	return enter(skb, s, MAKE_ZONE(ZONE_PORT, id), 0);
}

/* Where the shaper's queues lead to: the frame goes on as if it came from its port at this moment. */
SEC("tc")
int vfp_shaped_in(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct settings *settings;
	__u32 zero = 0, id;

	settings = bpf_map_lookup_elem(&config, &zero);
	if (!s || !settings || (skb->mark & SHAPED_MARK) != shaped_mark(settings))
		return TC_ACT_SHOT;		/* nobody else sends there */
	id = skb->mark & ~SHAPED_MARK;
	skb->mark = 0;
	begin_packet(s);
	s->shaped = 1;
	return enter(skb, s, MAKE_ZONE(ZONE_PORT, id), 0);
}

SEC("tc")
int vfp_port_in(struct __sk_buff *skb)
{
	return enter_link(skb, ZONE_HOST);
}

/* To a MAC that is not the uplink's: it may be that of a port of ours. */
static __always_inline int is_stations(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, *number = bpf_map_lookup_elem(&links, &ifindex);
	struct uplink *uplink = number ? bpf_map_lookup_elem(&uplinks, number) : 0;
	struct station_key key = {};

	if (!uplink || !(uplink->flags & UPLINK_STATIONS))
		return 0;
	key.number = *number;
	key.kind = SEGMENT_WIRE;
	if (bpf_skb_load_bytes(skb, 0, key.mac, sizeof(key.mac)))
		return 0;
	return bpf_map_lookup_elem(&stations, &key) != 0;
}

SEC("tc")
int vfp_uplink_in(struct __sk_buff *skb)
{
	struct scratch *s = scratch();

	if (skb->pkt_type == PACKET_OTHERHOST)
		return is_stations(skb) ? enter_link(skb, ZONE_UPLINK) : TC_ACT_UNSPEC;
	if (s && is_tunnelled(skb, s))
		bpf_tail_call(skb, &jumps, JUMP_DECAPSULATE);
	return enter_link(skb, ZONE_UPLINK);
}

/* A link of the underlay that is no uplink. */
SEC("tc")
int vfp_underlay_in(struct __sk_buff *skb)
{
	struct scratch *s = scratch();

	if (s && skb->pkt_type != PACKET_OTHERHOST && is_tunnelled(skb, s))
		bpf_tail_call(skb, &jumps, JUMP_DECAPSULATE);
	return TC_ACT_UNSPEC;
}

/* Outer headers come off; what is left enters as if from the VXLAN device, which gets all that is not to be had so. */
SEC("tc")
int vfp_decapsulate(struct __sk_buff *skb)
{
	struct taken_off off = {};
	struct scratch *s = scratch();
	int six, ecn;

	if (!s)
		return TC_ACT_SHOT;
	six = skb->protocol == bpf_htons(ETH_P_IPV6);
	if (!(six ? read_outer6(skb, &off) : read_outer4(skb, &off)))
		return TC_ACT_UNSPEC;
	ecn = ecn_of(off.outer, off.inner);
	if (!(six ? take_off(skb, &off, OVERHEAD6, 6) : take_off(skb, &off, OVERHEAD4, 4)))
		return TC_ACT_UNSPEC;
	begin_packet(s);
	if (ecn < 0)
		return drop_arrived(skb, s, MAKE_ZONE(ZONE_OVERLAY, off.vni), ECN_INVALID);
	if (ecn != (off.inner & ECN_MASK) && set_ecn(skb, off.family, off.inner, ecn))
		return drop_arrived(skb, s, MAKE_ZONE(ZONE_OVERLAY, off.vni), ENGINE_ERROR);
	return enter(skb, s, MAKE_ZONE(ZONE_OVERLAY, off.vni), off.vtep);
}

SEC("tc")
int vfp_overlay_in(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	__u32 vni, vtep;

	if (!s)
		return TC_ACT_SHOT;
	begin_packet(s);
	if (!from_tunnel(skb, &vni, &vtep))
		return drop_unknown(skb, s, ZONE_OVERLAY);
	return enter(skb, s, MAKE_ZONE(ZONE_OVERLAY, vni), vtep);
}

/* Any hook, for BPF_PROG_TEST_RUN: the zone is in cb[0], the outer source in cb[1]; the answer is in cb[2..4]. */
SEC("tc")
int vfp_probe(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	__u32 zone = skb->cb[CB_ZONE], number;
	struct port *port;

	if (!s)
		return TC_ACT_SHOT;
	s->probe = PROBE;
	s->flooded = 0;
	s->forgetful = skb->mark == PROBE_WALKS;
	s->shaped = 0;
	if (zone & ~INSPECT_ZONE)
		return come_back(skb, s, zone & INSPECT_ZONE, zone >> 30);
	s->inspected = 0;
	number = ZONE_NUMBER(zone);
	port = ZONE_KIND(zone) == ZONE_PORT ? bpf_map_lookup_elem(&ports, &number) : 0;
	if (port && !may_send(skb, number, port))
		return drop_arrived(skb, s, zone, RATE_LIMITED);
	return enter(skb, s, zone, skb->cb[CB_VTEP]);
}

/*
 * Like vfp_probe, and dry: the layers decide as for the first packet of a flow, on the tables as they are, and no table
 * knows afterwards. What was met is in `traced`.
 */
SEC("tc")
int vfp_trace(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	__u32 zone = skb->cb[CB_ZONE], vtep = skb->cb[CB_VTEP], zero = 0;
	struct trace *trace = bpf_map_lookup_elem(&traced, &zero);
	int reason;

	if (!s || !trace)
		return TC_ACT_SHOT;
	trace->cookie = trace->port = trace->count = 0;
	trace->layer = 0xff;
	s->probe = PROBE_DRY;
	s->flooded = 0;
	s->forgetful = 1;
	s->inspected = 0;
	s->shaped = 0;
	reason = parse_odd(skb, s, zone);
	s->pkt.vtep = vtep;
	if (reason)
		return refuse(skb, s, reason);
	if (!s->pkt.tracked && ZONE_KIND(zone) == ZONE_UPLINK && !is_wired(s))
		return leave_to_stack(skb, s);
	if (s->error)
		s->error = ERROR_UNRELATED;
	return jump(skb, s, JUMP_SLOW);
}

/* A connection that ends, or an answer to what was not asked, is no reason to let the other side in. */
static __always_inline int makes_flow(const struct headers *h)
{
	if (is_icmp(h->key.family, h->key.protocol))
		return is_echo_request(h);
	return h->tracked && !(h->tcp_flags & TCP_RST);
}

/* What goes to many has no flow, here or where it arrives; nor has what is answered on the spot. */
static __always_inline int begins_flow(const struct scratch *s)
{
	return makes_flow(&s->pkt) && s->forward.out.place != PLACE_FLOOD && s->forward.out.place != PLACE_REPLY &&
	       !s->flooded;
}

/* What the short parser does not know. */
SEC("tc")
int vfp_odd(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	__u32 zone, vtep;
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	zone = s->pkt.key.zone;
	vtep = s->pkt.vtep;
	reason = parse_odd(skb, s, zone);
	s->pkt.vtep = vtep;
	if (reason)
		return refuse(skb, s, reason);
	return s->inspected ? jump(skb, s, JUMP_INSPECTED) : look_up(skb, s);
}

/* ICMP errors. One that is about no flow is judged as any packet is; the world's is the host's own business. */
SEC("tc")
int vfp_related(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct quotation quotation = {};
	struct flow *f;
	__u32 flags;

	if (!s)
		return TC_ACT_SHOT;
	if (read_quotation(skb, s, &quotation) && is_plausible(s)) {
		f = bpf_map_lookup_elem(&flows, &s->related);
		if (f && is_senders(f, &s->pkt)) {
			if (!is_current(f, &flags)) {
				if (s->error == ERROR_AGAIN)	/* the policy changes faster than we decide */
					return drop_early(skb, s, ENGINE_ERROR);
				s->error = ERROR_STALE;
				return jump(skb, s, JUMP_STALE);
			}
			if (f->from_vtep != s->pkt.vtep)
				return drop_early(skb, s, WRONG_VTEP);
			capture_before(skb, s, sender_of(f), receiver_of(f));
			return capture_after(skb, s, pass_error(skb, s, &quotation, f));
		}
	}
	s->error = ERROR_UNRELATED;
	return jump(skb, s, JUMP_SLOW);
}

/* Misses, and what has no flow. */
SEC("tc")
int vfp_slow(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	if (!remembered(s)) {
		s->h = s->pkt;
		s->deciding_again = 0;
		reason = decide(s);
		if (!reason)
			reason = compose(s);
		if (!reason)
			remember(s);
	} else {
		reason = NONE;
	}
	if (reason == NO_MAPPING && ZONE_KIND(s->h.key.zone) == ZONE_UPLINK)
		return leave_to_stack(skb, s);
	if (reason)
		return drop_decided(skb, s, reason);
	if (s->d.inspect && (!begins_flow(s) || !is_inspectable(s)))
		return drop_early(skb, s, INSPECT_REFUSED);
	s->passage = PASSAGE_ALONE;
	if (begins_flow(s)) {
		if (s->forward.flags & FLOW_STRICT && !is_opening_segment(s->pkt.tcp_flags))
			return drop_early(skb, s, OUT_OF_STATE);
		if (is_dry(s)) {
			if (s->d.inspect && !s->d.fail_open && !inspect_device())
				return drop_early(skb, s, INSPECT_UNAVAILABLE);
			return jump(skb, s, JUMP_LEAVE);
		}
		if (!s->d.inspect) {	/* it counts, and moves the state, when it is back */
			s->forward.packets = skb->gso_segs ? skb->gso_segs : 1;
			s->forward.bytes = skb->len;
			s->forward.state = sent(s->pkt.tcp_flags);
			s->reply.state = mirrored(s->forward.state);
		}
		reason = store(s, is_stateless(&s->d), STORE_NEW);
		if (reason == FLOW_TABLE_FULL)
			return jump(skb, s, JUMP_FULL);
		if (reason)
			return drop_early(skb, s, reason);
		if (s->d.inspect)
			return jump(skb, s, JUMP_INSPECT);
		s->passage = PASSAGE_FIRST;
	}
	return jump(skb, s, JUMP_LEAVE);
}

/* The question becomes its answer. */
static __always_inline int answer_question(struct __sk_buff *skb, struct scratch *s)
{
	int verdict = s->pkt.nd ? reply_nd(skb, s) : s->pkt.key.family ? reply_echo(skb, s) : reply_arp(skb, s);

	s->watched[1] = s->watched[0];		/* who asked receives */
	s->watched[0] = 0;
	return capture_after(skb, s, verdict);
}

static __always_inline int may_get(struct __sk_buff *skb, const struct scratch *s, __u32 id)
{
	struct port *port = id && !is_dry(s) ? bpf_map_lookup_elem(&ports, &id) : 0;

	return !port || !(port->flags & PORT_RATE_IN) || take_tokens(id, port, RATE_IN, skb->gso_segs);
}

/* What was decided leaves, after what rules ask for beside that. A hit comes here only if they do, or somebody looks. */
SEC("tc")
int vfp_leave(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flow *f;

	if (!s)
		return TC_ACT_SHOT;
	if (s->passage == PASSAGE_HIT || s->passage == PASSAGE_SEEN)
		f = bpf_map_lookup_elem(&flows, &s->pkt.key);
	else
		f = &s->forward;
	if (!f)			/* the sweep took it at this very moment */
		return drop_early(skb, s, ENGINE_ERROR);
	capture_before(skb, s, sender_of(f), receiver_of(f));
	if (!may_get(skb, s, receiver_of(f)))
		return drop_at(skb, s, receiver_of(f), RATE_LIMITED);
	if (f->flags & FLOW_EXTRAS && !is_dry(s))
		do_extras(skb, s, f);
	if (f->out.place == PLACE_REPLY)
		return answer_question(skb, s);
	if (f->out.place == PLACE_FLOOD)
		return jump(skb, s, JUMP_FLOOD);
	return capture_after(skb, s, transpose(skb, s, &f->out));
}

/* A rejected packet, already counted and told, becomes the answer to its sender. */
SEC("tc")
int vfp_reject(struct __sk_buff *skb)
{
	struct scratch *s = scratch();

	return s ? reject(skb, s) : TC_ACT_SHOT;
}

/* No room for a new flow: closed ones whose time is over go first, whether or not there is an agent to sweep. */
SEC("tc")
int vfp_full(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct sweeping sweeping = {};
	struct sweep sweep = {};
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	if (begin(&sweeping, &sweep)) {
		bpf_loop(RECLAIM_BATCH, reap_reset, &sweeping, 0);
		bpf_loop(RECLAIM_BATCH, reap_time_wait, &sweeping, 0);
		bpf_loop(RECLAIM_BATCH, reap_lingering, &sweeping, 0);
	}
	reason = store(s, is_stateless(&s->d), STORE_NEW);
	if (reason)
		return drop_early(skb, s, reason);
	s->passage = PASSAGE_FIRST;
	return jump(skb, s, s->d.inspect ? JUMP_INSPECT : JUMP_LEAVE);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
