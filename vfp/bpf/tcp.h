/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* What the flags that both sides have sent say of a connection (RFC 9293, figure 5, without sequence numbers). */
#pragma once

#include "maps.h"

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum fitness {
	FITS_NOT = 0,
	FITS = 1,
	FITS_UNSEEN = 2,	/* it may pass, and says nothing of the connection */
};

/* What a segment adds to the state of its half: its flags, a SYN without ACK only. */
static __always_inline __u16 sent(__u8 flags)
{
	return (flags & (TCP_FIN | TCP_RST | TCP_ACK)) | (flags & ~(flags >> 3) & TCP_SYN);
}

/* One half's state as the other half has it. */
static __always_inline __u16 mirrored(__u16 state)
{
	return (state & STATE_ASSURED) | (state & STATE_SENT) << STATE_PEER_SHIFT |
	       (state >> STATE_PEER_SHIFT & STATE_SENT);
}

static __always_inline int is_reset(__u16 state)
{
	return state & (STATE_RST | STATE_PEER_RST);
}

static __always_inline int is_closed(__u16 state)
{
	return is_reset(state) || (state & (STATE_FIN | STATE_PEER_FIN)) == (STATE_FIN | STATE_PEER_FIN);
}

static __always_inline int is_established(__u16 state)
{
	return (state & (STATE_ACK | STATE_PEER_ACK)) == (STATE_ACK | STATE_PEER_ACK);
}

static __always_inline int is_opening_segment(__u8 flags)
{
	return (flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
}

/* Whether a segment fits a connection, `state` being that of the half it is of. docs/engine.md has this as a table. */
static __always_inline int fits(__u16 state, __u8 flags)
{
	if (flags & TCP_RST)
		return flags & (TCP_SYN | TCP_FIN) ? FITS_NOT : FITS;
	if (flags & TCP_SYN) {
		if (flags & TCP_FIN || is_closed(state))
			return FITS_NOT;
		if (flags & TCP_ACK)	/* of the other's SYN, again if our ACK of it got lost */
			return state & STATE_PEER_SYN ? FITS : FITS_NOT;
		return state & (STATE_ACK | STATE_FIN | STATE_PEER_FIN) ? FITS_NOT : FITS;
	}
	if (!(flags & TCP_ACK))
		return FITS_NOT;
	if (state & (STATE_ACK | STATE_PEER_ACK))
		return FITS;
	/* To a SYN, by who is not in the same connection (RFC 9293 3.5.1, RFC 5961 4): what comes next is an RST. */
	if (!(flags & TCP_FIN) && (state & (STATE_SYN | STATE_PEER_SYN)) == STATE_PEER_SYN)
		return FITS_UNSEEN;
	return FITS_NOT;
}
