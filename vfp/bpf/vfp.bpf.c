// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * The data path: one program a hook. Each parses, looks the flow up and, on a hit, transposes: one hash look-up however
 * many layers there are. Everything else is one tail call away. docs/engine.md says what it does.
 */
#include "arp.h"
#include "extras.h"
#include "flow_table.h"
#include "inspect.h"
#include "memory.h"
#include "nd.h"
#include "reject.h"
#include "related.h"
#include "sweep.h"

static __always_inline int leave_to_stack(struct __sk_buff *skb, struct scratch *s)
{
	report(skb, s, PLACE_STACK, NONE, 0);
	return TC_ACT_UNSPEC;
}

/* What is not ours at an uplink is the host's own business. */
static __always_inline int refuse(struct __sk_buff *skb, struct scratch *s, int reason)
{
	if (ZONE_KIND(s->pkt.key.zone) == ZONE_UPLINK && !s->inspected)
		return leave_to_stack(skb, s);
	return drop_early(skb, s, reason);
}

static __always_inline int jump(struct __sk_buff *skb, struct scratch *s, __u32 to)
{
	bpf_tail_call(skb, &jumps, to);
	return drop_early(skb, s, ENGINE_ERROR);
}

/* A parsed packet: a hit, or one jump away from what it is. */
static __always_inline int look_up(struct __sk_buff *skb, struct scratch *s)
{
	struct flow *f;
	__u32 flags;

	if (s->pkt.tracked) {
		f = bpf_map_lookup_elem(&flows, &s->pkt.key);
		if (f && is_senders(f, &s->pkt) && !is_reopened(f, &s->pkt)) {
			int reason;

			if (!is_current(f, &flags))
				return jump(skb, s, JUMP_STALE);
			if (is_to_inspect(f))
				return jump(skb, s, JUMP_INSPECT);
			reason = enter_flow(skb, f, &s->pkt);
			if (reason)
				return drop_early(skb, s, reason);
			if (f->flags & FLOW_EXTRAS || flags & PORT_CAPTURE) {
				s->passage = PASSAGE_HIT;
				return jump(skb, s, JUMP_LEAVE);
			}
			return transpose(skb, s, &f->out);
		}
	} else if (s->error) {
		return jump(skb, s, JUMP_RELATED);
	} else if (ZONE_KIND(s->pkt.key.zone) == ZONE_UPLINK) {
		return leave_to_stack(skb, s);
	}
	return jump(skb, s, JUMP_SLOW);
}

static __always_inline int enter(struct __sk_buff *skb, struct scratch *s, __u32 zone, __u32 vtep)
{
	int reason = parse(skb, s, zone, 0);

	s->pkt.vtep = vtep;
	if (reason == ODD)
		return jump(skb, s, JUMP_ODD);
	if (reason)
		return refuse(skb, s, reason);
	return look_up(skb, s);
}

/* User space has seen a packet. Whatever it made of it is parsed anew, by the program that knows all. */
static __always_inline int come_back(struct __sk_buff *skb, struct scratch *s, __u32 zone, __u32 inspected)
{
	__builtin_memset(&s->pkt, 0, sizeof(s->pkt));
	s->pkt.key.zone = zone;
	s->inspected = inspected;
	return jump(skb, s, JUMP_ODD);
}

static __always_inline int drop_unknown(struct __sk_buff *skb, struct scratch *s, __u32 kind)
{
	__builtin_memset(&s->pkt, 0, sizeof(s->pkt));
	s->pkt.key.zone = MAKE_ZONE(kind, 0);
	return drop_early(skb, s, UNKNOWN_PORT);
}

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
	if (kind == ZONE_PORT && is_answer(skb))
		return TC_ACT_UNSPEC;
	s->probe = NO_PROBE;
	s->forgetful = 0;
	s->inspected = 0;
	number = bpf_map_lookup_elem(&links, &ifindex);
	if (!number)
		return kind == ZONE_UPLINK ? TC_ACT_UNSPEC : drop_unknown(skb, s, kind);
	return enter(skb, s, MAKE_ZONE(kind, *number), 0);
}

