/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Source translation with endpoint-independent mapping (RFC 4787 REQ-1): one internal address and port has one
 * external port in a pool, whoever it talks to. `externals` is the reservation (inserted only if absent, so two CPUs
 * cannot take one port); `bindings` finds it again from inside.
 */
#pragma once

#include "bindings.h"

#define FNV_OFFSET 2166136261U
#define FNV_PRIME 16777619U
#define NO_ENTRY (-2)		/* -ENOENT, -EEXIST of helpers */
#define ENTRY_EXISTS (-17)
/*
 * Ports that were kept lie side by side, and a search that goes from one to the next walks to their end. In a model of a range
 * that is three quarters full: 18 steps on average, 2,176 at worst, against 1.3 and 59 with leaps. Prime: all are visited.
 */
#define PORT_STEP 16411

static __always_inline __u32 fnv1a(__u32 hash, const void *data, int length)
{
	const __u8 *p = data;

	for (int i = 0; i < length; i++)
		hash = (hash ^ p[i]) * FNV_PRIME;
	return hash;
}

static __always_inline __u32 hash_source(__u32 hash, const struct binding_key *key)
{
	hash = fnv1a(hash, &key->src, 4);
	return key->family == 6 ? fnv1a(hash, &key->src.w[1], 12) : hash;
}

/* Where the search for a free port starts; the reference engine computes the same, as of the two below. */
static __always_inline __u32 binding_hash(const struct binding_key *key)
{
	__u32 hash = fnv1a(FNV_OFFSET, &key->port, 4);

	hash = fnv1a(hash, &key->protocol, 1);
	return fnv1a(hash_source(hash, key), &key->sport, 2);
}

/* The address that is tried first: an internal one keeps to it (RFC 4787 REQ-2). */
static __always_inline __u32 address_hash(const struct binding_key *key)
{
	return hash_source(fnv1a(FNV_OFFSET, &key->port, 4), key);
}

/* The block that is. */
static __always_inline __u32 port_hash(const struct binding_key *key)
{
	return fnv1a(FNV_OFFSET, &key->port, 4);
}

struct port_search {
	struct scratch *s;
	__u32 start;		/* offset from `low` */
	__u32 step;
	__u32 low;
	__u32 size;
	__u32 holds;		/* the pool holds some back */
	int outcome;		/* NONE: found */
};

/* What the loop over blocks has on the stack. The rest is in a map: the verifier need not tell one turn from the next. */
struct block_walk {
	struct scratch *s;
};

/* Returns NONE, or NAT_EXHAUSTED: it is taken, or ENGINE_ERROR: nothing more fits into the table. */
static __always_inline int reserve_port(struct scratch *s, __u16 port, int holds, int look_first)
{
	struct held_key *held_key = &s->nat.held;
	long result;

	s->external.port = bpf_htons(port);
	if (holds) {
		held_key->pool = s->binding.pool;
		held_key->port = s->external.port;
		held_key->protocol = s->binding.protocol;
		held_key->pad = 0;
		if (bpf_map_lookup_elem(&held, held_key))
			return NAT_EXHAUSTED;
	}
	if ((look_first || is_dry(s)) && bpf_map_lookup_elem(&externals, &s->external))
		return NAT_EXHAUSTED;
	if (is_dry(s))
		return NONE;
	result = bpf_map_update_elem(&externals, &s->external, &s->holder, BPF_NOEXIST);
	return !result ? NONE : result == ENTRY_EXISTS ? NAT_EXHAUSTED : ENGINE_ERROR;
}

static long try_port(__u32 i, void *context)
{
	struct port_search *search = context;
	__u32 offset = (search->start + i * search->step) % search->size;	/* i < 2^16: no overflow */

	search->outcome = reserve_port(search->s, search->low + offset, search->holds, 1);
	return search->outcome != NAT_EXHAUSTED;
}

