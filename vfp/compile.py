"""From an `EngineState` to table contents: a pure function, so that policy is checked before the kernel is touched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from vfp import limits
from vfp.classifier import CompiledGroup, compile_group, difference, edit_group, rewrite_fields, rule_cookie
from vfp.errors import CompileError
from vfp.layout import (
    GATEWAYS,
    LINK_PARTICULAR,
    MAPPING,
    MAPPING_KEY,
    MAX_STAGES,
    PORT,
    PROGRAM,
    REWRITE,
    STAGE,
    TIMEOUTS,
    UPLINK,
    UPLINK_LOOPBACK,
    PortFlag,
    pack,
    pack_address,
)
from vfp.model import (
    AddressSet,
    AnswerArp,
    EngineState,
    Forward,
    Group,
    Hairpin,
    Layer,
    Mapping,
    Meter,
    Port,
    Switch,
    ToUplink,
    TranslatePrefix,
    TranslateSource,
    Underlay,
    Untranslate,
)
from vfp.pools import check_pools, compile_pools
from vfp.prefixes import check_translation, mapping_rows, translation_row
from vfp.sets import CompiledSet, check_sets, compile_set
from vfp.spaces import CompiledSpace, check_exits, compile_spaces
from vfp.switching import check_switching, flooded_vteps, hop_rows, switch_rows, uplink_flags, vlan_rows, wire_spaces
from vfp.timeouts import Timeouts, nanoseconds
from vfp.underlays import Tunnelling, check_underlays, compile_underlays, numbers_of
from vfp.vteps import vtep_id, vtep_rows

__all__ = ["CompiledPort", "Compiler", "Tables", "mapping_cookie", "rule_cookie"]

MAX_TIMEOUT_S = 1 << 31

_IN_ONLY = (Untranslate,)
_OUT_ONLY = (Forward, Switch, ToUplink, AnswerArp, Hairpin, TranslatePrefix)
_SCTP = 132


@dataclass(frozen=True, slots=True)
class CompiledPort:
    """One port: its record and program (both with generation 0), and what its rules refer to."""

    id: int
    record: bytes                           # struct port
    program: bytes                          # struct program
    groups: frozenset[int]
    spaces: frozenset[int]
    pools: frozenset[int]
    sets: frozenset[int]
    timeouts: bytes | None                  # struct timeouts; None: the engine's own


@dataclass(slots=True)
class Tables:
    """Wanted contents of every table, by map name; keys and values are the structs' bytes. Of spaces: in chunks."""

    ports: dict[int, CompiledPort] = field(default_factory=dict)
    groups: dict[int, CompiledGroup] = field(default_factory=dict)
    maps: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    spaces: dict[int, CompiledSpace] = field(default_factory=dict)
    sets: dict[int, CompiledSet] = field(default_factory=dict)
    tunnel_ifindex: int = 0
    meters: frozenset[int] = frozenset()    # that rules name
    inspect_ifindex: int = 0
    mapping_names: dict[int, str] = field(default_factory=dict)     # by the cookie of their hits
    tunnelling: Tunnelling = field(default_factory=Tunnelling)
    shaper: int = 0


EDITABLE = 256
"""Rules from which a group is known by the identity of its `rules` and compiled by what changed."""


