"""The messages of the southbound protocol, version 4, and the goal-state objects they carry.

A goal state is a set of objects, each with a `key` (kind, id). The controller derives it for one host; the agent
makes it so. Objects are frozen dataclasses of plain values, so that they travel as msgpack maps and compare
by value. Addresses and prefixes are text (`10.1.0.5`, `10.1.0.0/24`), MACs are `02:00:..` text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

PROTOCOL_VERSION = 4
REMOTES_BLOCK = 256                         # endpoints in one `RemotesGoal`

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Subnet:
    """One prefix of a network, of either family, with the gateway that answers in it."""

    prefix: str
    gateway: str


@dataclass(frozen=True, slots=True)
class NatGoal:
    """How a nat network's endpoints reach the world. Names of `timeouts` are those of `sluice agent run --timeout`."""

    addresses: tuple[str, ...] = ()         # external ones; empty: those of the uplink, by destination
    exceptions: tuple[str, ...] = ()        # prefixes: destinations that are routed untranslated
    destinations: tuple[str, ...] = ()      # prefixes: only these are translated, others routed; empty: all are
    filtering: Literal["endpoint-independent", "address-dependent", "address-and-port-dependent"] = (
        "endpoint-independent")
    block: int = 0                          # ports to a block, given to an endpoint as a whole; 0: one by one
    quota: int = 0                          # bindings of one endpoint; 0: no limit
    log: bool = False                       # a record of each binding, or block, that begins or ends
    ipv6: Literal["routed", "masquerade", "prefix"] = "routed"
    external_prefix: str = ""               # with `prefix`: what the network's IPv6 prefix becomes (RFC 6296)
    timeouts: tuple[tuple[str, float], ...] = ()    # (name, s), for the endpoints' flows


Mode = Literal["nat", "overlay", "transparent", "l2bridge", "l2tunnel", "private"]


@dataclass(frozen=True, slots=True)
class RouteGoal:
    """Where a network sends a prefix that is none of its subnets. One of `address` and `vteps` is given."""

    prefix: str
    address: str = ""                       # next hop in the network
    vteps: tuple[str, ...] = ()             # of the host whose exit it is; see `southbound.vteps`
    here: bool = False                      # with `vteps`: that host is this one


@dataclass(frozen=True, slots=True)
class FloodGoal:
    """How broadcast and multicast spread in a network."""

    rate: int                               # frames a second, by host and CPU
    burst: int
    vteps: tuple[str, ...] = ()             # of overlay: one for each other host that has a port in it


@dataclass(frozen=True, slots=True)
class QosGoal:
    """Limits and marks of one endpoint. Rates are bits a second of frames as they are on its link; 0: none."""

    egress_bps: int = 0                     # from the endpoint
    egress_burst_bytes: int = 0
    ingress_bps: int = 0                    # towards the endpoint
    ingress_burst_bytes: int = 0
    minimum_bps: int = 0                    # guaranteed from the endpoint, of `HostGoal.uplink_bps`
    dscp: int | None = None                 # 0..63: mark what it sends
    packets_out: int = 0                    # a second
    packets_in: int = 0
    connections: int = 0                    # at a time
    meter: bool = False                     # count packets and bytes by direction and rule, exactly


@dataclass(frozen=True, slots=True)
class NetworkGoal:
    """A network that has a port on this host, or is peered with one that has."""

    kind: ClassVar[str] = "network"

    id: str                                 # resource uid
    name: str
    tenant: str
    mode: Mode
    space: int                              # VNI for overlay; 2**24 + n for the others; unique in the controller
    subnets: tuple[Subnet, ...]
    gateway_mac: str
    mtu_bytes: int                          # 0: underlay (or uplink) MTU minus overhead, found by the agent
    nat: NatGoal = NatGoal()                # of a nat network, and of an overlay with `egress`
    uplink: str = ""                        # transparent, l2bridge, l2tunnel: interface; empty: the host's
    peers: tuple[str, ...] = ()             # NetworkGoal.id of overlays that it is peered with, either way
    routes: tuple[RouteGoal, ...] = ()
    egress: bool = False                    # overlay: to the world by this host's NAT
    isolated: bool = False                  # its endpoints reach the gateway and what is behind it, not each other
    flood: FloodGoal | None = None          # None: group MACs are dropped, but for ARP and ND that are answered
    advertise: bool = False                 # router advertisements from the gateway (RFC 4861), without SLAAC
    slaac: bool = False                     # with `advertise`: prefixes are for autonomous addresses (RFC 4862)


