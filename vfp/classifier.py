"""Compile a group of rules for tuple space search (`bpf/classify.h`): masks, buckets and rule records.

The kernel verifies every rule of a bucket in full, so a mask may always be coarser than a rule: fewer masks mean fewer
look-ups, fuller buckets mean more verifications. Small groups are one bucket; large ones are split by their rules' own
masks, coarsened until they fit (the idea of TupleMerge, Daly et al., IEEE/ACM ToN 2019).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vfp.errors import CompileError
from vfp.layout import BUCKET_KEY, MAX_TUPLES, RULE, TUPLE, ActionCode, Field, If, Set, pack_address
from vfp.model import (
    MAX_PRIORITY,
    Action,
    Allow,
    AnswerArp,
    Deny,
    Forward,
    Group,
    Match,
    Pass,
    Rewrite,
    Rule,
    ToUplink,
    TranslateSource,
    Untranslate,
)

SMALL = 32
"""Rules up to which one bucket that is searched from the top beats any hashing."""

_NO_FAMILY = 0xFF

_CODES: dict[type[Any], ActionCode] = {
    Allow: ActionCode.ALLOW, Deny: ActionCode.DENY, Pass: ActionCode.PASS,
    TranslateSource: ActionCode.TRANSLATE_SOURCE, Untranslate: ActionCode.UNTRANSLATE,
    Forward: ActionCode.FORWARD, ToUplink: ActionCode.TO_UPLINK, AnswerArp: ActionCode.ANSWER_ARP,
    Rewrite: ActionCode.REWRITE,
}


class Mask(NamedTuple):
    """Which bits of a header are hashed: prefix lengths and exact fields."""

    src_len: int
    dst_len: int
    fields: int


@dataclass(frozen=True, slots=True)
class CompiledGroup:
    """One group as table contents. Places in `rules` are relative to where the group will be put.

    Attributes:
        id: content hash; equal groups have equal ids, on any host and after any restart.
        tuples: dtype TUPLE, by ascending best priority.
        rules: dtype RULE, bucket after bucket.
        bucket_keys: dtype BUCKET_KEY, their `group` being `id`.
        buckets: shape [n, 2]: first rule (relative), count.
        rewrites: argument of each rewrite action, by content hash.
    """

    id: int
    tuples: npt.NDArray[Any]
    rules: npt.NDArray[Any]
    bucket_keys: npt.NDArray[Any]
    buckets: npt.NDArray[np.uint32]
    rewrites: tuple[tuple[int, Rewrite], ...]


def rule_cookie(layer: str, group: str, rule: Rule) -> int:
    """Identity of a rule's hit counter on a port: 64 bits, the same after every restart."""
    return _hash64(f"{layer}\0{group}\0{rule.priority}\0{rule.name}".encode())


def rewrite_key(rewrite: Rewrite) -> int:
    """Key of a rewrite's argument: 64 bits of its content."""
    return _hash64(repr(rewrite).encode())


def compile_group(layer: str, group: Group) -> CompiledGroup:
    """Compile `group` of `layer`.

    Raises:
        CompileError: a priority out of range, or two rules with one priority and different actions.
    """
    where = f"layer {layer}, group {group.name}"
    rules = sorted(group.rules, key=lambda rule: rule.priority)
    _check(where, rules)
    masks = _masks(rules)
    members: dict[Mask, list[int]] = defaultdict(list)
    for index, mask in enumerate(masks):
        members[mask].append(index)
    # Dicts keep order and rules are sorted, so masks come by their best priority.
    records = _records(layer, group.name, rules)
    order: list[int] = []
    keys: list[bytes] = []
    buckets: list[tuple[int, int]] = []
    tuples = np.zeros(len(members), TUPLE)
    for number, (mask, indexes) in enumerate(members.items()):
        tuples[number] = (mask.src_len, mask.dst_len, mask.fields, 0, rules[indexes[0]].priority, 0)
        runs: dict[bytes, list[int]] = defaultdict(list)
        for index in indexes:
            runs[_bucket_key(number, mask, rules[index].match)].append(index)
        for key, run in runs.items():
            keys.append(key)
            buckets.append((len(order), len(run)))
            order.extend(run)
    bucket_keys = np.frombuffer(b"".join(keys), BUCKET_KEY).copy()
    placed = records[order]
    sizes = np.array(buckets, np.uint32).reshape(-1, 2)
    content = b"".join((tuples.tobytes(), placed.tobytes(), bucket_keys.tobytes(), sizes.tobytes()))
    identity = _hash64(content) or 1
    bucket_keys["group"] = identity
    rewrites = {rewrite_key(r.action): r.action for r in rules if isinstance(r.action, Rewrite)}
    return CompiledGroup(identity, tuples, placed, bucket_keys, sizes, tuple(rewrites.items()))


