// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/*
 * The data path: one program a hook. Each parses, looks the flow up and, on a hit, transposes: one hash look-up however
 * many layers there are. Everything else is one tail call away, in vfp_slow. docs/engine.md says what it does.
 */
#include "arp.h"
#include "decide.h"
#include "flow_table.h"
#include "nd.h"
#include "related.h"
#include "sweep.h"

/* No TC verdicts (TC_ACT_UNSPEC is -1). */
#define NO_PAIR 256
#define DECIDED 257

static __always_inline int leave_to_stack(struct __sk_buff *skb, struct scratch *s)
{
	report(skb, s, PLACE_STACK, NONE, 0);
	return TC_ACT_UNSPEC;
}

/* What is not ours at an uplink is the host's own business. */
static __always_inline int refuse(struct __sk_buff *skb, struct scratch *s, int reason)
{
	if (ZONE_KIND(s->pkt.key.zone) == ZONE_UPLINK)
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
		if (f && is_senders(f, &s->pkt) && is_current(f, &flags) && !is_reopened(f, &s->pkt)) {
			if (f->from_vtep != s->pkt.vtep)
				return drop_early(skb, s, WRONG_VTEP);
			if (flags & PORT_CAPTURE)
				return jump(skb, s, JUMP_CAPTURE);
			track(f, &s->pkt);
			count_packet(skb, f);
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
	s->probe = NO_PROBE;
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
	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0))
		return drop_unknown(skb, s, ZONE_OVERLAY);
	return enter(skb, s, MAKE_ZONE(ZONE_OVERLAY, key.tunnel_id & 0xffffff), key.remote_ipv4);
}

/* Any hook, for BPF_PROG_TEST_RUN: the zone is in cb[0], the outer source in cb[1]; the answer is in cb[2..4]. */
SEC("tc")
int vfp_probe(struct __sk_buff *skb)
{
	struct scratch *s = scratch();

	if (!s)
		return TC_ACT_SHOT;
	s->probe = PROBE;
	return enter(skb, s, skb->cb[CB_ZONE], skb->cb[CB_VTEP]);
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
	if (reason != DENIED && reason != LAYER_DEFAULT && reason != NAT_EXHAUSTED && reason != NAT_UNSUPPORTED &&
	    reason != ARP_UNANSWERED)
		s->d.layer = 0xff;
	return drop(skb, s, reason);
}

static __always_inline void carry_over(struct flow *to, const struct flow *from)
{
	to->packets = from->packets;
	to->bytes = from->bytes;
	to->created_ns = from->created_ns;
	to->seen_ns = from->seen_ns;
}

/* One half's state as the other half has it. */
static __always_inline __u16 mirrored(__u16 state)
{
	return (state & (STATE_ASSURED | STATE_RST)) | (state & STATE_FIN ? STATE_PEER_FIN : 0) |
	       (state & STATE_PEER_FIN ? STATE_FIN : 0);
}

/*
 * The policy changed under the flow `f` at `key`: decide its forward tuple again, whichever side this packet is from. A
 * connection that the new policy forbids ends here. Returns DECIDED, NO_PAIR, or the verdict of a drop.
 */
static __always_inline int decide_again(struct __sk_buff *skb, struct scratch *s, struct flow_key *key, struct flow *f)
{
	struct flow_key *forward_key = f->flags & FLOW_REPLY ? &f->pair : key;
	struct flow_key *reply_key = f->flags & FLOW_REPLY ? key : &f->pair;
	struct flow *forward = bpf_map_lookup_elem(&flows, forward_key);
	struct flow *reply = f->state & STATE_SINGLE ? 0 : bpf_map_lookup_elem(&flows, reply_key);
	int from_reply = f->flags & FLOW_REPLY, reason;

	if (!forward) {		/* half a pair is no flow: see what the packet itself may do */
		bpf_map_delete_elem(&flows, key);
		return NO_PAIR;
	}
	s->h.key = *forward_key;
	s->h.ethertype = forward_key->family == 6 ? ETH_P_IPV6 : ETH_P_IP;
	s->h.dscp = forward->dscp;
	s->h.tcp_flags = forward->tcp_flags;
	s->h.icmp_type = forward->icmp_type;
	s->h.icmp_code = forward->icmp_code;
	s->h.has_ports = has_ports(forward_key->protocol);
	s->h.tracked = 1;
	s->h.arp_sender_is_source = 0;
	s->h.nd = 0;
	s->h.nd_sender_is_source = 0;
	copy_mac(s->h.smac, forward->smac);
	copy_mac(s->h.dmac, forward->dmac);
	s->h.vtep = from_reply ? 0 : s->pkt.vtep;
	reason = decide(s);
	if (!reason)
		reason = compose(s);
	/* The pair stays, stale: without it, the next packet of the other side would look like a new flow. */
	if (reason)
		return drop_decided(skb, s, reason);
	carry_over(&s->forward, forward);
	s->forward.state = forward->state & ~STATE_SINGLE;
	if (reply)
		carry_over(&s->reply, reply);
	s->reply.state = mirrored(s->forward.state);
	reason = store(s, s->d.stateless && !s->d.translated);
	if (reason)
		return drop_early(skb, s, reason);
	if (from_reply && (s->single || !same_key(&s->forward.pair, key)))
		return drop_early(skb, s, FLOW_CHANGED);
	return DECIDED;
}

