"""The values of this room: links as they are wanted, links as they are found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OWNER_ALIAS = "sluice:"  # ifalias prefix: how a restarted agent knows its own links

Where = Literal["ingress", "egress"]


def port_interface(port: int) -> str:
    """Name of the host side of port `port`."""
    return f"slp{port}"


@dataclass(frozen=True, slots=True)
class HookedProgram:
    """A BPF program for one hook of a link; `name` starts with `sluice_`."""

    where: Where
    program_fd: int
    name: str


@dataclass(frozen=True, slots=True)
class PortLink:
    """A veth pair: host side here, the other side in an endpoint's namespace, or here too until a container runtime
    takes it (`handed`). Or a tap: a machine is behind it."""

    host_interface: str  # "slp7", at most 15 characters; of a tap port the name that was given to it
    alias: str  # "sluice:port:<endpoint uid>:<port id>"
    netns: str  # name under /run/netns, or an absolute path; unused for a tap and a handed port
    interface: str  # name inside the namespace; of a handed port, of the far end while it is here; unused for a tap
    mac: str  # of the endpoint
    addresses: tuple[str, ...]  # with prefix length: "10.1.0.5/24"; at most one of each family
    gateways: tuple[str, ...]  # at most one of each family; of a family without one: no default route
    mtu_bytes: int
    bridge: str = ""  # "": none; else a bridge of ours that exists
    tap: bool = False
    queues: int = 1  # of a tap
    dhcp: bool = False  # its IPv4 addresses and default route come from a server: they are its own business
    accept_ra: bool = False  # it listens to router advertisements: it may have IPv6 routes by them
    slaac: bool = False  # with `accept_ra`: and addresses (RFC 4862)
    handed: bool = False  # its addresses, routes and name over there are the runtime's business
    dead_end: bool = False  # the gateways lead to nothing but their own network: any other default route comes first
    namespace: str = ""  # `Switch.identify` of the one that is meant, whatever is at the path now; "": any


@dataclass(frozen=True, slots=True)
class BridgeLink:
    """The bridge of a network whose gateway is the host's own stack. It neither floods nor learns."""

    name: str  # "slb<n>"
    alias: str  # "sluice:bridge:<network uid>"
    mac: str
    addresses: tuple[str, ...]  # of the gateways, with prefix length; none: the host's stack is not among the endpoints
    mtu_bytes: int


@dataclass(frozen=True, slots=True)
class TunnelLink:
    """The one VXLAN device (RFC 7348) of the host: external (collect metadata), no learning, both families."""

    name: str  # "slvx0"
    alias: str  # "sluice:tunnel"
    udp_port: int = 4789
    mtu_bytes: int = 1450
    ipv6: bool = False  # an underlay address is IPv6: packets without a UDP checksum are taken there, too (RFC 6935)


@dataclass(frozen=True, slots=True)
class Limit:
    """Bandwidth of one queue, in bits a second of Ethernet frames without their checksum."""

    rate_bps: int  # guaranteed, if all guarantees together fit
    ceil_bps: int  # at most
    burst_bytes: int = 0  # that may come at once; 0: what a hundredth of a second brings


@dataclass(frozen=True, slots=True)
class ShaperLink:
    """A veth pair whose first end has a queue for each shaped port; what leaves it comes in at the second."""

    name: str  # "slq0"
    peer: str  # "slq1"
    alias: str  # "sluice:shaper"


@dataclass(frozen=True, slots=True)
class InspectPrograms:
    """Descriptors of the programs on the detour by user space: its first link, its second, and the host's end."""

    inspect_in_fd: int
    inspect_out_fd: int
    inspected_fd: int


@dataclass(frozen=True, slots=True)
class Detour:
    """The detour as it stands. `ifindex`: of the host's link that leads there."""

    ifindex: int
    namespace: Path
    inode: int  # of the namespace: another one is another namespace of the same name


@dataclass(frozen=True, slots=True)
class OwnedLink:
    """A link of ours as found. `alias` is empty when its making was cut short."""

    name: str
    ifindex: int
    kind: str  # "veth", "tun", "bridge", "vxlan"
    mtu_bytes: int
    alias: str
    far_here: bool = False  # of a pair: its other end is in this namespace, too


@dataclass(frozen=True, slots=True)
class UplinkState:
    """A link of the host towards the world or the underlay."""

    ifindex: int
    name: str
    addresses: tuple[str, ...]  # IPv4 with prefix length, primary first
    mtu_bytes: int
    mac: str  # "" where the link has none
    addresses6: tuple[str, ...] = ()  # IPv6 likewise: of global scope, neither temporary nor deprecated


@dataclass(frozen=True, slots=True)
class UnderlayState:
    """An address of the host that sends and receives VXLAN, and the link where its packets come in."""

    address: str  # without prefix length
    ifindex: int  # 0: the link is no Ethernet (lo, a tunnel): packets can be had by the VXLAN device only
    name: str
    mtu_bytes: int


@dataclass(frozen=True, slots=True)
class PathState:
    """How far a packet to an address gets in one piece."""

    mtu_bytes: int
    expires_s: float = 0.0  # seconds from now, when what a router told is forgotten; 0: it holds until routes change


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the host has besides what Sluice made: the same shape as the southbound's `HostFacts`."""

    addresses: tuple[tuple[str, str], ...]  # (interface, "172.16.0.10/24"); no link-local IPv6
    routes: tuple[tuple[str, str], ...]  # (interface or "", prefix), all tables; no default routes
    listeners: tuple[tuple[str, str, int], ...]  # ("tcp" | "udp" | "sctp", address, port)
    links: tuple[str, ...] = ()  # names
