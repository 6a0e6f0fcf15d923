"""Conditions, and the walk over a port's layers that yields every step it takes.

Decided here, where `docs/engine.md` is open:

- Conditions on addresses and protocol hold only for IP and ARP, on DSCP only for IP.
- Equal priorities (legal when the actions are the same) are searched in the order in which they are listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Protocol

from vfp.model import ETH_P_ARP, Action, Address, Deny, Direction, Group, Layer, Match, Pass, Port, PortRange, Rule
from vfp.reasons import DropReason
from vfp.reference.packet import (
    PROTOCOLS_WITH_PORTS,
    TCP,
    TCP_ACK,
    TCP_SYN,
    FlowTuple,
    Headers,
    is_icmp,
)


@dataclass(frozen=True, slots=True)
class RuleRef:
    """Identity of a rule's counters."""

    port: int
    layer: str
    group: str
    rule: Rule


@dataclass(frozen=True, slots=True)
class Step:
    """One rule, or (`rule` None) the default of a layer, that was considered.

    `note` says why it did not match, or what it did.
    """

    port: int
    direction: Direction
    layer: str
    group: str = ""
    rule: Rule | None = None
    matched: bool = False
    action: str = ""
    note: str = ""

    @property
    def ref(self) -> RuleRef | None:
        """Identity of the rule, if the step is one."""
        return RuleRef(self.port, self.layer, self.group, self.rule) if self.rule else None


class Surroundings(Protocol):
    """What conditions ask beside the packet."""

    @property
    def vni(self) -> int | None:
        """The VNI that the packet came with over the overlay."""

    @property
    def mapped(self) -> bool:
        """Whether the packet came by a static mapping."""

    def in_set(self, set: int, address: Address) -> bool:
        """Whether an address is in a set; being asked is remembered."""

    def set_name(self, set: int) -> str:
        """A set, for people."""


class _Nowhere:
    """No overlay, no mapping, no sets."""

    vni = None
    mapped = False

    def in_set(self, set: int, address: Address) -> bool:
        return False

    def set_name(self, set: int) -> str:
        return str(set)


def mismatch(match: Match, headers: Headers, cur: FlowTuple, around: Surroundings | None = None) -> str:
    """The first condition that does not hold, in words; empty when all hold. Sets are asked last."""
    around = around or _Nowhere()
    return _mismatch_of_packet(match, headers, cur, around) or _mismatch_of_sets(match, headers, cur, around)


def _mismatch_of_sets(match: Match, headers: Headers, cur: FlowTuple, around: Surroundings) -> str:
    addressed = cur.family != 0 or headers.ethertype == ETH_P_ARP
    for name, id, address in (("source", match.src_set, cur.src), ("destination", match.dst_set, cur.dst)):
        if id is not None and not (addressed and around.in_set(id, address)):
            return f"{name} {address} is not in set {around.set_name(id)}"
    return ""


def _mismatch_of_packet(match: Match, headers: Headers, cur: FlowTuple, around: Surroundings) -> str:
    is_ip = cur.family != 0
    addressed = is_ip or headers.ethertype == ETH_P_ARP
    ports = is_ip and cur.protocol in PROTOCOLS_WITH_PORTS
    icmp = is_icmp(cur)
    if match.ethertype is not None and match.ethertype != headers.ethertype:
        return f"ethertype 0x{headers.ethertype:04x} is not 0x{match.ethertype:04x}"
    if match.src_mac is not None and match.src_mac != headers.src_mac:
        return f"source MAC {headers.src_mac.hex(':')} is not {match.src_mac.hex(':')}"
    if match.dst_mac is not None and match.dst_mac != headers.dst_mac:
        return f"destination MAC {headers.dst_mac.hex(':')} is not {match.dst_mac.hex(':')}"
    for name, prefix, address in (("source", match.src, cur.src), ("destination", match.dst, cur.dst)):
        if prefix is not None and not (addressed and address in prefix):
            return f"{name} {address} is not in {prefix}"
    if match.protocol is not None and not (addressed and match.protocol == cur.protocol):
        return f"protocol {cur.protocol} is not {match.protocol}"
    for name, wanted, port in (("source", match.src_ports, cur.src_port),
                               ("destination", match.dst_ports, cur.dst_port)):
        if wanted is not None and not ports:
            return f"no {name} port"
        if wanted is not None and not _in_range(wanted, port):
            return f"{name} port {port} is not in {wanted.low}-{wanted.high}"
    if match.icmp_type is not None and not (icmp and match.icmp_type == headers.icmp_type):
        return f"ICMP type {headers.icmp_type} is not {match.icmp_type}" if icmp else "not ICMP"
    if match.icmp_code is not None and not (icmp and match.icmp_code == headers.icmp_code):
        return f"ICMP code {headers.icmp_code} is not {match.icmp_code}" if icmp else "not ICMP"
    if match.tcp_flags is not None:
        mask, value = match.tcp_flags
        if not (is_ip and cur.protocol == TCP):
            return "not TCP"
        if headers.tcp_flags & mask != value:
            return f"TCP flags 0x{headers.tcp_flags:02x} & 0x{mask:02x} are not 0x{value:02x}"
    if match.dscp is not None and not (is_ip and match.dscp == headers.dscp):
        return f"DSCP {headers.dscp} is not {match.dscp}" if is_ip else "not IP"
    if match.arp_sender_is_source and headers.ethertype != ETH_P_ARP:
        return "not ARP"
    if match.arp_sender_is_source and headers.arp_sender_mac != headers.src_mac:
        return "ARP sender is not the Ethernet source"
    if match.nd_sender_is_source and not headers.nd_sender_is_source:
        return "ND sender is not the Ethernet source" if headers.nd else "not ND"
    if match.vni is not None and match.vni != around.vni:
        return f"VNI {around.vni} is not {match.vni}" if around.vni is not None else "not from the overlay"
    if match.fragment is not None and not (is_ip and match.fragment == headers.fragment):
        return ("a fragment" if headers.fragment else "no fragment") if is_ip else "not IP"
    if match.mapped is not None and match.mapped != around.mapped:
        return "came by a mapping" if around.mapped else "did not come by a mapping"
    return ""


