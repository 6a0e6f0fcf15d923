/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * The tables of source translation, and what must change together in them: a binding is in `externals` (the reservation),
 * in `bindings` (which finds it from inside), and counted in `uses`, `shares` and perhaps a block.
 */
#pragma once

#include "parse.h"

/* Whether the range of a pool counts: what has a port or identifier that can be changed. */
static __always_inline int has_range(__u8 family, __u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || is_icmp(family, protocol);
}

static __always_inline struct tally *use_of(struct use_key *key, const struct external_key *external, __u32 range)
{
	key->address = external->address;
	key->range = range;
	key->protocol = external->protocol;
	key->family = external->family;
	key->pad = 0;
	return bpf_map_lookup_elem(&uses, key);
}

static __always_inline struct tally *used_of(struct block *block, __u8 protocol)
{
	return &block->used[protocol == IPPROTO_TCP ? 0 : protocol == IPPROTO_UDP ? 1 : 2];
}

static __always_inline void block_at(struct block_key *key, const struct external_key *external, __u16 first,
				     __u16 size)
{
	key->address = external->address;
	key->first = first;
	key->size = size;
	key->family = external->family;
	__builtin_memset(key->pad, 0, sizeof(key->pad));
}

static __always_inline void uncount(struct tally *tally, int sweeping)
{
	__sync_fetch_and_add(&tally->now, -1);
	if (sweeping)
		tally->gone += 1;
}

/* When nobody keeps up, records are lost, and it is known how many. */
static __noinline int tell_binding(const struct external_key *key, const struct external *held, __u32 kind)
{
	struct binding_event *event = bpf_ringbuf_reserve(&bindings_log, sizeof(*event), 0);

	if (!event)
		return count_lost(RING_BINDINGS);
	__builtin_memset(event, 0, sizeof(*event));
	event->time_ns = bpf_ktime_get_ns();
	event->port = held->holder.port;
	event->pool = held->holder.pool;
	event->internal = held->holder.src;
	event->external = key->address;
	event->internal_port = held->holder.sport;
	event->external_port = key->port;
	event->kind = kind;
	event->protocol = key->protocol;
	event->family = key->family;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

static __noinline int tell_block(const struct block_key *key, const struct block *block, __u32 kind)
{
	struct binding_event *event = bpf_ringbuf_reserve(&bindings_log, sizeof(*event), 0);

	if (!event)
		return count_lost(RING_BINDINGS);
	__builtin_memset(event, 0, sizeof(*event));
	event->time_ns = bpf_ktime_get_ns();
	event->port = block->holder.port;
	event->pool = block->holder.pool;
	event->external = key->address;
	event->external_port = bpf_htons(key->first);
	event->size = key->size;
	event->kind = kind;
	event->family = key->family;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* `r->key`, whose entry is `r->was`, is free again. */
static __always_inline void unbind(struct releasing *r, int sweeping)
{
	struct tally *use;
	struct share *share;
	struct binding *binding;
	struct block *block;

	if (bpf_map_delete_elem(&externals, &r->key))
		return;			/* another CPU was first, and counts */
	binding = bpf_map_lookup_elem(&bindings, &r->was.holder);
	if (binding && binding->external_port == r->key.port && same_address(&binding->external, &r->key.address))
		bpf_map_delete_elem(&bindings, &r->was.holder);
	use = use_of(&r->use, &r->key, r->was.range);
	if (use)
		uncount(use, sweeping);
	r->share.port = r->was.holder.port;
	r->share.pool = r->was.holder.pool;
	share = bpf_map_lookup_elem(&shares, &r->share);
	if (share)
		uncount(&share->bindings, sweeping);
	if (r->was.block_size) {
		block_at(&r->block, &r->key, r->was.block, r->was.block_size);
		block = bpf_map_lookup_elem(&blocks, &r->block);
		if (block)
			uncount(used_of(block, r->key.protocol), sweeping);
	}
	if (r->was.flags & EXTERNAL_TOLD)
		tell_binding(&r->key, &r->was, BINDING_RELEASED);
}