class Compiler:
    """Compiles states; keeps what the last one compiled, so that what did not change costs nothing.

    A small group is found again by its content. A large one is found by the identity of its tuple of rules; another
    tuple is compared with those of groups of the same name, and if they share most rules only the rest is compiled:
    for that, make a new group from slices of the old one's rules (`rules[:i] + (rule,) + rules[i:]`).
    """

    def __init__(self, secret: bytes = b"") -> None:
        """`secret` keys the ids of groups (`compile_group`)."""
        self._secret = secret
        self._groups: dict[tuple[str, Group], CompiledGroup] = {}
        self._large: dict[tuple[str, str, int], CompiledGroup] = {}
        self._same: dict[tuple[str, int], tuple[Group, CompiledGroup]] = {}     # small ones by identity: no hashing
        self._spaces: dict[int, CompiledSpace] = {}
        self._ports: dict[int, tuple[Port, tuple[Underlay, ...], CompiledPort]] = {}
        self._sets: dict[int, tuple[AddressSet, CompiledSet]] = {}

    def compile(self, state: EngineState, max_ports: int) -> Tables:
        """Table contents for `state`.

        Raises:
            CompileError: the state contradicts itself or a bound; says where and what to do.
        """
        _check_ids(state, max_ports)
        check_sets(state)
        check_pools(state)
        check_switching(state)
        check_underlays(state)
        limits.check(state)
        large: dict[tuple[str, str, int], CompiledGroup] = {}
        same: dict[tuple[str, int], tuple[Group, CompiledGroup]] = {}

        def compiled(layer: str, group: Group) -> CompiledGroup:
            if len(group.rules) < EDITABLE:
                itself = (layer, id(group))
                known = same.get(itself) or self._same.get(itself)
                if known is None or known[0] is not group:
                    content = (layer, group)
                    if content not in self._groups:
                        self._groups[content] = compile_group(layer, group, self._secret)
                    known = (group, self._groups[content])
                same[itself] = known
                return known[1]
            identity = (layer, group.name, id(group.rules))
            if identity not in large:
                large[identity] = self._large.get(identity) or self._compile_large(layer, group)
            return large[identity]

        tables = Tables(tunnel_ifindex=state.tunnel_ifindex, inspect_ifindex=state.inspect_ifindex, shaper=state.shaper)
        for port in state.ports:
            tables.ports[port.id] = self._port(port, compiled, state)
        small = {id(group): group for _, group in same.values()}
        tables.groups = {group.id: group for group in (*small.values(), *large.values())}
        tables.meters = frozenset(
            action.meter for group in tables.groups.values() for action in group.actions if isinstance(action, Meter))
        tables.sets = {given.id: self._compile_set(given) for given in state.sets}
        _check_named_sets(tables)
        tables.spaces = compile_spaces((*state.spaces, *wire_spaces(state)), self._spaces)
        check_exits(state)
        wired = uplink_flags(state)
        tables.tunnelling, underlay_numbers = compile_underlays(state)
        tables.maps = {
            "underlay_numbers": underlay_numbers,
            "gateways": {_u32(port.id): pack(GATEWAYS, of=_gateways(port)) for port in state.ports if port.gateways},
            "paths": {_u32(vtep_id(vtep)): _u32(mtu) for vtep, mtu in state.paths},
            "links": _links(state),
            "uplinks": {
                _u32(uplink.id): pack(
                    UPLINK, ifindex=uplink.ifindex | UPLINK_LOOPBACK * uplink.loopback, mtu=uplink.mtu,
                    mac=uplink.mac, flags=wired.get(uplink.id, 0))
                for uplink in state.uplinks
            },
            **compile_pools(state.pools),
            **switch_rows(state),
            "vlans": vlan_rows(state),
            "hops": hop_rows(action for group in tables.groups.values() for action in group.actions),
            "mappings": dict(_mappings(state)),
            "prefixes": mapping_rows(state),
            "translations": dict(_translations(tables.groups.values())),
            "routes": {key: row for space in tables.spaces.values() for key, row in space.routes.items()},
            **vtep_rows(flooded_vteps(state).union(*(space.vteps for space in tables.spaces.values()))),
            "rewrites": {
                key.to_bytes(8, "little"): pack(REWRITE, **rewrite_fields(rewrite))
                for group in tables.groups.values()
                for key, rewrite in group.rewrites.items()
            },
        }
        tables.mapping_names = {mapping_cookie(name): name for name in {m.name for m in state.mappings} if name}
        for content in [content for content, group in self._groups.items() if id(group) not in small]:
            del self._groups[content]
        self._same, self._large, self._spaces = same, large, tables.spaces
        self._ports = {port.id: (port, state.underlays, tables.ports[port.id]) for port in state.ports}
        self._sets = {given.id: (given, tables.sets[given.id]) for given in state.sets}
        return tables

    def _port(self, port: Port, compiled: Callable[[str, Group], CompiledGroup], state: EngineState) -> CompiledPort:
        """As it was, if it and what it is compiled with are."""
        old, underlays, known = self._ports.get(port.id, (None, None, None))
        if known is not None and old == port and underlays == state.underlays:
            groups = {compiled(layer.name, group).id for layer in port.layers
                      for group in (*layer.groups_out, *layer.groups_in)}
            if groups == known.groups:
                return known
        return _compile_port(port, compiled, state)

    def _compile_set(self, given: AddressSet) -> CompiledSet:
        """By the identity of its members: comparing many costs as much as compiling them."""
        old, compiled = self._sets.get(given.id, (None, None))
        if old is not None and compiled is not None and old.members is given.members and (
            (old.name, old.dynamic) == (given.name, given.dynamic)
        ):
            return compiled
        return compile_set(given)

    def _compile_large(self, layer: str, group: Group) -> CompiledGroup:
        """Compile by what differs least: ports may have groups of one name that are much alike."""
        changes = (
            (difference(parent.group.rules, group.rules), parent)
            for (its_layer, name, _), parent in self._large.items()
            if (its_layer, name) == (layer, group.name)
        )
        near = [(change, parent) for change, parent in changes if change is not None]
        if not near:
            return compile_group(layer, group, self._secret)
        change, parent = min(near, key=lambda pair: pair[0].size)
        return edit_group(parent, group, change, self._secret)


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _duplicates(values: Iterable[Any]) -> Iterator[Any]:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            yield value
        seen.add(value)