static __always_inline int search_ports(struct port_search *search)
{
	search->start = binding_hash(&search->s->binding) % search->size;
	search->step = search->size % PORT_STEP ? PORT_STEP : 1;
	search->outcome = NAT_EXHAUSTED;
	bpf_loop(search->size, try_port, search, 0);
	return search->outcome;
}

static __always_inline int is_ours(const struct scratch *s, const struct share_key *holder)
{
	return holder->port == s->binding.port && holder->pool == s->binding.pool;
}

/* Whether a port may be looked for in the block `at`: one of ours, or one that is ours from now on. */
static __always_inline int may_use_block(struct block_search *search, struct scratch *s, struct block_key *at)
{
	struct block *block = bpf_map_lookup_elem(&blocks, at);

	if (search->taking)
		return !block && (is_dry(s) || !bpf_map_update_elem(&blocks, at, &s->nat.block, BPF_NOEXIST));
	if (!block || !is_ours(s, &block->holder))
		return 0;
	search->own--;
	if (used_of(block, s->binding.protocol)->now >= search->size)
		return 0;
	block->seen_ns = s->holder.seen_ns;
	return 1;
}

static long step_blocks(__u32 i, void *context)
{
	struct block_walk *walk = context;
	struct scratch *s = walk->s;
	struct block_search *search = &s->nat.search;
	struct block_key *at = &s->nat.gone.block;
	__u32 number = search->start + search->number, offset;

	if (number >= search->count)
		number -= search->count;
	if (!search->port) {
		if (search->number >= search->count || (!search->taking && search->own <= 0))
			return 1;
		s->holder.block = search->low + number * search->size;
		block_at(at, &s->external, s->holder.block, search->size);
		if (may_use_block(search, s, at))
			search->port = 1;
		else
			search->number++;
		return 0;
	}
	offset = search->offset + search->port - 1;
	if (offset >= search->size)
		offset -= search->size;
	search->outcome = reserve_port(s, s->holder.block + offset, search->holds, 1);
	if (search->outcome != NAT_EXHAUSTED)
		return 1;
	if (search->port++ < search->size)
		return 0;
	if (search->taking && !is_dry(s))
		bpf_map_delete_elem(&blocks, at);
	search->port = 0;
	search->number++;
	return 0;
}

static __always_inline struct share *share_of(struct scratch *s)
{
	struct share_key *key = &s->nat.gone.share;

	key->port = s->binding.port;
	key->pool = s->binding.pool;
	return bpf_map_lookup_elem(&shares, key);
}

/* First in the blocks that we have, then in one that nobody has. */
static __always_inline int search_blocks(struct scratch *s, struct pool *pool)
{
	struct block_search *search = &s->nat.search;
	struct block_walk walk = {.s = s};
	struct share *share;
	struct block *block;

	search->low = pool->low;
	search->size = pool->block;
	search->holds = pool->flags & POOL_HOLDS;
	search->count = (pool->high - pool->low + 1U) / pool->block;
	if (!search->count)
		return NAT_EXHAUSTED;
	share = share_of(s);
	search->start = port_hash(&s->binding) % search->count;
	search->offset = binding_hash(&s->binding) % search->size;
	search->own = share ? share->blocks.now : 0;
	search->number = search->port = search->taking = 0;
	search->outcome = NAT_EXHAUSTED;
	s->holder.block_size = pool->block;
	block = &s->nat.block;
	__builtin_memset(block, 0, sizeof(*block));
	block->holder.port = s->binding.port;
	block->holder.pool = s->binding.pool;
	block->seen_ns = s->holder.seen_ns;
	block->flags = pool->flags & POOL_LOG ? EXTERNAL_TOLD : 0;
	bpf_loop((search->size + 1) * search->count + 1, step_blocks, &walk, 0);
	if (search->outcome != NAT_EXHAUSTED)
		return search->outcome;
	search->taking = 1;
	search->number = search->port = 0;
	bpf_loop((search->size + 1) * search->count + 1, step_blocks, &walk, 0);
	if (search->outcome || is_dry(s))
		return search->outcome;
	if (share)
		__sync_fetch_and_add(&share->blocks.now, 1);
	if (block->flags)
		tell_block(&s->nat.gone.block, block, BINDING_BLOCK_TAKEN);
	return NONE;
}

