"""The `acl` layer: policies of the tenant, one group a policy (tier), in both directions.

A goal rule names peers and destination ports as lists. Several peers are an address set (`policy.peers`); an engine
rule holds one range of ports, so a goal rule becomes one for each range: with the same priority, action and name. Equal
priorities with the same action cannot contradict each other, and the engine allows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Literal

from policy.contribution import HostView, ObjectError, Tables
from policy.domains import DomainSets, dns_group, has_domains, inspecting
from policy.peers import PeerSets, prefixes_of, rule_names
from southbound.messages import AclRule, AclTier, PortGoal
from vfp.model import (
    ETH_P_ARP,
    ETH_P_IP,
    Action,
    AddressSet,
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

_ACTIONS: dict[str, Allow | Deny | Pass] = {"allow": Allow(), "deny": Deny(), "pass": Pass()}

# ARP is the guard's and vnet's business; a policy about IP must not cut an endpoint off its own gateway.
_ARP_OUT = Group("arp", (Rule(0, Match(ethertype=ETH_P_ARP), Allow(), "arp-out"),))
_ARP_IN = Group("arp", (Rule(0, Match(ethertype=ETH_P_ARP), Allow(), "arp-in"),))


class Acl:
    """Contributes `acl` to every port."""

    def __init__(self) -> None:
        self._known: tuple[HostView, PeerSets, DomainSets] | None = None

    def layer(self, port: PortGoal, view: HostView) -> Layer:
        """A group per tier by ascending order; what no tier decides falls to the port's defaults."""
        peers, domains = self._sets(view)
        tiers = [
            (tier, {**peers.of(port, tier), **domains.of(port, tier)})
            for tier in sorted(port.tiers, key=lambda tier: (tier.order, tier.policy))
        ]
        inspects = has_domains(port)
        last = (dns_group(),) if inspects and port.default_out == "allow" else ()
        return Layer(
            "acl",
            groups_out=(_ARP_OUT, *_groups(tiers, "out", inspects), *last),
            groups_in=(_ARP_IN, *_groups(tiers, "in")),
            default_out=_default(port.default_out),
            default_in=_default(port.default_in),
        )

    def tables(self, view: HostView) -> Tables:
        """The sets of peers, and those of domain names."""
        peers, domains = self._sets(view)
        return Tables(sets=(*peers.all, *domains.all), domains=domains.rules)

    def _sets(self, view: HostView) -> tuple[PeerSets, DomainSets]:
        """Made once for a view: all its ports share them."""
        if self._known is None or self._known[0] is not view:
            peers = PeerSets(view)
            self._known = (view, peers, DomainSets(view, {one.id for one in peers.all}))
        return self._known[1:]


def _default(word: Literal["allow", "deny"]) -> Allow | Deny:
    return Allow() if word == "allow" else Deny()


def _with_dns(rules: tuple[Rule, ...]) -> Iterator[Rule]:
    for rule in rules:
        if isinstance(rule.action, Allow):
            yield from inspecting(rule)
        else:
            yield replace(rule, priority=2 * rule.priority + 1)


_Peers = dict[int, AddressSet]              # by the rule's place in the tier


def _groups(
    tiers: list[tuple[AclTier, _Peers]], direction: Literal["in", "out"], inspects: bool = False
) -> Iterator[Group]:
    """`inspects`: DNS that a rule allows goes by user space."""
    for tier, sets in tiers:
        rules = tuple(_tier_rules(tier, sets, direction))
        if inspects:
            rules = tuple(_with_dns(rules))
        if rules:
            yield Group(tier.policy, rules)


def _tier_rules(tier: AclTier, sets: _Peers, direction: Literal["in", "out"]) -> Iterator[Rule]:
    """The engine rules of one tier, in one direction.

    Raises:
        ObjectError: a priority or peer is out of range, or two rules of one priority differ in their action.
    """
    actions: dict[int, tuple[Action, str]] = {}
    for position, (name, rule) in enumerate(zip(rule_names(tier), tier.rules, strict=True)):
        if rule.direction != direction:
            continue
        action = _ACTIONS[rule.action]
        if not 0 <= rule.priority <= MAX_PRIORITY:
            raise ObjectError(f"policy rule {name}: priority {rule.priority} is not in 0..{MAX_PRIORITY}")
        other, other_name = actions.setdefault(rule.priority, (action, name))
        if other != action:
            raise ObjectError(
                f"policy {tier.policy}: rules {other_name} and {name} have priority {rule.priority} and"
                f" different actions; give them different priorities"
            )
        for match in _matches(rule, sets.get(position), direction, name):
            yield Rule(rule.priority, match, action, name)


def _matches(
    rule: AclRule, peers: AddressSet | None, direction: Literal["in", "out"], name: str
) -> Iterator[Match]:
    """One for each range of ports. `peers`: the rule's set, if it has more than one."""
    peer: IPv4Network | None = None
    try:
        if peers is None:
            peer = next(iter(prefixes_of(rule.peers)), None)
    except ValueError as error:
        raise ObjectError(f"policy rule {name}: peer: {error}") from None
    set_id = peers.id if peers is not None else None
    ports: list[PortRange | None] = [PortRange(low, high) for low, high in dict.fromkeys(rule.ports)]
    for dst_ports in ports or [None]:
        yield Match(
            ethertype=None if rule.domains else ETH_P_IP,
            src=peer if direction == "in" else None,
            dst=peer if direction == "out" else None,
            src_set=set_id if direction == "in" else None,
            dst_set=set_id if direction == "out" else None,
            protocol=rule.protocol,
            dst_ports=dst_ports,
        )
