"""Static mappings: the goal's external address and port to the engine's inbound translations."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

from policy.contribution import Fault, HostView, ObjectError, UplinkView
from southbound.messages import MappingGoal, key_of
from vfp.model import Address, Mapping

__all__ = ["PROTOCOLS", "VXLAN_PORT", "expand"]

PROTOCOLS = {"tcp": 6, "udp": 17}
_ANY = IPv4Address(0)
VXLAN_PORT = 4789


def expand(view: HostView, uplink: UplinkView) -> tuple[tuple[Mapping, ...], tuple[Fault, ...]]:
    """The engine's mappings, and the goals that cannot be served.

    0.0.0.0 becomes every address of the uplink. Goals that name an address come before those that do not,
    so that the specific one holds when both ask for the same port.
    """
    taken: dict[tuple[int, Address, int], str] = {}
    made: list[Mapping] = []
    faults: list[Fault] = []
    for goal in sorted(view.mappings, key=_specific_first):
        try:
            mappings = tuple(_mappings_of(goal, view, uplink))
            for mapping in mappings:
                key = (mapping.protocol, mapping.external, mapping.external_port)
                if key in taken:
                    raise ObjectError(
                        f"{goal.protocol} {mapping.external}:{mapping.external_port} is taken by static"
                        f" mapping {taken[key]}; choose another external port"
                    )
        except ObjectError as error:
            faults.append(Fault(key_of(goal), str(error)))
            continue
        for mapping in mappings:
            taken[mapping.protocol, mapping.external, mapping.external_port] = f"{goal.tenant}/{goal.name}"
        made.extend(mappings)
    return tuple(made), tuple(faults)


def _specific_first(goal: MappingGoal) -> tuple[bool, str, str, str]:
    return (goal.external_address == str(_ANY), goal.tenant, goal.name, goal.id)


def _mappings_of(goal: MappingGoal, view: HostView, uplink: UplinkView) -> Iterator[Mapping]:
    low, high = view.host.nat_ports
    first, last = goal.external_ports
    if first <= high and low <= last:
        raise ObjectError(
            f"external port {first} is in the host's NAT ports {low}-{high};"
            f" choose one outside, or change spec.natPorts of the host"
        )
    if view.host.underlay and goal.protocol == "udp" and first <= VXLAN_PORT <= last:
        raise ObjectError("external port udp/4789 carries this host's overlay; choose another")
    port = view.ports.get(goal.port)
    if port is None:
        raise ObjectError("its endpoint is not ready on this host; see the endpoint's status")
    if view.networks[port.network].mode != "nat":
        raise ObjectError(f"endpoint {port.tenant}/{port.name} is not in a nat network")
    try:
        asked, internal = IPv4Address(goal.external_address), IPv4Address(goal.internal_address)
    except ValueError as error:
        raise ObjectError(str(error)) from None
    own = [address.ip for address in uplink.addresses]
    if asked != _ANY and asked not in own:
        raise ObjectError(
            f"external address {asked} is not on uplink {uplink.name}, which has"
            f" {', '.join(map(str, own))}; use one of them, or 0.0.0.0 for all"
        )
    for external in own if asked == _ANY else [asked]:
        for offset in range(last - first + 1):
            yield Mapping(
                uplink=uplink.id,
                protocol=PROTOCOLS[goal.protocol],
                external=external,
                external_port=first + offset,
                port=view.port_ids[goal.port],
                internal=internal,
                internal_port=goal.internal_port + offset,
                name=f"{goal.tenant}/{goal.name}",
            )
