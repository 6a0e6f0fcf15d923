/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Named sets of addresses and prefixes: a hash table of members, asked once for each prefix length that a set has. One
 * table serves all sets, so a rule that names one costs nothing more, whatever the set's size.
 */
#pragma once

#include "parse.h"

#define SET_LENGTHS_MAX 129	/* /0 to /128 */

/* Only what bpf_loop wants on the stack; the rest is in `s->asked`, as stack is what the walk is short of. */
struct asking {
	struct scratch *s;
};

/* Number of the lowest bit that is set; `bits` is not 0. Without branches, each of which would double the verifier's work. */
static __always_inline __u32 lowest_bit(__u64 bits)
{
	__u64 below = (bits & -bits) - 1;

	below -= below >> 1 & 0x5555555555555555ULL;
	below = (below & 0x3333333333333333ULL) + (below >> 2 & 0x3333333333333333ULL);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return below * 0x0101010101010101ULL >> 56;
}

static long try_length(__u32 i, void *context)
{
	struct asking *asking = context;
	struct scratch *s = asking->s;
	struct asked *asked = &s->asked;
	struct set_member *member;
	__u32 length;

	if (asked->lengths.bits[0]) {
		length = lowest_bit(asked->lengths.bits[0]);
		asked->lengths.bits[0] &= asked->lengths.bits[0] - 1;
	} else if (asked->lengths.bits[1]) {
		length = 64 + lowest_bit(asked->lengths.bits[1]);
		asked->lengths.bits[1] &= asked->lengths.bits[1] - 1;
	} else if (asked->lengths.bits[2]) {
		length = 128;
		asked->lengths.bits[2] = 0;
	} else {
		return 1;
	}
	asked->key.length = length;
	asked->key.address.w[0] = asked->address.w[0] & mask32(length);
	asked->key.address.w[1] = asked->address.w[1] & mask32(length - 32);
	asked->key.address.w[2] = asked->address.w[2] & mask32(length - 64);
	asked->key.address.w[3] = asked->address.w[3] & mask32(length - 96);
	member = bpf_map_lookup_elem(&sets, &asked->key);
	if (!member || !(member->turns >> (s->d.turn & 1) & 1))
		return 0;
	/* A flow that a member let in stays after the member's time, until its owner takes it out. */
	if (member->expires_ns && !s->deciding_again && member->expires_ns <= bpf_ktime_get_ns())
		return 0;
	asked->found = 1;
	return 1;
}

/* Whether `address`, of `family` 4 or 6, is in the set. */
static __always_inline int in_set(struct scratch *s, const struct address *address, __u32 set, __u32 family)
{
	struct asking asking = {.s = s};
	struct asked *asked = &s->asked;
	struct set_lengths *lengths;

	__builtin_memset(&asked->of, 0, sizeof(asked->of));
	asked->of.set = set;
	asked->of.family = family;
	lengths = bpf_map_lookup_elem(&set_lengths, &asked->of);
	if (!lengths)
		return 0;
	asked->lengths = *lengths;
	asked->address = *address;
	asked->key.set = set;
	asked->key.family = family;
	asked->key.pad = 0;
	asked->found = 0;
	bpf_loop(SET_LENGTHS_MAX, try_length, &asking, 0);
	return asked->found;
}