SEC("tc")
int vfp_port_out(struct __sk_buff *skb)
{
	return enter_link(skb, ZONE_PORT);
}

SEC("tc")
int vfp_port_in(struct __sk_buff *skb)
{
	return enter_link(skb, ZONE_HOST);
}

SEC("tc")
int vfp_uplink_in(struct __sk_buff *skb)
{
	if (skb->pkt_type == PACKET_OTHERHOST)
		return TC_ACT_UNSPEC;
	return enter_link(skb, ZONE_UPLINK);
}

SEC("tc")
int vfp_overlay_in(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};
	struct scratch *s = scratch();

	if (!s)
		return TC_ACT_SHOT;
	s->probe = NO_PROBE;
	s->forgetful = 0;
	s->inspected = 0;
	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return drop_unknown(skb, s, ZONE_OVERLAY);
	return enter(skb, s, MAKE_ZONE(ZONE_OVERLAY, key.tunnel_id & 0xffffff), key.remote_ipv4);
}

/* Any hook, for BPF_PROG_TEST_RUN: the zone is in cb[0], the outer source in cb[1]; the answer is in cb[2..4]. */
SEC("tc")
int vfp_probe(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	__u32 zone = skb->cb[CB_ZONE];

	if (!s)
		return TC_ACT_SHOT;
	s->probe = PROBE;
	s->forgetful = skb->mark == PROBE_WALKS;
	if (zone & ~INSPECT_ZONE)
		return come_back(skb, s, zone & INSPECT_ZONE, zone >> 30);
	s->inspected = 0;
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
	s->forgetful = 1;
	s->inspected = 0;
	reason = parse_odd(skb, s, zone);
	s->pkt.vtep = vtep;
	if (reason)
		return refuse(skb, s, reason);
	if (!s->pkt.tracked && ZONE_KIND(zone) == ZONE_UPLINK)
		return leave_to_stack(skb, s);
	if (s->error)
		s->error = ERROR_UNRELATED;
	return jump(skb, s, JUMP_SLOW);
}

/* Reasons that are a layer's doing keep its number; the others have none. */
static __always_inline int drop_decided(struct __sk_buff *skb, struct scratch *s, int reason)
{
	if (reason != DENIED && reason != REJECTED && reason != LAYER_DEFAULT && reason != NAT_EXHAUSTED && reason != NAT_UNSUPPORTED &&
	    reason != ARP_UNANSWERED)
		s->d.layer = 0xff;
	drop(skb, s, reason);
	if (reason == REJECTED && !is_dry(s))
		bpf_tail_call(skb, &jumps, JUMP_REJECT);
	return TC_ACT_SHOT;
}

static __always_inline void carry_over(struct flow *to, const struct flow *from)
{
	to->packets = from->packets;
	to->bytes = from->bytes;
	to->created_ns = from->created_ns;
	to->seen_ns = from->seen_ns;
}

/*
 * A change of policy makes every flow decide again at its next packet. Each CPU spends so much of its time on that and no
 * more, so that new flows do not wait for a million old ones.
 */
static __always_inline int may_decide_again(struct scratch *s)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct settings *settings;
	__u32 zero = 0;

	settings = bpf_map_lookup_elem(&config, &zero);
	if (!settings || s->redecide_ns > now + settings->redecide_burst_ns)
		return 0;
	s->redecide_ns = (s->redecide_ns > now ? s->redecide_ns : now) + settings->redecide_cost_ns;
	return 1;
}

/* The packet's own key, or that of what it quotes. */
static __always_inline struct flow_key *stale_key(struct scratch *s)
{
	return s->error ? &s->related : &s->pkt.key;
}

/*
 * Into `s->h`, the packet that made the flow of which `f` is a half. Returns 0 if there is no such flow any more. No pointer
 * into the table outlives this: the verifier would walk the layers once for each that may be null.
 */
