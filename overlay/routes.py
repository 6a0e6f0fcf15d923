"""Routes of an overlay network: by an endpoint of it, by another host's exit, or by the exit that is here."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from policy.addresses import network_prefixes
from policy.contribution import Fault, HostView, ObjectError, mac_bytes
from southbound.messages import NetworkGoal, RouteGoal, key_of
from southbound.vteps import choose_vtep, common_family
from vfp.errors import CompileError
from vfp.model import LocalPort, Remote, Route
from vfp.vteps import check_vtep

__all__ = ["routes"]


def routes(network: NetworkGoal, view: HostView, faults: list[Fault]) -> tuple[Route, ...]:
    """The routes that can be served; `faults` gets the others."""
    found: dict[object, Route] = {}
    for goal in network.routes:
        try:
            route = _route(goal, network, view)
            if route.prefix in found:
                raise ObjectError(f"route to {route.prefix} is there twice; take one out")
        except ObjectError as error:
            faults.append(Fault(key_of(network), str(error)))
            continue
        found[route.prefix] = route
    return tuple(found.values())


def _route(goal: RouteGoal, network: NetworkGoal, view: HostView) -> Route:
    try:
        prefix = ip_network(goal.prefix)
        via = ip_address(goal.address) if goal.address else None
    except ValueError as error:
        raise ObjectError(f"route to {goal.prefix!r}: {error}") from None
    if prefix in network_prefixes(network):
        raise ObjectError(f"route to {prefix}: that is a subnet of the network itself")
    if via is not None:
        if via.version != prefix.version:
            raise ObjectError(f"route to {prefix} via {via}: the two are of different families")
        return Route(prefix, via)
    mac = mac_bytes(network.gateway_mac)
    if goal.here:
        if network.id not in view.exits:
            raise ObjectError(f"route to {prefix} by this host: it has no exit yet; see its uplink")
        return Route(prefix, LocalPort(view.exits[network.id], mac))
    family = common_family(view.underlays, goal.vteps)
    if not family:
        raise ObjectError(
            f"route to {prefix}: its host has underlay addresses {', '.join(goal.vteps) or '(none)'}, this one"
            f" {', '.join(view.underlays) or '(none)'}; give both one of a family")
    try:
        vtep = ip_address(choose_vtep(goal.vteps, family, mac))
        check_vtep(f"route to {prefix}", vtep)
    except (ValueError, CompileError) as error:
        raise ObjectError(f"route to {prefix}: {error}") from None
    return Route(prefix, Remote(vtep, network.space, mac))