/* A port at `s->external.address`, as `reserve_port` returns it. Not static, for the verifier, like `sets_match`. */
__noinline int bind_at(struct scratch *s, struct pool *pool)
{
	struct port_search search = {};
	__u16 own, held_back;
	struct tally *use;
	int outcome;

	if (!s || !pool || pool->high < pool->low)
		return ENGINE_ERROR;
	own = bpf_ntohs(s->binding.sport);
	search.s = s;
	search.low = pool->low;
	search.size = pool->high - pool->low + 1U;
	search.holds = pool->flags & POOL_HOLDS;
	if (!has_range(s->binding.family, s->binding.protocol))
		return reserve_port(s, own, search.holds, 0);
	if (pool->block)
		return search_blocks(s, pool);
	held_back = s->binding.protocol == IPPROTO_TCP ? pool->held_tcp :
		    s->binding.protocol == IPPROTO_UDP ? pool->held_udp : pool->held_echo;
	use = use_of(&s->nat.gone.use, &s->external, pool->range);
	if (use && use->now >= (__s64)search.size - held_back)
		return NAT_EXHAUSTED;
	if (own >= pool->low && own <= pool->high) {
		outcome = reserve_port(s, own, search.holds, 0);
		if (outcome != NAT_EXHAUSTED)
			return outcome;
	}
	return search_ports(&search);
}

static __always_inline void count_use(struct scratch *s)
{
	struct tally *use = use_of(&s->nat.gone.use, &s->external, s->holder.range), first = {};

	if (!use) {
		bpf_map_update_elem(&uses, &s->nat.gone.use, &first, BPF_NOEXIST);
		use = bpf_map_lookup_elem(&uses, &s->nat.gone.use);
	}
	if (use)		/* no room: then the search finds out what is full */
		__sync_fetch_and_add(&use->now, 1);
}

static __always_inline void count_block(struct scratch *s)
{
	struct block *block;

	block_at(&s->nat.gone.block, &s->external, s->holder.block, s->holder.block_size);
	block = bpf_map_lookup_elem(&blocks, &s->nat.gone.block);
	if (block)
		__sync_fetch_and_add(&used_of(block, s->binding.protocol)->now, 1);
}

/* A new external side for `s->binding`, into `s->external`. Returns a drop reason. */
static __always_inline int bind(struct scratch *s, struct pool *pool)
{
	struct share *share = share_of(s);
	int outcome = NAT_EXHAUSTED;
	__u32 at;

	if (!share && !is_dry(s)) {
		struct share *none = (void *)&s->forward;	/* not used before `compose` */

		__builtin_memset(none, 0, sizeof(*none));
		bpf_map_update_elem(&shares, &s->nat.gone.share, none, BPF_NOEXIST);
		share = bpf_map_lookup_elem(&shares, &s->nat.gone.share);
		if (!share)
			return NAT_EXHAUSTED;
	}
	if (pool->quota && share && share->bindings.now >= pool->quota)
		return NAT_QUOTA;
	s->holder.holder = s->binding;
	s->holder.range = pool->range;
	s->holder.block = s->holder.block_size = 0;
	s->holder.flags = pool->flags & POOL_LOG && !pool->block ? EXTERNAL_TOLD : 0;
	if (pool->flags & POOL_LOG && !has_range(s->binding.family, s->binding.protocol))
		s->holder.flags = EXTERNAL_TOLD;
	at = address_hash(&s->binding) % (pool->count ?: 1);
	for (int i = 0; i < POOL_ADDRESSES; i++, at++) {
		if (i >= pool->count)
			break;
		if (at >= pool->count)
			at = 0;
		s->external.address = pool->addresses[at & (POOL_ADDRESSES - 1)];
		outcome = bind_at(s, pool);
		if (outcome != NAT_EXHAUSTED)
			break;
	}
	if (outcome)
		return NAT_EXHAUSTED;
	s->nat.made.external = s->external.address;
	s->nat.made.external_port = s->external.port;
	s->nat.made.pad = 0;
	if (is_dry(s))
		return NONE;
	if (bpf_map_update_elem(&bindings, &s->binding, &s->nat.made, BPF_ANY)) {
		bpf_map_delete_elem(&externals, &s->external);
		return NAT_EXHAUSTED;
	}
	if (share)
		__sync_fetch_and_add(&share->bindings.now, 1);
	count_use(s);
	if (s->holder.block_size)
		count_block(s);
	if (s->holder.flags & EXTERNAL_TOLD)
		tell_binding(&s->external, &s->holder, BINDING_BOUND);
	return NONE;
}

