"""Why the engine dropped a packet: twin of enum drop_reason in `bpf/reasons.h`; a test compares the two."""

from enum import IntEnum


class DropReason(IntEnum):
    """One reason per early exit of the data path; the comment is what an operator reads."""

    NONE = 0
    MALFORMED_ETHERNET = 1      # shorter than an Ethernet header
    MALFORMED_ARP = 2           # not Ethernet/IPv4 ARP, or truncated (RFC 826)
    MALFORMED_IPV4 = 3          # version, header length or total length wrong (RFC 791)
    MALFORMED_TRANSPORT = 4     # TCP, UDP, SCTP or ICMP header truncated or its length field wrong
    VLAN_TAGGED = 5             # 802.1Q/802.1ad tag from an endpoint
    UNKNOWN_PORT = 6            # no such port, or it has no program: fail closed
    DENIED = 7                  # a rule said so
    LAYER_DEFAULT = 8           # no rule of a layer decided and its default is deny
    NO_ROUTE = 9                # no layer said where the packet goes
    NO_MAPPING = 10             # the space has no place for the destination
    UNKNOWN_SOURCE = 11         # overlay: the inner source is not mapped
    WRONG_VTEP = 12             # overlay: the inner source is mapped to another host
    FLOW_TABLE_FULL = 13        # the flow could not be stored
    NAT_EXHAUSTED = 14          # no free external port in the pool
    NAT_UNSUPPORTED = 15        # the protocol has no port or id to translate
    TTL_EXCEEDED = 16           # routed packet with TTL 0 or 1
    FRAGMENT_UNKNOWN = 17       # a later fragment whose first one was not seen
    FLOW_CHANGED = 18           # a re-decided flow no longer has this packet's tuple as its reply
    ARP_UNANSWERED = 19         # ARP that is no request for an address of the space
    ENGINE_ERROR = 20           # a helper failed; counted, never passed
    TOO_MANY_STEPS = 21         # a bound of the engine was hit (groups, tuples)
    FRAGMENT_TINY = 22          # a first fragment without its whole header, or TCP at offset 1 (RFC 1858, RFC 7112)
    FRAGMENT_OVERLAP = 23       # a fragment over one already seen, past the end, or with too many holes before it
    MALFORMED_IPV6 = 24         # version, payload length, or a wrong, truncated or overlong chain of extension headers
    MALFORMED_ND = 25           # a neighbour solicitation or advertisement that RFC 4861 7.1 tells to discard
    REJECTED = 26               # a rule said so, and the sender was told if it may be
    OUT_OF_STATE = 27           # a TCP segment that does not fit its connection, at a strict port
    HALF_OPEN_FULL = 28         # too many TCP connections that no reply was seen of
    UDP_FULL = 29               # too many UDP flows
    REDECIDE_LATER = 30         # too many flows are being decided again at this moment
    INSPECT_REFUSED = 31        # cannot be inspected: a fragment, or of no flow
    INSPECT_UNAVAILABLE = 32    # to be inspected, and there is nowhere to
    NAT_FILTERED = 33           # to a binding's external side, from someone that the internal side has not sent to
    NAT_QUOTA = 34              # the port has as many bindings as it may have
    TOO_BIG = 35                # larger than the link or path it would leave by takes; the sender was told if it may be
    NOT_FLOODED = 36            # to a group MAC in a space that does not flood, or more of them than its rate
    RATE_LIMITED = 37           # more packets than the port may send or get
    CONNECTION_LIMIT = 38       # the port has as many connections as it may have
    MOVED = 39                  # over the overlay to an address that is behind another host: the sender's map is old
    ECN_INVALID = 40            # outer header marked, inner one not ECN capable (RFC 6040 4.2)