static __always_inline int recall(struct scratch *s, const struct flow_key *key, struct flow *f)
{
	struct headers *h = &s->h;

	s->from_reply = f->flags & FLOW_REPLY;
	h->key = *key;
	if (s->from_reply) {
		h->key = f->pair;
		f = bpf_map_lookup_elem(&flows, &h->key);
		if (!f)
			return 0;
	}
	h->ethertype = h->key.family == 6 ? ETH_P_IPV6 : ETH_P_IP;
	h->dscp = f->dscp;
	h->tcp_flags = f->tcp_flags;
	h->icmp_type = f->icmp_type;
	h->icmp_code = f->icmp_code;
	h->has_ports = has_ports(h->key.protocol);
	h->fragment = f->flags & FLOW_FRAGMENT ? 1 : 0;
	h->tracked = 1;
	h->arp_sender_is_source = 0;
	h->nd = 0;
	h->nd_sender_is_source = 0;
	copy_mac(h->smac, f->smac);
	copy_mac(h->dmac, f->dmac);
	h->vtep = s->from_reply ? 0 : s->pkt.vtep;
	s->deciding_again = 1;
	return 1;
}

/* The pair as it was decided now, with the counters and the state that it had. Returns a drop reason. */
static __always_inline int store_again(struct scratch *s)
{
	struct flow *forward = bpf_map_lookup_elem(&flows, &s->h.key);
	int single = is_stateless(&s->d), stays = 0;
	struct flow *reply;

	if (!forward)		/* it left while we decided */
		return FLOW_CHANGED;
	carry_over(&s->forward, forward);
	s->forward.state = forward->state & ~STATE_SINGLE;
	s->reply.state = mirrored(s->forward.state);
	if (!(forward->state & STATE_SINGLE)) {
		reply = bpf_map_lookup_elem(&flows, &forward->pair);
		if (reply) {
			carry_over(&s->reply, reply);
			stays = !single && same_key(&s->forward.pair, &forward->pair);
		}
	}
	if (forward->flags & FLOW_RELEASED && s->d.inspect && forward->extras.queue == s->d.queue) {
		s->forward.flags |= FLOW_RELEASED;
		s->reply.flags |= FLOW_RELEASED;
	}
	return store(s, single, stays ? STORE_OVER : STORE_AGAIN);
}

/*
 * A flow whose policy changed, that this packet, or the packet that it quotes, is of: its forward tuple is decided again,
 * whichever side the packet is from. A connection that the new policy forbids ends here.
 */
SEC("tc")
int vfp_stale(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flow *f;
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	f = bpf_map_lookup_elem(&flows, stale_key(s));
	if (!f)			/* it left in the meantime */
		return jump(skb, s, JUMP_SLOW);
	if (!recall(s, stale_key(s), f)) {	/* half a pair is no flow: see what the packet itself may do */
		bpf_map_delete_elem(&flows, stale_key(s));
		return jump(skb, s, JUMP_SLOW);
	}
	if (!may_decide_again(s))
		return drop_early(skb, s, REDECIDE_LATER);
	reason = decide(s);
	if (!reason)
		reason = compose(s);
	/* The pair stays, stale: without it, the next packet of the other side would look like a new flow. */
	if (reason)
		return drop_decided(skb, s, reason);
	reason = store_again(s);
	if (!reason && s->from_reply && (s->single || !same_key(&s->forward.pair, stale_key(s))))
		reason = FLOW_CHANGED;
	if (reason)
		return drop_early(skb, s, reason);
	if (s->error) {
		s->error = ERROR_AGAIN;
		return jump(skb, s, JUMP_RELATED);
	}
	return jump(skb, s, JUMP_DECIDED);
}

/* A packet of a flow that was just decided again: apart from that, so that the verifier need not walk both at once. */
SEC("tc")
int vfp_decided(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flow *f;
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	f = bpf_map_lookup_elem(&flows, &s->pkt.key);
	if (!f)
		return drop_early(skb, s, ENGINE_ERROR);
	if (is_to_inspect(f))
		return jump(skb, s, JUMP_INSPECT);
	reason = enter_flow(skb, f, &s->pkt);
	if (reason)
		return drop_early(skb, s, reason);
	s->passage = PASSAGE_HIT;
	return jump(skb, s, JUMP_LEAVE);
}

