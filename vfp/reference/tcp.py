"""A TCP connection as seen from between: what either side has sent so far, and what may follow.

Sequence numbers are not looked at. RFC 9293, figure 5, folded over both sides:

    opening ──any reply──▶ syn-received ──ACK of both sides──▶ established
       │                        │                                  │
       └────────────────────────┴──────────────FIN────────────▶ fin-wait ──FIN of the other side──▶ time-wait
    RST from either side, in any state: reset
"""

from __future__ import annotations

from enum import Enum, StrEnum

from vfp.reference.packet import TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN


class FlowState(StrEnum):
    """What is known of a conversation; other protocols than TCP are only ever new or established."""

    NEW = "new"
    OPENING = "opening"
    SYN_RECEIVED = "syn-received"
    ESTABLISHED = "established"
    FIN_WAIT = "fin-wait"
    TIME_WAIT = "time-wait"
    RESET = "reset"

    @property
    def is_closed(self) -> bool:
        """A SYN may open it anew."""
        return self in (FlowState.TIME_WAIT, FlowState.RESET)


class Fit(Enum):
    """Whether a segment fits its connection."""

    NO = "no"
    YES = "yes"
    UNSEEN = "unseen"                       # it may pass, and says nothing of the connection


def sent(flags: int) -> int:
    """What a segment adds to what its side has sent: its flags, a SYN without ACK only."""
    return flags & (TCP_FIN | TCP_RST | TCP_ACK | (0 if flags & TCP_ACK else TCP_SYN))


def state_of(forward: int, reply: int, *, reply_seen: bool) -> FlowState:
    """The state, from what both sides have sent."""
    if (forward | reply) & TCP_RST:
        return FlowState.RESET
    if forward & reply & TCP_FIN:
        return FlowState.TIME_WAIT
    if (forward | reply) & TCP_FIN:
        return FlowState.FIN_WAIT
    if forward & reply & TCP_ACK:
        return FlowState.ESTABLISHED
    return FlowState.SYN_RECEIVED if reply_seen else FlowState.OPENING


def is_opening(flags: int) -> bool:
    """A SYN and nothing else that counts."""
    return flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN


def fits(own: int, other: int, flags: int) -> Fit:
    """Whether a segment with `flags` fits, from who has sent `own` to who has sent `other`."""
    closed = bool((own | other) & TCP_RST or own & other & TCP_FIN)
    if flags & TCP_RST:
        return Fit.NO if flags & (TCP_SYN | TCP_FIN) else Fit.YES
    if flags & TCP_SYN:
        if flags & TCP_FIN or closed:
            return Fit.NO
        if flags & TCP_ACK:                 # of the other's SYN, again if our ACK of it got lost
            return Fit.YES if other & TCP_SYN else Fit.NO
        return Fit.NO if own & TCP_ACK or (own | other) & TCP_FIN else Fit.YES
    if not flags & TCP_ACK:
        return Fit.NO
    if (own | other) & TCP_ACK:
        return Fit.YES
    # To a SYN, by who is not in the same connection (RFC 9293 3.5.1, RFC 5961 4): what comes next is an RST.
    if other & TCP_SYN and not own & TCP_SYN and not flags & TCP_FIN:
        return Fit.UNSEEN
    return Fit.NO
