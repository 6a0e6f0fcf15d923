"""Goal states of one host, fakes behind the agent's seams, and frames; for the tests of features and agent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from agent.build import INSPECT_LINKS, Built, Observed, build, wanted
from agent.goals import Goals
from agent.ids import Ids, allocate
from agent.observed import UnderlayState
from agent.reconcile import Reconciler
from agent.state import Disk
from southbound.messages import (
    Goal,
    HostGoal,
    MappingGoal,
    Mode,
    NatGoal,
    NetworkGoal,
    PortGoal,
    RemotesGoal,
    Subnet,
    key_of,
)
from vfp import reference
from vfp.compile import Compiler, rule_cookie
from vfp.datapath.binding_log import BindingEvent
from vfp.datapath.bindings import BindingRecord
from vfp.datapath.capture import Captured
from vfp.datapath.engine import Hook
from vfp.datapath.records import DropEvent, FlowRecord, InspectCounts, LogEvent, MeterCount, RuleHits
from vfp.datapath.select import FlowFilter, FlowPage
from vfp.datapath.trace import Traced
from vfp.layout import PlaceKind, Ring, ZoneKind
from vfp.model import Address, EngineState, Prefix
from vfp.reasons import DropReason
from vfp.reference import Engine, explain_frame
from vfp.reference.bindings import BindingKey, Block, External
from vfp.reference.packet import FlowTuple
from vfp.reference.transposition import ToPort, ToUplink, ToVtep
from vswitch import links as vswitch_links
from vswitch.errors import NamespaceGone, NamespaceMissing, UplinkMissing, VSwitchError
from vswitch.links import (
    BridgeLink,
    Detour,
    HookedProgram,
    InspectPrograms,
    Limit,
    OwnedLink,
    PathState,
    PortLink,
    ShaperLink,
    Surroundings,
    TunnelLink,
    UplinkState,
    Where,
)

HOST_ADDRESS = "172.16.0.10"
SECOND_ADDRESS = "172.17.0.10"
VTEP, OTHER_VTEP = "172.31.0.1", "172.31.0.2"
MAX_PORTS = 4096
UPLINK_MAC = "02:aa:00:00:00:01"

HOST = HostGoal("self", underlay=VTEP, uplink="lan0")


def nat(n: int = 1, *prefixes: str, tenant: str = "default", **more: object) -> NetworkGoal:
    """`more`: fields of its `NatGoal`."""
    subnets = tuple(subnet(prefix) for prefix in prefixes or (f"192.168.{n}.0/24",))
    return NetworkGoal(
        f"nat-{n}", f"nat{n}", tenant, "nat", (1 << 24) + n, subnets, f"02:fe:00:00:01:{n:02x}", 0,
        NatGoal(**more),  # type: ignore[arg-type]
    )


def overlay(vni: int = 5001, *prefixes: str, tenant: str = "red") -> NetworkGoal:
    mac = f"02:fe:00:00:{vni >> 8 & 0xFF:02x}:{vni & 0xFF:02x}"
    subnets = tuple(subnet(prefix) for prefix in prefixes or ("10.1.0.0/24",))
    return NetworkGoal(f"overlay-{vni}", "net", tenant, "overlay", vni, subnets, mac, 0)


def subnet(prefix: str) -> Subnet:
    """With its first address as the gateway."""
    return Subnet(prefix, str(next(ip_network(prefix).hosts())))


def port(name: str, network: NetworkGoal, address: str, n: int, **more: object) -> PortGoal:
    return PortGoal(
        id=f"uid-{name}",
        name=name,
        tenant=network.tenant,
        network=network.id,
        address=f"{address}/24" if address else "",
        mac=f"02:00:00:00:00:{n:02x}",
        netns=f"ns-{name}",
        interface="eth0",
        **more,  # type: ignore[arg-type]
    )


def remote(
    name: str, network: NetworkGoal, address: str, n: int, vtep: str = OTHER_VTEP, address6: str = ""
) -> RemotesGoal:
    """A block of one endpoint."""
    block = remotes(network, (name, address, n, address6), vteps=(vtep,))
    return replace(block, id=f"{network.id}/h2/{name}")


def remotes(
    network: NetworkGoal, *endpoints: tuple[str, str, int, str], host: str = "h2",
    vteps: tuple[str, ...] = (OTHER_VTEP,), block: int = 0,
) -> RemotesGoal:
    """A block of (name, IPv4 or "", number of the MAC, IPv6 or "")."""
    return RemotesGoal(
        f"{network.id}/{host}/{block}", network.id, host, vteps, tuple(name for name, *_ in endpoints),
        b"".join(bytes((2, 0, 0, 0, 0, n)) for _, _, n, _ in endpoints),
        b"".join(IPv4Address(four or 0).packed for _, four, _, _ in endpoints),
        b"".join(IPv6Address(six or "::").packed for *_, six in endpoints))


def network_of(mode: Mode, *prefixes: str, n: int = 1, **more: object) -> NetworkGoal:
    """A network of a mode that is neither nat nor overlay."""
    subnets = tuple(subnet(prefix) for prefix in prefixes or ("172.16.0.0/24",))
    return NetworkGoal(
        f"{mode}-{n}", f"{mode}{n}", "default", mode, (1 << 24) + 100 + n, subnets, f"02:fe:00:00:02:{n:02x}", 0,
        **more)  # type: ignore[arg-type]


def mapping(name: str, to: PortGoal, outside: int, inside: int, **more: object) -> MappingGoal:
    defaults: dict[str, object] = {
        "protocol": "tcp", "external_address": "0.0.0.0", "external_ports": (outside, outside),
        "internal_address": to.address.split("/")[0],
    }
    return MappingGoal(
        id=f"uid-{name}",
        name=name,
        tenant=to.tenant,
        port=to.id,
        internal_port=inside,
        **(defaults | more),  # type: ignore[arg-type]
    )


def goals(*objects: Goal, revision: int = 1) -> Goals:
    return Goals(revision, {key_of(goal): goal for goal in objects})


UPLINK = UplinkState(3, "lan0", (f"{HOST_ADDRESS}/24", f"{SECOND_ADDRESS}/24"), 1500, UPLINK_MAC)
UNDERLAY = UplinkState(2, "under0", (f"{VTEP}/24",), 1400, "02:aa:00:00:00:02")


def observed(wanted_goals: Goals, ids: Ids, **more: object) -> Observed:
    """A host on which all links of `wanted_goals` exist."""
    empty = Observed(
        uplink=UPLINK, segments={"": UPLINK}, underlays=(UnderlayState(IPv4Address(VTEP), UNDERLAY),),
        addresses=frozenset({IPv4Address(HOST_ADDRESS)}))
    empty = replace(empty, **more)  # type: ignore[arg-type]
    plan = build(wanted_goals, empty, ids)
    aliases = {link.host_interface: link.alias for link in plan.ports.values()}
    owned = {
        name: OwnedLink(name, 100 + number, "veth", 1500, aliases.get(name, "sluice:"))
        for number, name in enumerate(sorted(plan.links()))
    }
    return replace(empty, owned=owned | dict(empty.owned))


def ids_for(*objects: Goal, **more: object) -> Ids:
    state = goals(*objects)
    host = replace(Observed(uplink=UPLINK, segments={"": UPLINK}), **more)
    return allocate(Ids(), wanted(state, host), MAX_PORTS)  # type: ignore[arg-type]


def built(*objects: Goal, compiled: bool = True, **more: object) -> Built:
    """The second build: every link is there. What it makes for the engine compiles."""
    state, ids = goals(*objects), ids_for(*objects, **more)
    made = build(state, observed(state, ids, **more), ids)
    if compiled:
        Compiler().compile(made.engine, MAX_PORTS)
    return made


def engine(made: Built) -> Engine:
    return Engine(made.engine)


def number_of(made: Built, goal: PortGoal) -> int:
    return made.port_ids[goal.id]


def error_of(made: Built, goal: Goal) -> str:
    return next((fault.message for fault in made.faults if fault.key == key_of(goal)), "")


def ip(sender: PortGoal, dst: str, payload: Packet, dst_mac: str = "02:fe:00:00:01:01", **fields: str) -> bytes:
    """A frame of the endpoint `sender`; `src` and `src_mac` lie about who it is."""
    frame = Ether(src=fields.get("src_mac", sender.mac), dst=dst_mac)
    return bytes(frame / IP(src=fields.get("src", sender.address.split("/")[0]), dst=dst) / payload)


def tcp(port: int = 80, sport: int = 40000, flags: str = "S") -> Packet:
    return TCP(sport=sport, dport=port, flags=flags)


def udp(port: int = 53, sport: int = 40000) -> Packet:
    return UDP(sport=sport, dport=port)


def ip6(sender: PortGoal, dst: str, payload: Packet, dst_mac: str = "02:fe:00:00:01:01", **fields: str) -> bytes:
    frame = Ether(src=fields.get("src_mac", sender.mac), dst=dst_mac)
    return bytes(frame / IPv6(src=fields.get("src", sender.address6.split("/")[0]), dst=dst) / payload)


def arp_request(sender: PortGoal, target: str) -> bytes:
    own = sender.address.split("/")[0]
    ask = ARP(op=1, hwsrc=sender.mac, psrc=own, hwdst="00:00:00:00:00:00", pdst=target)
    return bytes(Ether(src=sender.mac, dst="ff:ff:ff:ff:ff:ff") / ask)


def from_world(src: str, dst: str, payload: Packet) -> bytes:
    return bytes(Ether(src="02:bb:00:00:00:01", dst=UPLINK_MAC) / IP(src=src, dst=dst) / payload)


@dataclass
class FakeSwitch:
    """Links in memory. `calls` says what was done, in order; `missing` are absent namespaces."""

    links: dict[str, OwnedLink] = field(default_factory=dict)
    calls: list[tuple[str, ...]] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    filters: dict[tuple[int, str], str] = field(default_factory=dict)
    bridges: dict[str, BridgeLink] = field(default_factory=dict)
    neighbours: dict[str, dict[str, str]] = field(default_factory=dict)
    reserved: list[tuple[int, int]] = field(default_factory=list)
    joined: list[tuple[str, str]] = field(default_factory=list)             # addresses that came later
    listening: list[tuple[str, str, int]] = field(default_factory=list)
    sent: list[tuple[int, bytes]] = field(default_factory=list)
    lost_uplink: bool = False
    broken: str = ""
    widths: dict[str, int] = field(default_factory=dict)                    # MTU of paths
    others_hooked: dict[str, int] = field(default_factory=dict)             # by a process before
    hearing: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    classes: dict[int, Limit] = field(default_factory=dict)
    queues: dict[int, Limit] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)                # of namespaces, if not the usual ones
    _next: int = 100

    def _ensure(self, name: str, kind: str, mtu: int, alias: str) -> int:
        if self.broken == name:
            raise VSwitchError(f"link {name}", "is broken", "mend it")
        self.calls.append(("ensure", name))
        if name not in self.links:
            self._next += 1
            self.links[name] = OwnedLink(name, self._next, kind, mtu, alias)
        return self.links[name].ifindex

    def ensure_port(self, link: PortLink, hooked: Sequence[HookedProgram] = ()) -> int:
        if link.netns in self.missing and not link.tap:
            what = NamespaceGone if link.namespace else NamespaceMissing
            raise what(f"namespace {link.netns}", "absent", "create it")
        if link.namespace and self.identify(link.netns) != link.namespace:
            raise NamespaceGone(f"namespace {link.netns}", "another", "attach anew")
        kind = "tun" if link.tap else "veth"
        ifindex = self._ensure(link.host_interface, kind, link.mtu_bytes, link.alias)
        for program in hooked:
            self.attach(ifindex, program.where, program.program_fd, program.name)
        return ifindex

    def identify(self, netns: str) -> str:
        if netns in self.missing:
            raise NamespaceMissing(f"namespace {netns}", "absent", "create it")
        return self.identities.get(netns, f"boot/{netns}")

    def ensure_bridge(self, link: BridgeLink) -> int:
        self.bridges[link.name] = link
        return self._ensure(link.name, "bridge", link.mtu_bytes, link.alias)

    def ensure_tunnel(self, link: TunnelLink) -> int:
        return self._ensure(link.name, "vxlan", link.mtu_bytes, link.alias)

    def ensure_inspection(self, programs: InspectPrograms, queues: Sequence[int]) -> Detour:
        first, _ = (self._ensure(name, "veth", 65535, "sluice:inspect") for name in INSPECT_LINKS)
        return Detour(first, Path("/run/netns/none"), 1)

    def remove_inspection(self) -> bool:
        return [self.links.pop(name, None) for name in INSPECT_LINKS] != [None, None]

    def remove(self, name: str) -> None:
        self.calls.append(("remove", name))
        self.links.pop(name, None)

    def owned(self) -> dict[str, OwnedLink]:
        return dict(self.links)

    def set_neighbours(self, bridge: str, entries: Mapping[str, str]) -> None:
        self.neighbours[bridge] = dict(entries)

    def attach(self, ifindex: int, where: Where, program_fd: int, name: str) -> None:
        self.calls.append(("attach", str(ifindex), where, name))
        self.filters[ifindex, where] = name

    def open_loopback(self, program_fd: int, name: str) -> int:
        self.attach(1, "ingress", program_fd, name)
        return 1

    def close_loopback(self) -> bool:
        self.calls.append(("close loopback",))
        return self.filters.pop((1, "ingress"), None) is not None

    def detach(self, ifindex: int, where: Where) -> None:
        self.calls.append(("detach", str(ifindex), where))
        self.filters.pop((ifindex, where), None)

    def uplink(self, name: str = "") -> UplinkState:
        if self.lost_uplink:
            raise UplinkMissing(f"uplink {name!r}", "no such interface", "make it")
        return UPLINK

    def underlays(self, addresses: Sequence[str]) -> dict[str, vswitch_links.UnderlayState]:
        state = vswitch_links.UnderlayState(VTEP, UNDERLAY.ifindex, UNDERLAY.name, UNDERLAY.mtu_bytes)
        return {VTEP: state} if VTEP in addresses else {}

    def paths(self, addresses: Iterable[str]) -> dict[str, PathState]:
        self.calls.append(("paths", *addresses))
        return {address: PathState(self.widths.get(address, UNDERLAY.mtu_bytes)) for address in addresses}

    def hooked(self) -> dict[str, int]:
        return dict(self.others_hooked)

    def set_listening(self, everything: Collection[str], groups: Collection[str] = ()) -> None:
        self.hearing = set(everything), set(groups)

    def ensure_shaper(self, link: ShaperLink, hooked: Sequence[HookedProgram] = ()) -> int:
        self._ensure(link.peer, "veth", 65535, link.alias)
        return self._ensure(link.name, "veth", 65535, link.alias)

    def ensure_classes(self, ifindex: int, limits: Mapping[int, Limit], total_bps: int = 0) -> None:
        self.calls.append(("classes", *(str(number) for number in limits)))
        self.classes |= limits

    def prune_classes(self, ifindex: int, keep: Collection[int]) -> None:
        self.calls.append(("prune", *map(str, sorted(keep))))
        self.classes = {number: limit for number, limit in self.classes.items() if number in keep}

    def ensure_queue(self, ifindex: int, limit: Limit) -> None:
        self.calls.append(("queue", str(ifindex)))
        self.queues[ifindex] = limit

    def remove_queue(self, ifindex: int) -> None:
        self.queues.pop(ifindex, None)

    def facts(self) -> Surroundings:
        addresses = (("lan0", f"{HOST_ADDRESS}/24"), ("lo", "127.0.0.1/8"), *self.joined)
        return Surroundings(addresses, (("lan0", "172.16.0.0/24"),), tuple(self.listening))

    def listeners(self) -> tuple[tuple[str, str, int], ...]:
        return tuple(self.listening)

    def addresses(self) -> tuple[tuple[str, str], ...]:
        return self.facts().addresses

    def send(self, ifindex: int, frames: Iterable[bytes]) -> None:
        self.sent += ((ifindex, frame) for frame in frames)

    def reserve_ports(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.reserved = list(ranges)

    def release_ports(self) -> None:
        self.reserved = []

    async def watch(self) -> AsyncGenerator[None]:
        yield


@dataclass
class FakeDatapath:
    """The reference engine in place of the kernel's."""

    limit: int = MAX_PORTS
    engine: Engine = field(default_factory=lambda: Engine(EngineState()))
    applied: list[EngineState] = field(default_factory=list)
    records: list[FlowRecord] = field(default_factory=list)
    hits: dict[tuple[int, int], RuleHits] = field(default_factory=dict)
    events: list[DropEvent | LogEvent] = field(default_factory=list)
    calls: list[tuple[str, ...]] | None = None
    traced: Traced | None = None
    held: set[int] = field(default_factory=set)
    wanted: FlowFilter | None = None
    capturing: tuple[frozenset[int], int] = (frozenset(), 0)
    lost_records: int = 0
    bound: list[BindingRecord] = field(default_factory=list)
    binding_events: list[BindingEvent] = field(default_factory=list)
    blocks: dict[int, list[tuple[Address, int]]] = field(default_factory=dict)
    mapped: dict[str, int] = field(default_factory=dict)
    metered: dict[int, MeterCount] = field(default_factory=dict)

    def apply(self, state: EngineState) -> None:
        Compiler().compile(state, self.limit)
        self.engine.update(state)
        self.applied.append(state)
        if self.calls is not None:
            self.calls.append(("apply",))

    def program_fd(self, hook: Hook) -> int:
        return 10

    def mark(self) -> int:
        return 0x51

    def meters(self) -> dict[int, MeterCount]:
        return self.metered

    def members(self, set_id: int) -> Mapping[Prefix, float | None]:
        return self.engine.members(set_id)

    def flows(self) -> list[FlowRecord]:
        return self.records

    def inspect_counts(self) -> InspectCounts:
        return InspectCounts(0, 0)

    def select_flows(self, wanted: FlowFilter) -> FlowPage:
        self.wanted = wanted
        port_zones = (ZoneKind.PORT, ZoneKind.HOST)
        found = [flow for flow in self.records if not wanted.port or wanted.port in flow.ports
                 or (flow.zone_kind in port_zones and flow.zone == wanted.port)]
        return FlowPage(found[: wanted.limit or None], len(found))

    def flow_at(self, hook: Hook, number: int, what: FlowTuple) -> FlowRecord | None:
        return next((flow for flow in self.records if (flow.src, flow.dst, flow.src_port, flow.dst_port)
                     == (what.src, what.dst, what.src_port, what.dst_port)), None)

    def trace(self, hook: Hook, number: int, frame: bytes, vtep: IPv4Address | None = None) -> Traced:
        """What the reference says, unless `traced` says something else."""
        if self.traced is not None:
            return self.traced
        members = {given.id: self.members(given.id) for given in self.engine.state.sets if given.dynamic}
        said = explain_frame(self.engine.state, reference.Hook(hook.value), number, frame, time.monotonic(), vtep=vtep,
                             members=members)
        leaves = said.transposition.exit
        ifindexes = {port.id: port.ifindex for port in self.engine.state.ports}
        uplinks = {uplink.id: uplink.ifindex for uplink in self.engine.state.uplinks}
        place, target, outer = {"drop": PlaceKind.NONE, "reply": PlaceKind.REPLY}.get(
            said.verdict, PlaceKind.STACK), 0, None
        match leaves:
            case ToPort(id) if said.verdict == "forward":
                place, target = PlaceKind.PORT, ifindexes[id]
            case ToUplink(id):
                place, target = PlaceKind.UPLINK, uplinks[id]
            case ToVtep(address, vni):
                place, target, outer = PlaceKind.TUNNEL, vni, address
        hits = tuple((ref.port, rule_cookie(ref.layer, ref.group, ref.rule)) for ref in said.decision.hits)
        denied = said.decision.reason in (DropReason.DENIED, DropReason.REJECTED)
        return Traced(place, said.decision.reason, target, outer, said.frame, hits, hits[-1][1] if denied else 0,
                      said.decision.drop_port, None)

    def binding(self, key: BindingKey) -> External | None:
        return None

    def binding_at(self, external: External) -> BindingKey | None:
        return BindingKey(99, 1, external.protocol, external.address, 1) if external.port in self.held else None

    def block_holder(self, block: Block) -> tuple[int, int] | None:
        return None

    def binding_count(self, port: int, pool: int) -> int:
        return 0

    def has_contact(self, key: BindingKey, remote: Address) -> bool:
        return False

    def select_bindings(self, pools: Collection[int] | None, limit: int) -> tuple[list[BindingRecord], int]:
        found = [one for one in self.bound if pools is None or one.pool in pools]
        return found[:limit], len(found)

    def pool_use(self) -> dict[int, list[tuple[Address, int, int]]]:
        counts = Counter((one.pool, one.external, one.protocol) for one in self.bound)
        found: dict[int, list[tuple[Address, int, int]]] = {}
        for (pool, address, protocol), count in counts.items():
            found.setdefault(pool, []).append((address, protocol, count))
        return found

    def block_use(self) -> dict[int, list[tuple[Address, int]]]:
        return self.blocks

    def mapping_hits(self) -> dict[str, int]:
        return self.mapped

    def bindings_fd(self) -> int:
        return -1

    def read_binding_events(self) -> list[BindingEvent]:
        events, self.binding_events = self.binding_events, []
        return events

    def capture(self, ports: Collection[int], packet_bytes: int) -> None:
        self.capturing = (frozenset(ports), packet_bytes)

    def captures_fd(self) -> int:
        return -1

    def read_captures(self) -> list[Captured]:
        return []

    def lost(self, ring: Ring) -> int:
        return self.lost_records

    def drop_counts(self) -> dict[DropReason, int]:
        return {reason: self.engine.drop_counts[reason] for reason in DropReason}

    def rule_hits(self) -> dict[tuple[int, int], RuleHits]:
        return self.hits

    def events_fd(self) -> int:
        return -1

    def read_events(self) -> list[DropEvent | LogEvent]:
        events, self.events = self.events, []
        return events

    def sweep(self) -> int:
        return self.engine.sweep(time.monotonic())


def reconciler(directory: Path, switch: FakeSwitch, datapath: FakeDatapath) -> Reconciler:
    disk = Disk(directory)
    datapath.calls = switch.calls
    return Reconciler(switch, datapath, disk, disk.load().ids, MAX_PORTS)
