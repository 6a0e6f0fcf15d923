/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* The maximum segment size that a SYN offers (RFC 9293 3.7.1) becomes one that fits where the SYN goes. */
#pragma once

#include "drop.h"
#include "parse.h"
#include "tcp.h"

#define OPTION_END 0
#define OPTION_NOP 1
#define OPTION_MSS 2
#define OPTION_MSS_BYTES 4
#define MSS_OVERHEAD4 40		/* headers without options (RFC 6691) */
#define MSS_OVERHEAD6 60

struct mss_search {
	struct scratch *s;
	__u32 at;
	__u32 length;
	__u32 found;
};

static long find_mss(__u32 i, void *context)
{
	struct mss_search *search = context;
	__u32 at = search->at;
	__u8 kind, length;

	if (at + OPTION_MSS_BYTES > search->length || at > TCP_OPTIONS - OPTION_MSS_BYTES)
		return 1;
	kind = search->s->options[at];
	if (kind == OPTION_END)
		return 1;
	if (kind == OPTION_NOP) {
		search->at = at + 1;
		return 0;
	}
	length = search->s->options[at + 1];
	if (length < 2 || kind == OPTION_MSS) {
		search->found = kind == OPTION_MSS && length == OPTION_MSS_BYTES;
		return 1;
	}
	search->at = at + length;
	return 0;
}

/* Not inline: rare, and the hooks have it on their way. A SYN that is odd in any way is left as it is. */
static __noinline int clamp_mss(struct __sk_buff *skb, struct scratch *s, __u32 mtu)
{
	struct mss_search search = {.s = s};
	__u32 most = s->pkt.key.family == 6 ? MSS_OVERHEAD6 : MSS_OVERHEAD4, options;
	__u64 at;
	__be16 from, to;
	__u8 offset;

	if (mtu <= most || s->pkt.key.protocol != IPPROTO_TCP || s->fragment_kind == LATER_FRAGMENT ||
	    bpf_skb_load_bytes(skb, s->l4 + 12, &offset, 1))
		return 0;
	most = mtu - most;
	options = s->l4 + sizeof(struct tcphdr);
	search.length = (offset >> 4) * 4U - sizeof(struct tcphdr);
	at = search.length;
	asm volatile("" : "+r"(at));		/* the bound must be on the register that the helper gets */
	if (at < OPTION_MSS_BYTES || at > TCP_OPTIONS || bpf_skb_load_bytes(skb, options, s->options, at))
		return 0;
	bpf_loop(TCP_OPTIONS, find_mss, &search, 0);
	at = search.at;
	if (!search.found || at > TCP_OPTIONS - OPTION_MSS_BYTES)
		return 0;
	__builtin_memcpy(&from, &s->options[at + 2], sizeof(from));
	if (bpf_ntohs(from) <= most)
		return 0;
	to = bpf_htons(most);
	/* At an odd offset its bytes are in two words of the sum, the other way round in each (RFC 1071 2 (B)). */
	if (bpf_skb_store_bytes(skb, options + at + 2, &to, sizeof(to), 0) ||
	    bpf_l4_csum_replace(skb, s->l4 + offsetof(struct tcphdr, check), at & 1 ? __builtin_bswap16(from) : from,
				at & 1 ? __builtin_bswap16(to) : to, sizeof(to)))
		return 0;
	return 1;
}