@dataclass(frozen=True, slots=True)
class AclRule:
    """One rule of a policy as it applies to one endpoint; peers are resolved to prefixes."""

    priority: int                           # 0..65535, lower wins
    direction: Literal["in", "out"]
    action: Literal["allow", "deny", "reject", "pass"]
    peers: tuple[str, ...] = ()             # prefixes of the other side; empty: any
    protocol: int | None = None
    ports: tuple[tuple[int, int], ...] = ()  # destination port ranges, inclusive; empty: any
    name: str = ""
    dscp: int | None = None                 # 0..63, with allow: mark the flow's packets
    log: bool = False                       # with allow, and not with dscp: a record of each new flow
    domains: tuple[str, ...] = ()           # out and allow: only to what DNS says of these names; then no peers
    mapped: bool = False                    # in: only for packets that came by a static mapping


@dataclass(frozen=True, slots=True)
class AclTier:
    """One policy on one endpoint: a group of the `acl` layer. Tiers run by ascending `order`."""

    policy: str                             # tenant/name of the Policy
    order: int
    rules: tuple[AclRule, ...]


@dataclass(frozen=True, slots=True)
class PortGoal:
    """An endpoint that lives on this host."""

    kind: ClassVar[str] = "port"

    id: str                                 # resource uid of the Endpoint
    name: str
    tenant: str
    network: str                            # NetworkGoal.id
    address: str                            # IPv4, with prefix length: 10.1.0.5/24; empty: none
    mac: str
    netns: str                              # name under /run/netns, or an absolute path; empty: a tap port
    interface: str                          # name inside the namespace, or of the tap device; at most 15 characters
    tiers: tuple[AclTier, ...] = ()
    default_in: Literal["allow", "deny"] = "allow"
    default_out: Literal["allow", "deny"] = "allow"
    strict_tcp: bool = False                # drop TCP segments that do not fit their connection's state
    address6: str = ""                      # IPv6, with prefix length; empty: none. One of the two there is, or `dhcp`
    qos: QosGoal = QosGoal()                # of the endpoint, or of its network
    dhcp: bool = False                      # transparent: its IPv4 address comes by DHCP, and is learned from the lease
    forwards: tuple[str, ...] = ()          # prefixes that it may send from beside its own addresses: it is a router
    vlans: tuple[int, ...] = ()             # transparent: 802.1Q tags that it may send and get
    behind: str = ""                        # PortGoal.id by whose link it is reached: no link of its own
    queues: int = 1                         # of a tap port
    handed: bool = False                    # no namespace: `interface` is the far end's name in the host's own, until a
                                            # container runtime takes it away and sets it up


@dataclass(frozen=True, slots=True)
class RemotesGoal:
    """Endpoints of a network of ours that live behind another host, CA to PA, in columns of equal length.

    A host's endpoints in one network come in blocks of at most `REMOTES_BLOCK`, by a hash of the endpoint's
    uid, so that a change is one small object.
    """

    kind: ClassVar[str] = "remotes"

    id: str                                 # network uid/host name/block number
    network: str                            # NetworkGoal.id
    host: str                               # name of the Host
    vteps: tuple[str, ...]                  # its underlay addresses, in the order declared; see `southbound.vteps`
    names: tuple[str, ...]                  # of the Endpoints, for traces
    macs: bytes                             # 6 bytes each
    addresses: bytes                        # IPv4, 4 bytes each; 0.0.0.0: none
    addresses6: bytes                       # IPv6, 16 bytes each; ::: none. Empty: none has any


@dataclass(frozen=True, slots=True)
class MappingGoal:
    """A static mapping whose internal endpoint is on this host."""

    kind: ClassVar[str] = "mapping"

    id: str                                 # resource uid
    name: str
    tenant: str
    protocol: Literal["tcp", "udp", "sctp", "icmp", "any"]    # any: the whole address, ports 0
    external_address: str                   # 0.0.0.0, ::: every address of the uplink, of that family
    external_ports: tuple[int, int]         # inclusive; of ICMP the identifier
    port: str                               # PortGoal.id
    internal_address: str
    internal_port: int                      # of the first external one; the others follow


@dataclass(frozen=True, slots=True)
class HostGoal:
    """What the controller says of the host itself. One object, id `self`."""

    kind: ClassVar[str] = "host"

    id: str
    underlay: str = ""                      # this host's VTEP address; empty: none, no overlay
    uplink: str = ""                        # interface name for NAT; empty: the one with the default route
    nat_ports: tuple[int, int] = (20000, 32767)   # source ports that NAT may use
    underlays: tuple[str, ...] = ()         # all VTEP addresses of this host; `underlay` is the first
    vxlan_port: int = 4789                  # UDP; the same on all hosts
    uplink_bps: int = 0                     # what the uplink carries, for guaranteed minimums; 0: not known
    mapping_ports: tuple[int, int] = (10000, 19999)     # external ports that it chooses by itself, by a lease


