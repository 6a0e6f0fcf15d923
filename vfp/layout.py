"""Python twin of `bpf/types.h`: numpy dtypes of every struct that crosses into the kernel, and its constants.

`tests/kernel/test_layout.py` compares offsets and sizes with the object's BTF, so the two cannot drift apart.
Addresses are 16 bytes: IPv4 in the first four. Fields in network byte order have big-endian dtypes.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np

from vfp.model import Address

MAX_STAGES = 32
MAX_TUPLES = 60
MEMORY_HITS = 8
POOL_ADDRESSES = 16
UNDERLAYS = 16
ZONE_SHIFT = 24
VLAN_BITS = 12
UPLINK_LOOPBACK = 1 << 31
LINK_PARTICULAR = 1 << 31
WIRE_SPACE = 0xFFFFFF00
VTEP_NOBODY = 0xE0000000                    # below: an IPv4 VTEP; above: the id of an IPv6 one

_ADDRESS = ("u1", 16)
_MAC = ("u1", 6)


def _struct(*fields: tuple[str, Any] | tuple[str, Any, Any]) -> np.dtype[Any]:
    return np.dtype(list(fields), align=True)


class ZoneKind(IntEnum):
    """Twin of enum zone_kind."""

    PORT = 0
    OVERLAY = 1
    UPLINK = 2
    HOST = 3


class PlaceKind(IntEnum):
    """Twin of enum place."""

    NONE = 0
    STACK = 1
    PORT = 2
    UPLINK = 3
    TUNNEL = 4
    REPLY = 5
    INSPECT = 6
    LOOPBACK = 7
    TAP = 8
    WIRE = 9
    FLOOD = 10

    @property
    def of_model(self) -> PlaceKind:
        """What the model knows: a tap is a port, the way to the host's own sockets an uplink."""
        return {PlaceKind.LOOPBACK: PlaceKind.UPLINK, PlaceKind.TAP: PlaceKind.PORT}.get(self, self)


class Set(IntFlag):
    """Twin of enum transposition_flags."""

    SRC = 1 << 0
    DST = 1 << 1
    SPORT = 1 << 2
    DPORT = 1 << 3
    SMAC = 1 << 4
    DMAC = 1 << 5
    TTL = 1 << 6
    DSCP = 1 << 7


class State(IntFlag):
    """Twin of enum flow_state: what was sent, in the bits of the TCP header's flags, by the other side 8 bits up."""

    FIN = 0x0001
    SYN = 0x0002
    RST = 0x0004
    ACK = 0x0010
    SINGLE = 0x0040
    ASSURED = 0x0080
    PEER_FIN = 0x0100
    PEER_SYN = 0x0200
    PEER_RST = 0x0400
    PEER_ACK = 0x1000


class If(IntFlag):
    """Twin of enum rule_condition."""

    ETHERTYPE = 1 << 0
    SMAC = 1 << 1
    DMAC = 1 << 2
    SRC = 1 << 3
    DST = 1 << 4
    PROTOCOL = 1 << 5
    SPORT = 1 << 6
    DPORT = 1 << 7
    ICMP_TYPE = 1 << 8
    ICMP_CODE = 1 << 9
    TCP_FLAGS = 1 << 10
    DSCP = 1 << 11
    ARP_SENDER = 1 << 12
    ND_SENDER = 1 << 13
    SRC_SET = 1 << 14
    DST_SET = 1 << 15
    VNI = 1 << 16
    FRAGMENT = 1 << 17
    MAPPED = 1 << 18


class ActionCode(IntEnum):
    """Twin of enum rule_action."""

    ALLOW = 0
    DENY = 1
    PASS = 2
    TRANSLATE_SOURCE = 3
    UNTRANSLATE = 4
    FORWARD = 5
    TO_UPLINK = 6
    ANSWER_ARP = 7
    REWRITE = 8
    REJECT = 9
    MARK = 10
    METER = 11
    LOG = 12
    MIRROR = 13
    INSPECT = 14
    HAIRPIN = 15
    TRANSLATE_PREFIX = 16
    SWITCH = 17


class Kind(IntFlag):
    """Twin of enum packet_kind."""

    ARP = 1 << 0
    TCP4 = 1 << 1
    UDP4 = 1 << 2
    IPV4 = 1 << 3
    TCP6 = 1 << 4
    UDP6 = 1 << 5
    IPV6 = 1 << 6
    OTHER = 1 << 7


