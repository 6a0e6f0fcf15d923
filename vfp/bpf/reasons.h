/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Why a packet was dropped. Twin of vfp/reasons.py, which says what each means. */
#pragma once

enum drop_reason {
	NONE = 0,
	MALFORMED_ETHERNET = 1,
	MALFORMED_ARP = 2,
	MALFORMED_IPV4 = 3,
	MALFORMED_TRANSPORT = 4,
	VLAN_TAGGED = 5,
	UNKNOWN_PORT = 6,
	DENIED = 7,
	LAYER_DEFAULT = 8,
	NO_ROUTE = 9,
	NO_MAPPING = 10,
	UNKNOWN_SOURCE = 11,
	WRONG_VTEP = 12,
	FLOW_TABLE_FULL = 13,
	NAT_EXHAUSTED = 14,
	NAT_UNSUPPORTED = 15,
	TTL_EXCEEDED = 16,
	FRAGMENT_UNKNOWN = 17,
	FLOW_CHANGED = 18,
	ARP_UNANSWERED = 19,
	ENGINE_ERROR = 20,
	TOO_MANY_STEPS = 21,
	FRAGMENT_TINY = 22,
	FRAGMENT_OVERLAP = 23,
	MALFORMED_IPV6 = 24,
	MALFORMED_ND = 25,
	DROP_REASONS = 32,	/* size of the counter table */
};