def _is_syn(headers: Headers, cur: FlowTuple) -> bool:
    return cur.family != 0 and cur.protocol == TCP and headers.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN


def search(
    group: Group, headers: Headers, cur: FlowTuple, around: Surroundings | None = None
) -> Iterator[tuple[Rule, str]]:
    """Rules by ascending priority with the condition that failed, up to the one that matches (with "")."""
    for rule in sorted(group.rules, key=lambda rule: rule.priority):
        if rule.syn_only and not _is_syn(headers, cur):
            why_not = "no TCP SYN without ACK"
        else:
            why_not = mismatch(rule.match, headers, cur, around)
        yield rule, why_not
        if not why_not:
            return


class Traveller(Surroundings, Protocol):
    """The packet on its way through layers: a tuple that actions rewrite."""

    @property
    def headers(self) -> Headers:
        """What no layer rewrites."""

    @property
    def cur(self) -> FlowTuple:
        """The tuple as rewritten so far."""

    def act(self, ref: RuleRef, direction: Direction, *, stateful: bool) -> str:
        """Do what a rule says; returns what it did, in words.

        Raises:
            Dropped: the action ends the packet.
        """


class Dropped(Exception):
    """The packet ends here; `note` says why, for people."""

    def __init__(self, reason: DropReason, note: str = "") -> None:
        super().__init__(note or reason.name)
        self.reason = reason
        self.note = note


class Passed(Exception):
    """The action found nothing to do: as `Pass`. `note` says why, for people."""

    def __init__(self, note: str) -> None:
        super().__init__(note)
        self.note = note


class Ended(Exception):
    """The action leads out of this port: no later layer of it runs. `note` says where, for people."""

    def __init__(self, note: str) -> None:
        super().__init__(note)
        self.note = note


def walk(port: Port, direction: Direction, traveller: Traveller, steps: list[Step]) -> None:
    """Take a packet through a port's layers in one direction, or to the action that ends the walk; every step taken is
    appended to `steps`.

    Raises:
        Dropped: by a rule's action or a layer's default; the last of `steps` is the one that did it.
    """
    for layer in port.layers if direction is Direction.OUT else reversed(port.layers):
        if not _pass_layer(port.id, direction, layer, traveller, steps):
            return


def _pass_layer(port: int, direction: Direction, layer: Layer, traveller: Traveller,
                steps: list[Step]) -> bool:
    """Whether the walk goes on."""
    out = direction is Direction.OUT
    for group in layer.groups_out if out else layer.groups_in:
        for rule, why_not in search(group, traveller.headers, traveller.cur, traveller):
            step = Step(port, direction, layer.name, group.name, rule, not why_not, name_of(rule.action),
                        why_not)
            if why_not:
                steps.append(step)
                continue
            if isinstance(rule.action, Pass):
                steps.append(step)
                break
            try:
                note = traveller.act(RuleRef(port, layer.name, group.name, rule), direction,
                                     stateful=rule.stateful or not rule.terminating)
            except Passed as passed:
                steps.append(replace(step, note=passed.note))
                break
            except Ended as ended:
                steps.append(replace(step, note=ended.note))
                return False
            except Dropped as dropped:
                steps.append(replace(step, note=dropped.note))
                raise
            steps.append(replace(step, note=note))
            if rule.terminating:
                return True
    default = layer.default_out if out else layer.default_in
    steps.append(Step(port, direction, layer.name, matched=True, action=name_of(default),
                      note="no rule decided; the layer's default holds"))
    if isinstance(default, Deny):
        raise Dropped(DropReason.LAYER_DEFAULT)
    return True


def name_of(action: Action) -> str:
    """An action as traces show it: `allow`, `translate-source(3)`."""
    words = "".join(f"-{c.lower()}" if c.isupper() else c for c in type(action).__name__).lstrip("-")
    values = [str(value) for f in fields(action) if (value := getattr(action, f.name)) is not None]
    return f"{words}({', '.join(values)})" if values else words


def _in_range(wanted: PortRange, port: int) -> bool:
    return wanted.low <= port <= wanted.high