class FlowFlag(IntFlag):
    """Twin of enum flow_flags."""

    REPLY = 1 << 0
    BY_SET = 1 << 1
    EXTRAS = 1 << 2
    INSPECT = 1 << 3
    RELEASED = 1 << 4
    FRAGMENT = 1 << 5
    STRICT = 1 << 6
    BOUND = 1 << 7
    BEHIND = 1 << 8
    CONTACT = 1 << 9
    CONTACTED = 1 << 10
    HAIRPIN = 1 << 11
    TO_MAC = 1 << 12
    TO_WIRE = 1 << 13


class PortFlag(IntFlag):
    """Twin of enum port_flags."""

    STRICT_TCP = 1 << 0
    CAPTURE = 1 << 1
    TAP = 1 << 2
    SHAPED = 1 << 3
    QUEUED = 1 << 4
    RATE_OUT = 1 << 5
    RATE_IN = 1 << 6
    CAPPED = 1 << 7
    EXIT = 1 << 15


class UplinkFlag(IntFlag):
    """Twin of enum uplink_flags."""

    STATIONS = 1 << 0
    PROXY = 1 << 1


class SegmentKind(IntEnum):
    """Twin of enum segment_kind."""

    SPACE = 0
    WIRE = 1
    VTEPS = 2


class Filter(IntEnum):
    """Twin of enum filtering."""

    NOBODY = 0
    ADDRESS = 1
    ADDRESS_PORT = 2


class PoolFlag(IntFlag):
    """Twin of enum pool_flags."""

    LOG = 1 << 0
    HOLDS = 1 << 1


class BindingEventKind(IntEnum):
    """Twin of enum binding_event_kind."""

    BOUND = 0
    RELEASED = 1
    BLOCK_TAKEN = 2
    BLOCK_RELEASED = 3


class RuleFlag(IntFlag):
    """Twin of enum rule_flags."""

    STATELESS = 1 << 0
    CONTINUE = 1 << 1


class EventKind(IntEnum):
    """Twin of enum event_kind."""

    DROP = 0
    LOG = 1


class CaptureStage(IntEnum):
    """Twin of enum capture_stage."""

    BEFORE = 0
    AFTER = 1


class Ring(IntEnum):
    """Twin of enum ring."""

    EVENTS = 0
    CAPTURES = 1
    BINDINGS = 2


class LocationKind(IntEnum):
    """Twin of enum location_kind."""

    PORT = 1
    REMOTE = 2
    HOST = 3
    VIRTUAL = 4
    VIA = 5


FLOW_KEY = _struct(
    ("zone", "u4"), ("family", "u1"), ("protocol", "u1"), ("vlan", "u2"), ("sport", ">u2"), ("dport", ">u2"),
    ("src", *_ADDRESS), ("dst", *_ADDRESS),
)
TRANSPOSITION = _struct(
    ("flags", "u2"), ("place", "u1"), ("dscp", "u1"), ("ifindex", "u4"), ("src", *_ADDRESS), ("dst", *_ADDRESS),
    ("sport", ">u2"), ("dport", ">u2"), ("smac", *_MAC), ("dmac", *_MAC), ("vni", "u4"), ("vtep", "u4"), ("mtu", "u2"),
    ("underlay", "u1"), ("pad", "u1"),
)
EXTRAS = _struct(
    ("log_cookie", "u8"), ("meters", "u4", 2), ("mirror", "u4"), ("log_every", "u4"), ("log_port", "u4"),
    ("queue", "u1"), ("fail_open", "u1"), ("pad", "u1", 2),
)
FLOW = _struct(
    ("packets", "u8"), ("bytes", "u8"), ("seen_ns", "u8"), ("ports", "u4", 2), ("generations", "u4", 2),
    ("from_vtep", "u4"), ("flags", "u2"), ("state", "u2"), ("sets_generation", "u4"), ("smac", *_MAC), ("dscp", "u1"),
    ("tcp_flags", "u1"), ("out", TRANSPOSITION), ("created_ns", "u8"), ("pair", FLOW_KEY), ("icmp_type", "u1"),
    ("icmp_code", "u1"), ("dmac", *_MAC), ("pad", "u4"), ("extras", EXTRAS),
)
RATE = _struct(("cost", "u8"), ("burst", "u8"))
PORT = _struct(("generation", "u4"), ("ifindex", "u4"), ("mac", *_MAC), ("gateway_mac", *_MAC), ("flags", "u2"),
               ("timeouts", "u2"), ("born", "u4"), ("mtu", "u2"), ("underlays", "u1", 2), ("connections", "u4"),
               ("space", "u4"), ("rates", RATE, 2))