def _hash64(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def _check(where: str, rules: Sequence[Rule]) -> None:
    before: Rule | None = None
    for rule in rules:
        if not 0 <= rule.priority <= MAX_PRIORITY:
            raise CompileError(
                f"{where}, rule {rule.name!r}: priority {rule.priority} is out of range; use 0..{MAX_PRIORITY}"
            )
        if before and before.priority == rule.priority and (
            before.action != rule.action or before.stateful != rule.stateful
        ):
            raise CompileError(
                f"{where}: rules {before.name!r} and {rule.name!r} both have priority {rule.priority} but do "
                f"different things; give one of them another priority"
            )
        before = rule


def _masks(rules: Sequence[Rule]) -> list[Mask]:
    """One mask a rule, at most MAX_TUPLES different ones."""
    if len(rules) <= SMALL:
        return [Mask(0, 0, 0)] * len(rules)
    natural = [_natural_mask(rule.match) for rule in rules]
    for step in (1, 8, 16, 32, 128):
        masks = [Mask(mask.src_len // step * step, mask.dst_len // step * step, mask.fields) for mask in natural]
        if len(set(masks)) <= MAX_TUPLES:
            return masks
    return [Mask(0, 0, mask.fields & (Field.PROTOCOL | Field.DPORT)) for mask in natural]


def _natural_mask(match: Match) -> Mask:
    fields = 0
    if match.ethertype is not None:
        fields |= Field.ETHERTYPE
    if match.protocol is not None:
        fields |= Field.PROTOCOL
    if match.src_ports is not None and match.src_ports.low == match.src_ports.high:
        fields |= Field.SPORT
    if match.dst_ports is not None and match.dst_ports.low == match.dst_ports.high:
        fields |= Field.DPORT
    src_len = match.src.prefixlen if match.src is not None else 0
    dst_len = match.dst.prefixlen if match.dst is not None else 0
    return Mask(src_len, dst_len, fields)


def _masked(address: bytes, bits: int) -> bytes:
    value = int.from_bytes(address, "big") >> (128 - bits) << (128 - bits)
    return value.to_bytes(16, "big")


def _bucket_key(number: int, mask: Mask, match: Match) -> bytes:
    """The masked header that every packet matching `match` has. Twin of the key built in `try_tuple`."""
    key = bytearray(BUCKET_KEY.itemsize)
    key[8:10] = number.to_bytes(2, "little")
    if mask.fields & Field.ETHERTYPE and match.ethertype is not None:
        key[10:12] = match.ethertype.to_bytes(2, "little")
    if mask.fields & Field.SPORT and match.src_ports is not None:
        key[12:14] = match.src_ports.low.to_bytes(2, "big")
    if mask.fields & Field.DPORT and match.dst_ports is not None:
        key[14:16] = match.dst_ports.low.to_bytes(2, "big")
    if mask.src_len and match.src is not None:
        key[16:32] = _masked(pack_address(match.src.network_address), mask.src_len)
    if mask.dst_len and match.dst is not None:
        key[32:48] = _masked(pack_address(match.dst.network_address), mask.dst_len)
    if mask.fields & Field.PROTOCOL and match.protocol is not None:
        key[48] = match.protocol
    return bytes(key)


def _argument(action: Action) -> int:
    match action:
        case TranslateSource(pool=number) | Forward(space=number) | AnswerArp(space=number) | ToUplink(uplink=number):
            return number
        case Rewrite():
            return rewrite_key(action)
        case _:
            return 0


def _records(layer: str, group: str, rules: Sequence[Rule]) -> npt.NDArray[Any]:
    """dtype RULE, one a rule, column by column."""
    out = np.zeros(len(rules), RULE)
    if not rules:
        return out
    matches = [rule.match for rule in rules]
    out["cookie"] = [rule_cookie(layer, group, rule) for rule in rules]
    out["arg"] = np.array([_argument(rule.action) for rule in rules], np.uint64)
    out["priority"] = [rule.priority for rule in rules]
    out["action"] = [_CODES[type(rule.action)] for rule in rules]
    out["stateless"] = [not rule.stateful for rule in rules]
    conditions = np.zeros(len(rules), np.uint16)

    def column(bit: If, present: list[bool], fields: dict[str, Any]) -> None:
        conditions[:] |= np.where(present, np.uint16(bit), np.uint16(0))
        for name, values in fields.items():
            out[name] = values

    column(If.ETHERTYPE, [m.ethertype is not None for m in matches], {"ethertype": [m.ethertype or 0 for m in matches]})
    column(If.PROTOCOL, [m.protocol is not None for m in matches], {"protocol": [m.protocol or 0 for m in matches]})
    column(If.ICMP_TYPE, [m.icmp_type is not None for m in matches], {"icmp_type": [m.icmp_type or 0 for m in matches]})
    column(If.ICMP_CODE, [m.icmp_code is not None for m in matches], {"icmp_code": [m.icmp_code or 0 for m in matches]})
    column(If.DSCP, [m.dscp is not None for m in matches], {"dscp": [m.dscp or 0 for m in matches]})
    column(If.ARP_SENDER, [m.arp_sender_is_source for m in matches], {})
    column(If.ND_SENDER, [m.nd_sender_is_source for m in matches], {})
    flags = [m.tcp_flags or (0, 0) for m in matches]
    column(
        If.TCP_FLAGS, [m.tcp_flags is not None for m in matches],
        {"tcp_mask": [mask for mask, _ in flags], "tcp_value": [value for _, value in flags]},
    )
    for bit, prefixes, name in (
        (If.SRC, [m.src for m in matches], "src"), (If.DST, [m.dst for m in matches], "dst"),
    ):
        packed = b"".join(pack_address(p.network_address) if p is not None else bytes(16) for p in prefixes)
        column(
            bit, [p is not None for p in prefixes],
            {
                name: np.frombuffer(packed, np.uint8).reshape(-1, 16),
                f"{name}_len": [p.prefixlen if p is not None else 0 for p in prefixes],
            },
        )
    out["family"] = [_family(m) for m in matches]
    for bit, ranges, name in (
        (If.SPORT, [m.src_ports for m in matches], "sport"), (If.DPORT, [m.dst_ports for m in matches], "dport"),
    ):
        column(
            bit, [r is not None for r in ranges],
            {
                f"{name}_low": [r.low if r is not None else 0 for r in ranges],
                f"{name}_high": [r.high if r is not None else 0 for r in ranges],
            },
        )
    for bit, macs, name in (
        (If.SMAC, [m.src_mac for m in matches], "smac"), (If.DMAC, [m.dst_mac for m in matches], "dmac"),
    ):
        packed = b"".join(mac if mac is not None else bytes(6) for mac in macs)
        column(
            bit, [mac is not None for mac in macs], {name: np.frombuffer(packed, np.uint8).reshape(-1, 6)}
        )
    out["conditions"] = conditions
    return out


def _family(match: Match) -> int:
    """4, 6, 0 for any, or `_NO_FAMILY` when the two addresses can never meet."""
    versions = {prefix.version for prefix in (match.src, match.dst) if prefix is not None}
    return _NO_FAMILY if len(versions) == 2 else next(iter(versions), 0)


def rewrite_fields(rewrite: Rewrite) -> dict[str, Any]:
    """The fields of struct rewrite."""
    flags = Set(0)
    fields: dict[str, Any] = {}
    for name, bit, address in (("src", Set.SRC, rewrite.src), ("dst", Set.DST, rewrite.dst)):
        if address is not None:
            flags |= bit
            fields[name] = pack_address(address)
            fields[f"{name}_family"] = address.version
    for name, bit, port in (("sport", Set.SPORT, rewrite.src_port), ("dport", Set.DPORT, rewrite.dst_port)):
        if port is not None:
            flags |= bit
            fields[name] = port
    return {**fields, "flags": int(flags)}
