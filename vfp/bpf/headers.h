/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Protocol headers and numbers, and what can be said of an address by itself. */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#include "packet.h"

#define L3 sizeof(struct ethhdr)	/* offset of the network header: tagged frames are refused */
#define IP_OFFSET_MASK 0x1fff
#define IP_MORE_FRAGMENTS 0x2000
#define IP_DONT_FRAGMENT 0x4000
#define IP_BYTES_MAX 65535
#define HEADERS_MAX (L3 + 60 + 60)	/* IPv4 and TCP with all options */
#define ODD (-1)			/* not for the short parser */

#define EXTENSIONS_MAX 8		/* extension headers of one packet */

#define ICMP6_FIRST_ERROR 1		/* unreachable, too big, time exceeded, parameter problem */
#define ICMP6_LAST_ERROR 4
#define ICMP6_UNREACHABLE 1
#define ICMP6_ECHO 128
#define ICMP6_ECHOREPLY 129
#define ND_FIRST 133			/* router solicitation */
#define ND_LAST 137			/* redirect */
#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_SOLICITED 0x40
#define ND_OVERRIDE 0x20
#define ND_SOURCE_LINK 1
#define ND_TARGET_LINK 2
#define ND_OPTIONS_MAX 8

#define UDPLITE_BYTES 8			/* its header (RFC 3828); its checksum is where UDP's is */

#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_FRAG_NEEDED 4		/* code of it */
#define ICMP_SOURCE_QUENCH 4
#define ICMP_REDIRECT 5
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_LAST 18			/* address mask reply: later ones are not known */

/* RFC 792. linux/icmp.h draws in libc headers that a BPF build does not have. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 check;
	__be16 id;
	__be16 sequence;
};

struct ipv6_header {
	__be32 start;		/* version, traffic class, flow label */
	__be16 length;
	__u8 next;
	__u8 hops;
	struct address src;
	struct address dst;
};

/* RFC 4861 4.3, 4.4; options follow. */
struct nd_header {
	__u8 type;
	__u8 code;
	__be16 check;
	__u8 flags;
	__u8 reserved[3];
	struct address target;
};

struct arp_ipv4 {
	__be16 hardware_type;
	__be16 protocol_type;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 opcode;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

static __always_inline __be32 load32(const __u8 *p)
{
	__be32 value;

	__builtin_memcpy(&value, p, sizeof(value));
	return value;
}

static __always_inline __be32 mask32(int bits)
{
	if (bits <= 0)
		return 0;
	if (bits >= 32)
		return 0xffffffff;
	return bpf_htonl(~0U << (32 - bits));
}

static __always_inline int is_multicast(const struct address *address)
{
	return (address->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* 127/8, ::1 (RFC 1122 3.2.1.3, RFC 4291 2.5.3) */
static __always_inline int is_loopback(__u8 family, const struct address *address)
{
	if (family == 6)
		return !(address->w[0] | address->w[1] | address->w[2]) && address->w[3] == bpf_htonl(1);
	return (address->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(127U << 24);
}

static __always_inline int is_unspecified(const struct address *address)
{
	return !(address->w[0] | address->w[1] | address->w[2] | address->w[3]);
}

/* ff02::1:ff00:0/104 (RFC 4291 2.7.1) */
static __always_inline int is_solicited_node(const struct address *address)
{
	return address->w[0] == bpf_htonl(0xff020000) && !address->w[1] && address->w[2] == bpf_htonl(1) &&
	       (address->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* Whether a port may have frames with a tag. */
static __always_inline int has_vlan(__u32 port, __u16 vlan)
{
	__u32 key = port << VLAN_BITS | vlan;

	return bpf_map_lookup_elem(&vlans, &key) != 0;
}

/* An ARP request or a neighbour solicitation. */
static __always_inline int is_asking(const struct headers *h)
{
	return h->nd ? h->icmp_type == ND_SOLICITATION : h->ethertype == ETH_P_ARP && h->key.protocol == 1;
}
