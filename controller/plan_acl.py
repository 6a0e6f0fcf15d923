"""The policies of a network, and what its mappings let in, as tiers of rules for each endpoint. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Literal

from controller.endpoint_specs import EndpointSpec
from controller.ipam import text_of
from controller.mapping_specs import EVERYONE, StaticMappingSpec
from controller.policy_specs import PolicyRule, PolicySpec, Selector
from controller.state import Ref, Stored
from controller.texts import PROTOCOL_NUMBERS, port_range
from southbound.messages import AclRule, AclTier, PortGoal

ICMPV6 = 58
MAPPING_TIER = "static-mappings"            # stands where other tiers have tenant/name of their policy
MAPPING_ORDER = 65536                       # behind every policy


class Members:
    """Finds endpoints of a network by selector."""

    def __init__(self, endpoints: Sequence[Stored[EndpointSpec]]) -> None:
        self._by_name = {e.ref.name: e for e in endpoints}
        self._by_label: dict[tuple[str, str], set[str]] | None = None
        self._prefixes: dict[object, tuple[str, ...]] = {}
        self.have_ipv6 = any(e.assigned.address6 for e in endpoints)

    def select(self, selector: Selector) -> set[str]:
        """Names of the endpoints that are named or that carry all labels; nobody for an empty selector."""
        chosen = {name for name in selector.endpoints if name in self._by_name}
        if selector.labels:
            index = self._labels()
            chosen |= set.intersection(*(index.get(pair, set()) for pair in selector.labels.items()))
        return chosen

    def prefixes(self, selector: Selector) -> tuple[str, ...]:
        """The addresses of the selected endpoints, joined to prefixes. Found once for equal selectors."""
        identity = (selector.endpoints, tuple(sorted(selector.labels.items())))
        found = self._prefixes.get(identity)
        if found is None:
            chosen = [ip_address(a) for name in self.select(selector) for a in self._by_name[name].assigned.addresses]
            found = self._prefixes[identity] = tuple(
                prefix for version in (4, 6)
                for prefix in joined(sorted(int(a) for a in chosen if a.version == version), version))
        return found

    def _labels(self) -> dict[tuple[str, str], set[str]]:
        if self._by_label is None:
            self._by_label = {}
            for name, endpoint in self._by_name.items():
                for pair in endpoint.labels.items():
                    self._by_label.setdefault(pair, set()).add(name)
        return self._by_label


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policies of an endpoint come to."""

    tiers: tuple[AclTier, ...]
    default_in: Literal["allow", "deny"]
    default_out: Literal["allow", "deny"]
    strict_tcp: bool

    def shows(self, port: PortGoal) -> bool:
        """Whether a goal has this already."""
        return ((port.tiers, port.default_in, port.default_out, port.strict_tcp)
                == (self.tiers, self.default_in, self.default_out, self.strict_tcp))


class Acl:
    """The policies of a network, resolved once and handed to the endpoints that they apply to."""

    def __init__(self, policies: Sequence[Stored[PolicySpec]], members: Members,
                 old: Mapping[Ref, AclTier]) -> None:
        self._policies = policies
        self._applies = [members.select(p.spec.applies_to) if _selective(p.spec.applies_to) else None
                         for p in policies]
        self._verdicts: dict[tuple[int, ...], Verdict] = {}
        self.tiers: dict[Ref, AclTier] = {}
        for policy in policies:
            tier = _tier(policy, members)
            was = old.get(policy.ref)
            self.tiers[policy.ref] = was if was is not None and was == tier else tier

    def of(self, endpoint: Stored[EndpointSpec], mappings: Sequence[Stored[StaticMappingSpec]]) -> Verdict:
        """Tiers in order and defaults for one endpoint, to which mappings lead; deny wins among defaults."""
        verdict = self._of_policies(endpoint.ref.name)
        tier = mapping_tier(mappings, verdict.default_in) if mappings else None
        return replace(verdict, tiers=(*verdict.tiers, tier)) if tier is not None else verdict

    def of_nobody(self) -> Verdict:
        """For an endpoint without labels that no policy names."""
        return self._of_policies("")

    def named(self) -> tuple[str, ...]:
        """The names of endpoints, there or not, that policies speak of."""
        selectors = [s for p in self._policies for s in (p.spec.applies_to, *(rule.peer for rule in p.spec.rules))]
        return tuple(sorted({name for selector in selectors if selector is not None for name in selector.endpoints}))

    def _of_policies(self, name: str) -> Verdict:
        chosen = tuple(i for i, names in enumerate(self._applies) if names is None or name in names)
        verdict = self._verdicts.get(chosen)
        if verdict is None:
            policies = [self._policies[i] for i in chosen]
            verdict = self._verdicts[chosen] = Verdict(
                tuple(self.tiers[p.ref] for p in policies),
                "deny" if any(p.spec.default_in == "deny" for p in policies) else "allow",
                "deny" if any(p.spec.default_out == "deny" for p in policies) else "allow",
                any(p.spec.tcp == "strict" for p in policies))
        return verdict


