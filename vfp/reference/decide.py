"""From a tuple in a zone to a verdict and both halves of its flow; touches only the bindings it is given.

Decided here, where `docs/engine.md` is open:

- What is not IP, and neighbour discovery, cannot be routed to an uplink: `NO_ROUTE`. The same holds for an uplink
  that the state does not list, and for a remote place when the engine has no tunnel device.
- `Rewrite` needs IP of the family of the addresses it sets and no neighbour discovery, and TCP or UDP if it sets a
  port, else `NAT_UNSUPPORTED` (SCTP's CRC32c covers its ports).
- `Forward` to a `Virtual` place drops when the action runs, whatever later layers say, if it is no echo request.
- What an exit's OUT layers send to the host's stack, or from a port of this host to another port: `NO_ROUTE`.
- `AnswerArp` sets the place; later layers still run. Neither a request for the sender's own address nor one
  for an address that is behind the asking port (a probe, RFC 5227) is answered.
- `TranslateSource` with a pool that does not exist: `ENGINE_ERROR`.
- What is not IP is not marked.
- An action that rewrote makes the flow stateful even if the values happened to be the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import IPv6Address, IPv6Network

from vfp.model import (
    ETH_P_ARP,
    Address,
    Allow,
    AnswerArp,
    Deny,
    Direction,
    Filtering,
    Forward,
    Hairpin,
    HostStack,
    Inspect,
    LocalPort,
    Location,
    Log,
    Mapping,
    Mark,
    Meter,
    Mirror,
    Modifier,
    Pass,
    Port,
    Reject,
    Remote,
    Rewrite,
    Switch,
    ToUplink,
    TranslatePrefix,
    TranslateSource,
    Untranslate,
    Uplink,
    Virtual,
)
from vfp.reasons import DropReason
from vfp.reference import prefix
from vfp.reference import transposition as header
from vfp.reference.bindings import BindingKey, Bindings, Exhausted, External, OverQuota
from vfp.reference.extras import NO_EXTRAS, Extras
from vfp.reference.index import Index
from vfp.reference.layers import Dropped, Ended, Passed, RuleRef, Step, walk
from vfp.reference.packet import (
    ARP_REQUEST,
    ND_SOLICITATION,
    PROTOCOLS_WITH_PORTS,
    TCP,
    UDP,
    FlowTuple,
    Headers,
    is_echo_reply,
    is_echo_request,
    is_icmp,
    is_tracked,
)
from vfp.reference.sets import Sets
from vfp.reference.transposition import Transposition
from vfp.reference.zones import Zone, ZoneKind
from vfp.switching import wire_of


@dataclass(frozen=True, slots=True)
class Subject:
    """What is decided: a forward tuple, where it came from, and the fields that go with it.

    `vtep` is the outer source of what came over the overlay; None: take the mapped one (re-decision).
    """

    zone: Zone
    tuple: FlowTuple
    headers: Headers
    vtep: Address | None = None
    any_vtep: bool = False
    plain: bool = False                     # without IP options or extension headers
    again: bool = False                     # the tuple is that of a flow that exists


class Meant(Enum):
    """Which frames are of a half, by their destination MAC: keys do not have it."""

    ANY = 0
    MAC = 1                                 # those to the half's own
    WIRE = 2                                # those to no group: whom a reply goes to, its sender knows


@dataclass(frozen=True, slots=True)
class Half:
    """One direction of a flow: the packets that belong to it and what happens to them."""

    zone: Zone
    tuple: FlowTuple
    transposition: Transposition
    mac: bytes                              # from a port: the only source MAC that may use it
    vtep: Address | None = None         # overlay: the only outer source that may use it
    dst_mac: bytes = b""                    # these two: what a packet gets back after inspection
    src_mac: bytes = b""
    meant: Meant = Meant.ANY

    def is_meant(self, dst_mac: bytes) -> bool:
        """Whether a frame to this MAC may use this half."""
        match self.meant:
            case Meant.MAC:
                return dst_mac == self.dst_mac
            case Meant.WIRE:
                return not dst_mac[0] & 1
            case _:
                return True


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome. `reason` NONE and `not_ours` False: allowed, and `forward` says how.

    `reply` is None when a flow would be stateless, or when there is no answer to wait for (an ARP answer).
    """

    steps: tuple[Step, ...]
    reason: DropReason = DropReason.NONE
    note: str = ""
    not_ours: bool = False                  # came by an uplink, and is for no mapping or binding
    drop_port: int = 0                      # whose layers were running; 0: none
    forward: Half | None = None
    reply: Half | None = None
    stateful: bool = True
    ports: tuple[int, ...] = ()             # whose policies were asked
    bindings: tuple[BindingKey, ...] = ()   # that the flow keeps
    contacts: tuple[tuple[BindingKey, Address], ...] = ()
    extras: Extras = NO_EXTRAS
    inspect: Inspect | None = None          # user space sees the packets first
    by_set: bool = False                    # a set turned it, or could have
    strict: bool = False                    # one of `ports` wants TCP segments to fit
    mapping: Mapping | None = None          # that was found for its destination, whatever the layers said then

    @property
    def hits(self) -> tuple[RuleRef, ...]:
        """The rules that matched, for counters."""
        return tuple(s.ref for s in self.steps if s.matched and s.ref)

    @property
    def denied_by(self) -> Step | None:
        """The step that ended the packet, if layers did."""
        if self.reason in (DropReason.DENIED, DropReason.REJECTED, DropReason.LAYER_DEFAULT):
            return self.steps[-1]
        return None


