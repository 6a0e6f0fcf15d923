"""The `meter` layer: the DSCP mark of what an endpoint sends, and counters of what its policies let through.

A metered endpoint has a meter for each rule that allows, in each direction, and one for what no rule decided. They
are found by the same rules as in `acl`, once more: a packet that gets here was allowed there, by the rule that
matches here. An engine's meter counts a flow's packets and bytes both ways, so that what an endpoint sent is the
forward side of its meters `out` and the reply side of those `in`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b

from policy.acl import Acl
from policy.addresses import ETHERTYPES, host_prefix, own_addresses
from policy.contribution import HostView, MeterRow, ObjectError, Tables
from southbound.messages import PortGoal
from vfp.model import Action, Allow, Group, Inspect, Layer, Log, Mark, Match, Meter, Pass, Rule

__all__ = ["Metering"]

Row = tuple[str, str, str, str]             # PortGoal.id, direction, policy, rule


class Metering:
    """Contributes `meter` to ports that are marked or metered, or have somebody behind them who is."""

    def __init__(self, acl: Acl) -> None:
        self._acl = acl
        self._numbers: dict[Row, int] = {}
        self._taken: dict[int, Row] = {}
        self._used: dict[Row, int] = {}

    def layer(self, port: PortGoal, view: HostView) -> Layer | None:
        """Marks first, as they end nothing; then the rule that allowed."""
        nested = view.nested.get(port.id, ())
        marks = tuple(_marks(port, nested))
        metered = [one for one in (port, *nested) if one.qos.meter]
        if not marks and not metered:
            return None
        out = [Group("mark", marks)] if marks else []
        into: list[Group] = []
        if metered:
            acl = self._acl.layer(port, view)
            out += self._metered(port, nested, acl.groups_out, "out")
            into += self._metered(port, nested, acl.groups_in, "in")
        return Layer("meter", tuple(out), tuple(into), default_out=Allow(), default_in=Allow())

    def tables(self, view: HostView) -> Tables:
        """What each meter of the view counts. The last call of a build."""
        rows = tuple(MeterRow(number, row[0], "out" if row[1] == "out" else "in", row[2], row[3])
                     for row, number in sorted(self._used.items()))
        self._numbers, self._used = self._used, {}
        self._taken = {number: row for row, number in self._numbers.items()}
        return Tables(meters=rows)

    def _metered(
        self, port: PortGoal, nested: tuple[PortGoal, ...], groups: tuple[Group, ...], direction: str
    ) -> Iterator[Group]:
        """The groups of `acl`, with meters in place of what allows, but for the first, discovery."""
        names = {one.name: one for one in nested}
        yield groups[0]
        for group in groups[1:]:
            rules = []
            for rule in group.rules:
                who, _, what = rule.name.partition(": ")
                owner = names.get(who, port) if what else port
                action = self._action(owner, direction, group, what if owner is not port else rule.name, rule.action)
                if action is not None:
                    rules.append(Rule(rule.priority, rule.match, action, rule.name, syn_only=rule.syn_only))
            if rules:
                yield Group(group.name, tuple(_ranked(rules)))
        if port.qos.meter:
            meter = Meter(self._number((port.id, direction, "", "default")))
            yield Group("default", (Rule(0, Match(ethertype=ETHERTYPES[4]), meter, "default"),
                                    Rule(0, Match(ethertype=ETHERTYPES[6]), meter, "default")))

    def _action(self, owner: PortGoal, direction: str, group: Group, rule: str, action: Action) -> Action | None:
        """None: no packet gets here by this rule."""
        match action:
            case Pass():
                return action
            case Allow() | Mark() | Log() | Inspect():
                if not owner.qos.meter:
                    return Allow()
                policy = "" if rule.startswith("default") else group.name
                return Meter(self._number((owner.id, direction, policy, rule.removesuffix(" (dns)"))))
        return None

    def _number(self, row: Row) -> int:
        """32 bits that stay the same, unless another meter has them."""
        known = self._used.get(row) or self._numbers.get(row)
        if known is None:
            for salt in range(8):
                known = int.from_bytes(blake2b("\0".join((*row, str(salt))).encode(), digest_size=4).digest(), "little")
                if known and self._taken.setdefault(known, row) == row:
                    break
            else:
                raise ObjectError(f"no meter is left for rule {row[3]}")
        self._used[row] = known
        return known


def _ranked(rules: list[Rule]) -> Iterator[Rule]:
    """With priorities of their own for rules of `acl` that have one, as they did the same and now count apart."""
    ranks: dict[tuple[int, Action], int] = {}
    for rule in sorted(rules, key=lambda rule: rule.priority):
        yield replace(rule, priority=ranks.setdefault((rule.priority, rule.action), len(ranks)))


def _marks(port: PortGoal, nested: tuple[PortGoal, ...]) -> Iterator[Rule]:
    """Who is behind the port first; what is left is its own."""
    for number, one in enumerate(nested):
        for address in own_addresses(one):
            match = Match(ethertype=ETHERTYPES[address.version], src=host_prefix(address.ip))
            if one.qos.dscp is not None:
                yield Rule(number, match, Mark(one.qos.dscp), f"{one.name}: mark", terminating=False)
            elif port.qos.dscp is not None:
                yield Rule(number, match, Pass(), f"{one.name}: no mark")
    if port.qos.dscp is not None:
        for ethertype in ETHERTYPES.values():
            yield Rule(len(nested), Match(ethertype=ethertype), Mark(port.qos.dscp), "mark", terminating=False)


