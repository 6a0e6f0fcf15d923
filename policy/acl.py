"""The `acl` layer: policies of the tenant, one group a policy (tier), in both directions.

A goal rule names peers and destination ports as lists. Several peers are an address set (`policy.peers`); an engine
rule holds one range of ports, so a goal rule becomes one for each range: with the same priority, action and name. Equal
priorities with the same action cannot contradict each other, and the engine allows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from policy.addresses import ND_TYPES, nd, own_addresses
from policy.contribution import HostView, ObjectError, Tables
from policy.domains import DomainSets, dns_group, has_domains, inspecting
from policy.nested import NestedTiers, nested_groups
from policy.peers import PeerSets, prefixes_of, rule_names
from southbound.messages import AclRule, AclTier, PortGoal
from vfp.model import (
    ETH_P_ARP,
    Action,
    AddressSet,
    Allow,
    Deny,
    Group,
    Layer,
    Log,
    Mark,
    Match,
    Pass,
    PortRange,
    Prefix,
    Reject,
    Rule,
)

__all__ = ["Acl"]

MAX_PRIORITY = 65535

Direction = Literal["in", "out"]

_ACTIONS: dict[str, Action] = {"allow": Allow(), "deny": Deny(), "reject": Reject(), "pass": Pass()}


def _discovery(direction: Direction) -> Group:
    """ARP and neighbour discovery are the guard's and vnet's business; a policy must not cut an endpoint off its own
    gateway."""
    asked = (Match(ethertype=ETH_P_ARP), *map(nd, ND_TYPES))
    return Group("arp", tuple(Rule(0, match, Allow(), f"arp-{direction}") for match in asked))


_ARP_OUT, _ARP_IN = _discovery("out"), _discovery("in")

_Peers = dict[int, AddressSet]              # by the rule's place in the tier
_SetIds = tuple[tuple[int, int], ...]       # rule's place in the tier, set
_Identity = tuple[int, Direction, _SetIds, bool]    # of a tier by its id()
_Made = dict[tuple[str, AclRule, int], tuple[Rule, ...]]


@dataclass(slots=True)
class _Known:
    """What a tier became in one direction. `made`: of each goal rule by its name there and its set."""

    rules: tuple[AclRule, ...]
    sets: _SetIds
    inspects: bool
    group: Group | None
    made: _Made


class Acl:
    """Contributes `acl` to every port.

    Remembers what became of the tiers of the last build, which ends with `tables`: a tier that did not change costs
    nothing, one that did costs its changes, and equal tiers of many ports are one group, which the engine knows by
    identity.
    """

    def __init__(self) -> None:
        self._view: tuple[HostView, PeerSets, DomainSets] | None = None
        self._same: dict[_Identity, tuple[AclTier, _Known]] = {}
        self._alike: dict[tuple[str, Direction], list[_Known]] = {}             # by policy
        self._used: set[_Identity] = set()

    def layer(self, port: PortGoal, view: HostView) -> Layer:
        """A group per tier by ascending order; what no tier decides falls to the port's defaults."""
        inspects = has_domains(port)
        last = (dns_group(),) if inspects and port.default_out == "allow" else ()
        nested = view.nested.get(port.id, ())
        return Layer(
            "acl",
            groups_out=(_ARP_OUT, *self._nested(nested, view, "out"), *self._groups(port, view, "out"), *last),
            groups_in=(_ARP_IN, *self._nested(nested, view, "in"), *self._groups(port, view, "in")),
            default_out=_default(port.default_out),
            default_in=_default(port.default_in),
        )

    def tables(self, view: HostView) -> Tables:
        """The sets of peers, and those of domain names. The last call of a build: what no port used is forgotten."""
        self._same = {key: self._same[key] for key in self._used}
        alike: dict[tuple[str, Direction], dict[int, _Known]] = {}
        for (_, direction, _, _), (tier, known) in self._same.items():
            alike.setdefault((tier.policy, direction), {})[id(known)] = known
        self._alike = {key: list(found.values()) for key, found in alike.items()}
        self._used = set()
        peers, domains = self._sets(view)
        return Tables(sets=(*peers.all, *domains.all), domains=domains.rules)

    def _sets(self, view: HostView) -> tuple[PeerSets, DomainSets]:
        """Made once for a view: all its ports share them."""
        if self._view is None or self._view[0] is not view:
            peers = PeerSets(view)
            self._view = (view, peers, DomainSets(view, {one.id for one in peers.all}))
        return self._view[1:]

    def _nested(self, endpoints: tuple[PortGoal, ...], view: HostView, direction: Direction) -> Iterator[Group]:
        if not endpoints:
            return iter(())
        return nested_groups((self._nested_tiers(port, view, direction) for port in endpoints), direction)

    def _nested_tiers(self, port: PortGoal, view: HostView, direction: Direction) -> NestedTiers:
        default = port.default_out if direction == "out" else port.default_in
        inspects = direction == "out" and has_domains(port)
        try:
            tiers = tuple(self._tiers(port, view, direction))
        except ObjectError as error:
            raise ObjectError(str(error), port.id) from None
        return NestedTiers(
            port.name,
            tuple(address.ip for address in own_addresses(port)),
            tiers,
            _default(default),
            dns_group().rules if inspects and default == "allow" else (),
        )

    def _groups(self, port: PortGoal, view: HostView, direction: Direction) -> Iterator[Group]:
        return (group for _, group in self._tiers(port, view, direction))

    def _tiers(self, port: PortGoal, view: HostView, direction: Direction) -> Iterator[tuple[AclTier, Group]]:
        """Those with rules in this direction. If one names domains, DNS that a rule allows goes by user space."""
        peers, domains = self._sets(view)
        inspects = direction == "out" and has_domains(port)
        for tier in sorted(port.tiers, key=lambda tier: (tier.order, tier.policy)):
            sets = {**peers.of(port, tier), **domains.of(port, tier)}
            ids = tuple((position, given.id) for position, given in sorted(sets.items()))
            key = (id(tier), direction, ids, inspects)
            found = self._same.get(key)
            if found is None or found[0] is not tier:
                found = self._same[key] = (tier, self._known(tier, sets, ids, direction, inspects))
            self._used.add(key)
            if found[1].group is not None:
                yield tier, found[1].group

    def _known(
        self, tier: AclTier, sets: _Peers, ids: _SetIds, direction: Direction, inspects: bool
    ) -> _Known:
        alike = self._alike.setdefault((tier.policy, direction), [])
        for known in alike:
            if known.inspects == inspects and known.sets == ids and known.rules == tier.rules:
                return known
        made: _Made = {}
        rules = tuple(_tier_rules(tier, sets, direction, alike[-1].made if alike else {}, made))
        if inspects:
            rules = tuple(_with_dns(rules))
        alike.append(_Known(tier.rules, ids, inspects, Group(tier.policy, rules) if rules else None, made))
        return alike[-1]