def decide(index: Index, bindings: Bindings, sets: Sets, subject: Subject, now_s: float) -> Decision:
    """Walk the layers that concern `subject` and say what becomes of it."""
    return _Walk(index, bindings, sets, subject, now_s).run()


@dataclass(frozen=True, slots=True)
class Inside:
    """A port that is reached by a hairpin: routed."""

    port: int


@dataclass(slots=True)
class _Walk:
    """A packet under way: the tuple as rewritten so far and what the layers have said."""

    index: Index
    bindings: Bindings
    sets: Sets
    subject: Subject
    now_s: float
    cur: FlowTuple = field(init=False)
    rewrites: Transposition = field(default_factory=Transposition)
    place: Location | Inside | header.ToUplink | header.ToWire | header.Flood | header.ToSender | None = None
    switched: bool = False                  # goes by its destination MAC, and keeps it
    bridged: bool = False                   # by an uplink in its name, and not routed
    mapping: Mapping | None = None
    image: IPv6Address | None = None        # the image of the destination by its prefix
    rewritten: bool = False
    inspect: Inspect | None = None
    stateless: bool = False
    extras: Extras = NO_EXTRAS
    drop_port: int = 0
    ports: list[int] = field(default_factory=list)
    slot: int = 0                           # of the port whose layers run: 0 sender, 1 receiver
    exit: Port | None = None                # the way out of a space, or into it, that it goes by
    bound: tuple[BindingKey, External] | None = None    # by which the source was last translated
    behind: BindingKey | None = None        # the binding under which it came in
    asked: Address | None = None            # who had to be a contact of it
    steps: list[Step] = field(default_factory=list)
    by_set: bool = False

    def __post_init__(self) -> None:
        self.cur = self.subject.tuple

    @property
    def headers(self) -> Headers:
        return self.subject.headers

    @property
    def vni(self) -> int | None:
        return self.subject.zone.number if self.subject.zone.kind is ZoneKind.OVERLAY else None

    @property
    def mapped(self) -> bool:
        return self.mapping is not None

    def in_set(self, set: int, address: Address) -> bool:
        self.by_set = True
        return self.sets.has(set, address, self.now_s, again=self.subject.again)

    def set_name(self, set: int) -> str:
        return self.sets.name(set)

    def run(self) -> Decision:
        try:
            forward, reply = self._decide()
        except _NotOurs:
            return Decision((), not_ours=True)
        except Dropped as dropped:
            return Decision(tuple(self.steps), dropped.reason, dropped.note, drop_port=self.drop_port,
                            mapping=self.mapping)
        bindings, contacts = self._in_use()
        stateful = self.rewritten or not self.stateless
        return Decision(tuple(self.steps), drop_port=self.drop_port, forward=forward, reply=reply,
                        stateful=stateful, ports=tuple(dict.fromkeys(self.ports)), bindings=bindings, contacts=contacts,
                        extras=self.extras, inspect=self.inspect, by_set=self.by_set,
                        strict=any(self.index.ports[port].strict_tcp for port in self.ports), mapping=self.mapping)

    def _decide(self) -> tuple[Half, Half | None]:
        match self.subject.zone.kind:
            case ZoneKind.PORT:
                return self._from_port()
            case ZoneKind.OVERLAY:
                return self._from_overlay()
            case ZoneKind.UPLINK:
                return self._from_uplink()
            case ZoneKind.HOST:
                return self._from_stack()

    # Zones: which layers run, where the packet goes, and where its answer comes from.

    def _from_port(self) -> tuple[Half, Half | None]:
        if self.index.exit(self.subject.zone.number) is not None:
            raise self._no_link(self.subject.zone.number)
        sender = self._run_layers(self.subject.zone.number, Direction.OUT)
        back = Transposition(dst_mac=sender.mac, exit=header.ToPort(sender.id))
        if isinstance(self.place, LocalPort) and self.index.exit(self.place.port) is not None:
            self._leave_by(self.place.port, 1)
            if not isinstance(self.place, Remote | header.ToUplink):
                raise Dropped(DropReason.NO_ROUTE, "the exit's layers did not say by which uplink or tunnel it leaves")
        plain = Transposition(exit=header.ToPort(sender.id))
        match self.place:
            case Inside(id) if self.index.exit(id) is not None:
                raise Dropped(DropReason.NO_ROUTE, "behind an exit's external side: there is no way in from here")
            case LocalPort(id) if self.switched:
                receiver = self._run_layers(id, Direction.IN, 1)
                self._check_tag(id)
                return self._pair(Transposition(exit=header.ToPort(receiver.id)),
                                  Zone(ZoneKind.PORT, receiver.id), plain)
            case header.ToWire(uplink) as exit:
                if uplink not in self.index.uplinks:
                    raise Dropped(DropReason.NO_ROUTE, f"there is no uplink {uplink}")
                return self._pair(Transposition(exit=exit), Zone(ZoneKind.UPLINK, uplink), plain)
            case header.Flood() as exit:
                return self._flood(exit), None
            case LocalPort(id):
                receiver = self._run_layers(id, Direction.IN, 1)
                self._check_tag()
                return self._pair(Transposition(dst_mac=receiver.mac, exit=header.ToPort(receiver.id)),
                                  Zone(ZoneKind.PORT, receiver.id), back)
            case Inside(id):
                receiver = self._run_layers(id, Direction.IN, 1)
                self._check_tag()
                there = Transposition(dst_mac=receiver.mac, src_mac=receiver.gateway_mac, routed=True,
                                      exit=header.ToPort(receiver.id))
                return self._pair(there, Zone(ZoneKind.PORT, receiver.id),
                                  replace(back, src_mac=sender.gateway_mac, routed=True))
            case Remote(vtep, vni, _) as remote:
                self._check_tag()
                return self._pair(self._into_tunnel(remote, self.exit or sender), Zone(ZoneKind.OVERLAY, vni), back,
                                  reply_vtep=vtep)
            case HostStack():
                self._check_tag()
                stack = Transposition(exit=header.ToStack())
                return self._pair(stack, Zone(ZoneKind.HOST, sender.id), stack)
            case header.ToUplink(uplink, via):
                self._check_tag()
                if uplink not in self.index.uplinks:
                    raise Dropped(DropReason.NO_ROUTE, f"there is no uplink {uplink}")
                if not self.cur.family or self.headers.nd:
                    raise Dropped(DropReason.NO_ROUTE, "cannot be routed")
                if via is not None and via.version != self.cur.family:
                    raise Dropped(DropReason.NO_ROUTE, f"router {via} is of another family")
                return self._pair(self._by_uplink(uplink, via), Zone(ZoneKind.UPLINK, uplink),
                                  replace(back, src_mac=sender.gateway_mac, routed=not self.bridged))
            case header.ToSender() as exit:
                self._check_tag()
                return self._half(Transposition(exit=exit)), None
            case _:
                raise Dropped(DropReason.NO_ROUTE, "no layer said where it goes")

    def _from_overlay(self) -> tuple[Half, Half | None]:
        """No host is trusted beyond its own endpoints: the inner source must be mapped to the outer one."""
        vni = self.subject.zone.number
        source = self.index.where(vni, self.subject.tuple.src)
        if not isinstance(source, Remote):
            raise Dropped(DropReason.UNKNOWN_SOURCE, f"VNI {vni} has no remote {self.subject.tuple.src}")
        if not self.subject.any_vtep and self.subject.vtep != source.vtep:
            raise Dropped(DropReason.WRONG_VTEP, f"{self.subject.tuple.src} is behind {source.vtep}")
        asked = self.index.place(vni, self.subject.tuple.dst)
        if is_asking(self.subject.tuple, self.headers) and isinstance(asked, LocalPort | Virtual):
            return self._back_over(source, asked), None
        if not isinstance(asked, LocalPort) and self._floods(vni):
            return self._flood(header.Flood(vni)), None
        destination = self.index.where(vni, self.subject.tuple.dst)
        if isinstance(destination, Remote):
            raise Dropped(DropReason.MOVED, f"{self.subject.tuple.dst} is behind {destination.vtep}")
        if isinstance(destination, Virtual) and self._is_answered():
            return self._back_over(source, destination), None
        if not isinstance(destination, LocalPort):
            raise Dropped(DropReason.NO_MAPPING, f"VNI {vni} has no local {self.subject.tuple.dst}")
        if self.index.exit(destination.port) is not None:
            return self._over_exit(source, destination.port)
        receiver = self._run_layers(destination.port, Direction.IN, 1)
        back = self._into_tunnel(source, receiver)
        return self._pair(Transposition(dst_mac=receiver.mac, exit=header.ToPort(receiver.id)),
                          Zone(ZoneKind.PORT, receiver.id), back, vtep=source.vtep)

    def _from_uplink(self) -> tuple[Half, Half | None]:
        uplink, what = self.subject.zone.number, self.subject.tuple
        headers = self.headers
        link = self.index.uplinks.get(uplink)
        if self.cur.src.is_loopback and not (link and link.loopback):
            raise _NotOurs                  # the host's own address, whatever came by a wire with it
        if (taken := self._from_wire(uplink, link)) is not None:
            return taken
        if not is_tracked(what, headers) or what.vlan:
            raise _NotOurs
        self.mapping = self._find_mapping(uplink)
        receiving = self.mapping.port if self.mapping else None
        if self.mapping is None:
            self.behind = self._binding(uplink, External(what.dst, what.protocol, what.dst_port), what.src)
            receiving = self.behind.port if self.behind else self._behind_prefix(uplink, what)
        if receiving is None:
            raise _NotOurs
        if self.index.exit(receiving) is not None:
            return self._enter_space(receiving, uplink)
        receiver = self._run_layers(receiving, Direction.IN, 1)
        if uplink not in self.index.uplinks:
            raise Dropped(DropReason.NO_ROUTE, f"there is no uplink {uplink}")
        return self._pair(
            Transposition(src_mac=receiver.gateway_mac, dst_mac=receiver.mac, routed=True,
                          exit=header.ToPort(receiver.id)),
            Zone(ZoneKind.PORT, receiver.id),
            self._by_uplink(uplink),
        )

    def _from_wire(self, uplink: int, link: Uplink | None) -> tuple[Half, Half | None] | None:
        """What comes by a wire for ours: to a station, to an address that the uplink stands for, or to a group."""
        what, headers, index = self.cur, self.headers, self.index
        if link is None or not (what.family or headers.ethertype == ETH_P_ARP):
            return None
        group = bool(headers.dst_mac[0] & 1)
        station = None if group else index.station_on_wire(uplink, headers.dst_mac)
        if station is not None:
            if index.exit(station) is not None:
                raise self._no_link(station)
            self.switched = True
            receiver = self._run_layers(station, Direction.IN, 1)
            self._check_tag(station)
            return self._pair(Transposition(exit=header.ToPort(receiver.id)), Zone(ZoneKind.PORT, receiver.id),
                              Transposition(exit=header.ToWire(uplink)))
        proxied = None if what.vlan else index.proxied(uplink, what.dst)
        if proxied is not None and is_asking(what, headers):
            return None if what.src == what.dst else (self._half(Transposition(
                exit=header.ToSender(header.ToWire(uplink), link.mac))), None)
        if proxied is not None and not group and what.family and not headers.nd:
            if index.exit(proxied) is not None:
                raise self._no_link(proxied)
            self.bridged = True
            receiver = self._run_layers(proxied, Direction.IN, 1)
            back = self._by_uplink(uplink)
            if index.proxied(uplink, self.subject.tuple.src) is not None:
                back = Transposition(src_mac=link.mac, dst_mac=headers.src_mac, exit=header.ToWire(uplink))
            return self._pair(Transposition(src_mac=receiver.gateway_mac, dst_mac=receiver.mac,
                                            exit=header.ToPort(receiver.id)),
                              Zone(ZoneKind.PORT, receiver.id), back)
        if group and index.floods_wire(uplink):
            return self._flood(header.Flood(uplink, by_wire=True)), None
        return None

    def _check_tag(self, receiver: int = 0) -> None:
        """Tags are for frames that are switched, and only ports that may have them get them."""
        vlan = self.subject.tuple.vlan
        if vlan and not self.index.has_vlan(receiver, vlan):
            raise Dropped(DropReason.VLAN_TAGGED, f"tag {vlan}")

    def _floods(self, space: int) -> bool:
        """Whether the packet is to a group, and stations of a space get those."""
        segment = self.index.segment(space)
        switchable = bool(self.cur.family) or self.headers.ethertype == ETH_P_ARP
        return switchable and bool(self.headers.dst_mac[0] & 1 and segment and segment.flooding)

    def _flood(self, exit: header.Flood) -> Half:
        if self.subject.again:
            raise Dropped(DropReason.NOT_FLOODED, "what goes to many has no flow")
        return self._half(Transposition(exit=exit))

    def _find_mapping(self, uplink: int) -> Mapping | None:
        """The mapping of the destination: that of its protocol and port, else that of the whole address."""
        what, headers = self.cur, self.headers
        if not what.family or (is_icmp(what) and not (is_echo_request(what, headers) or is_echo_reply(what, headers))):
            return None
        found = None
        if what.protocol in PROTOCOLS_WITH_PORTS:
            found = self.index.mapping(uplink, what.protocol, what.dst, what.dst_port)
        elif is_echo_request(what, headers):
            found = self.index.mapping(uplink, what.protocol, what.dst, what.src_port)
        return found or self.index.mapping(uplink, 0, what.dst, 0)

    def _behind_prefix(self, uplink: int, what: FlowTuple) -> int | None:
        """The port to which a destination in an external prefix belongs."""
        mapping = self.index.prefix(uplink, what.dst)
        if mapping is None or not isinstance(what.dst, IPv6Address) or not is_tracked(what, self.headers):
            return None
        self.image = prefix.translate(what.dst, mapping.external, mapping.internal)
        place = self.index.place(mapping.space, self.image) if self.image else None
        return place.port if isinstance(place, LocalPort) else None

    def _from_stack(self) -> tuple[Half, Half | None]:
        if self.index.exit(self.subject.zone.number) is not None:
            raise self._no_link(self.subject.zone.number)
        receiver = self._run_layers(self.subject.zone.number, Direction.IN, 1)
        stack = Transposition(exit=header.ToStack())
        return self._pair(stack, Zone(ZoneKind.PORT, receiver.id), stack)

    # Ways out of a space, and in.

    def _no_link(self, id: int) -> Dropped:
        self.drop_port = id
        return Dropped(DropReason.UNKNOWN_PORT, f"port {id} is an exit and has no link")

    def _leave_by(self, id: int, slot: int) -> None:
        """The exit's own OUT layers say where the packet goes."""
        self.place, self.switched, self.bridged = None, False, False
        self.exit = self._run_layers(id, Direction.OUT, slot)

    def _over_exit(self, source: Remote, id: int) -> tuple[Half, Half]:
        """From another host to where this one has the way out."""
        self._leave_by(id, 0)
        assert self.exit is not None
        back = self._into_tunnel(source, self.exit)
        match self.place:
            case Remote(vtep, vni, _) as remote:
                return self._pair(self._into_tunnel(remote, self.exit), Zone(ZoneKind.OVERLAY, vni), back,
                                  vtep=source.vtep, reply_vtep=vtep)
            case header.ToUplink(uplink, via) if (
                    uplink in self.index.uplinks and self.cur.family and not self.headers.nd
                    and (via is None or via.version == self.cur.family)):
                return self._pair(self._by_uplink(uplink, via), Zone(ZoneKind.UPLINK, uplink), self._from_gateway(back),
                                  vtep=source.vtep)
            case (LocalPort(port) | Inside(port)) as place if self.index.exit(port) is None and not self.switched:
                receiver = self._run_layers(port, Direction.IN, 1)
                there = Transposition(dst_mac=receiver.mac, exit=header.ToPort(receiver.id))
                if isinstance(place, Inside):
                    there, back = replace(there, src_mac=receiver.gateway_mac, routed=True), self._from_gateway(back)
                return self._pair(there, Zone(ZoneKind.PORT, receiver.id), back, vtep=source.vtep)
            case _:
                raise Dropped(DropReason.NO_ROUTE, "the exit's layers did not say where it goes")

    def _enter_space(self, id: int, uplink: int) -> tuple[Half, Half]:
        """What came in by an exit's mapping or binding goes on in the exit's space."""
        self.exit = self._run_layers(id, Direction.IN)
        assert self.exit.exit_of is not None
        place = self.index.where(self.exit.exit_of, self.cur.dst)
        if isinstance(place, LocalPort) and self.index.exit(place.port) is None:
            receiver = self._run_layers(place.port, Direction.IN, 1)
            there = Transposition(src_mac=receiver.gateway_mac, dst_mac=receiver.mac, routed=True,
                                  exit=header.ToPort(receiver.id))
            zone, vtep = Zone(ZoneKind.PORT, receiver.id), None
        elif isinstance(place, Remote):
            there = self._from_gateway(self._into_tunnel(place, self.exit))
            zone, vtep = Zone(ZoneKind.OVERLAY, place.vni), place.vtep
        else:
            raise Dropped(DropReason.NO_ROUTE, f"space {self.exit.exit_of} has no {self.cur.dst}")
        if uplink not in self.index.uplinks:
            raise Dropped(DropReason.NO_ROUTE, f"there is no uplink {uplink}")
        return self._pair(there, zone, self._by_uplink(uplink), reply_vtep=vtep)

    def _from_gateway(self, tunnel: Transposition) -> Transposition:
        """Routed, or sent on, by the exit."""
        assert self.exit is not None
        return replace(tunnel, src_mac=self.exit.gateway_mac, routed=not self.bridged)

    # Answers on the spot.

    def _is_answered(self) -> bool:
        """Of what is sent to a gateway that every host is: a whole echo request, which makes no flow."""
        return (is_echo_request(self.subject.tuple, self.headers) and not self.subject.again
                and not self.headers.fragment and self.subject.plain)

    def _back_over(self, source: Remote, asked: LocalPort | Virtual) -> Half:
        if not self.index.has_tunnel:
            raise Dropped(DropReason.NO_ROUTE, "the engine has no tunnel device")
        to = header.ToVtep(source.vtep, self.subject.zone.number)
        return self._half(Transposition(exit=header.ToSender(to, asked.mac)))

    def _run_layers(self, id: int, direction: Direction, slot: int = 0) -> Port:
        self.drop_port, self.slot = id, slot
        port = self.index.ports.get(id)
        if port is None:
            raise Dropped(DropReason.UNKNOWN_PORT, f"there is no port {id}")
        self.ports.append(id)
        walk(port, direction, self, self.steps)
        return port

    def _by_uplink(self, uplink: int, via: Address | None = None) -> Transposition:
        """The loopback device, whose address is all zeros, has no neighbours."""
        routed = Transposition(routed=not self.bridged, exit=header.ToUplink(uplink, via))
        return replace(routed, src_mac=bytes(6), dst_mac=bytes(6)) if self.index.uplinks[uplink].loopback else routed

    def _into_tunnel(self, remote: Remote, sender: Port) -> Transposition:
        if not self.index.has_tunnel:
            raise Dropped(DropReason.NO_ROUTE, "the engine has no tunnel device")
        source = next((vtep for vtep in sender.vteps if vtep.version == remote.vtep.version), None)
        return Transposition(dst_mac=remote.mac, exit=header.ToVtep(remote.vtep, remote.vni, source))

    def _half(self, how: Transposition, vtep: Address | None = None) -> Half:
        rewritten = header.compose(self.rewrites, how)
        headers = self.headers
        return Half(self.subject.zone, self.subject.tuple, rewritten, headers.src_mac, vtep,
                    headers.dst_mac, headers.src_mac, Meant.MAC if self.switched else Meant.ANY)

    def _pair(self, there: Transposition, reply_zone: Zone, back: Transposition, *,
              vtep: Address | None = None, reply_vtep: Address | None = None) -> tuple[Half, Half]:
        answer = header.compose(header.inverse(self.rewrites), back)
        mac = self.index.ports[reply_zone.number].mac if reply_zone.kind is ZoneKind.PORT else b""
        meant = Meant.ANY
        if self.switched:
            mac = self.headers.dst_mac if mac else b""
            meant = Meant.WIRE if self.subject.zone.kind is ZoneKind.UPLINK else Meant.MAC
        reply = Half(reply_zone, self.cur.reversed(), answer, mac, reply_vtep,
                     there.src_mac or self.headers.src_mac, mac or there.dst_mac or self.headers.dst_mac, meant)
        return self._half(there, vtep), reply

    # Actions.

    def act(self, ref: RuleRef, direction: Direction, *, stateful: bool) -> str:
        port, action = ref.port, ref.rule.action
        match action:
            case Allow():
                self.stateless |= not stateful
                return "" if stateful else "stateless"
            case Deny():
                raise Dropped(DropReason.DENIED)
            case Pass():
                return ""
            case TranslateSource(pool):
                if direction is Direction.IN and self.subject.zone.kind is not ZoneKind.UPLINK:
                    raise Dropped(DropReason.NAT_UNSUPPORTED, "did not come by an uplink")
                return self._translate_source(port, pool)
            case Hairpin(pool):
                return self._hairpin(port, pool)
            case TranslatePrefix(internal, external):
                return self._translate_prefix(internal, external)
            case Untranslate():
                return self._untranslate()
            case Forward(space):
                self.switched = self.bridged = False
                return self._forward(space)
            case ToUplink(uplink, bridged, via):
                self.place = header.ToUplink(uplink, via)
                self.switched, self.bridged = False, bridged
                return f"by uplink {uplink}{f' to {via}' if via else ''}"
            case Switch(space):
                return self._switch(port, space)
            case AnswerArp(space, proxy):
                self.switched = self.bridged = False
                return self._answer_arp(port, space, proxy)
            case Rewrite():
                return self._rewrite(action)
            case Reject():
                raise Dropped(DropReason.REJECTED, "the sender is told, if it may be")
            case Mark() | Meter() | Log() | Mirror():
                self.stateless |= not stateful
                return self._modify(action, ref)
            case Inspect(queue, fail_open):
                fail_open = fail_open and (self.inspect is None or self.inspect.fail_open)
                self.inspect = Inspect(queue, fail_open)
                self.stateless |= not stateful
                return f"user space sees it first, by queue {queue}"
            case _:
                raise Dropped(DropReason.ENGINE_ERROR, f"{type(action).__name__} is not known")

    def _translate_source(self, port: int, pool_id: int) -> str:
        if not self.cur.family or (is_icmp(self.cur) and not is_echo_request(self.cur, self.headers)):
            raise Dropped(DropReason.NAT_UNSUPPORTED, "nothing that an answer could come back to")
        pool = self.index.pools.get(pool_id)
        if pool is None:
            raise Dropped(DropReason.ENGINE_ERROR, f"there is no pool {pool_id}")
        if pool.addresses[0].version != self.cur.family:
            raise Dropped(DropReason.NAT_UNSUPPORTED, f"pool {pool_id} is of another family")
        key = BindingKey(port, pool_id, self.cur.protocol, self.cur.src, self.cur.src_port)
        try:
            external = self.bindings.obtain(key, pool, self.now_s)
        except OverQuota:
            raise Dropped(DropReason.NAT_QUOTA, f"{pool.quota} bindings in pool {pool_id} already") from None
        except Exhausted:
            raise Dropped(DropReason.NAT_EXHAUSTED, f"no free port in pool {pool_id}") from None
        self.bound = (key, external)
        self._become(replace(self.cur, src=external.address, src_port=external.port))
        return f"source becomes {external.address}:{external.port}"

    def _translate_prefix(self, internal: IPv6Network, external: IPv6Network) -> str:
        src = self.cur.src
        if not isinstance(src, IPv6Address) or self.cur.family != 6 or not is_tracked(self.cur, self.headers):
            raise Dropped(DropReason.NAT_UNSUPPORTED, "only what may have a flow, in IPv6")
        image = prefix.translate(src, internal, external) if src in internal else None
        if image is None:
            raise Dropped(DropReason.NAT_UNSUPPORTED, f"{src} has no image in {external}")
        self._become(replace(self.cur, src=image))
        return f"source becomes {image}"

    def _binding(self, uplink: int, external: External, remote: Address) -> BindingKey | None:
        """Who is behind the external side of a binding of the uplink's pools, as far as `remote` may know."""
        key = self._holder(uplink, external)
        if key is None:
            return None
        pool = self.index.pools[key.pool]
        if pool.filtering is Filtering.ADDRESS:
            self.asked = remote
        if pool.filtering is Filtering.ADDRESS_PORT or (self.asked and not self.bindings.has_contact(key, remote)):
            raise Dropped(DropReason.NAT_FILTERED, f"{key.source} has not sent to {remote}")
        self.bindings.touch(key, self.now_s)
        return key

    def _holder(self, uplink: int, external: External) -> BindingKey | None:
        key = self.bindings.holder(external) if external.protocol in PROTOCOLS_WITH_PORTS else None
        pool = self.index.pools.get(key.pool) if key else None
        if key is None or pool is None or pool.uplink != uplink or key.source.is_loopback:
            return None
        return key if self.bindings.is_legal(key, external, pool) else None

    def _in_use(self) -> tuple[tuple[BindingKey, ...], tuple[tuple[BindingKey, Address], ...]]:
        """The bindings and contacts that a flow of this packet keeps. Whom it goes to is a contact from now on."""
        bindings, contacts = [], []
        if self.bound is not None:
            key, external = self.bound
            if (self.cur.src, self.cur.src_port) == (external.address, external.port):
                bindings.append(key)
                if self.index.pools[key.pool].filtering is Filtering.ADDRESS:
                    whom = self.subject.tuple.dst if isinstance(self.place, Inside) else self.cur.dst
                    self.bindings.note_contact(key, whom, self.now_s)
                    contacts.append((key, whom))
        if self.behind is not None:
            bindings.append(self.behind)
            if self.asked is not None:
                contacts.append((self.behind, self.asked))
        return tuple(bindings), tuple(contacts)

    def _untranslate(self) -> str:
        if self.image is not None:
            self._become(replace(self.cur, dst=self.image))
            return f"destination becomes {self.image}"
        if self.mapping is None and self.behind is None:
            return "did not come by a mapping, binding or prefix"
        return self._go_inside()

    def _hairpin(self, port: int, pool_id: int) -> str:
        """To the external side of a mapping or binding: as if by the way out and in again (RFC 4787 REQ-9).

        A binding is known by the destination as it came: no layer may have rewritten that. The remote that its filter
        sees is the sender's own external side.
        """
        pool = self.index.pools.get(pool_id)
        if pool is None:
            raise Dropped(DropReason.ENGINE_ERROR, f"there is no pool {pool_id}")
        came, self.mapping = self.subject.tuple, self._find_mapping(pool.uplink)
        external = External(came.dst, came.protocol, came.dst_port)
        own = (self.cur.dst, self.cur.dst_port) == (came.dst, came.dst_port)
        if self.mapping is None and not (own and self._holder(pool.uplink, external)):
            raise Passed(f"nothing of uplink {pool.uplink} is behind {self.cur.dst}")
        note = self._translate_source(port, pool_id)
        if self.mapping is None:
            self.behind = self._binding(pool.uplink, external, self.cur.src)
            if self.behind is None:
                raise Dropped(DropReason.NO_MAPPING, f"{came.dst}:{came.dst_port} was the sender's own until now")
        found = self.mapping or self.behind
        assert found is not None
        note = f"{note}, {self._go_inside()}, at port {found.port}"
        self.place = Inside(found.port)
        self.switched = self.bridged = False
        raise Ended(note)

    def _go_inside(self) -> str:
        """What the world sends to is somewhere else in here."""
        if self.mapping is None:
            assert self.behind is not None
            inside = replace(self.cur, dst=self.behind.source, dst_port=self.behind.source_port)
        else:
            inside = replace(self.cur, dst=self.mapping.internal)
            if self.mapping.protocol and is_icmp(self.cur):
                inside = replace(inside, src_port=self.mapping.internal_port)
            elif self.mapping.protocol:
                inside = replace(inside, dst_port=self.mapping.internal_port)
        self._become(inside)
        return f"destination becomes {inside.dst}:{inside.dst_port}"

    def _forward(self, space: int) -> str:
        place = self.index.where(space, self.cur.dst)
        if place is None:
            raise Dropped(DropReason.NO_MAPPING, f"space {space} has no {self.cur.dst}")
        if isinstance(place, Virtual):
            if not self._is_answered():
                raise Dropped(DropReason.NO_MAPPING, f"{self.cur.dst} is a gateway, which answers echo requests only")
            self.place = header.ToSender(header.ToPort(self.subject.zone.number), place.mac)
            return f"{self.cur.dst} is a gateway, which answers"
        self.place = place
        return f"{self.cur.dst} is at {_place_text(place)}"

    def _switch(self, port: int, space: int) -> str:
        mac = self.headers.dst_mac
        if not self.cur.family and self.headers.ethertype != ETH_P_ARP:
            raise Dropped(DropReason.NO_ROUTE, "neither IP nor ARP")
        self.switched, self.bridged = True, False
        segment = self.index.segment(space)
        if mac[0] & 1:
            if segment is None or segment.flooding is None:
                raise Dropped(DropReason.NOT_FLOODED, f"space {space} does not spread frames to groups")
            self.place = header.Flood(space)
            return "copies go to all who may want it"
        station = self.index.station(space, mac)
        if station == port or (station is None and (segment is None or wire_of(segment) is None)):
            raise Dropped(DropReason.NO_MAPPING, f"space {space} has no other station {mac.hex(':')}, and no wire")
        if station is None:
            assert segment is not None
            assert segment.wire is not None
            self.place = header.ToWire(segment.wire.uplink)
            return f"to the wire of uplink {segment.wire.uplink}"
        self.place = LocalPort(station, mac)
        return f"{mac.hex(':')} is at port {station}"

    def _answer_arp(self, port: int, space: int, proxy: bool) -> str:
        """A probe for an address that is on the wire at most is not answered: nobody here defends it."""
        if not is_asking(self.cur, self.headers):
            raise Dropped(DropReason.ARP_UNANSWERED, "no ARP request and no neighbour solicitation")
        place = self.index.place(space, self.cur.dst)
        asking = self.index.ports[port]
        if self.cur.dst == self.cur.src or (isinstance(place, LocalPort) and place.port == port):
            raise Dropped(DropReason.ARP_UNANSWERED, f"{self.cur.dst} is the asking port's own")
        if place is None and (not proxy or int(self.cur.src) == 0):
            raise Dropped(DropReason.ARP_UNANSWERED, f"space {space} has no {self.cur.dst}")
        mac = place.mac if place else asking.gateway_mac
        self.place = header.ToSender(header.ToPort(port), mac)
        return f"{self.cur.dst} is at {mac.hex(':')}"

    def _rewrite(self, to: Rewrite) -> str:
        sets_port = to.src_port is not None or to.dst_port is not None
        if not self.cur.family or self.headers.nd or (sets_port and self.cur.protocol not in (TCP, UDP)):
            raise Dropped(DropReason.NAT_UNSUPPORTED, "no such field to rewrite")
        new = self.cur
        for name, address in (("src", to.src), ("dst", to.dst)):
            if address is None:
                continue
            if address.version != self.cur.family:
                raise Dropped(DropReason.NAT_UNSUPPORTED, f"{name} is of another family")
            new = replace(new, src=address) if name == "src" else replace(new, dst=address)
        if to.src_port is not None:
            new = replace(new, src_port=to.src_port)
        if to.dst_port is not None:
            new = replace(new, dst_port=to.dst_port)
        self._become(new)
        return f"becomes {new.src}:{new.src_port} to {new.dst}:{new.dst_port}"

    def _modify(self, action: Modifier, ref: RuleRef) -> str:
        extras = self.extras
        match action:
            case Mark(dscp):
                if not self.cur.family:
                    return "not IP: no DSCP"
                self.rewrites = header.compose(self.rewrites, Transposition(dscp=dscp))
                return f"DSCP becomes {dscp}"
            case Meter(meter):
                ours, theirs = extras.meters
                meters = (ours, meter) if self.slot else (meter, theirs)
                self.extras = replace(extras, meters=meters)
                return f"counted on meter {meter}"
            case Log(every):
                self.extras = replace(extras, log=ref, log_every=every)
                return "a record is written"
            case Mirror(port):
                self.extras = replace(extras, mirror=port)
                return f"a copy goes to port {port}"

    def _become(self, new: FlowTuple) -> None:
        self.rewrites = header.compose(self.rewrites, header.between(self.cur, new))
        self.cur = new
        self.rewritten = True


def is_asking(what: FlowTuple, headers: Headers) -> bool:
    """An ARP request or a neighbour solicitation."""
    if headers.nd:
        return headers.icmp_type == ND_SOLICITATION
    return headers.ethertype == ETH_P_ARP and what.protocol == ARP_REQUEST


class _NotOurs(Exception):
    """Nothing of ours wants what came by the uplink: it is the host's own business."""


def _place_text(place: Location) -> str:
    match place:
        case LocalPort(port):
            return f"port {port}"
        case Remote(vtep, vni, _):
            return f"VTEP {vtep}, VNI {vni}"
        case HostStack():
            return "the host's stack"
        case Virtual():
            return "no place"