GATEWAYS = _struct(("of", "u1", (2, 16)))
STAGE = _struct(("group", "u8"), ("layer", "u1"), ("last", "u1"), ("deny", "u1"), ("kinds", "u1"), ("pad", "u1", 4))
PROGRAM = _struct(
    ("generation", "u4"), ("out_count", "u1"), ("in_count", "u1"), ("out_fussy", "u1"), ("in_fussy", "u1"),
    ("out", STAGE, MAX_STAGES), ("in", STAGE, MAX_STAGES)
)
PROGRAMS = _struct(("turns", PROGRAM, 2))
UPLINK = _struct(("ifindex", "u4"), ("mtu", "u4"), ("mac", *_MAC), ("flags", "u2"))
SEGMENT_KEY = _struct(("number", "u4"), ("kind", "u4"))
SEGMENT = _struct(
    ("of", SEGMENT_KEY), ("flood_ns", "u8"), ("flood_burst_ns", "u8"), ("wire", "u4"), ("vni", "u4"), ("ports", "u4"),
    ("vteps", "u4"), ("floods", "u4"), ("pad", "u4"),
)
STATION_KEY = _struct(("number", "u4"), ("kind", "u2"), ("mac", *_MAC))
FLOODED_KEY = _struct(("number", "u4"), ("kind", "u4"), ("index", "u4"))
HOP = _struct(("address", *_ADDRESS), ("family", "u4"))
UNDERLAY = _struct(("address", *_ADDRESS), ("ifindex", "u4"), ("mtu", "u2"), ("family", "u1"), ("pad", "u1"))
UNDERLAY_KEY = _struct(("address", *_ADDRESS), ("family", "u1"), ("pad", "u1", 3))
TUPLE = _struct(
    ("seed", "u8"), ("pair", "u8"), ("rest", "u8"), ("best_priority", "u4"), ("src_len", "u1"), ("dst_len", "u1"),
    ("wide", "u1"), ("pad", "u1"),
)
GROUP = _struct(
    ("count", "u4"), ("instance", "u4"), ("version", "u4"), ("rules", "u4"), ("filter_mask", "u4"),
    ("pad", "u4"), ("tuples", TUPLE, MAX_TUPLES),
)
BUCKET = _struct(("first", "u4"), ("count", "u2"), ("instance", "u2"))
RULE = _struct(
    ("src", *_ADDRESS), ("dst", *_ADDRESS), ("born", "u4"), ("died", "u4"), ("priority", "u4"), ("conditions", "u4"),
    ("ethertype", "u2"), ("sport_low", "u2"), ("sport_high", "u2"), ("dport_low", "u2"), ("dport_high", "u2"),
    ("src_len", "u1"), ("dst_len", "u1"), ("family", "u1"), ("protocol", "u1"), ("icmp_type", "u1"),
    ("icmp_code", "u1"), ("cookie", "u8"), ("arg", "u8"), ("src_set", "u4"), ("dst_set", "u4"), ("vni", "u4"),
    ("smac", *_MAC), ("dmac", *_MAC), ("tcp_mask", "u1"), ("tcp_value", "u1"), ("dscp", "u1"), ("fragment", "u1"),
    ("action", "u1"), ("flags", "u1"), ("mapped", "u1"), ("pad", "u1"),
)
REWRITE = _struct(
    ("src", *_ADDRESS), ("dst", *_ADDRESS), ("sport", ">u2"), ("dport", ">u2"), ("flags", "u2"), ("src_family", "u1"),
    ("dst_family", "u1"),
)
PREFIX = _struct(
    ("from", *_ADDRESS), ("to", *_ADDRESS), ("adjustment", ">u2"), ("length", "u1"), ("pad", "u1"), ("space", "u4"),
)
PREFIX_KEY = _struct(("length", "u4"), ("uplink", "u4"), ("external", *_ADDRESS))
SPACE_KEY = _struct(("space", "u4"), ("family", "u1"), ("pad", "u1", 3), ("address", *_ADDRESS))
LOCATION = _struct(("kind", "u1"), ("mac", *_MAC), ("pad", "u1"), ("port", "u4"), ("vni", "u4"), ("vtep", "u4"))
ROUTE_KEY = _struct(("length", "u4"), ("space", "u4"), ("family", "u4"), ("address", *_ADDRESS))
ROUTE = _struct(("to", LOCATION), ("via", *_ADDRESS))
SET_KEY = _struct(("set", "u4"), ("family", "u1"), ("length", "u1"), ("pad", "u2"), ("address", *_ADDRESS))
SET_MEMBER = _struct(("expires_ns", "u8"), ("turns", "u4"), ("pad", "u4"))
SET_LENGTHS_KEY = _struct(("set", "u4"), ("family", "u1"), ("pad", "u1", 3))
SET_LENGTHS = _struct(("bits", "u8", 3))
POOL = _struct(
    ("addresses", "u1", (POOL_ADDRESSES, 16)), ("uplink", "u4"), ("range", "u4"), ("quota", "u4"), ("low", "u2"),
    ("high", "u2"), ("block", "u2"), ("held_tcp", "u2"), ("held_udp", "u2"), ("held_echo", "u2"), ("family", "u1"),
    ("count", "u1"), ("filtering", "u1"), ("flags", "u1"),
)
HELD_KEY = _struct(("pool", "u4"), ("port", ">u2"), ("protocol", "u1"), ("pad", "u1"))
MAPPING_KEY = _struct(
    ("uplink", "u4"), ("external", *_ADDRESS), ("port", ">u2"), ("protocol", "u1"), ("family", "u1")
)
MAPPING = _struct(
    ("internal", *_ADDRESS), ("port", "u4"), ("internal_port", ">u2"), ("whole", "u1"), ("pad", "u1"), ("cookie", "u8")
)
BINDING_KEY = _struct(
    ("port", "u4"), ("pool", "u4"), ("src", *_ADDRESS), ("sport", ">u2"), ("protocol", "u1"), ("family", "u1")
)
BINDING = _struct(("external", *_ADDRESS), ("external_port", ">u2"), ("pad", "u2"))
EXTERNAL_KEY = _struct(("address", *_ADDRESS), ("port", ">u2"), ("protocol", "u1"), ("family", "u1"))
EXTERNAL = _struct(
    ("holder", BINDING_KEY), ("range", "u4"), ("seen_ns", "u8"), ("block", "u2"), ("block_size", "u2"), ("flags", "u4")
)
TALLY = _struct(("now", "i8"), ("before", "i8"), ("found", "i8"), ("gone", "i8"))
USAGE = _struct(("lock", "u4"), ("pad", "u4"), ("until", "u8", 2), ("connections", TALLY))
USE_KEY = _struct(("address", *_ADDRESS), ("range", "u4"), ("protocol", "u1"), ("family", "u1"), ("pad", "u2"))
SHARE_KEY = _struct(("port", "u4"), ("pool", "u4"))
SHARE = _struct(("bindings", TALLY), ("blocks", TALLY))
BLOCK_KEY = _struct(("address", *_ADDRESS), ("first", "u2"), ("size", "u2"), ("family", "u1"), ("pad", "u1", 3))
BLOCK = _struct(("holder", SHARE_KEY), ("seen_ns", "u8"), ("used", TALLY, 3), ("flags", "u4"), ("pad", "u4"))
CONTACT_KEY = _struct(("inside", BINDING_KEY), ("remote", *_ADDRESS))
CONTACT = _struct(("seen_ns", "u8"))
BINDING_EVENT = _struct(
    ("time_ns", "u8"), ("port", "u4"), ("pool", "u4"), ("internal", *_ADDRESS), ("external", *_ADDRESS),
    ("internal_port", ">u2"), ("external_port", ">u2"), ("size", "u2"), ("kind", "u1"), ("protocol", "u1"),
    ("family", "u1"), ("pad", "u1", 7),
)
HIT_KEY = _struct(("cookie", "u8"), ("port", "u4"), ("pad", "u4"))
HITS = _struct(("hits", "u8"), ("drops", "u8"))
MEMORY = _struct(
    ("tag", "u4"), ("vtep", "u4"), ("whole", "u1"), ("stateless", "u1"), ("hits", "u1"), ("pad", "u1", 5),
    ("hit", HIT_KEY, MEMORY_HITS), ("forward", FLOW), ("reply", FLOW),
)
TIMEOUTS = _struct(
    ("tcp_opening_ns", "u8"), ("tcp_syn_received_ns", "u8"), ("tcp_established_ns", "u8"), ("tcp_fin_wait_ns", "u8"),
    ("tcp_time_wait_ns", "u8"), ("tcp_reset_ns", "u8"), ("udp_new_ns", "u8"), ("udp_ns", "u8"), ("icmp_ns", "u8"),
    ("other_ns", "u8"), ("binding_ns", "u8"),
)
SETTINGS = _struct(
    ("reap_time_wait_ns", "u8"), ("reap_reset_ns", "u8"), ("half_open_max", "u8"), ("udp_max", "u8"),
    ("redecide_cost_ns", "u8"), ("redecide_burst_ns", "u8"),
    ("secret", "u8", 2), ("tunnel_ifindex", "u4"), ("inspect_ifindex", "u4"),
    ("sets_generation", "u4"), ("dirty", "u4"), ("turn", "u4"), ("shaper_ifindex", "u4"),
    ("tunnel_port", ">u2"), ("underlays", "u1", 2), ("pad", "u4"),
    ("answer_ns", "u8"),
    ("answer_burst_ns", "u8"),
)
METER = _struct(("packets", "u8", 2), ("bytes", "u8", 2))
EVENT = _struct(
    ("time_ns", "u8"), ("cookie", "u8"), ("zone", "u4"), ("port", "u4"), ("src", *_ADDRESS), ("dst", *_ADDRESS),
    ("sport", ">u2"), ("dport", ">u2"), ("ethertype", "u2"), ("protocol", "u1"), ("family", "u1"), ("smac", *_MAC),
    ("dmac", *_MAC), ("reason", "u1"), ("layer", "u1"), ("kind", "u1"), ("pad", "u1"), ("length", "u4"),
)
TRACE = _struct(
    ("cookie", "u8"), ("port", "u4"), ("layer", "u4"), ("count", "u4"), ("pad", "u4"),
    ("hits", HIT_KEY, 2 * MAX_STAGES),
)
CAPTURE = _struct(
    ("time_ns", "u8"), ("zone", "u4"), ("ports", "u4", 2), ("length", "u4"), ("captured", "u4"), ("stage", "u1"),
    ("reason", "u1"), ("pad", "u1", 2),
)
CLOSED = _struct(("key", FLOW_KEY), ("due_s", "u4"), ("since_ns", "u8"))
BUDGETS = _struct(("half_open", "i8"), ("udp", "i8"))
SWEEP = _struct(
    ("now_ns", "u8"), ("flows_removed", "u4"), ("bindings_removed", "u4"), ("flows_seen", "u4"),
    ("bindings_seen", "u4"),
)

