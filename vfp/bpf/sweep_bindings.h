/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* The part of the sweep that looks at bindings, blocks and contacts; and their removal with ports and pools. */
#pragma once

#include "bindings.h"

struct sweeping {
	struct sweep *sweep;
	struct settings *settings;
	__u64 now;
	struct budgets left;
	struct budgets gone;
	__u32 capped;		/* some port has a limit of connections */
};

/* Room on the stack of the callbacks. */
struct kept {
	struct external_key external;
	struct contact_key contact;
};

static __always_inline void stamp(struct kept *kept, const struct address *remote, int contact, __u64 now)
{
	struct external *held = bpf_map_lookup_elem(&externals, &kept->external);
	struct contact *known;

	if (!held)
		return;
	held->seen_ns = now;
	if (!contact)
		return;
	kept->contact.inside = held->holder;
	kept->contact.remote = *remote;
	known = bpf_map_lookup_elem(&contacts, &kept->contact);
	if (known)
		known->seen_ns = now;
}

/* A live flow holds its bindings. Not inlined: few flows have any. */
static __noinline int stamp_bindings(const struct flow_key *key, const struct flow *f, __u64 now)
{
	struct kept kept = {.external = {.protocol = key->protocol, .family = key->family}};

	if (f->flags & FLOW_BOUND) {
		kept.external.address = f->out.src;
		kept.external.port = f->out.sport;
		stamp(&kept, f->flags & FLOW_HAIRPIN ? &key->dst : &f->out.dst, f->flags & FLOW_CONTACT, now);
	}
	if (f->flags & FLOW_BEHIND) {
		kept.external.address = key->dst;
		kept.external.port = key->dport;
		/* From inside, it was found as it leaves there. */
		stamp(&kept, ZONE_KIND(key->zone) == ZONE_UPLINK ? &key->src : &f->out.src, f->flags & FLOW_CONTACTED,
		      now);
	}
	return 0;
}

static __always_inline void begin_tally(struct tally *tally)
{
	tally->before = tally->now;
	tally->found = tally->gone = 0;
}

static long begin_use(void *map, struct use_key *key, struct tally *use, void *context)
{
	begin_tally(use);
	return 0;
}

static long begin_share(void *map, struct share_key *key, struct share *share, void *context)
{
	begin_tally(&share->bindings);
	begin_tally(&share->blocks);
	return 0;
}

static long begin_block(void *map, struct block_key *key, struct block *block, void *context)
{
	for (int i = 0; i < 3; i++)
		begin_tally(&block->used[i]);
	return 0;
}

static __always_inline void find_tally(struct releasing *r)
{
	struct tally *use = use_of(&r->use, &r->key, r->was.range);
	struct share *share;
	struct block *block;

	if (use)
		use->found += 1;
	r->share.port = r->was.holder.port;
	r->share.pool = r->was.holder.pool;
	share = bpf_map_lookup_elem(&shares, &r->share);
	if (share)
		share->bindings.found += 1;
	if (!r->was.block_size)
		return;
	block_at(&r->block, &r->key, r->was.block, r->was.block_size);
	block = bpf_map_lookup_elem(&blocks, &r->block);
	if (block)
		used_of(block, r->key.protocol)->found += 1;
}

/* How long a binding of this port stays without flows. */
static __always_inline __u64 binding_limit(__u32 id)
{
	struct port *port = bpf_map_lookup_elem(&ports, &id);
	__u32 number = port ? port->timeouts : 0;
	struct timeouts *times = bpf_map_lookup_elem(&timeouts, &number);

	return times ? times->binding_ns : 0;
}

static long sweep_external(void *map, struct external_key *key, struct external *held, struct sweeping *sweeping)
{
	struct releasing r = {.key = *key, .was = *held};

	sweeping->sweep->bindings_seen++;
	if (r.was.seen_ns + binding_limit(r.was.holder.port) > sweeping->now) {
		find_tally(&r);
		return 0;
	}
	unbind(&r, 1);
	sweeping->sweep->bindings_removed++;
	return 0;
}

static long sweep_contact(void *map, struct contact_key *key, struct contact *contact, struct sweeping *sweeping)
{
	struct contact_key own = *key;

	if (contact->seen_ns + binding_limit(own.inside.port) <= sweeping->now)
		bpf_map_delete_elem(&contacts, &own);
	return 0;
}

/*
 * What was taken, put right: by as much as what was found is outside of what it was before and after. What came and went
 * in the meantime is in between.
 */
