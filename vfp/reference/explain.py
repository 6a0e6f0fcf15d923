"""Why a packet would go where it would go: a dry run of the decision that lists every rule considered.

The packet is judged as the first of a flow: no flow and no fragment table is asked, so that a later fragment is
`FRAGMENT_UNKNOWN`. The BPF program `vfp_trace` does the same on the kernel's tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vfp.model import ETH_P_IP, ETH_P_IPV6, Address, EngineState, Prefix
from vfp.reasons import DropReason
from vfp.reference import transposition as header
from vfp.reference.bindings import Bindings
from vfp.reference.craft import frame_of
from vfp.reference.decide import Decision, Subject, decide
from vfp.reference.engine import answer_on_the_spot, is_inspectable
from vfp.reference.extensions import Malformed
from vfp.reference.fragments import FragmentTable
from vfp.reference.index import Index
from vfp.reference.layers import Step
from vfp.reference.packet import (
    ICMP_ECHO_REQUEST,
    ICMPV6_ECHO_REQUEST,
    PROTOCOLS_WITH_PORTS,
    TCP,
    TCP_SYN,
    FlowTuple,
    Headers,
    Packet,
    is_echo_reply,
    is_echo_request,
    is_icmp,
)
from vfp.reference.sets import Sets
from vfp.reference.tcp import is_opening
from vfp.reference.transposition import Transposition
from vfp.reference.vlans import parse_tagged
from vfp.reference.zones import Hook, Zone, ZoneKind, zone_of

SetMembers = Mapping[int, Mapping[Prefix, float | None]]


@dataclass(frozen=True, slots=True)
class Probe:
    """The imagined packet: the first of a conversation."""

    tuple: FlowTuple
    headers: Headers


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would happen, and every step on the way. Flows and bindings that exist are not looked at."""

    state: EngineState
    zone: Zone
    decision: Decision
    packet: Packet | None                   # None: it did not parse
    frame: bytes                            # as it leaves; as it came, if it is dropped or not ours

    @property
    def verdict(self) -> str:
        """`forward`, `drop`, `stack`, or `reply` for an ARP answer."""
        if self.decision.reason:
            return "drop"
        match self.transposition.exit:
            case None | header.ToStack():
                return "stack"
            case header.ToSender():
                return "reply"
            case _:
                return "forward"

    @property
    def transposition(self) -> Transposition:
        """All actions composed; the identity when the packet is dropped or not ours."""
        return self.decision.forward.transposition if self.decision.forward else Transposition()

    def to_dict(self) -> dict[str, Any]:
        """The part of a trace answer that the engine knows, as plain values; names are those of the state."""
        denied = self.decision.denied_by
        return {
            "verdict": self.verdict,
            "reason": self.decision.reason.name if self.decision.reason else "",
            "note": self.decision.note,
            "denied_by": self._place_of(denied) if denied else None,
            "steps": [self._step(step) for step in self.decision.steps],
            "transposition": {"set": _sets(self.transposition), "encapsulate": _tunnel(self.transposition)},
            "leaves": self._leaves(),
        }

    def _place_of(self, step: Step) -> dict[str, Any]:
        rule = step.rule.name or f"priority {step.rule.priority}" if step.rule else ""
        return {"port": self._port_name(step.port), "layer": step.layer, "group": step.group, "rule": rule}

    def _step(self, step: Step) -> dict[str, Any]:
        return self._place_of(step) | {"direction": step.direction.value, "matched": step.matched,
                                       "action": step.action, "note": step.note}

    def _leaves(self) -> dict[str, Any]:
        match self.transposition.exit:
            case header.ToSender(header.ToVtep(vtep, vni)):
                return {"to": "vtep", "vtep": str(vtep), "vni": vni}
            case header.ToSender(header.ToPort(port)):
                return {"to": "port", "name": self._port_name(port)}
            case header.ToPort(port):
                return {"to": "port", "name": self._port_name(port)}
            case header.ToVtep(vtep, vni):
                return {"to": "vtep", "vtep": str(vtep), "vni": vni}
            case header.ToUplink(uplink) | header.ToWire(uplink) | header.ToSender(header.ToWire(uplink)):
                names = [u.name for u in self.state.uplinks if u.id == uplink]
                return {"to": "uplink", "name": names[0] if names else str(uplink)}
            case header.Flood():
                return {"to": "many"}
            case _:
                return {"to": "" if self.decision.reason else "stack"}

    def _port_name(self, id: int) -> str:
        return next((port.name for port in self.state.ports if port.id == id), str(id))


def explain(state: EngineState, hook: Hook, number: int, probe: Probe, now_s: float = 0.0, *,
            vtep: Address | None = None, members: SetMembers | None = None) -> Explanation:
    """`explain_frame` of a packet that is imagined."""
    return explain_frame(state, hook, number, frame_of(probe.tuple, probe.headers), now_s, vtep=vtep, members=members)


