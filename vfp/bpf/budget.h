/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Pairs that a flood is made of may take a part of the flow table only: half-open TCP, and what is not TCP. */
#pragma once

#include "tcp.h"

static __always_inline struct budgets *all_budgets(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&budgets, &zero);
}

/* For a new pair. Returns a drop reason. CPUs that ask at the same moment may all get the last place. */
static __always_inline int take_place(__u8 protocol)
{
	struct budgets *taken = all_budgets();
	struct settings *settings;
	__u32 zero = 0;

	settings = bpf_map_lookup_elem(&config, &zero);
	if (!taken || !settings)
		return ENGINE_ERROR;
	if (protocol == IPPROTO_TCP) {
		if (taken->half_open >= (__s64)settings->half_open_max)
			return HALF_OPEN_FULL;
		__sync_fetch_and_add(&taken->half_open, 1);
	} else {
		if (taken->udp >= (__s64)settings->udp_max)
			return UDP_FULL;
		__sync_fetch_and_add(&taken->udp, 1);
	}
	return NONE;
}

/* Of a pair that leaves, or that is no longer half-open. `state` is that of one half before that. */
static __always_inline void give_place(__u8 protocol, __u16 state)
{
	struct budgets *taken = all_budgets();

	if (!taken)
		return;
	if (protocol != IPPROTO_TCP)
		__sync_fetch_and_add(&taken->udp, -1);
	else if (!(state & STATE_ASSURED))
		__sync_fetch_and_add(&taken->half_open, -1);
}