@dataclass(frozen=True, slots=True)
class LeaseGoal:
    """Addresses of a network that this host may give to endpoints by itself while the controller is away.

    An endpoint without labels would get the policies given here; one with labels cannot be attached by a lease, nor one
    that a policy speaks of by name.
    """

    kind: ClassVar[str] = "lease"

    id: str                                 # NetworkGoal.id
    addresses: tuple[str, ...]              # of both families, without length; those that endpoints here use among them
    whole: bool = False                     # the network is on this host only: what nobody has of `ranges` may be given
    ranges: tuple[tuple[str, str], ...] = ()    # with `whole`: first and last address, in the order to give them out
    named: tuple[str, ...] = ()             # names that policies of the network speak of
    tiers: tuple[AclTier, ...] = ()
    default_in: Literal["allow", "deny"] = "allow"
    default_out: Literal["allow", "deny"] = "allow"
    strict_tcp: bool = False
    qos: QosGoal = QosGoal()


Goal = NetworkGoal | PortGoal | RemotesGoal | MappingGoal | HostGoal | LeaseGoal
GOALS: tuple[type[Goal], ...] = (NetworkGoal, PortGoal, RemotesGoal, MappingGoal, HostGoal, LeaseGoal)


def key_of(goal: Goal) -> Key:
    """Identity of a goal-state object."""
    return (goal.kind, goal.id)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the agent saw on its host; the controller validates prefixes and mappings against it."""

    addresses: tuple[tuple[str, str], ...] = ()   # (interface, 172.16.0.10/24), not those that Sluice made
    routes: tuple[tuple[str, str], ...] = ()      # (interface, prefix), all tables, not those that Sluice made
    listeners: tuple[tuple[str, str, int], ...] = ()  # (protocol, address, port) of host sockets
    underlay_mtu_bytes: int = 1500
    features: tuple[str, ...] = ()
    links: tuple[str, ...] = ()             # names of its interfaces, not those that Sluice made; the first 256


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of an enrolled agent. `applied_revision` 0: it has nothing."""

    version: int
    host: str
    agent: str                              # software version
    boot: str                               # random per process: tells a reconnect from a restart
    applied_revision: int
    facts: HostFacts


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to `Hello`. `store` is the identity of the controller's database: if it changed, a full sync follows."""

    version: int
    store: str
    keepalive_s: float


@dataclass(frozen=True, slots=True)
class Join:
    """First message of a host without a certificate. `csr_pem` is a PKCS#10 request for common name `host`."""

    version: int
    host: str
    token: str
    csr_pem: bytes


@dataclass(frozen=True, slots=True)
class Joined:
    """The signed certificate and the CA's."""

    certificate_pem: bytes
    ca_pem: bytes


@dataclass(frozen=True, slots=True)
class FullSync:
    """The whole goal state at a revision; what is not in it must go."""

    revision: int
    goals: tuple[Goal, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """Changes from `base` to `revision`. An agent not at `base` answers `Resync`."""

    base: int
    revision: int
    put: tuple[Goal, ...]
    remove: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Resync:
    """The agent asks for a full sync."""

    reason: str


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """How one goal-state object fared. `error` empty: it is programmed."""

    kind: str
    id: str
    error: str = ""
    details: dict[str, Any] = field(default_factory=dict)   # e.g. {"host_interface": "slp3"}


@dataclass(frozen=True, slots=True)
class Ack:
    """The goal state of `revision` is on disk and was applied, but for the objects with an error."""

    revision: int
    objects: tuple[ObjectStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """The host's surroundings changed."""

    facts: HostFacts


@dataclass(frozen=True, slots=True)
class Query:
    """The controller asks the agent to look inside: `what` is trace, flows, drops, rules, ..."""

    id: int
    what: str
    args: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """Result of a `Query`; `error` empty on success. `data` is JSON-like."""

    id: int
    error: str
    data: Any


@dataclass(frozen=True, slots=True)
class Request:
    """The agent asks the controller for a runtime of its host: `what` is apply, delete, get or lease.

    What a host may ask for is in `controller.host_requests`.
    """

    id: int
    what: str
    args: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """Result of a `Request`. `problems` empty on success, else as the REST API gives them; `data` is JSON-like."""

    id: int
    problems: tuple[dict[str, Any], ...]
    data: Any


@dataclass(frozen=True, slots=True)
class Ping:
    """Keepalive, either way."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to `Ping`."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Last message before the connection is closed: why."""

    reason: str


Message = (Hello | Welcome | Join | Joined | FullSync | Delta | Resync | Ack | Facts | Query | Answer
           | Request | Reply | Ping | Pong | Refused)