def _selective(selector: Selector) -> bool:
    return bool(selector.endpoints or selector.labels)


def _tier(policy: Stored[PolicySpec], members: Members) -> AclTier:
    rules = []
    for position, (priority, rule) in enumerate(policy.spec.numbered()):
        peers: tuple[str, ...] = ()
        if rule.peer is not None:
            peers = _peers(rule, members)
            if not peers:
                continue                    # it speaks of nobody; without peers it would speak of everybody
        made = AclRule(
            priority=priority, direction=rule.direction, action=rule.action, peers=peers,
            protocol=PROTOCOL_NUMBERS.get(rule.protocol) if isinstance(rule.protocol, str) else rule.protocol,
            ports=tuple(map(port_range, rule.ports)), name=rule.name or f"{policy.ref.path}[{position}]",
            dscp=rule.dscp, log=rule.log, domains=rule.domains)
        rules.append(made)
        if rule.protocol == "icmp" and members.have_ipv6:
            rules.append(replace(made, protocol=ICMPV6))
    return AclTier(policy.ref.path, policy.spec.priority, tuple(rules))


def _peers(rule: PolicyRule, members: Members) -> tuple[str, ...]:
    """The other side as prefixes: addresses of the selected endpoints, joined, and the given prefixes."""
    peer = rule.peer
    assert peer is not None
    return tuple(dict.fromkeys((*members.prefixes(peer), *peer.cidrs)))


def mapping_tier(mappings: Sequence[Stored[StaticMappingSpec]], default_in: str) -> AclTier | None:
    """What mappings let in and keep out: those in `allowFrom` where nobody else would be let in, and else nobody.

    Only packets that came by a mapping; the tier is the last one, so that policies come before it. None: not needed.
    """
    if default_in == "allow" and all(EVERYONE[m.spec.version == 6] in m.spec.allow_from for m in mappings):
        return None
    allows = [_mapped_rule(m, "allow") for m in mappings]
    denies = [_mapped_rule(m, "deny") for m in mappings if default_in == "allow"]
    return AclTier(MAPPING_TIER, MAPPING_ORDER,
                   tuple(replace(rule, priority=i) for i, rule in enumerate([*allows, *denies], 1)))


def _mapped_rule(mapping: Stored[StaticMappingSpec], action: Literal["allow", "deny"]) -> AclRule:
    spec = mapping.spec
    sources = tuple(source for source in spec.allow_from if (":" in source) == (spec.version == 6))
    everyone = action == "deny" or EVERYONE[spec.version == 6] in sources
    number = ICMPV6 if spec.protocol == "icmp" and spec.version == 6 else PROTOCOL_NUMBERS.get(spec.protocol)
    ports: tuple[tuple[int, int], ...] = ()
    if spec.protocol in ("tcp", "udp", "sctp"):
        first = spec.internal(mapping.assigned.external_port)
        ports = ((first, first + spec.size - 1),)
    return AclRule(priority=0, direction="in", action=action, peers=() if everyone else sources, protocol=number,
                   ports=ports, name=mapping.ref.path, mapped=True)


def joined(addresses: Sequence[int], version: int = 4) -> list[str]:
    """The fewest prefixes that hold exactly these addresses of one family (ascending, no duplicates).

    The engine has one member of a set a prefix, and neighbours are the rule where addresses are given out in order.
    """
    bits = 32 if version == 4 else 128
    prefixes = []
    i = 0
    while i < len(addresses):
        start, run = addresses[i], 1
        while i + run < len(addresses) and addresses[i + run] == start + run:
            run += 1
        end = start + run
        while start < end:
            size = min(start & -start if start else 1 << bits, 1 << ((end - start).bit_length() - 1))
            prefixes.append(f"{text_of(start, version)}/{bits + 1 - size.bit_length()}")
            start += size
        i += run
    return prefixes


__all__ = ["MAPPING_TIER", "Acl", "Members", "Verdict", "joined", "mapping_tier"]
