"""Peers of policy rules as address sets: one set for a rule of a policy, whatever the number of ports it is on.

A set is known by what it is for (network, policy, rule), not by who is in it: when peers come and go, members are
written and no port's rules change. Ports of one network have the same peers in the same rule of a policy; if ever they
do not, each different list is a set of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from ipaddress import ip_network

from policy.contribution import HostView, ObjectError
from southbound.messages import AclRule, AclTier, PortGoal
from vfp.model import AddressSet, Prefix

__all__ = ["PeerSets", "prefixes_of", "rule_names", "set_identity"]

_Key = tuple[str, str, str, str, int]                   # network, policy, direction, rule, which of that name


class PeerSets:
    """The sets of one host view."""

    def __init__(self, view: HostView) -> None:
        lists: dict[_Key, list[tuple[str, ...]]] = {}
        for _, port in view.judged():
            for tier in port.tiers:
                for key, position in _keys(port, tier):
                    variants = lists.setdefault(key, [])
                    if (peers := tier.rules[position].peers) not in variants:
                        variants.append(peers)
        self._sets: dict[tuple[_Key, tuple[str, ...]], AddressSet] = {}
        taken: set[int] = set()
        for key in sorted(lists):
            for number, peers in enumerate(lists[key]):
                try:
                    members = prefixes_of(peers)
                except ValueError:
                    continue                            # its ports have no layer, and say why
                identity = set_identity((*key, number), taken)
                taken.add(identity)
                self._sets[key, peers] = AddressSet(identity, _name(key), members)

    @property
    def all(self) -> tuple[AddressSet, ...]:
        """Every set, by id."""
        return tuple(sorted(self._sets.values(), key=lambda one: one.id))

    def of(self, port: PortGoal, tier: AclTier) -> dict[int, AddressSet]:
        """The set of each rule of a tier that has one, by the rule's place in the tier.

        Raises:
            ObjectError: a peer is no prefix.
        """
        found: dict[int, AddressSet] = {}
        names = rule_names(tier)
        for key, position in _keys(port, tier):
            given = self._sets.get((key, tier.rules[position].peers))
            if given is None:
                _refuse(tier.rules[position], names[position])
            else:
                found[position] = given
        return found


def rule_names(tier: AclTier) -> list[str]:
    """The name of each rule: its own, or its place in the policy."""
    return [rule.name or f"{tier.policy}[{position}]" for position, rule in enumerate(tier.rules)]


def prefixes_of(peers: tuple[str, ...]) -> tuple[Prefix, ...]:
    """Peers without duplicates.

    Raises:
        ValueError: one is no prefix, or has host bits.
    """
    return tuple(ip_network(peer) for peer in dict.fromkeys(peers))


def _refuse(rule: AclRule, name: str) -> None:
    try:
        prefixes_of(rule.peers)
    except ValueError as error:
        raise ObjectError(f"policy rule {name}: peer: {error}") from None


def _keys(port: PortGoal, tier: AclTier) -> Iterator[tuple[_Key, int]]:
    """The rules of a tier that name more than one peer, by their place in it."""
    seen: dict[tuple[str, str], int] = {}
    for position, (name, rule) in enumerate(zip(rule_names(tier), tier.rules, strict=True)):
        number = seen[name, rule.direction] = seen.get((name, rule.direction), -1) + 1
        if len(rule.peers) > 1 and len(set(rule.peers)) > 1:
            yield (port.network, tier.policy, rule.direction, name, number), position


def _name(key: _Key) -> str:
    """For people: `red/web[2]`, or `red/web/no-db` for a rule that has a name."""
    _, policy, _, rule, _ = key
    return rule if rule.startswith(policy) else f"{policy}/{rule}"


def set_identity(key: tuple[str | int, ...], taken: set[int]) -> int:
    """A number that stays the same, unless another set has it. Those below 2**31 are for features that have a number
    for a set already."""
    for salt in range(len(taken) + 2):
        text = "\0".join(map(str, (*key, salt)))
        number = int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "little") | 1 << 31
        if number not in taken:
            return number
    raise ObjectError(f"no identity is left for the address set of {key[1]}")
