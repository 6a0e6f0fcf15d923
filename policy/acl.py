"""The `acl` layer: policies of the tenant, one group a policy (tier), in both directions.

A goal rule names peers and destination ports as lists; the engine's rules hold one of each. So a goal
rule becomes the product of its lists: engine rules with the same priority, action and name. Equal
priorities with the same action cannot contradict each other, and the engine allows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from itertools import product
from typing import Literal

from policy.contribution import HostView, ObjectError, Tables
from southbound.messages import AclRule, AclTier, PortGoal
from vfp.model import (
    ETH_P_ARP,
    ETH_P_IP,
    Action,
    Allow,
    Deny,
    Group,
    Layer,
    Match,
    Pass,
    PortRange,
    Rule,
)

__all__ = ["Acl"]

MAX_PRIORITY = 65535

Direction = Literal["in", "out"]

_ACTIONS: dict[str, Allow | Deny | Pass] = {"allow": Allow(), "deny": Deny(), "pass": Pass()}

# ARP is the guard's and vnet's business; a policy about IP must not cut an endpoint off its own gateway.
_ARP_OUT = Group("arp", (Rule(0, Match(ethertype=ETH_P_ARP), Allow(), "arp-out"),))
_ARP_IN = Group("arp", (Rule(0, Match(ethertype=ETH_P_ARP), Allow(), "arp-in"),))


@dataclass(slots=True)
class _Known:
    """What a tier became in one direction. `made`: of each goal rule by the name it has there."""

    rules: tuple[AclRule, ...]
    group: Group | None
    made: dict[tuple[str, AclRule], tuple[Rule, ...]]


class Acl:
    """Contributes `acl` to every port.

    Remembers what became of the tiers of the last build, which ends with `tables`: a tier that did not change costs
    nothing, one that did costs its changes, and equal tiers of many ports are one group, which the engine knows by
    identity.
    """

    def __init__(self) -> None:
        self._same: dict[tuple[int, Direction], tuple[AclTier, _Known]] = {}    # by identity of the tier
        self._alike: dict[tuple[str, Direction], list[_Known]] = {}             # by policy
        self._used: set[tuple[int, Direction]] = set()

    def layer(self, port: PortGoal, view: HostView) -> Layer:
        """A group per tier by ascending order; what no tier decides falls to the port's defaults."""
        tiers = sorted(port.tiers, key=lambda tier: (tier.order, tier.policy))
        return Layer(
            "acl",
            groups_out=(_ARP_OUT, *self._groups(tiers, "out")),
            groups_in=(_ARP_IN, *self._groups(tiers, "in")),
            default_out=_default(port.default_out),
            default_in=_default(port.default_in),
        )

    def tables(self, view: HostView) -> Tables:
        """Policies come with peers resolved to prefixes; no tables."""
        self._same = {key: self._same[key] for key in self._used}
        alike: dict[tuple[str, Direction], dict[int, _Known]] = {}
        for (_, direction), (tier, known) in self._same.items():
            alike.setdefault((tier.policy, direction), {})[id(known)] = known
        self._alike = {key: list(found.values()) for key, found in alike.items()}
        self._used = set()
        return Tables()

    def _groups(self, tiers: list[AclTier], direction: Direction) -> Iterator[Group]:
        for tier in tiers:
            found = self._same.get((id(tier), direction))
            if found is None or found[0] is not tier:
                found = self._same[id(tier), direction] = (tier, self._known(tier, direction))
            self._used.add((id(tier), direction))
            if found[1].group is not None:
                yield found[1].group

    def _known(self, tier: AclTier, direction: Direction) -> _Known:
        alike = self._alike.setdefault((tier.policy, direction), [])
        for known in alike:
            if known.rules == tier.rules:
                return known
        made: dict[tuple[str, AclRule], tuple[Rule, ...]] = {}
        rules = tuple(_tier_rules(tier, direction, alike[-1].made if alike else {}, made))
        alike.append(_Known(tier.rules, Group(tier.policy, rules) if rules else None, made))
        return alike[-1]


def _default(word: Literal["allow", "deny"]) -> Allow | Deny:
    return Allow() if word == "allow" else Deny()


def _tier_rules(
    tier: AclTier, direction: Direction, before: Mapping[tuple[str, AclRule], tuple[Rule, ...]],
    made: dict[tuple[str, AclRule], tuple[Rule, ...]],
) -> Iterator[Rule]:
    """The engine rules of one tier, in one direction; those `before` are used again. `made` is filled.

    Raises:
        ObjectError: a priority or peer is out of range, or two rules of one priority differ in their action.
    """
    actions: dict[int, tuple[Action, str]] = {}
    for position, rule in enumerate(tier.rules):
        if rule.direction != direction:
            continue
        name = rule.name or f"{tier.policy}[{position}]"
        action = _ACTIONS[rule.action]
        if not 0 <= rule.priority <= MAX_PRIORITY:
            raise ObjectError(f"policy rule {name}: priority {rule.priority} is not in 0..{MAX_PRIORITY}")
        other, other_name = actions.setdefault(rule.priority, (action, name))
        if other != action:
            raise ObjectError(
                f"policy {tier.policy}: rules {other_name} and {name} have priority {rule.priority} and"
                f" different actions; give them different priorities"
            )
        rules = before.get((name, rule))
        if rules is None:
            rules = tuple(Rule(rule.priority, match, action, name) for match in _matches(rule, direction, name))
        made[name, rule] = rules
        yield from rules


def _matches(rule: AclRule, direction: Direction, name: str) -> Iterator[Match]:
    peers: list[IPv4Network | None]
    try:
        peers = [IPv4Network(peer) for peer in dict.fromkeys(rule.peers)]
    except ValueError as error:
        raise ObjectError(f"policy rule {name}: peer: {error}") from None
    ports: list[PortRange | None] = [PortRange(low, high) for low, high in dict.fromkeys(rule.ports)]
    for peer, dst_ports in product(peers or [None], ports or [None]):
        yield Match(
            ethertype=ETH_P_IP,
            src=peer if direction == "in" else None,
            dst=peer if direction == "out" else None,
            protocol=rule.protocol,
            dst_ports=dst_ports,
        )
