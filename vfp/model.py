"""What a policy engine is told: ports, layers, groups, rules, and the tables that actions refer to.

Everything here is a frozen value: built, compared and hashed without root. `vfp.compile` turns an
`EngineState` into BPF map contents; `vfp.reference` evaluates the same state in plain Python.

Terms: a *port* is one virtual NIC. OUT is the direction from the port to the wire, IN towards the port.
A *space* maps addresses to places (a local port, a remote VTEP, the host's own stack), and MACs to ports where frames
are switched. A *VTEP* is an address of the underlay that sends and receives VXLAN (RFC 7348). A *pool* is an external
address with a range of ports for source translation. A *mapping* is a fixed inbound translation. A *set* is a named
collection of addresses and prefixes that rules refer to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from vfp.timeouts import Timeouts

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

ETH_P_IP = 0x0800
ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD

MAX_PRIORITY = 0xFFFFFFFF


class Direction(StrEnum):
    """Which way a packet goes, seen from the port."""

    OUT = "out"
    IN = "in"


@dataclass(frozen=True, slots=True)
class PortRange:
    """Inclusive range of transport ports (host byte order)."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Match:
    """Conditions of a rule; all that are given must hold. `Match()` matches every packet.

    For ARP, `src`/`dst` are the sender and target protocol addresses (RFC 826) and `protocol` is the opcode.
    For a neighbour solicitation `dst` is the target that is asked for, for an advertisement `src` is the target that it
    speaks for (RFC 4861): as in ARP, `src` is who speaks and `dst` who is meant.
    For ICMP and ICMPv6, `icmp_type`/`icmp_code` apply; transport ports do not exist and a port condition cannot hold.
    """

    ethertype: int | None = None
    src_mac: bytes | None = None            # 6 bytes
    dst_mac: bytes | None = None            # 6 bytes
    src: Prefix | None = None
    dst: Prefix | None = None
    protocol: int | None = None             # IP protocol number, or ARP opcode
    src_ports: PortRange | None = None
    dst_ports: PortRange | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    tcp_flags: tuple[int, int] | None = None  # (mask, value): flags & mask == value; TCP only
    dscp: int | None = None                 # 0..63
    src_set: int | None = None              # id of an AddressSet; with `src`: both must hold
    dst_set: int | None = None
    vni: int | None = None                  # the packet came over the overlay with this VNI
    fragment: bool | None = None            # True: any fragment of a datagram, False: a whole one; IP only
    mapped: bool | None = None              # True: the packet came by a static `Mapping`, False: it did not
    arp_sender_is_source: bool = False      # ARP sender hardware address equals the Ethernet source
    nd_sender_is_source: bool = False       # ND speaks for its sender only: link-layer address, and NA's source


@dataclass(frozen=True, slots=True)
class Allow:
    """Let the packet pass this layer unchanged."""


@dataclass(frozen=True, slots=True)
class Deny:
    """Drop; counted against the rule."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Leave this group; the next group of the layer decides."""


@dataclass(frozen=True, slots=True)
class TranslateSource:
    """Rewrite source address and port (or ICMP id) to a binding allocated from a pool (RFC 4787).

    OUT; IN only for a packet that came by an uplink.
    """

    pool: int


@dataclass(frozen=True, slots=True)
class Hairpin:
    """OUT: a destination that is the external side of a mapping or binding on the pool's uplink is reached from inside.

    The packet goes to who is behind it, as from the external side of `pool` (RFC 4787 REQ-9), and no later layer of the
    sender runs. Any other destination: as `Pass`.
    """

    pool: int


@dataclass(frozen=True, slots=True)
class TranslatePrefix:
    """OUT: rewrite an IPv6 source in `internal` to `external` (RFC 6296); the two are of one length."""

    internal: IPv6Network
    external: IPv6Network


@dataclass(frozen=True, slots=True)
class Untranslate:
    """Rewrite the destination to the internal one of the mapping, binding or prefix under which the packet came in from
    an uplink. A packet that was found by none is allowed unchanged.
    """


@dataclass(frozen=True, slots=True)
class Forward:
    """Deliver to the place that `space` has for the destination address; no entry there: drop."""

    space: int