def explain_frame(state: EngineState, hook: Hook, number: int, frame: bytes, now_s: float = 0.0, *,
                  vtep: Address | None = None, bindings: Bindings | None = None,
                  members: SetMembers | None = None) -> Explanation:
    """What the engine would decide for a frame at a hook, without touching anything.

    `bindings` are those to look for a source translation in; None: an empty table, which gives the first candidate.
    `vtep` is the outer source at `overlay_in`; None trusts the mapping. `members`: those of dynamic sets, and when each
    ends.
    """
    zone, index = zone_of(hook, number), Index(state)
    try:
        frame, packet = parse_tagged(index, zone, frame)
        packet = FragmentTable().resolve(zone, packet, 0.0)
    except Malformed as malformed:
        ours = zone.kind is not ZoneKind.UPLINK
        reason = malformed.reason if ours else DropReason.NONE
        return Explanation(state, zone, Decision((), reason, not_ours=not ours), None, frame)
    subject = Subject(zone, packet.tuple, packet.headers, vtep, any_vtep=vtep is None, plain=packet.is_plain)
    sets = Sets(state)
    for id, those in (members or {}).items():
        sets.members(id).update(those)
    decision = decide(index, Bindings() if bindings is None else bindings, sets, subject, now_s)
    if decision.forward is None:
        return Explanation(state, zone, decision, packet, frame)
    how = decision.forward.transposition
    try:
        begins = packet.makes_flow and not isinstance(how.exit, header.Flood | header.ToSender)
        if decision.inspect and not (begins and is_inspectable(packet)):
            raise header.Undeliverable(DropReason.INSPECT_REFUSED)
        if _is_out_of_state(packet, decision):
            raise header.Undeliverable(DropReason.OUT_OF_STATE)
        if decision.inspect and not (decision.inspect.fail_open or state.inspect_ifindex):
            raise header.Undeliverable(DropReason.INSPECT_UNAVAILABLE)
        leaving = header.apply(frame, packet, how)
    except header.Undeliverable as undeliverable:
        ended = replace(decision, reason=undeliverable.reason, forward=None, reply=None)
        return Explanation(state, zone, ended, packet, frame)
    if isinstance(how.exit, header.ToSender):
        leaving = answer_on_the_spot(frame, packet, how.exit.mac)
    return Explanation(state, zone, decision, packet, leaving)


def probe(state: EngineState, hook: Hook, number: int, *, source: Address, destination: Address,
          protocol: int, source_port: int = 0, destination_port: int = 0, tcp_flags: int = TCP_SYN,
          icmp_type: int | None = None, icmp_code: int = 0, icmp_id: int = 1, dscp: int = 0,
          src_mac: bytes | None = None, dst_mac: bytes | None = None) -> Probe:
    """An IPv4 or IPv6 packet as an honest endpoint would send it first: TCP SYN, ICMP echo request, own MAC.

    The source MAC is by default that of the port at whose hook it enters (zeros at other hooks), the
    destination MAC that of the port's gateway.
    """
    zone = zone_of(hook, number)
    sender = next((p for p in state.ports if p.id == number), None) if zone.kind is ZoneKind.PORT else None
    ports = (source_port, destination_port) if protocol in PROTOCOLS_WITH_PORTS else (0, 0)
    family = source.version
    what = FlowTuple(family, protocol, source, destination)
    if is_icmp(what) and icmp_type is None:
        icmp_type = ICMPV6_ECHO_REQUEST if family == 6 else ICMP_ECHO_REQUEST
    headers = Headers(
        ethertype=ETH_P_IPV6 if family == 6 else ETH_P_IP,
        src_mac=src_mac or (sender.mac if sender else bytes(6)),
        dst_mac=dst_mac or (sender.gateway_mac if sender else bytes(6)),
        dscp=dscp,
        tcp_flags=tcp_flags if protocol == TCP else 0,
        icmp_type=icmp_type or 0 if is_icmp(what) else 0,
        icmp_code=icmp_code if is_icmp(what) else 0,
    )
    if is_echo_request(what, headers):
        ports = (icmp_id, 0)
    elif is_echo_reply(what, headers):
        ports = (0, icmp_id)
    return Probe(what.with_ports(*ports), headers)


def _is_out_of_state(packet: Packet, decision: Decision) -> bool:
    strict = decision.strict and decision.stateful and packet.is_tcp
    return strict and packet.makes_flow and not is_opening(packet.headers.tcp_flags)


def _sets(how: Transposition) -> dict[str, Any]:
    sets: dict[str, Any] = {}
    for name, change in (("src", how.src), ("dst", how.dst)):
        if change is not None:
            sets[name] = str(change.becomes)
    for name, port in (("src_port", how.src_port), ("dst_port", how.dst_port)):
        if port is not None:
            sets[name] = port.becomes
    for name, mac in (("src_mac", how.src_mac), ("dst_mac", how.dst_mac)):
        if mac is not None:
            sets[name] = mac.hex(":")
    if how.routed:
        sets["ttl"] = "decrement"
    if how.dscp is not None:
        sets["dscp"] = how.dscp
    return sets


def _tunnel(how: Transposition) -> dict[str, Any] | None:
    if isinstance(how.exit, header.ToVtep):
        return {"vtep": str(how.exit.vtep), "vni": how.exit.vni}
    return None