/* Whether the pool, as it is now, might have given an external side. */
static __always_inline int is_legal(struct block_key *at, const struct pool *pool, const struct external_key *external,
				    const struct binding_key *holder)
{
	__u16 port = bpf_ntohs(external->port), first;
	struct block *block;
	int there = 0;

	for (int i = 0; i < POOL_ADDRESSES; i++) {
		if (i >= pool->count)
			break;
		there |= same_address(&pool->addresses[i], &external->address);
	}
	if (!there)
		return 0;
	if (!has_range(external->family, external->protocol))
		return 1;
	if (port < pool->low || port > pool->high)
		return 0;
	if (!pool->block)
		return 1;
	first = port - (__u16)(port - pool->low) % pool->block;
	if (first + pool->block - 1U > pool->high)
		return 0;
	block_at(at, external, first, pool->block);
	block = bpf_map_lookup_elem(&blocks, at);
	return block && block->holder.port == holder->port && block->holder.pool == holder->pool;
}

static __always_inline int same_binding(const struct binding_key *a, const struct binding_key *b)
{
	return a->port == b->port && a->pool == b->pool && a->sport == b->sport && a->protocol == b->protocol &&
	       a->family == b->family && same_address(&a->src, &b->src);
}

/* An ICMP error or an echo reply without a flow answers nothing that we have translated. */
static __always_inline int is_translatable(const struct scratch *s)
{
	if (!s->d.cur.family)
		return 0;
	return !is_icmp(s->d.cur.family, s->d.cur.protocol) || is_echo_request(&s->h);
}

/*
 * Rewrite the source of `d->cur`. Returns a drop reason. Not static, for the verifier, like `sets_match`.
 */
__noinline int translate_source(struct scratch *s, __u32 port, __u32 pool_id)
{
	struct binding_key *key;
	struct external *held;
	struct binding *known;
	struct decision *d;
	struct pool *pool;
	int reason;

	if (!s)
		return ENGINE_ERROR;
	d = &s->d;
	key = &s->binding;
	if (!is_translatable(s))
		return NAT_UNSUPPORTED;
	pool = bpf_map_lookup_elem(&pools, &pool_id);
	if (!pool || pool->high < pool->low)
		return ENGINE_ERROR;
	if (pool->family != d->cur.family)
		return NAT_UNSUPPORTED;
	key->port = port;
	key->pool = pool_id;
	key->src = d->cur.src;
	key->sport = d->cur.sport;
	key->protocol = d->cur.protocol;
	key->family = d->cur.family;
	s->external.protocol = key->protocol;
	s->external.family = key->family;
	s->holder.seen_ns = bpf_ktime_get_coarse_ns();
	known = bpf_map_lookup_elem(&bindings, key);
	if (known) {
		s->external.address = known->external;
		s->external.port = known->external_port;
		held = bpf_map_lookup_elem(&externals, &s->external);
		if (held && same_binding(&held->holder, key)) {
			if (is_legal(&s->nat.gone.block, pool, &s->external, key)) {
				if (!is_dry(s))
					held->seen_ns = s->holder.seen_ns;
				goto found;
			}
			/* The pool has changed since: the old external port is free again. */
			if (!is_dry(s)) {
				s->nat.gone.key = s->external;
				s->nat.gone.was = *held;
				unbind(&s->nat.gone, 0);
			}
		}
	}
	reason = bind(s, pool);
	if (reason)
		return reason;
found:
	d->by_sport = 1;
	d->cur.src = s->external.address;
	d->cur.sport = s->external.port;
	d->translated = 1;
	d->bound = FLOW_BOUND | (pool->filtering == FILTER_ADDRESS ? FLOW_CONTACT : 0);
	return NONE;
}

