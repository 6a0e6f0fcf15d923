/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * What was decided lately: a client that opens one connection after another to a service asks the same question each
 * time, but for its source port. Where no rule looks at what differs, the answer is taken from here instead of from the
 * layers. An answer is as good as the flow that it made: it holds while the generations of its ports do.
 */
#pragma once

#include "decide.h"

static __always_inline __u32 memory_slot(const struct flow_key *key, __u32 *tag)
{
	__u64 hash = mix(key->zone, (__u64)key->src.w[0] << 32 | key->dst.w[0]);

	if (key->family == 6) {
		hash = mix(hash, (__u64)key->src.w[1] << 32 | key->dst.w[1]);
		hash = mix(hash, (__u64)key->src.w[2] << 32 | key->dst.w[2]);
		hash = mix(hash, (__u64)key->src.w[3] << 32 | key->dst.w[3]);
	}
	hash = mix(hash, (__u32)key->dport << 8 | key->protocol);
	*tag = hash >> 32 | 1;
	return hash & (MEMORIES - 1);
}

/* Only what has a source port; what does not is rare. */
static __always_inline struct memory *memory_of(struct scratch *s, __u32 *tag)
{
	const struct flow_key *key = &s->pkt.key;
	__u32 slot;

	if (s->forgetful || !s->pkt.tracked || (key->protocol != IPPROTO_TCP && key->protocol != IPPROTO_UDP))
		return 0;
	slot = memory_slot(key, tag);
	return bpf_map_lookup_elem(&memories, &slot);
}

static __always_inline int same_question(const struct memory *m, const struct headers *h)
{
	const struct flow_key *asked = &m->reply.pair, *key = &h->key;

	return asked->zone == key->zone && asked->vlan == key->vlan && asked->family == key->family && asked->protocol == key->protocol &&
	       asked->dport == key->dport && same_address(&asked->src, &key->src) &&
	       same_address(&asked->dst, &key->dst) && m->vtep == h->vtep && same_mac(m->forward.smac, h->smac) &&
	       same_mac(m->forward.dmac, h->dmac);
}

static __always_inline void count_remembered(struct scratch *s, struct memory *m)
{
	for (int i = 0; i < MEMORY_HITS; i++) {
		if (i >= m->hits)
			break;
		count_hit(s, m->hit[i].port, m->hit[i].cookie, 0);
	}
}

/* Fills `s->forward`, `s->reply` and `s->d.stateless` as decide and compose would. */
static __always_inline int remembered(struct scratch *s)
{
	const struct headers *h = &s->pkt;
	struct flow *f = &s->forward, *r = &s->reply;
	struct memory *m;
	__u32 tag, flags;

	m = memory_of(s, &tag);
	if (!m || m->tag != tag || !m->whole || !same_question(m, h) || !is_current(&m->forward, &flags))
		return 0;
	*f = m->forward;
	*r = m->reply;
	f->pair.dport = f->out.sport = r->pair.sport = r->out.dport = h->key.sport;
	f->created_ns = f->seen_ns = r->created_ns = r->seen_ns = bpf_ktime_get_coarse_ns();
	f->dscp = h->dscp;
	f->tcp_flags = h->tcp_flags;
	s->d.stateless = m->stateless;
	s->d.translated = 0;
	s->d.inspect = f->flags & FLOW_INSPECT ? 1 : 0;
	count_remembered(s, m);
	return 1;
}

/* Keeps what was just decided, the second time that it is asked: a scan of ports does not push out what is in use. */
static __always_inline void remember(struct scratch *s)
{
	struct memory *m;
	__u32 tag;

	if (s->d.by_sport || s->d.by_set || s->d.hits > MEMORY_HITS)
		return;
	/* Where frames to groups go is looked up each time; no generation tells of a change of that. */
	if (s->forward.out.place == PLACE_FLOOD)
		return;
	m = memory_of(s, &tag);
	if (!m)
		return;
	if (m->tag != tag) {
		m->tag = tag;
		m->whole = 0;
		return;
	}
	m->forward = s->forward;
	m->reply = s->reply;
	m->vtep = s->pkt.vtep;
	m->stateless = is_stateless(&s->d);
	m->hits = s->d.hits;
	__builtin_memcpy(m->hit, s->hit, sizeof(m->hit));
	m->whole = 1;
}
