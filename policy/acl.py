"""The `acl` layer: policies of the tenant, one group a policy (tier), in both directions.

A goal rule names peers and destination ports as lists; the engine's rules hold one of each. So a goal
rule becomes the product of its lists: engine rules with the same priority, action and name. Equal
priorities with the same action cannot contradict each other, and the engine allows them.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    Log,
    Mark,
    Match,
    Pass,
    PortRange,
    Reject,
    Rule,
)

__all__ = ["Acl"]

MAX_PRIORITY = 65535

_ACTIONS: dict[str, Action] = {"allow": Allow(), "deny": Deny(), "reject": Reject(), "pass": Pass()}

# ARP is the guard's and vnet's business; a policy about IP must not cut an endpoint off its own gateway.
_ARP_OUT = Group("arp", (Rule(0, Match(ethertype=ETH_P_ARP), Allow(), "arp-out"),))
_ARP_IN = Group("arp", (Rule(0, Match(ethertype=ETH_P_ARP), Allow(), "arp-in"),))


class Acl:
    """Contributes `acl` to every port."""

    def layer(self, port: PortGoal, view: HostView) -> Layer:
        """A group per tier by ascending order; what no tier decides falls to the port's defaults."""
        tiers = sorted(port.tiers, key=lambda tier: (tier.order, tier.policy))
        return Layer(
            "acl",
            groups_out=(_ARP_OUT, *_groups(tiers, "out")),
            groups_in=(_ARP_IN, *_groups(tiers, "in")),
            default_out=_default(port.default_out),
            default_in=_default(port.default_in),
        )

    def tables(self, view: HostView) -> Tables:
        """Policies come with peers resolved to prefixes; no tables."""
        return Tables()


def _default(word: Literal["allow", "deny"]) -> Allow | Deny:
    return Allow() if word == "allow" else Deny()


def _groups(tiers: list[AclTier], direction: Literal["in", "out"]) -> Iterator[Group]:
    for tier in tiers:
        rules = tuple(_tier_rules(tier, direction))
        if rules:
            yield Group(tier.policy, rules)


def _tier_rules(tier: AclTier, direction: Literal["in", "out"]) -> Iterator[Rule]:
    """The engine rules of one tier, in one direction.

    Raises:
        ObjectError: a priority or peer is out of range, or two rules of one priority differ in their action.
    """
    actions: dict[int, tuple[Action, str]] = {}
    for position, rule in enumerate(tier.rules):
        if rule.direction != direction:
            continue
        name = rule.name or f"{tier.policy}[{position}]"
        action = _action(rule, name)
        if not 0 <= rule.priority <= MAX_PRIORITY:
            raise ObjectError(f"policy rule {name}: priority {rule.priority} is not in 0..{MAX_PRIORITY}")
        other, other_name = actions.setdefault(rule.priority, (action, name))
        if other != action:
            raise ObjectError(
                f"policy {tier.policy}: rules {other_name} and {name} have priority {rule.priority} and"
                f" different actions; give them different priorities"
            )
        for match in _matches(rule, direction, name):
            yield Rule(rule.priority, match, action, name)


def _action(rule: AclRule, name: str) -> Action:
    if rule.dscp is None and not rule.log:
        return _ACTIONS[rule.action]
    if rule.action != "allow" or (rule.dscp is not None and rule.log):
        raise ObjectError(f"policy rule {name}: dscp {rule.dscp}, log {rule.log} with action {rule.action};"
                          f" only allow has one of them")
    if rule.dscp is None:
        return Log()
    if not 0 <= rule.dscp <= 63:
        raise ObjectError(f"policy rule {name}: dscp {rule.dscp} is not in 0..63")
    return Mark(rule.dscp)


def _matches(rule: AclRule, direction: Literal["in", "out"], name: str) -> Iterator[Match]:
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