def _check_ids(state: EngineState, max_ports: int) -> None:
    unique: tuple[tuple[str, list[Any]], ...] = (
        ("port id", [port.id for port in state.ports]),
        ("port interface index", [port.ifindex for port in state.ports if port.exit_of is None]),
        ("space id", [space.id for space in state.spaces]),
        ("pool id", [pool.id for pool in state.pools]),
        ("uplink id", [uplink.id for uplink in state.uplinks]),
        ("mapping", [(m.uplink, m.protocol, str(m.external), m.external_port) for m in state.mappings]),
    )
    for what, values in unique:
        for value in _duplicates(values):
            raise CompileError(f"{what} {value} is given twice; ids must be unique on the host")
    for port in state.ports:
        if not 0 < port.id < max_ports:
            raise CompileError(f"port {port.name}: id {port.id} is out of range; use 1..{max_ports - 1}")
        if port.exit_of is not None and port.ifindex:
            raise CompileError(f"port {port.name}: it is the exit of space {port.exit_of} and has interface index "
                               f"{port.ifindex}; an exit has no link, give 0")
    for uplink in state.uplinks:
        if not 0 < uplink.id < 256:
            raise CompileError(f"uplink {uplink.name}: id {uplink.id} is out of range; use 1..255")
        if not 0 <= uplink.mtu < 65536:
            raise CompileError(f"uplink {uplink.name}: MTU {uplink.mtu} is out of range; use 1..65535, or 0: not known")
    ports = {port.id for port in state.ports}
    for mapping in state.mappings:
        if mapping.port not in ports:
            raise CompileError(
                f"mapping {mapping.external}:{mapping.external_port}: port {mapping.port} does not exist"
            )
        _check_mapping(mapping)


_MAPPABLE = {0: "any", 1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}


def _check_mapping(mapping: Mapping) -> None:
    which = f"mapping {mapping.external}:{mapping.external_port}"
    if mapping.external.version != mapping.internal.version:
        raise CompileError(
            f"{which}: internal address {mapping.internal} is not of the same family; a mapping does not translate "
            f"between IPv4 and IPv6"
        )
    if mapping.protocol not in _MAPPABLE or {1: 6, 58: 4}.get(mapping.protocol) == mapping.external.version:
        known = ", ".join(f"{number} ({name})" for number, name in _MAPPABLE.items())
        raise CompileError(
            f"{which}: protocol {mapping.protocol} cannot be mapped in IPv{mapping.external.version}; use one of "
            f"{known}"
        )
    for port in (mapping.external_port, mapping.internal_port):
        if not 0 <= port <= 65535:
            raise CompileError(f"{which}: port {port} is out of range; use 0..65535")
    if not mapping.protocol and (mapping.external_port or mapping.internal_port):
        raise CompileError(f"{which}: a mapping of any protocol has no ports; give 0 for both")
    if mapping.protocol == _SCTP and mapping.external_port != mapping.internal_port:
        raise CompileError(
            f"{which}: internal port {mapping.internal_port} is another one, but SCTP's checksum covers its ports, so "
            f"they cannot be rewritten; use the same port"
        )