/* A connection that ends, or an answer to what was not asked, is no reason to let the other side in. */
static __always_inline int makes_flow(const struct headers *h)
{
	if (is_icmp(h->key.family, h->key.protocol))
		return is_echo_request(h);
	return h->tracked && !(h->tcp_flags & TCP_RST);
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
	if (s->d.inspect && (!makes_flow(&s->pkt) || !is_inspectable(s)))
		return drop_early(skb, s, INSPECT_REFUSED);
	s->passage = PASSAGE_ALONE;
	if (makes_flow(&s->pkt)) {
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
static __always_inline int answer_neighbour(struct __sk_buff *skb, struct scratch *s)
{
	int verdict = s->pkt.nd ? reply_nd(skb, s) : reply_arp(skb, s);

	s->watched[1] = s->watched[0];		/* who asked receives */
	s->watched[0] = 0;
	return capture_after(skb, s, verdict);
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
	if (f->flags & FLOW_EXTRAS && !is_dry(s))
		do_extras(skb, s, f);
	if (f->out.place == PLACE_REPLY)
		return answer_neighbour(skb, s);
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
	}
	reason = store(s, is_stateless(&s->d), STORE_NEW);
	if (reason)
		return drop_early(skb, s, reason);
	s->passage = PASSAGE_FIRST;
	return jump(skb, s, s->d.inspect ? JUMP_INSPECT : JUMP_LEAVE);
}

/* A hit of a flow that user space sees first; or one that it has seen. */
SEC("tc")
int vfp_inspect(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct settings *settings;
	__u32 zero = 0;
	struct flow *f;
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	f = bpf_map_lookup_elem(&flows, &s->pkt.key);
	settings = bpf_map_lookup_elem(&config, &zero);
	if (!f || !settings)
		return drop_early(skb, s, ENGINE_ERROR);
	if (f->from_vtep != s->pkt.vtep)
		return drop_early(skb, s, WRONG_VTEP);
	if (skb->mark == MARK_INSPECTED) {
		skb->mark = 0;
	} else if (!s->inspected) {
		if (!is_inspectable(s))
			return drop_early(skb, s, INSPECT_REFUSED);
		if (settings->inspect_ifindex)
			return send_to_inspect(skb, s, f, settings->inspect_ifindex);
		if (!f->extras.fail_open)
			return drop_early(skb, s, INSPECT_UNAVAILABLE);
	}
	s->passage = f->packets || f->flags & FLOW_REPLY ? PASSAGE_HIT : PASSAGE_SEEN;
	reason = enter_flow(skb, f, &s->pkt);
	if (reason)
		return drop_early(skb, s, reason);
	return jump(skb, s, JUMP_LEAVE);
}

/* Ingress of the host's link of the second pair: goes on where it left for the detour. */
SEC("tc")
int vfp_inspected(struct __sk_buff *skb)
{
	__u32 mark = read_inspect_mac(skb);
	struct scratch *s = scratch();

	if (!s)
		return TC_ACT_SHOT;
	s->probe = NO_PROBE;
	s->forgetful = 0;
	count_inspection(skb, INSPECT_RETURNED);
	return come_back(skb, s, mark & INSPECT_ZONE, mark & INSPECT_RELEASE ? INSPECTED_ENOUGH : INSPECTED);
}

/* ... now that it is parsed. */
SEC("tc")
int vfp_come_back(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flow *f;

	if (!s)
		return TC_ACT_SHOT;
	f = s->pkt.tracked ? bpf_map_lookup_elem(&flows, &s->pkt.key) : 0;
	if (!f)			/* it has aged, or user space made another flow's packet of it */
		return drop_early(skb, s, INSPECT_REFUSED);
	if (restore_macs(skb, s, f))
		return drop_early(skb, s, ENGINE_ERROR);
	s->pkt.vtep = f->from_vtep;	/* that was compared before */
	if (s->inspected == INSPECTED_ENOUGH && f->flags & FLOW_INSPECT)
		release(f);
	if (f->out.place == PLACE_STACK && !s->probe)
		return enter_again(skb, s);
	return look_up(skb, s);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
