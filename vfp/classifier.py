"""Compile a group of rules to the kernel's records (`bpf/classify.h`): whole, or as an edit of a group compiled before.

A group is identified by its content: a keyed sum over its rules, so that one rule more or less changes the identity
without going over the others. How rules are arranged for search is no part of it (`vfp.tuples`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from vfp.errors import CompileError
from vfp.layout import RULE, ActionCode, If, RuleFlag, Set, pack_address
from vfp.model import (
    ETH_P_ARP,
    ETH_P_IP,
    ETH_P_IPV6,
    MAX_PRIORITY,
    Action,
    Allow,
    AnswerArp,
    Deny,
    Forward,
    Group,
    Hairpin,
    Inspect,
    Log,
    Mark,
    Match,
    Meter,
    Mirror,
    Modifier,
    Pass,
    Reject,
    Rewrite,
    Rule,
    Switch,
    ToUplink,
    TranslatePrefix,
    TranslateSource,
    Untranslate,
)
from vfp.switching import hop_key

ALIVE = 0xFFFFFFFF
"""`died` of a rule that is not known to die."""
MAX_EDIT = 64
"""Rules that an edit may add and remove; a larger change is compiled whole."""

_MAX_COMPARED = 4096                                    # rules whose equality is looked into
_MODULUS = 1 << 64
_NO_FAMILY = 0xFF                                       # of a rule whose two addresses can never meet

_CODES: dict[type[Any], ActionCode] = {
    Allow: ActionCode.ALLOW, Deny: ActionCode.DENY, Pass: ActionCode.PASS,
    TranslateSource: ActionCode.TRANSLATE_SOURCE, Untranslate: ActionCode.UNTRANSLATE,
    Forward: ActionCode.FORWARD, ToUplink: ActionCode.TO_UPLINK, AnswerArp: ActionCode.ANSWER_ARP,
    Rewrite: ActionCode.REWRITE, Reject: ActionCode.REJECT, Mark: ActionCode.MARK, Meter: ActionCode.METER,
    Log: ActionCode.LOG, Mirror: ActionCode.MIRROR, Inspect: ActionCode.INSPECT,
    Hairpin: ActionCode.HAIRPIN,
    TranslatePrefix: ActionCode.TRANSLATE_PREFIX,
    Switch: ActionCode.SWITCH,
}

Records = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """What makes one group's content another's. Records have `born` 0 and `died` ALIVE."""

    parent: int                             # id of the group that is edited
    removed: Records                        # dtype RULE
    added: Records


@dataclass(frozen=True, slots=True, eq=False)
class CompiledGroup:
    """One group, compiled.

    Attributes:
        id: of the content; equal groups have equal ids, also after a restart, as long as the secret is the same.
        layer: name of the layer.
        group: what was compiled.
        ordered: its rules are in order of priority.
        actions: how many rules have each action.
        kinds: how many rules can match each kind of packet, by bit of `Kind`.
        fussy: how many of them look at what may differ from one connection to the next.
        sets: how often each set is named.
        edit: how it comes from another group; None when `whole` was made at once.
    """

    id: int
    layer: str
    group: Group
    ordered: bool
    actions: Counter[Action]
    kinds: npt.NDArray[np.int64]
    fussy: npt.NDArray[np.int64]
    sets: Counter[int]
    edit: Edit | None
    records: Records | None = None

    def whole(self) -> Records:
        """Every rule's record, in order of priority (dtype RULE)."""
        if self.records is not None:
            return self.records
        return _records(self.layer, self.group.name, _sorted(self.group.rules))

    @property
    def kind_mask(self) -> int:
        """Bits of `Kind`: which packets can be matched at all."""
        return _bits(self.kinds)

    @property
    def fussy_mask(self) -> int:
        """Bits of `Kind`: which packets cannot be decided like the last one of the same addresses and service."""
        return _bits(self.fussy)

    @property
    def rewrites(self) -> dict[int, Rewrite]:
        """Argument of each rewrite action, by content hash."""
        return {rewrite_key(action): action for action in self.actions if isinstance(action, Rewrite)}

    @property
    def translations(self) -> dict[int, TranslatePrefix]:
        """Argument of each translation of a prefix, by content hash."""
        return {rewrite_key(action): action for action in self.actions if isinstance(action, TranslatePrefix)}


def rule_cookie(layer: str, group: str, rule: Rule) -> int:
    """Identity of a rule's hit counter on a port: 64 bits, the same after every restart."""
    return _hash64(f"{layer}\0{group}\0{rule.priority}\0{rule.name}".encode())