/* The holder of the external side `s->nat.sought`, and its pool, one of the uplink's. */
static __always_inline struct external *holder_at(struct scratch *s, __u32 uplink, struct pool **its_pool)
{
	struct external *held;
	struct pool *pool;
	__u32 id;

	if (!has_ports(s->nat.sought.protocol))
		return 0;
	held = bpf_map_lookup_elem(&externals, &s->nat.sought);
	if (!held || is_loopback(held->holder.family, &held->holder.src))	/* the host's own */
		return 0;
	id = held->holder.pool;
	pool = bpf_map_lookup_elem(&pools, &id);
	if (!pool || pool->uplink != uplink || !is_legal(&s->nat.gone.block, pool, &s->nat.sought, &held->holder))
		return 0;
	*its_pool = pool;
	return held;
}

/* Whether anybody is there. Not static, for the verifier. */
__noinline int is_bound(struct scratch *s, __u32 uplink)
{
	struct pool *pool;

	return s && holder_at(s, uplink, &pool);
}

/*
 * Who is behind the external side `s->nat.sought`, of a binding of the uplink's pools, for a remote, which the caller puts
 * into `s->nat.contact.remote`? Into `s->d.via`. Returns NONE, NO_MAPPING: nobody, or NAT_FILTERED (RFC 4787 5).
 */
__noinline int find_binding(struct scratch *s, __u32 uplink)
{
	struct external *held;
	struct decision *d;
	struct pool *pool;

	if (!s)
		return ENGINE_ERROR;
	d = &s->d;
	held = holder_at(s, uplink, &pool);
	if (!held)
		return NO_MAPPING;
	s->nat.contact.inside = held->holder;
	if (pool->filtering == FILTER_ADDRESS_PORT)
		return NAT_FILTERED;
	if (pool->filtering == FILTER_ADDRESS && !bpf_map_lookup_elem(&contacts, &s->nat.contact))
		return NAT_FILTERED;
	if (!is_dry(s))
		held->seen_ns = bpf_ktime_get_coarse_ns();
	d->via.internal = held->holder.src;
	d->via.internal_port = held->holder.sport;
	d->via.port = held->holder.port;
	d->by_binding = 1;
	d->by_sport = 1;		/* not to be remembered: the binding may be another's the next time */
	d->behind = FLOW_BEHIND | (pool->filtering == FILTER_ADDRESS ? FLOW_CONTACTED : 0);
	return NONE;
}

/* What the flow `f` of this decision keeps alive. Whom it goes to is a contact from now on. */
static __always_inline void keep_bindings(struct scratch *s, struct flow *f)
{
	struct decision *d = &s->d;
	struct contact now = {.seen_ns = bpf_ktime_get_coarse_ns()};

	f->flags |= d->behind;
	if (!d->bound || !same_address(&d->cur.src, &s->external.address) || d->cur.sport != s->external.port)
		return;
	f->flags |= d->bound;
	if (!(d->bound & FLOW_CONTACT) || is_dry(s))
		return;
	s->nat.contact.inside = s->binding;
	s->nat.contact.remote = d->bound & FLOW_HAIRPIN ? s->h.key.dst : d->cur.dst;
	/* No room: what comes from there later is filtered. */
	bpf_map_update_elem(&contacts, &s->nat.contact, &now, BPF_ANY);
}