STRUCTS: dict[str, np.dtype[Any]] = {
    "flow_key": FLOW_KEY, "transposition": TRANSPOSITION, "extras": EXTRAS, "flow": FLOW, "port": PORT, "stage": STAGE,
    "uplink": UPLINK, "segment_key": SEGMENT_KEY, "segment": SEGMENT, "station_key": STATION_KEY,
    "flooded_key": FLOODED_KEY, "hop": HOP,
    "underlay": UNDERLAY, "underlay_key": UNDERLAY_KEY, "gateways": GATEWAYS, "rate": RATE, "usage": USAGE,
    "program": PROGRAM, "programs": PROGRAMS, "tuple": TUPLE, "group": GROUP, "bucket": BUCKET, "rule": RULE,
    "rewrite": REWRITE, "prefix": PREFIX, "prefix_key": PREFIX_KEY, "set_key": SET_KEY, "set_member": SET_MEMBER,
    "set_lengths_key": SET_LENGTHS_KEY, "set_lengths": SET_LENGTHS, "space_key": SPACE_KEY, "location": LOCATION,
    "route_key": ROUTE_KEY, "route": ROUTE,
    "pool": POOL, "mapping_key": MAPPING_KEY, "mapping": MAPPING, "binding_key": BINDING_KEY, "binding": BINDING,
    "external_key": EXTERNAL_KEY, "external": EXTERNAL, "held_key": HELD_KEY, "tally": TALLY, "use_key": USE_KEY,
    "share_key": SHARE_KEY, "share": SHARE, "block_key": BLOCK_KEY, "block": BLOCK, "contact_key": CONTACT_KEY,
    "contact": CONTACT, "binding_event": BINDING_EVENT, "hit_key": HIT_KEY, "hits": HITS, "memory": MEMORY,
    "timeouts": TIMEOUTS, "settings": SETTINGS, "meter": METER, "event": EVENT, "closed": CLOSED, "budgets": BUDGETS,
    "sweep": SWEEP, "trace": TRACE, "capture": CAPTURE,
}


def zone(kind: ZoneKind, number: int) -> int:
    """First part of a flow id: the hook and its number (24 bits)."""
    return kind << ZONE_SHIFT | number


def pack_address(address: Address) -> bytes:
    """16 bytes: IPv4 in the first four."""
    return address.packed.ljust(16, b"\0")


def unpack_address(raw: bytes, family: int) -> Address:
    """Inverse of `pack_address`."""
    return IPv6Address(raw) if family == 6 else IPv4Address(raw[:4])


def pack(dtype: np.dtype[Any], **fields: Any) -> bytes:
    """One struct as bytes; fields that are not given are zero. Byte fields take `bytes`."""
    value = np.zeros((), dtype)
    for name, given in fields.items():
        value[name] = np.frombuffer(given, np.uint8) if isinstance(given, bytes) else given
    return value.tobytes()
