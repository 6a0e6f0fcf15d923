"""Policies of endpoints that are nested behind a port: its layer judges each address by itself.

All nested endpoints of a port share one group for each policy, whose rules hold for their addresses only; a last group
has their defaults. What is left is the port's own, and goes on to its own policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from policy.addresses import ETHERTYPES, host_prefix
from southbound.messages import AclTier
from vfp.model import Address, Allow, Deny, Group, Match, Prefix, Rule

__all__ = ["NestedTiers", "nested_groups"]

Direction = Literal["in", "out"]

_STEP = 1 << 18                             # priorities of one endpoint's rules in a group are below


@dataclass(frozen=True, slots=True)
class NestedTiers:
    """One nested endpoint in one direction: addresses, the group of each tier, and what holds in the end."""

    name: str
    addresses: tuple[Address, ...]
    tiers: tuple[tuple[AclTier, Group], ...]
    default: Allow | Deny
    last: tuple[Rule, ...] = ()             # before the default


def nested_groups(endpoints: Iterable[NestedTiers], direction: Direction) -> Iterator[Group]:
    """The groups of a port's nested endpoints, to run before its own."""
    together: dict[tuple[int, str], list[Rule]] = {}
    ends: list[Rule] = []
    for number, endpoint in enumerate(endpoints):
        for tier, group in endpoint.tiers:
            found = together.setdefault((tier.order, tier.policy), [])
            found += (_only(rule, address, endpoint.name, number, direction)
                      for rule in group.rules for address in endpoint.addresses if _fits(rule, address, direction))
        default = Rule(_STEP - 1, Match(), endpoint.default, "default")
        ends += (_only(rule, address, endpoint.name, number, direction)
                 for rule in (*endpoint.last, default) for address in endpoint.addresses)
    for (_, policy), rules in sorted(together.items()):
        if rules:
            yield Group(policy, tuple(rules))
    if ends:
        yield Group("nested", tuple(ends))


def _fits(rule: Rule, address: Address, direction: Direction) -> bool:
    """Whether the rule's other side can be of the address's family."""
    other: Prefix | None = rule.match.dst if direction == "out" else rule.match.src
    return other is None or other.version == address.version


def _only(rule: Rule, address: Address, endpoint: str, number: int, direction: Direction) -> Rule:
    """The rule for one address."""
    own = host_prefix(address)
    match = replace(rule.match, ethertype=ETHERTYPES[address.version])
    match = replace(match, src=own) if direction == "out" else replace(match, dst=own)
    return replace(rule, priority=number * _STEP + rule.priority, match=match, name=f"{endpoint}: {rule.name}")
