/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * IPv6-to-IPv6 network prefix translation (RFC 6296): one prefix becomes another of the same length, and one word of the rest
 * makes up for it, so that no checksum changes and no state is needed to go back.
 */
#pragma once

#include "packet.h"

#define PREFIX_IN_SUBNET 48	/* bits: of up to so many the word is the one after them; of more it is in the interface id */
#define NO_WORD 0xffff		/* the other zero of one's complement: an address with it has no image */

static __always_inline __be32 prefix_mask(__u32 length, int word)
{
	int bits = (int)length - 32 * word;

	return bits <= 0 ? 0 : bits >= 32 ? ~0U : bpf_htonl(~0U << (32 - bits));
}

/*
 * Of `address`, which is in `p->from`, make the one in `p->to`. Returns 0 if there is none. The sum is the same in either byte
 * order (RFC 1071 2).
 */
static __always_inline int map_prefix(const struct prefix *p, struct address *address)
{
	__be16 *word = (__be16 *)address->w + 3;
	__u32 sum;

	if (p->length > PREFIX_IN_SUBNET) {
		word++;
		for (int i = 0; i < 3 && *word == NO_WORD; i++)
			word++;
	}
	if (*word == NO_WORD)
		return 0;
	for (int i = 0; i < 2; i++)
		address->w[i] = (address->w[i] & ~prefix_mask(p->length, i)) | p->to.w[i];
	sum = (__u32)*word + p->adjustment;
	sum = (sum & 0xffff) + (sum >> 16);
	*word = sum == NO_WORD ? 0 : sum;
	return 1;
}

/* Rewrite the source of `d->cur`. Returns a drop reason. */
static __always_inline int translate_prefix(struct scratch *s, __u64 id)
{
	struct prefix *p = bpf_map_lookup_elem(&translations, &id);
	struct address *src = &s->d.cur.src;

	if (!p)
		return ENGINE_ERROR;
	/* What quotes a packet of no flow would tell of addresses in here; neighbours are nobody's business out there. */
	if (s->d.cur.family != 6 || !s->h.tracked)
		return NAT_UNSUPPORTED;
	for (int i = 0; i < 2; i++) {
		if ((src->w[i] & prefix_mask(p->length, i)) != p->from.w[i])
			return NAT_UNSUPPORTED;
	}
	if (!map_prefix(p, src))
		return NAT_UNSUPPORTED;
	s->d.translated = 1;
	return NONE;
}

/*
 * Who is behind the destination of a packet from an uplink, by its prefix: into `s->d.via`. Returns 0 if nobody is: then it is not
 * ours. Not static, for the verifier.
 */
__noinline int find_prefix(struct scratch *s, __u32 uplink)
{
	struct location *location;
	struct prefix *p;

	if (!s)
		return 0;
	if (s->h.key.family != 6 || !s->h.tracked)
		return 0;
	s->prefix.length = 8 * (sizeof(s->prefix) - sizeof(s->prefix.length));
	s->prefix.uplink = uplink;
	s->prefix.external = s->h.key.dst;
	p = bpf_map_lookup_elem(&prefixes, &s->prefix);
	if (!p)
		return 0;
	s->d.via.internal = s->h.key.dst;
	if (!map_prefix(p, &s->d.via.internal))
		return 0;
	s->space.space = p->space;
	s->space.family = 6;
	s->space.address = s->d.via.internal;
	location = bpf_map_lookup_elem(&spaces, &s->space);
	if (!location || location->kind != LOCATION_PORT)
		return 0;
	s->d.via.port = location->port;
	s->d.via.whole = 1;
	s->d.by_prefix = 1;
	s->d.by_sport = 1;	/* a mapping or a longer prefix that is added comes before it, and concerns no flow */
	return 1;
}