static __always_inline void mend(__s64 *taken, __s64 before, __s64 found)
{
	__s64 after = *taken;
	__s64 low = before < after ? before : after, high = before < after ? after : before;

	if (found < low)
		__sync_fetch_and_add(taken, found - low);
	else if (found > high)
		__sync_fetch_and_add(taken, found - high);
}

static __always_inline void mend_tally(struct tally *tally)
{
	mend(&tally->now, tally->before - tally->gone, tally->found);
}

static __always_inline int is_empty(const struct tally *tally)
{
	return !tally->now && !tally->found;
}

static long end_use(void *map, struct use_key *key, struct tally *use, void *context)
{
	struct use_key own = *key;

	mend_tally(use);
	if (is_empty(use))
		bpf_map_delete_elem(&uses, &own);
	return 0;
}

static long end_share(void *map, struct share_key *key, struct share *share, void *context)
{
	struct share_key own = *key;

	mend_tally(&share->bindings);
	mend_tally(&share->blocks);
	if (is_empty(&share->bindings) && is_empty(&share->blocks))
		bpf_map_delete_elem(&shares, &own);
	return 0;
}

static __always_inline void release_block(const struct block_key *key, const struct block *block)
{
	struct share_key holder = block->holder;
	struct block_key own = *key;
	struct share *share = bpf_map_lookup_elem(&shares, &holder);

	if (block->flags)
		tell_block(&own, block, BINDING_BLOCK_RELEASED);
	if (share)
		uncount(&share->blocks, 1);
	bpf_map_delete_elem(&blocks, &own);
}

/* A block goes when nothing in it is used. */
static long end_block(void *map, struct block_key *key, struct block *block, struct sweeping *sweeping)
{
	struct share_key holder = block->holder;
	struct share *share;
	int empty = 1;

	for (int i = 0; i < 3; i++) {
		mend_tally(&block->used[i]);
		empty &= is_empty(&block->used[i]);
	}
	if (empty && block->seen_ns + binding_limit(holder.port) <= sweeping->now) {
		release_block(key, block);
		return 0;
	}
	share = bpf_map_lookup_elem(&shares, &holder);
	if (share)
		share->blocks.found += 1;
	return 0;
}

static __always_inline int is_gone(__u32 port_id, __u32 pool_id)
{
	struct port *port = bpf_map_lookup_elem(&ports, &port_id);

	return !port || !is_there(port) || !bpf_map_lookup_elem(&pools, &pool_id);
}

static long purge_external(void *map, struct external_key *key, struct external *held, struct sweeping *sweeping)
{
	struct releasing r = {.key = *key, .was = *held};

	if (!is_gone(r.was.holder.port, r.was.holder.pool))
		return 0;
	unbind(&r, 0);
	sweeping->sweep->bindings_removed++;
	return 0;
}

static long purge_contact(void *map, struct contact_key *key, struct contact *contact, void *context)
{
	struct contact_key own = *key;

	if (is_gone(own.inside.port, own.inside.pool))
		bpf_map_delete_elem(&contacts, &own);
	return 0;
}

static long purge_block(void *map, struct block_key *key, struct block *block, void *context)
{
	if (is_gone(block->holder.port, block->holder.pool))
		release_block(key, block);
	return 0;
}

static long purge_share(void *map, struct share_key *key, struct share *share, void *context)
{
	struct share_key own = *key;

	if (is_gone(own.port, own.pool))
		bpf_map_delete_elem(&shares, &own);
	return 0;
}

static __always_inline void purge_bindings(struct sweeping *sweeping)
{
	bpf_for_each_map_elem(&externals, purge_external, sweeping, 0);
	bpf_for_each_map_elem(&contacts, purge_contact, 0, 0);
	bpf_for_each_map_elem(&blocks, purge_block, 0, 0);
	bpf_for_each_map_elem(&shares, purge_share, 0, 0);
}

static __always_inline void sweep_bindings(struct sweeping *sweeping)
{
	bpf_for_each_map_elem(&uses, begin_use, 0, 0);
	bpf_for_each_map_elem(&shares, begin_share, 0, 0);
	bpf_for_each_map_elem(&blocks, begin_block, 0, 0);
	bpf_for_each_map_elem(&externals, sweep_external, sweeping, 0);
	bpf_for_each_map_elem(&contacts, sweep_contact, sweeping, 0);
	bpf_for_each_map_elem(&uses, end_use, 0, 0);
	bpf_for_each_map_elem(&blocks, end_block, sweeping, 0);
	bpf_for_each_map_elem(&shares, end_share, 0, 0);
}
