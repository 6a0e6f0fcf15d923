/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* Actions that ask for something beside forwarding. What a later rule of the walk asks of one kind holds. */
#pragma once

#include "packet.h"

/* `slot`: 0 in the sender's layers, 1 in the receiver's. */
static __always_inline int modify(struct decision *d, const struct rule *r, __u32 port, int slot)
{
	if (!(r->flags & RULE_CONTINUE))
		d->stateless |= r->flags & RULE_STATELESS;
	switch (r->action) {
	case ACTION_MARK:
		d->marked = 1;
		d->dscp = r->arg;
		return NONE;
	case ACTION_METER:
		d->extras.meters[slot & 1] = r->arg;
		return NONE;
	case ACTION_LOG:
		d->extras.log_cookie = r->cookie;
		d->extras.log_every = r->arg;
		d->extras.log_port = port;
		return NONE;
	case ACTION_MIRROR:
		d->extras.mirror = r->arg;
		return NONE;
	}
	return ENGINE_ERROR;
}

static __always_inline int has_extras(const struct extras *x)
{
	return x->log_cookie || x->meters[0] || x->meters[1] || x->mirror;
}
