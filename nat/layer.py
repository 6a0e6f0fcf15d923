"""The `nat` layer: source translation and hairpins on the way out, static mappings and bindings on the way in.

Ports of nat networks have it, of overlay networks that leave by their own host, and the exits of overlay networks.

Inside its own network an endpoint is itself; so it is towards the host's own addresses, which answer by the bridge.
What goes to an external address that a mapping or a binding has turns around here (`hairpin`). Everything else leaves
with an external address (`nat.pools`), but for what the network says is routed: exceptions, other destinations than
the named ones, and IPv6 unless it is to be translated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network

from nat.mappings import Expander
from nat.plan import NatPlan, make_plan, one_to_one
from nat.pools import Choice
from policy.addresses import ETHERTYPES, ND_TYPES, host_prefix, nd, to_prefix
from policy.contribution import HostView, ObjectError, Tables
from policy.world import host_destinations, inside_prefixes
from southbound.messages import NetworkGoal, PortGoal
from vfp.model import (
    ETH_P_ARP,
    ETH_P_IP,
    ETH_P_IPV6,
    Action,
    Address,
    Allow,
    Deny,
    Group,
    Hairpin,
    Layer,
    Match,
    PortRange,
    Prefix,
    Rewrite,
    Rule,
    TranslatePrefix,
    TranslateSource,
    Untranslate,
)

__all__ = ["SourceNat"]

UDP = 17
_EVERYWHERE: dict[int, Prefix] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
_FIRST_TRANSLATION = 100

_STATIC = Group("static", (Rule(0, Match(), Untranslate(), "untranslate"),))


class SourceNat:
    """Contributes `nat` to the ports of networks that are translated here, and the host's pools, mappings and prefixes.

    The groups of a network are made once for a view: its ports share them, but for those with an address of their own.
    """

    def __init__(self) -> None:
        self._view: tuple[HostView, NatPlan] | None = None
        self._expander = Expander()
        self._groups: dict[str, tuple[Group, ...]] = {}             # by NetworkGoal.id

    def layer(self, port: PortGoal, view: HostView) -> Layer | None:
        """Inside and host untranslated, the rest from a pool; without an uplink nothing else leaves."""
        network = view.networks[port.network]
        if network.mode != "nat" and not network.egress:
            return None
        return self._layer(network, view, one_to_one(self._plan(view), port.id))

    def exit_layer(self, network: NetworkGoal, view: HostView) -> Layer:
        """Of the exit of an overlay network, by which other hosts' endpoints leave."""
        return self._layer(network, view, ())

    def _layer(self, network: NetworkGoal, view: HostView, whole: tuple[tuple[Address, Address], ...]) -> Layer:
        plan = self._plan(view)
        groups = self._groups.get(network.id)
        if groups is None:
            groups = self._groups[network.id] = tuple(_groups(network, view, plan, ()))
        return Layer(
            "nat",
            groups_out=tuple(_groups(network, view, plan, whole)) if whole else groups,
            groups_in=(_STATIC,),
            default_out=Deny(),
            default_in=Allow(),
        )

    def tables(self, view: HostView) -> Tables:
        """Pools of each network, static mappings, and prefixes."""
        plan = self._plan(view)
        return Tables(
            pools=plan.pools(view),
            mappings=plan.expanded.mappings,
            prefixes=plan.prefix_mappings(view),
            opened=plan.expanded.opened,
            faults=plan.faults,
        )

    def _plan(self, view: HostView) -> NatPlan:
        if self._view is None or self._view[0] is not view:
            self._view = (view, make_plan(view, self._expander))
            self._groups = {}
        return self._view[1]


def _groups(
    network: NetworkGoal, view: HostView, plan: NatPlan, whole: tuple[tuple[Address, Address], ...]
) -> Iterator[Group]:
    hairpins = tuple(_hairpins(network, view, plan))
    if hairpins:
        yield Group("hairpin", hairpins)
    rules = [
        Rule(0, Match(ethertype=ETH_P_ARP), Allow(), "arp"),
        *(Rule(0, nd(icmp_type), Allow(), "nd") for icmp_type in ND_TYPES),
        *_to_host(network, view, plan),
        *(Rule(10, to_prefix(prefix), Allow(), "inside") for prefix in inside_prefixes(network, view)),
    ]
    if view.host.underlay:
        # From our VTEP address, a translated datagram to that port would be a frame of any VNI to other hosts.
        port = PortRange(view.host.vxlan_port, view.host.vxlan_port)
        rules += [Rule(15, Match(ethertype=ethertype, protocol=UDP, dst_ports=port), Deny(), "no-vxlan")
                  for ethertype in (ETH_P_IP, ETH_P_IPV6)]
    rules += [Rule(30, to_prefix(prefix), Allow(), "exception") for prefix in _prefixes(network.nat.exceptions)]
    rules += _translations(network, view, plan, whole)
    yield Group("source", tuple(rules))