def _default(word: Literal["allow", "deny"]) -> Allow | Deny:
    return Allow() if word == "allow" else Deny()


def _with_dns(rules: tuple[Rule, ...]) -> Iterator[Rule]:
    for rule in rules:
        if isinstance(rule.action, Allow | Mark | Log):
            yield from inspecting(rule)
        else:
            yield replace(rule, priority=2 * rule.priority + 1)


def _tier_rules(
    tier: AclTier, sets: _Peers, direction: Direction, before: _Made, made: _Made
) -> Iterator[Rule]:
    """The engine rules of one tier, in one direction; those `before` are used again. `made` is filled.

    Raises:
        ObjectError: a priority or peer is out of range, or two rules of one priority differ in their action.
    """
    actions: dict[int, tuple[Action, str]] = {}
    for position, (name, rule) in enumerate(zip(rule_names(tier), tier.rules, strict=True)):
        if rule.direction != direction:
            continue
        action = _action(rule, name)
        if not 0 <= rule.priority <= MAX_PRIORITY:
            raise ObjectError(f"policy rule {name}: priority {rule.priority} is not in 0..{MAX_PRIORITY}")
        other, other_name = actions.setdefault(rule.priority, (action, name))
        if other != action:
            raise ObjectError(
                f"policy {tier.policy}: rules {other_name} and {name} have priority {rule.priority} and"
                f" different actions; give them different priorities"
            )
        given = sets.get(position)
        key = (name, rule, given.id if given else 0)
        rules = before.get(key)
        if rules is None:
            rules = tuple(
                Rule(rule.priority, match, action, name) for match in _matches(rule, given, direction, name)
            )
        made[key] = rules
        yield from rules


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


def _matches(rule: AclRule, peers: AddressSet | None, direction: Direction, name: str) -> Iterator[Match]:
    """One for each range of ports. `peers`: the rule's set, if it has more than one."""
    peer: Prefix | None = None
    try:
        if peers is None:
            peer = next(iter(prefixes_of(rule.peers)), None)
    except ValueError as error:
        raise ObjectError(f"policy rule {name}: peer: {error}") from None
    set_id = peers.id if peers is not None else None
    ports: list[PortRange | None] = [PortRange(low, high) for low, high in dict.fromkeys(rule.ports)]
    for dst_ports in ports or [None]:
        yield Match(
            src=peer if direction == "in" else None,
            dst=peer if direction == "out" else None,
            src_set=set_id if direction == "in" else None,
            dst_set=set_id if direction == "out" else None,
            protocol=rule.protocol,
            dst_ports=dst_ports,
            mapped=True if rule.mapped and direction == "in" else None,
        )