@dataclass(frozen=True, slots=True)
class ToUplink:
    """Send through an uplink, to the neighbour that the host's routing table has for the destination, or for `via`.

    TTL or hop limit is decremented (RFC 1812 5.3.1), unless `bridged`: the endpoint is on the uplink's own segment, in
    the host's name.
    """

    uplink: int
    bridged: bool = False
    via: Address | None = None              # of the packets' family: they all go to this router


@dataclass(frozen=True, slots=True)
class Switch:
    """OUT: deliver by the frame's destination MAC, unchanged: to the station of `space` that has it, else to its wire.

    A group MAC goes to all other stations, the wire and the VTEPs of `space.flooding`, at most so many a second;
    without `flooding` it is dropped (NOT_FLOODED).
    """

    space: int


@dataclass(frozen=True, slots=True)
class AnswerArp:
    """Answer an ARP request or a neighbour solicitation from `space` on the spot; anything else is dropped.

    With `proxy` an address that the space has no place for is answered with the port's gateway MAC.
    """

    space: int
    proxy: bool = False


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Set header fields to fixed values; None leaves a field. The reply gets the inverse."""

    src: Address | None = None
    dst: Address | None = None
    src_port: int | None = None
    dst_port: int | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """Drop, and tell the sender: TCP by a reset (RFC 9293 3.5.2), else ICMP "administratively prohibited"."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Set the DSCP of the flow's packets, both ways (RFC 2474); ECN stays."""

    dscp: int                               # 0..63


@dataclass(frozen=True, slots=True)
class Meter:
    """Count the flow's packets and bytes, both ways, on a meter. Of several in one port's layers the last holds."""

    meter: int                              # 1..2**32-1


@dataclass(frozen=True, slots=True)
class Log:
    """Write a record: one when a flow begins (`every` 0), or of each `every`th of its packets."""

    every: int = 0


@dataclass(frozen=True, slots=True)
class Mirror:
    """Deliver a copy of the flow's packets, both ways and as they came, to another port."""

    port: int


@dataclass(frozen=True, slots=True)
class Inspect:
    """Let user space see the flow's packets, both ways, before they go on.

    Nobody listens: drop, or pass if `fail_open`.
    """

    queue: int                              # 0..15
    fail_open: bool = False


