"""What holds for all ports of one host view: mappings, who leaves with which addresses, and what cannot be served."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv6Network

from nat.mappings import Expanded, Expander
from nat.pools import (
    Choice,
    choices,
    gateway_pool,
    gateway_pools,
    host_pool,
    host_source,
    make_pool,
    mapped_networks,
    no_room,
)
from policy.addresses import gateways, network_prefixes
from policy.contribution import Fault, HostView, ObjectError
from policy.world import is_translated
from southbound.messages import NetworkGoal, key_of
from vfp.model import Address, Pool, PrefixMapping
from vfp.prefixes import MAX_LENGTH

__all__ = ["NatPlan", "make_plan"]


@dataclass(frozen=True, slots=True)
class NatPlan:
    """By NetworkGoal.id and IP version.

    `choices`: by whom packets to the world are translated, or would be in a hairpin.
    `to_host`: by whom those of a shadowed network to the host are.
    `prefixes`: (internal, external) of a network whose IPv6 prefix is translated.
    """

    expanded: Expanded
    choices: dict[tuple[str, int], tuple[Choice, ...]] = field(default_factory=dict)
    to_host: dict[tuple[str, int], Choice] = field(default_factory=dict)
    prefixes: dict[str, tuple[IPv6Network, IPv6Network]] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def pools(self, view: HostView) -> tuple[Pool, ...]:
        """Every pool of the host."""
        found: list[Pool] = []
        uplink = view.uplink
        for (uid, _), chosen in self.choices.items():
            if uplink is not None:
                once = {choice.name: choice for choice in chosen}
                found += [make_pool(view, view.networks[uid], choice, uplink.id) for choice in once.values()]
        for (uid, _), choice in self.to_host.items():
            found.append(make_pool(view, view.networks[uid], choice, view.loopback))
        if view.loopback:
            found += gateway_pools(view, mapped_networks(view))
        return tuple(found)

    def prefix_mappings(self, view: HostView) -> tuple[PrefixMapping, ...]:
        """Inbound translation of prefixes."""
        if view.uplink is None:
            return ()
        return tuple(
            PrefixMapping(view.uplink.id, external, internal, view.networks[uid].space)
            for uid, (internal, external) in self.prefixes.items()
        )


def make_plan(view: HostView, expander: Expander) -> NatPlan:
    """The plan of one view. Never raises: what cannot be served is a fault."""
    nats = [network for network in view.networks.values() if is_translated(network)]
    no_uplink = _missing_uplink(view)
    expanded = expander.expand(view, no_uplink)
    plan = NatPlan(expanded)
    faults = [Fault(key_of(network), no_uplink) for network in nats if no_uplink]
    taken: dict[IPv6Network, NetworkGoal] = {}
    maps_ipv6 = any(mapping.external.version == 6 for mapping in expanded.mappings)
    reached = {network.id for network in mapped_networks(view)} if view.loopback else set()
    for network in nats:
        try:
            if network.id in reached:
                _see_room(view, *(gateway_pool(gateway.ip) for gateway in gateways(network)))
            _choose(network, view, plan, maps_ipv6)
            _prefix(network, plan, taken)
        except ObjectError as error:
            faults.append(Fault(key_of(network), str(error)))
    return NatPlan(expanded, plan.choices, plan.to_host, plan.prefixes, (*faults, *expanded.faults))


def _missing_uplink(view: HostView) -> str:
    if view.uplink is not None and view.uplink.addresses:
        return ""
    what = f"uplink {view.host.uplink!r}" if view.host.uplink else "a default route"
    return f"no uplink address for NAT: the host has not {what} with an address; set one up"


def _choose(network: NetworkGoal, view: HostView, plan: NatPlan, maps_ipv6: bool) -> None:
    versions = {prefix.version for prefix in network_prefixes(network)}
    whole = plan.expanded.whole_addresses
    if network.id in view.shadowed and view.loopback:
        for version in sorted(versions):
            source, name = host_source(view, version, whole), host_pool(network, version)
            if source is not None:
                _see_room(view, name)
                plan.to_host[network.id, version] = Choice(name, (source,))
    if view.uplink is None or not view.uplink.addresses:
        return
    for version in sorted(versions):
        if version == 6 and network.nat.ipv6 != "masquerade" and not maps_ipv6 and network.mode == "nat":
            continue                        # nobody would use it, not even a hairpin
        chosen = choices(network, view.uplink.addresses, version, whole)
        if chosen:
            _see_room(view, *(choice.name for choice in chosen))
            plan.choices[network.id, version] = chosen
        elif version == 4 or (network.nat.ipv6 == "masquerade" and network.mode == "nat"):
            raise ObjectError(
                f"uplink {view.uplink.name} has no IPv{version} address to translate to; give it one"
                + (", or set nat.ipv6 to routed" if version == 6 else "")
            )


def _see_room(view: HostView, *pools: str) -> None:
    if fault := no_room(pools, view.pool_ids):
        raise ObjectError(fault)


def _prefix(network: NetworkGoal, plan: NatPlan, taken: dict[IPv6Network, NetworkGoal]) -> None:
    """RFC 6296 translates one prefix to one of the same length."""
    if network.nat.ipv6 != "prefix":
        return
    internal = [prefix for prefix in network_prefixes(network) if isinstance(prefix, IPv6Network)]
    try:
        external = IPv6Network(network.nat.external_prefix)
    except ValueError as error:
        raise ObjectError(f"nat.externalPrefix {network.nat.external_prefix!r}: {error}") from None
    if not 0 < external.prefixlen <= MAX_LENGTH:
        raise ObjectError(f"nat.externalPrefix {external}: give one of a length of 1 to {MAX_LENGTH} (RFC 6296 3.5)")
    if len(internal) != 1 or internal[0].prefixlen != external.prefixlen:
        raise ObjectError(
            f"nat.externalPrefix {external} needs exactly one IPv6 subnet, of its length; found"
            f" {', '.join(map(str, internal)) or 'none'}"
        )
    for other, holder in taken.items():
        if other.overlaps(external):
            raise ObjectError(
                f"nat.externalPrefix {external} overlaps {other} of network {holder.tenant}/{holder.name};"
                f" choose another"
            )
    taken[external] = network
    plan.prefixes[network.id] = (internal[0], external)


def one_to_one(plan: NatPlan, port_uid: str) -> tuple[tuple[Address, Address], ...]:
    """(internal, external) addresses of a port that has whole external addresses."""
    return tuple(plan.expanded.whole.get(port_uid, ()))
