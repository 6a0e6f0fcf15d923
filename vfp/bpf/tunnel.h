/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* VTEPs of both families in 32 bits: an IPv4 one is its address, an IPv6 one an id (vfp/vteps.py). */
#pragma once

#include "packet.h"

#define VTEP_NOBODY 0xe0000000U	/* below: IPv4; above: the id of an IPv6 address; itself: of no host that we know */

static __always_inline int is_ipv6_vtep(__u32 vtep)
{
	return vtep > VTEP_NOBODY;
}

static __always_inline __u32 ipv4_vtep(__u32 address)
{
	return address < VTEP_NOBODY ? address : VTEP_NOBODY;
}

/* Nobody, if the policy does not know it. */
static __always_inline __u32 ipv6_vtep(const struct address *address)
{
	__u32 *id = bpf_map_lookup_elem(&vtep_ids, address);

	return id ? *id : VTEP_NOBODY;
}

/* VNI and outer source of what the VXLAN device gives. Returns whether there are any. */
static __always_inline int from_tunnel(struct __sk_buff *skb, __u32 *vni, __u32 *vtep)
{
	struct bpf_tunnel_key key = {};
	struct address address;

	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		*vtep = ipv4_vtep(key.remote_ipv4);
	} else if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6)) {
		__builtin_memcpy(&address, key.remote_ipv6, sizeof(address));
		*vtep = ipv6_vtep(&address);
	} else {
		return 0;
	}
	*vni = key.tunnel_id & 0xffffff;
	return 1;
}