def rewrite_key(action: Rewrite | TranslatePrefix) -> int:
    """Key of an action's argument: 64 bits of its content."""
    return _hash64(repr(action).encode())


def compile_group(layer: str, group: Group, secret: bytes = b"") -> CompiledGroup:
    """Compile `group` of `layer`. `secret` keys the id: who does not know it cannot make two groups with one id.

    Raises:
        CompileError: a priority out of range, or two rules with one priority and different actions.
    """
    rules = _sorted(group.rules)
    _check(f"layer {layer}, group {group.name}", rules)
    records = _records(layer, group.name, rules)
    return CompiledGroup(
        id=(_content(records, secret) % _MODULUS) or 1,
        layer=layer, group=group, ordered=all(map(_is, rules, group.rules)),
        actions=Counter(rule.action for rule in rules), kinds=_kinds(records), fussy=_kinds(_fussy(records)),
        sets=_named_sets(records), edit=None, records=records,
    )


@dataclass(frozen=True, slots=True)
class Change:
    """What differs between two tuples of rules; outside of `new[start:stop]` they are equal."""

    removed: tuple[Rule, ...]
    added: tuple[Rule, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Rules removed and added."""
        return len(self.removed) + len(self.added)


def edit_group(parent: CompiledGroup, group: Group, change: Change, secret: bytes = b"") -> CompiledGroup:
    """Compile `group`, of the same name and layer, as an edit of `parent`, without going over the rules they share.

    Raises:
        CompileError: as `compile_group`.
    """
    around = group.rules[max(0, change.start - 1) : change.stop + 1]
    ordered = parent.ordered and _is_ordered(around)
    where = f"layer {parent.layer}, group {group.name}"
    for rule in change.added:
        _check(where, [rule, *_with_priority(group.rules, rule.priority, ordered)])
    actions = parent.actions.copy()
    actions.subtract(rule.action for rule in change.removed)
    actions.update(rule.action for rule in change.added)
    gone, new = (_records(parent.layer, group.name, _sorted(rules)) for rules in (change.removed, change.added))
    identity = (parent.id + _content(new, secret) - _content(gone, secret)) % _MODULUS or 1
    sets = parent.sets.copy()
    sets.subtract(_named_sets(gone))
    sets.update(_named_sets(new))
    return CompiledGroup(
        id=identity, layer=parent.layer, group=group, ordered=ordered, actions=+actions,
        kinds=parent.kinds + _kinds(new) - _kinds(gone),
        fussy=parent.fussy + _kinds(_fussy(new)) - _kinds(_fussy(gone)), sets=+sets,
        edit=Edit(parent.id, gone, new),
    )


def difference(old: tuple[Rule, ...], new: tuple[Rule, ...]) -> Change | None:
    """What makes `new` of `old`; None if that is more than MAX_EDIT rules, or they are too far apart.

    Tuples that share their rules' objects are compared at about a nanosecond a rule; equal but other objects take a
    thousand times that.
    """
    shorter = min(len(old), len(new))
    start = _common(old, new, shorter)
    end = _common(old[::-1], new[::-1], shorter - start)
    before, after = old[start : len(old) - end], new[start : len(new) - end]
    if abs(len(before) - len(after)) > MAX_EDIT:
        return None
    before, after = _without_shared(before, after)
    if max(len(before), len(after)) > _MAX_COMPARED:
        return None
    removed, added = Counter(before), Counter(after)
    both = removed & added
    change = Change(
        tuple((removed - both).elements()), tuple((added - both).elements()), start, len(new) - end
    )
    return change if change.size <= MAX_EDIT else None


def _without_shared(a: tuple[Rule, ...], b: tuple[Rule, ...]) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    """Both without the objects that are in both."""
    in_a, in_b = set(map(id, a)), set(map(id, b))
    if len(in_a) < len(a) or len(in_b) < len(b):
        return a, b                                     # one object twice: for whoever counts
    return tuple(rule for rule in a if id(rule) not in in_b), tuple(rule for rule in b if id(rule) not in in_a)


def _common(a: tuple[Rule, ...], b: tuple[Rule, ...], bound: int) -> int:
    """Length of the common beginning of `a` and `b`, at most `bound`."""
    low = 0
    while low < bound:
        middle = (low + bound + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            bound = middle - 1
    return low


def _is(a: object, b: object) -> bool:
    return a is b


def _priority(rule: Rule) -> int:
    return rule.priority


def _sorted(rules: Sequence[Rule]) -> list[Rule]:
    return sorted(rules, key=_priority)


def _is_ordered(rules: Sequence[Rule]) -> bool:
    return all(before.priority <= after.priority for before, after in pairwise(rules))


def _with_priority(rules: tuple[Rule, ...], priority: int, ordered: bool) -> Iterator[Rule]:
    if not ordered:
        yield from (rule for rule in rules if rule.priority == priority)
        return
    for index in range(bisect_left(rules, priority, key=_priority), len(rules)):
        if rules[index].priority != priority:
            return
        yield rules[index]


def _content(records: Records, secret: bytes) -> int:
    """Sum of keyed hashes: adding and removing a rule is adding and subtracting."""
    raw, size = records.tobytes(), RULE.itemsize
    return sum(
        int.from_bytes(blake2b(raw[at : at + size], digest_size=8, key=secret).digest(), "little")
        for at in range(0, len(raw), size)
    )


def _hash64(content: bytes) -> int:
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def _check(where: str, rules: Sequence[Rule]) -> None:
    before: Rule | None = None
    for rule in rules:
        if not 0 <= rule.priority <= MAX_PRIORITY:
            raise CompileError(
                f"{where}, rule {rule.name!r}: priority {rule.priority} is out of range; use 0..{MAX_PRIORITY}"
            )
        if not rule.terminating and not isinstance(rule.action, Modifier):
            raise CompileError(
                f"{where}, rule {rule.name!r}: action {type(rule.action).__name__} decides, so the rule must be "
                f"terminating; only Mark, Meter, Log and Mirror can leave the decision to later groups"
            )
        _conditions_of(where, rule)
        if before and before.priority == rule.priority and (
            before.action != rule.action or before.stateful != rule.stateful
            or before.terminating != rule.terminating
        ):
            raise CompileError(
                f"{where}: rules {before.name!r} and {rule.name!r} both have priority {rule.priority} but do "
                f"different things; give one of them another priority"
            )
        before = rule


_SYN, _SYN_ACK = 0x02, 0x12
_TCP = 6


def _conditions_of(where: str, rule: Rule) -> None:
    """Refuse conditions that the kernel's records do not have room for, or that can never hold together."""
    match = rule.match
    for name, number, most in (
        ("src_set", match.src_set, 0xFFFFFFFF), ("dst_set", match.dst_set, 0xFFFFFFFF), ("vni", match.vni, 0xFFFFFF),
    ):
        if number is not None and not 0 <= number <= most:
            raise CompileError(f"{where}, rule {rule.name!r}: {name} {number} is out of range; use 0..{most}")
    if not rule.syn_only:
        return
    if match.protocol not in (None, _TCP):
        raise CompileError(
            f"{where}, rule {rule.name!r}: syn_only holds for TCP, but protocol {match.protocol} is given; remove one"
        )
    mask, value = match.tcp_flags or (0, 0)
    if (value ^ _SYN) & mask & _SYN_ACK:
        raise CompileError(
            f"{where}, rule {rule.name!r}: syn_only wants SYN without ACK, but tcp_flags {value:#04x}/{mask:#04x} want "
            f"otherwise; remove one"
        )


def _tcp_flags(rule: Rule) -> tuple[int, int] | None:
    """The test of TCP flags, that of `syn_only` included."""
    if not rule.syn_only:
        return rule.match.tcp_flags
    mask, value = rule.match.tcp_flags or (0, 0)
    return mask | _SYN_ACK, value | _SYN


def _named_sets(records: Records) -> Counter[int]:
    """How often records name each set."""
    named: Counter[int] = Counter()
    for bit, name in ((If.SRC_SET, "src_set"), (If.DST_SET, "dst_set")):
        ids, counts = np.unique(records[name][records["conditions"] & bit != 0], return_counts=True)
        named.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
    return named


def _argument(action: Action) -> int:
    match action:
        case TranslateSource(pool=number) | Hairpin(pool=number):
            return number
        case Forward(space=number) | Switch(space=number):
            return number
        case AnswerArp(space=number, proxy=proxy):
            return number | proxy << 32
        case ToUplink(uplink=number, bridged=bridged, via=via):
            return number | bridged << 8 | (hop_key(via) if via else 0) << 32
        case Mark(dscp=number) | Meter(meter=number) | Log(every=number) | Mirror(port=number):
            return number
        case Inspect(queue=queue, fail_open=fail_open):
            return queue | fail_open << 8
        case Rewrite() | TranslatePrefix():
            return rewrite_key(action)
        case _:
            return 0


def _records(layer: str, group: str, rules: Sequence[Rule]) -> npt.NDArray[Any]:
    """dtype RULE, one a rule, column by column."""
    out = np.zeros(len(rules), RULE)
    if not rules:
        return out
    matches = [rule.match for rule in rules]
    out["died"] = ALIVE
    out["cookie"] = [rule_cookie(layer, group, rule) for rule in rules]
    out["arg"] = np.array([_argument(rule.action) for rule in rules], np.uint64)
    out["priority"] = [rule.priority for rule in rules]
    out["action"] = [_CODES[type(rule.action)] for rule in rules]
    out["flags"] = [
        RuleFlag.STATELESS * (not rule.stateful) if rule.terminating else RuleFlag.CONTINUE for rule in rules
    ]
    conditions = np.zeros(len(rules), np.uint32)

    def column(bit: If, present: list[bool], fields: dict[str, Any]) -> None:
        conditions[:] |= np.where(present, np.uint32(bit), np.uint32(0))
        for name, values in fields.items():
            out[name] = values

    column(If.ETHERTYPE, [m.ethertype is not None for m in matches], {"ethertype": [m.ethertype or 0 for m in matches]})
    column(If.PROTOCOL, [m.protocol is not None for m in matches], {"protocol": [m.protocol or 0 for m in matches]})
    column(If.ICMP_TYPE, [m.icmp_type is not None for m in matches], {"icmp_type": [m.icmp_type or 0 for m in matches]})
    column(If.ICMP_CODE, [m.icmp_code is not None for m in matches], {"icmp_code": [m.icmp_code or 0 for m in matches]})
    column(If.DSCP, [m.dscp is not None for m in matches], {"dscp": [m.dscp or 0 for m in matches]})
    column(If.ARP_SENDER, [m.arp_sender_is_source for m in matches], {})
    column(If.ND_SENDER, [m.nd_sender_is_source for m in matches], {})
    tests = [_tcp_flags(rule) for rule in rules]
    flags = [test or (0, 0) for test in tests]
    column(
        If.TCP_FLAGS, [test is not None for test in tests],
        {"tcp_mask": [mask for mask, _ in flags], "tcp_value": [value for _, value in flags]},
    )
    column(If.SRC_SET, [m.src_set is not None for m in matches], {"src_set": [m.src_set or 0 for m in matches]})
    column(If.DST_SET, [m.dst_set is not None for m in matches], {"dst_set": [m.dst_set or 0 for m in matches]})
    column(If.VNI, [m.vni is not None for m in matches], {"vni": [m.vni or 0 for m in matches]})
    column(If.FRAGMENT, [m.fragment is not None for m in matches], {"fragment": [bool(m.fragment) for m in matches]})
    column(If.MAPPED, [m.mapped is not None for m in matches], {"mapped": [bool(m.mapped) for m in matches]})
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


def _kinds(records: Records) -> npt.NDArray[np.int64]:
    """How many of `records` can match a packet of each kind, in the order of `Kind`'s bits."""
    conditions = records["conditions"]
    ethertype = np.where(conditions & If.ETHERTYPE, records["ethertype"], 0)
    family = np.where(conditions & (If.SRC | If.DST), records["family"], 0)
    protocol = np.where(conditions & If.PROTOCOL, records["protocol"].astype(np.int64), -1)
    addressed = (conditions & (If.SRC | If.DST | If.PROTOCOL)) != 0

    def ip(kind: int, version: int) -> list[npt.NDArray[np.bool_]]:
        this = ((ethertype == 0) | (ethertype == kind)) & ((family == 0) | (family == version))
        tcp, udp = (this & ((protocol == -1) | (protocol == number)) for number in (6, 17))
        return [tcp, udp, this & (protocol != 6) & (protocol != 17)]

    arp = ((ethertype == 0) | (ethertype == ETH_P_ARP)) & ((family == 0) | (family == 4))
    known = (ETH_P_ARP, ETH_P_IP, ETH_P_IPV6)
    other = ~addressed & ~np.isin(ethertype, known)
    return np.array([np.count_nonzero(kind) for kind in (arp, *ip(ETH_P_IP, 4), *ip(ETH_P_IPV6, 6), other)])


def _fussy(records: Records) -> Records:
    """Those that test a field which is no part of the question."""
    fussy: Records = records[records["conditions"] & (If.SPORT | If.TCP_FLAGS | If.DSCP | If.FRAGMENT) != 0]
    return fussy


def _bits(counts: npt.NDArray[np.int64]) -> int:
    return int(np.packbits(counts > 0, bitorder="little")[0])


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