Modifier = Mark | Meter | Log | Mirror
Action = (
    Allow | Deny | Pass | TranslateSource | TranslatePrefix | Hairpin | Untranslate | Forward | ToUplink | Switch
    | AnswerArp | Rewrite | Reject | Modifier | Inspect
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a group. The lowest `priority` number that matches wins."""

    priority: int                           # 0..MAX_PRIORITY
    match: Match
    action: Action
    name: str = ""                          # shown in traces and drop records; identity of the hit counter
    stateful: bool = True                   # also let the reply through, past the layers
    terminating: bool = True                # ends its layer; False (a `Modifier` only): the next group goes on
    syn_only: bool = False                  # holds only for a TCP segment that opens a connection (SYN without ACK)


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are searched together."""

    name: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One stage of a port: groups in order for each direction, and what holds when no rule decides.

    Groups run in order until a rule other than `Pass` matches. `default_*` is `Allow()` or `Deny()`.
    """

    name: str
    groups_out: tuple[Group, ...] = ()
    groups_in: tuple[Group, ...] = ()
    default_out: Allow | Deny = field(default_factory=Deny)
    default_in: Allow | Deny = field(default_factory=Deny)


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket."""

    per_second: int                         # 1..2**31
    burst: int                              # 1..2**20, what may come at once


@dataclass(frozen=True, slots=True)
class Port:
    """One virtual NIC. `layers` are in OUT order; IN runs them the other way."""

    id: int                                 # 1..MAX_PORTS-1, unique on the host
    name: str
    ifindex: int                            # host side of the pair
    mac: bytes                              # of the endpoint
    gateway_mac: bytes                      # source of routed frames delivered to the endpoint
    layers: tuple[Layer, ...] = ()
    strict_tcp: bool = False                # drop segments that do not fit the connection's state; else pick them up
    timeouts: Timeouts | None = None        # of flows that this port began, or that came to it; None: the engine's
    tap: bool = False                       # `ifindex` is a tap device: a machine is behind it, not the peer of a veth
    gateways: tuple[Address, ...] = ()      # source of ICMP errors to the endpoint, one a family; none: the destination
    mtu: int = 0                            # bytes of the largest packet that the endpoint takes; 0: not known
    shaped: bool = False                    # what it sends passes `EngineState.shaper`, by class `id`
    queued: bool = False                    # what it gets leaves by the egress of its link, where a queue may be
    rate_out: Rate | None = None            # packets that it may send, beyond: RATE_LIMITED
    rate_in: Rate | None = None             # packets that it may get
    connections: int = 0                    # live pairs of flows that it began, or that came to it; 0: no limit
    vteps: tuple[Address, ...] = ()         # outer source of what it sends into tunnels, one a family; none: by route
    vlans: tuple[int, ...] = ()             # 802.1Q tags that it may send and get, 1..4094, at most 8; else VLAN_TAGGED
    exit_of: int | None = None              # it has no link (`ifindex` 0): the way out of this space; see `Route`


@dataclass(frozen=True, slots=True)
class LocalPort:
    """An address that is behind a port of this engine."""

    port: int
    mac: bytes


@dataclass(frozen=True, slots=True)
class Remote:
    """An address behind another host: CA (the key) to PA (`vtep`)."""

    vtep: Address
    vni: int                                # 0..2**24-1
    mac: bytes


@dataclass(frozen=True, slots=True)
class RemoteBlock:
    """Many addresses of one family behind one VTEP, in columns: made, compared and compiled as a whole."""

    vtep: Address
    vni: int
    version: int                            # 4 or 6
    addresses: bytes                        # 4 or 16 bytes each, network byte order
    macs: bytes                             # 6 bytes each, in the same order


@dataclass(frozen=True, slots=True)
class HostStack:
    """An address that the host itself answers for (a gateway on a bridge): the packet is left to the stack."""

    mac: bytes


@dataclass(frozen=True, slots=True)
class Virtual:
    """An address that exists only in ARP answers (a distributed gateway); packets to it are dropped."""

    mac: bytes


Location = LocalPort | Remote | HostStack | Virtual


@dataclass(frozen=True, slots=True)
class Route:
    """Where a space sends what it has no entry for, by the longest prefix; and whom it accepts such sources from.

    `via` an address: to the place that the space has for it. A `Remote`: to that VTEP, which has an exit. A `LocalPort`
    whose port is an exit: the port's OUT layers run as if the packet came from it; what they let in again (by binding
    or mapping) goes to the place that the exit's space has.
    """

    prefix: Prefix
    via: Address | Remote | LocalPort


@dataclass(frozen=True, slots=True)
class Wire:
    """The segment behind an uplink that a space is part of.

    Stations are there with their own MACs; with `proxy` the space's local addresses are there with the uplink's MAC: it
    answers ARP and neighbour solicitations for them, and what comes to it for them goes in.
    """

    uplink: int
    proxy: bool = False


@dataclass(frozen=True, slots=True)
class Flooding:
    """How frames to group MACs spread: to stations and wire of a space, and to `vteps` (head-end replication)."""

    rate: Rate                              # frames of the space, by CPU
    vni: int = 0
    vteps: tuple[Address, ...] = ()         # at most 128


@dataclass(frozen=True, slots=True)
class Space:
    """Address to place. Packets that arrive over the overlay with VNI v are looked up in the space whose id is v.

    ARP requests and neighbour solicitations that arrive so, for an address of a local port or a `Virtual` one, are
    answered over the tunnel if their sender is mapped to the outer source.
    """

    id: int                                 # 0..2**24-1 for overlays (= VNI); 2**24.. for others
    entries: tuple[tuple[Address, Location], ...] = ()
    blocks: tuple[RemoteBlock, ...] = ()
    routes: tuple[Route, ...] = ()
    stations: tuple[tuple[bytes, int], ...] = ()    # (MAC, port): who gets frames, at most 1024
    wire: Wire | None = None
    flooding: Flooding | None = None


class Filtering(StrEnum):
    """Who in the world may send to the external side of a binding (RFC 4787 section 5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"               # anyone
    ADDRESS = "address-dependent"                               # addresses that the internal side has sent to
    ADDRESS_PORT = "address-and-port-dependent"                 # addresses and ports that it has sent to


@dataclass(frozen=True, slots=True)
class Pool:
    """External addresses and the ports that source translation may use.

    What has no port that can be changed keeps what it has: SCTP its port, whatever the range; protocols without ports
    have the whole address for themselves, by protocol.
    """

    id: int
    uplink: int
    addresses: tuple[Address, ...]          # 1 to 16, of one family; an internal address keeps to one (RFC 4787 REQ-2)
    ports: PortRange
    filtering: Filtering = Filtering.ENDPOINT_INDEPENDENT
    block: int = 0                          # ports are given out in blocks of so many to a port of ours; 0: one by one
    quota: int = 0                          # bindings that one port of ours may have; 0: no limit
    held: tuple[tuple[int, int], ...] = ()  # (protocol, port) that somebody else has: never given out
    log: bool = False                       # write a record of each binding (or block) that begins or ends


@dataclass(frozen=True, slots=True)
class Mapping:
    """Fixed inbound translation: external (uplink, address, protocol, port) to a port's internal address and port.

    Protocol 0 is any protocol: only the address is translated, and both ports are 0; one with the packet's protocol
    comes before it. Of ICMP echo requests the port is the identifier. SCTP: both ports are the same.
    """

    uplink: int
    protocol: int                           # 6 TCP, 17 UDP, 132 SCTP, 1 ICMP, 58 ICMPv6; 0: any
    external: Address                       # one of the host's own addresses; wildcards are expanded by the caller
    external_port: int
    port: int                               # the Port that receives
    internal: Address                       # of the same family
    internal_port: int
    name: str = ""                          # shown in traces; whose hits are counted (`Datapath.mapping_hits`)


@dataclass(frozen=True, slots=True)
class PrefixMapping:
    """Inbound prefix translation: destinations in `external` that came by the uplink become ones in `internal`.

    Checksum-neutral (RFC 6296); the packet goes to the place that `space` has for the new destination.
    """

    uplink: int
    external: IPv6Network
    internal: IPv6Network                   # of the same length
    space: int


@dataclass(frozen=True, slots=True)
class AddressSet:
    """Addresses and prefixes that rules name by `id`. A `dynamic` set's members come and go by the engine's
    `add_members` and `remove_members`, with a time to live, and not by the state."""

    id: int                                 # 1..2**32-1
    name: str
    members: tuple[Prefix, ...] = ()
    dynamic: bool = False


@dataclass(frozen=True, slots=True)
class Uplink:
    """A link of the host towards the world, or (`loopback`) towards the host's own sockets: what goes there enters the
    host's stack by the loopback device, and what its sockets send to a mapped address comes by it."""

    id: int                                 # 1..255
    name: str
    ifindex: int
    loopback: bool = False
    mtu: int = 0                            # bytes of the largest packet it carries, 0..65535; 0: not known
    mac: bytes = bytes(6)                   # of the link; only a `Wire` with `proxy` needs it


@dataclass(frozen=True, slots=True)
class Underlay:
    """An address of this host that sends and receives VXLAN.

    With `ifindex` the engine makes and takes off the outer headers of single packets itself, at that link; packets that
    an offload made of several go by the VXLAN device, as all do with 0 (DSCP and ECN either way by RFC 6040).
    """

    address: Address
    ifindex: int = 0
    mtu: int = 0                            # bytes of the largest outer packet; 0: not known


@dataclass(frozen=True, slots=True)
class EngineState:
    """Everything the engine of one host is told. `tunnel_ifindex` 0: no overlay device; `inspect_ifindex` 0: nowhere to
    inspect."""

    ports: tuple[Port, ...] = ()
    spaces: tuple[Space, ...] = ()
    pools: tuple[Pool, ...] = ()
    mappings: tuple[Mapping, ...] = ()
    uplinks: tuple[Uplink, ...] = ()
    tunnel_ifindex: int = 0
    sets: tuple[AddressSet, ...] = ()
    inspect_ifindex: int = 0
    prefixes: tuple[PrefixMapping, ...] = ()
    underlays: tuple[Underlay, ...] = ()
    paths: tuple[tuple[Address, int], ...] = ()     # (VTEP, bytes): a path narrower than the underlay's links
    tunnel_port: int = 4789                         # UDP
    shaper: int = 0                                 # ifindex of the link whose queues shape ports; 0: none are