def _hairpins(network: NetworkGoal, view: HostView, plan: NatPlan) -> Iterator[Rule]:
    """Each address of the uplink: whoever is behind it sees the source that the world would see."""
    for number, one in enumerate(view.uplink.addresses if view.uplink else ()):
        chosen = plan.choices.get((network.id, one.version), ())
        same = next((choice for choice in chosen if one.ip in choice.addresses), None)
        for choice in (same or chosen[-1],) if chosen else ():
            yield Rule(number, to_prefix(host_prefix(one.ip)), Hairpin(view.pool_ids[choice.name]), f"hairpin-{one.ip}")


def _to_host(network: NetworkGoal, view: HostView, plan: NatPlan) -> Iterator[Rule]:
    """The stack knows the endpoints by its bridge; those that are shadowed it knows by an address of its own."""
    for address in host_destinations(network, view):
        match = to_prefix(host_prefix(address))
        if network.id not in view.shadowed:
            yield Rule(20, match, Allow(), "host")
        elif (network.id, address.version) in plan.to_host:
            pool = view.pool_ids[plan.to_host[network.id, address.version].name]
            yield Rule(address.version, match, TranslateSource(pool), "host")


def _prefixes(texts: tuple[str, ...]) -> list[Prefix]:
    try:
        return [ip_network(text) for text in dict.fromkeys(texts)]
    except ValueError as error:
        raise ObjectError(f"nat.exceptions or nat.destinations: {error}") from None


def _translations(
    network: NetworkGoal, view: HostView, plan: NatPlan, whole: tuple[tuple[Address, Address], ...]
) -> Iterator[Rule]:
    """Rules from priority 100: who has an address of its own, then by destination; then what is routed."""
    named = _prefixes(network.nat.destinations)
    number = _FIRST_TRANSLATION
    for version in (4, 6):
        scopes = [prefix for prefix in named if prefix.version == version] if named else [_EVERYWHERE[version]]
        actions = list(_actions(network, view, plan, version))
        for internal, external in whole:
            if internal.version == version:
                own = Match(ethertype=ETHERTYPES[version], src=host_prefix(internal))
                actions.insert(0, (own, Rewrite(src=external), "one-to-one"))
        for match, action, name in actions:
            for scope in scopes:
                narrowed = _narrowed(match, scope)
                if narrowed is not None:
                    yield Rule(number, narrowed, action, name)
            number += 1
        if named or (version == 6 and network.nat.ipv6 == "routed" and network.mode == "nat"):
            yield Rule(number, Match(ethertype=ETHERTYPES[version]), Allow(), "routed")
            number += 1


def _actions(
    network: NetworkGoal, view: HostView, plan: NatPlan, version: int
) -> Iterator[tuple[Match, Action, str]]:
    ipv6 = network.nat.ipv6
    if version == 6 and network.id in plan.prefixes:
        internal, external = plan.prefixes[network.id]
        yield Match(ethertype=ETH_P_IPV6, src=internal), TranslatePrefix(internal, external), "prefix"
    elif version == 4 or ipv6 == "masquerade" or network.mode == "overlay":
        for choice in plan.choices.get((network.id, version), ()):
            yield _by_destination(choice, version), TranslateSource(view.pool_ids[choice.name]), _name(choice)


def _by_destination(choice: Choice, version: int) -> Match:
    return Match(ethertype=ETHERTYPES[version], dst=choice.destination)


def _name(choice: Choice) -> str:
    return "outside" if choice.destination is None else f"to-{choice.destination}"


def _narrowed(match: Match, scope: Prefix) -> Match | None:
    """The condition within a destination; None if they have nothing in common."""
    if scope.prefixlen == 0:
        return match
    if match.dst is None or _contains(match.dst, scope):
        return replace(match, dst=scope)
    return match if _contains(scope, match.dst) else None


def _contains(outer: Prefix, inner: Prefix) -> bool:
    return outer.version == inner.version and outer.overlaps(inner) and outer.prefixlen <= inner.prefixlen