def mapping_cookie(name: str) -> int:
    """Under which the hits of all mappings of one name are counted; 0: they are not."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") | 1 if name else 0


def _check_named_sets(tables: Tables) -> None:
    for compiled in tables.groups.values():
        unknown = compiled.sets.keys() - tables.sets.keys()
        for rule in compiled.group.rules if unknown else ():
            for name, number in (("src_set", rule.match.src_set), ("dst_set", rule.match.dst_set)):
                if number in unknown:
                    raise CompileError(
                        f"layer {compiled.layer}, group {compiled.group.name}, rule {rule.name!r}: {name} {number} "
                        f"does not exist; give the state an AddressSet with this id"
                    )


def _compile_port(
    port: Port, compiled: Callable[[str, Group], CompiledGroup], state: EngineState
) -> CompiledPort:
    numbered = list(enumerate(port.layers))
    out, out_groups = _stages(port, numbered, "out", compiled)
    in_, in_groups = _stages(port, numbered[::-1], "in", compiled)
    program = np.zeros((), PROGRAM)
    program["out_count"], program["in_count"] = len(out), len(in_)
    program["out_fussy"], program["in_fussy"] = _fussy(out_groups), _fussy(in_groups)
    program["out"][: len(out)] = out
    program["in"][: len(in_)] = in_
    actions = {action for group in (*out_groups.values(), *in_groups.values()) for action in group.actions}
    return CompiledPort(
        id=port.id,
        record=pack(PORT, ifindex=port.ifindex, mac=port.mac, gateway_mac=port.gateway_mac,
                    flags=PortFlag.STRICT_TCP * port.strict_tcp | PortFlag.TAP * port.tap | limits.flags(port)
                    | PortFlag.EXIT * (port.exit_of is not None),
                    connections=port.connections, rates=limits.rates(port), mtu=port.mtu,
                    underlays=numbers_of(port, state), space=port.exit_of or 0),
        program=program.tobytes(),
        groups=frozenset(out_groups | in_groups),
        spaces=frozenset(action.space for action in actions if isinstance(action, Forward | AnswerArp | Switch)).union(
            () if port.exit_of is None else (port.exit_of,)),
        pools=frozenset(action.pool for action in actions if isinstance(action, TranslateSource | Hairpin)),
        sets=frozenset(number for group in (*out_groups.values(), *in_groups.values()) for number in group.sets),
        timeouts=None if port.timeouts is None else _timeouts(port.name, port.timeouts),
    )


def _gateways(port: Port) -> Any:
    given = {address.version: pack_address(address) for address in port.gateways}
    return np.frombuffer(given.get(4, bytes(16)) + given.get(6, bytes(16)), np.uint8).reshape(2, 16)


def _timeouts(port: str, timeouts: Timeouts) -> bytes:
    for each in fields(timeouts):
        if not 0 < (value := getattr(timeouts, each.name)) <= MAX_TIMEOUT_S:
            raise CompileError(
                f"port {port}: timeouts.{each.name} is {value}; give seconds, more than 0 and at most {MAX_TIMEOUT_S}")
    return pack(TIMEOUTS, **nanoseconds(timeouts))


def _fussy(groups: dict[int, CompiledGroup]) -> int:
    """Bits of `Kind` of packets whose decision may differ by what `memory.h` does not compare."""
    mask = 0
    for group in groups.values():
        mask |= group.fussy_mask
    return mask


def _stages(
    port: Port, layers: list[tuple[int, Layer]], direction: str, compiled: Callable[[str, Group], CompiledGroup]
) -> tuple[Any, dict[int, CompiledGroup]]:
    """The walk in one direction: dtype STAGE, and the groups it needs by id."""
    rows: list[tuple[int, int, bool, bool, int]] = []
    used: dict[int, CompiledGroup] = {}
    for number, layer in layers:
        groups = layer.groups_out if direction == "out" else layer.groups_in
        default = layer.default_out if direction == "out" else layer.default_in
        wrong_way = _IN_ONLY if direction == "out" else _OUT_ONLY
        ids: list[tuple[int, int]] = []
        for group in groups:
            whole = compiled(layer.name, group)
            if any(isinstance(action, wrong_way) for action in whole.actions):
                rule = next(rule for rule in group.rules if isinstance(rule.action, wrong_way))
                raise CompileError(
                    f"port {port.name}, layer {layer.name}, group {group.name}, rule {rule.name!r}: action "
                    f"{type(rule.action).__name__} cannot be used in direction {direction}"
                )
            used[whole.id] = whole
            ids.append((whole.id, whole.kind_mask))
        ids = ids or [(0, 0)]
        deny = type(default).__name__ == "Deny"
        rows.extend(
            (identity, number, position == len(ids) - 1, deny, kinds) for position, (identity, kinds) in enumerate(ids)
        )
    if len(rows) > MAX_STAGES:
        raise CompileError(
            f"port {port.name}: {len(rows)} groups in direction {direction}, at most {MAX_STAGES} are possible; "
            f"merge groups of a layer"
        )
    stages = np.zeros(len(rows), STAGE)
    for index, row in enumerate(rows):
        stages[index] = (*row, 0)
    return stages, used


def _translations(groups: Iterable[CompiledGroup]) -> Iterator[tuple[bytes, bytes]]:
    for group in groups:
        for key, action in group.translations.items():
            check_translation(f"layer {group.layer}, group {group.group.name}", action.internal, action.external)
            yield key.to_bytes(8, "little"), translation_row(action)


def _links(state: EngineState) -> dict[bytes, bytes]:
    links = {_u32(port.ifindex): _u32(port.id | LINK_PARTICULAR * limits.is_particular(port))
             for port in state.ports if port.exit_of is None}
    for uplink in state.uplinks:
        if _u32(uplink.ifindex) in links:
            raise CompileError(
                f"uplink {uplink.name}: interface index {uplink.ifindex} is already a port or another uplink"
            )
        links[_u32(uplink.ifindex)] = _u32(uplink.id)
    return links


def _mappings(state: EngineState) -> Iterator[tuple[bytes, bytes]]:
    for mapping in state.mappings:
        key = pack(
            MAPPING_KEY, uplink=mapping.uplink, external=pack_address(mapping.external), port=mapping.external_port,
            protocol=mapping.protocol, family=mapping.external.version,
        )
        yield key, pack(
            MAPPING, internal=pack_address(mapping.internal), port=mapping.port, internal_port=mapping.internal_port,
            whole=mapping.protocol == 0, cookie=mapping_cookie(mapping.name),
        )
