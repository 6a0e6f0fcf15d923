"""Egress rules by domain name: for each endpoint and rule a dynamic address set, which the agent's DNS inspector fills.

So that it can, the endpoint's DNS traffic goes through user space, where policy allows it: each rule of it that would
allow packets to port 53 of UDP or TCP inspects those instead, at the same place among the other rules; and so does a
last group, if what no rule decides is allowed. What a policy denies stays denied, and `pass` still hands on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from policy.contribution import DomainRule, HostView
from policy.peers import rule_names, set_identity
from southbound.messages import AclTier, PortGoal
from vfp.model import AddressSet, Group, Inspect, Match, PortRange, Rule

__all__ = ["DNS_QUEUE", "DomainSets", "dns_group", "has_domains", "inspecting"]

DNS_QUEUE = 0
_DNS = PortRange(53, 53)
_PROTOCOLS = (17, 6)                        # DNS over UDP and TCP
_INSPECT = Inspect(DNS_QUEUE)


class DomainSets:
    """The sets of one host view."""

    def __init__(self, view: HostView, taken: set[int]) -> None:
        """`taken`: ids of other sets; grows."""
        self._sets: dict[tuple[str, str, int], AddressSet] = {}     # by port, policy and place of the rule in it
        self.rules: tuple[DomainRule, ...] = ()
        rules = []
        for port_id, port in view.judged():
            for tier in port.tiers:
                for position, name in _domain_rules(tier):
                    names = tier.rules[position].domains
                    number = set_identity(("domains", port.id, tier.policy, name, *names), taken)
                    taken.add(number)
                    title = name if name.startswith(tier.policy) else f"{tier.policy}/{name}"
                    self._sets[port.id, tier.policy, position] = AddressSet(number, title, dynamic=True)
                    rules.append(DomainRule(port_id, number, names))
        self.rules = tuple(rules)

    @property
    def all(self) -> tuple[AddressSet, ...]:
        """Every set, by id."""
        return tuple(sorted(self._sets.values(), key=lambda one: one.id))

    def of(self, port: PortGoal, tier: AclTier) -> dict[int, AddressSet]:
        """The set of each rule of a tier that names domains, by the rule's place in the tier."""
        return {position: self._sets[port.id, tier.policy, position] for position, _ in _domain_rules(tier)}


def _domain_rules(tier: AclTier) -> Iterator[tuple[int, str]]:
    for position, (name, rule) in enumerate(zip(rule_names(tier), tier.rules, strict=True)):
        if rule.domains:
            yield position, name


def has_domains(port: PortGoal) -> bool:
    """Whether any rule of the port names domains."""
    return any(rule.domains for tier in port.tiers for rule in tier.rules)


def inspecting(rule: Rule) -> Iterator[Rule]:
    """An allowing rule of an endpoint whose DNS traffic is inspected: before it, in the one step of priority that is
    left for that, the same for DNS. Priorities are doubled."""
    match = rule.match
    for protocol in _PROTOCOLS:
        if match.protocol in (None, protocol) and (match.dst_ports is None or _has_dns(match.dst_ports)):
            narrow = replace(match, protocol=protocol, dst_ports=_DNS)
            yield Rule(2 * rule.priority, narrow, _INSPECT, f"{rule.name} (dns)")
    yield replace(rule, priority=2 * rule.priority + 1)


def _has_dns(ports: PortRange) -> bool:
    return ports.low <= _DNS.low <= ports.high


def dns_group() -> Group:
    """The last group of a port that allows what no rule decides."""
    return Group("dns", tuple(
        Rule(0, Match(protocol=protocol, dst_ports=_DNS), _INSPECT, "default (dns)") for protocol in _PROTOCOLS
    ))