/* What a hit does, for whoever has time to look at it, too. */
static __always_inline int use(struct __sk_buff *skb, struct scratch *s, struct flow *f)
{
	capture_before(skb, s, sender_of(f), receiver_of(f));
	track(f, &s->pkt);
	count_packet(skb, f);
	return capture_after(skb, s, transpose(skb, s, &f->out));
}

/* A flow that this packet, or the packet that it quotes, is of. */
static __always_inline int use_stale(struct __sk_buff *skb, struct scratch *s)
{
	struct flow_key *key = s->error ? &s->related : &s->pkt.key;
	struct flow *f = bpf_map_lookup_elem(&flows, key);
	int verdict;

	if (!f || !is_senders(f, &s->pkt) || is_reopened(f, &s->pkt))
		return NO_PAIR;
	verdict = decide_again(skb, s, key, f);
	if (verdict != DECIDED)
		return verdict;
	if (s->error) {
		s->error = ERROR_AGAIN;
		return jump(skb, s, JUMP_RELATED);
	}
	f = bpf_map_lookup_elem(&flows, key);
	if (!f)
		return drop_early(skb, s, ENGINE_ERROR);
	if (f->from_vtep != s->pkt.vtep)
		return drop_early(skb, s, WRONG_VTEP);
	return use(skb, s, f);
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
	return look_up(skb, s);
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
				return jump(skb, s, JUMP_SLOW);
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

/* Hits of a port that somebody looks at. */
SEC("tc")
int vfp_captured(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flow *f;

	if (!s)
		return TC_ACT_SHOT;
	f = bpf_map_lookup_elem(&flows, &s->pkt.key);
	return f ? use(skb, s, f) : jump(skb, s, JUMP_SLOW);	/* it may have aged this moment */
}

static __always_inline int answer_neighbour(struct __sk_buff *skb, struct scratch *s)
{
	int verdict;

	capture_before(skb, s, s->d.ports[0], 0);
	verdict = s->pkt.nd ? reply_nd(skb, s) : reply_arp(skb, s);
	s->watched[1] = s->watched[0];		/* who asked receives */
	s->watched[0] = 0;
	return capture_after(skb, s, verdict);
}

/* Misses, stale flows, and what has no flow. */
SEC("tc")
int vfp_slow(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	int reason;

	if (!s)
		return TC_ACT_SHOT;
	if (!is_dry(s) && (s->pkt.tracked || s->error == ERROR_STALE)) {
		reason = use_stale(skb, s);
		if (reason != NO_PAIR)
			return reason;
	}
	s->h = s->pkt;
	reason = decide(s);
	if (!reason)
		reason = compose(s);
	if (reason == NO_MAPPING && ZONE_KIND(s->h.key.zone) == ZONE_UPLINK)
		return leave_to_stack(skb, s);
	if (reason)
		return drop_decided(skb, s, reason);
	if (s->forward.out.place == PLACE_REPLY)
		return answer_neighbour(skb, s);
	if (makes_flow(&s->pkt) && !is_dry(s)) {
		s->forward.packets = skb->gso_segs ? skb->gso_segs : 1;
		s->forward.bytes = skb->len;
		if (s->pkt.tcp_flags & TCP_FIN) {
			s->forward.state |= STATE_FIN;
			s->reply.state |= STATE_PEER_FIN;
		}
		reason = store(s, s->d.stateless && !s->d.translated);
		if (reason)
			return drop_early(skb, s, reason);
	}
	capture_before(skb, s, s->d.ports[0], s->d.ports[1]);
	return capture_after(skb, s, transpose(skb, s, &s->forward.out));
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
