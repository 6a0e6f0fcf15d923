"""With which external address a nat network's packets leave, and the pools that give out its ports.

Every nat network has pools of its own, as filtering, blocks, quota and records are the network's. One that names
external addresses has one pool of each family with all of them. One that does not leaves with those of the uplink, a
pool for each, and the destination chooses as the host's own source selection would: on-link prefixes first, longest
first, then the default address.

On the loopback uplink there are two sorts: a gateway's, for what the host's own processes send from 127.0.0.1 or ::1
to a mapped port (the endpoint could not answer to that address), and a shadowed network's, by which its endpoints
reach the host.

A pool is known by its name; `pool_names` says all that a network may need, so that ids can be given before. A host has
not more ids than the engine holds pools: a network whose pool got none is served without it, and has a fault.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Network, ip_address

from policy.addresses import Interface, gateways, network_prefixes
from policy.contribution import HostView, ObjectError
from southbound.messages import NetworkGoal
from vfp.model import Address, Filtering, Pool, PortRange, Prefix

__all__ = ["Choice", "choices", "default_source", "gateway_pools", "host_source", "make_pool", "mapped_networks",
           "no_room", "pool_names"]

MOST_ADDRESSES = 16                         # of one pool
_UNIQUE_LOCAL = IPv6Network("fc00::/7")     # RFC 4193: reaches no further than the site
_HELD_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


@dataclass(frozen=True, slots=True)
class Choice:
    """A pool by its name, the addresses in it, and who leaves with them: what goes to `destination`; None: anywhere."""

    name: str
    addresses: tuple[Address, ...]
    destination: Prefix | None = None


def pool_names(network: NetworkGoal, uplink: Collection[Interface], shadowed: bool, mapped: bool) -> Iterator[str]:
    """Every pool that a nat network may need beside an uplink with these addresses, and few that it does not.

    `mapped`: a static mapping leads into it.
    """
    for version in sorted({prefix.version for prefix in network_prefixes(network)}):
        if any((":" in address) == (version == 6) for address in network.nat.addresses):
            yield _named(network, version)
        else:
            yield from (_of_uplink(network, address.ip) for address in uplink if address.version == version)
        if shadowed:
            yield host_pool(network, version)
    if mapped:
        yield from (gateway_pool(gateway.ip) for gateway in gateways(network))


def no_room(pools: Iterable[str], ids: Mapping[str, int]) -> str:
    """What to say of a network that needs these pools, if the host has no number for one; empty: it has."""
    if all(name in ids for name in pools):
        return ""
    return (f"the host has no room for another pool; it has {len(ids)}: move networks to another host, or name one"
            " external address in nat.externalAddresses, so that a network needs one pool")


def _named(network: NetworkGoal, version: int) -> str:
    return f"{network.id}/named{version}"


def _of_uplink(network: NetworkGoal, address: Address) -> str:
    return f"{network.id}/{address}"


def host_pool(network: NetworkGoal, version: int) -> str:
    """By which a shadowed network's endpoints reach the host."""
    return f"{network.id}/host{version}"


def gateway_pool(gateway: Address) -> str:
    """By which the host's own processes reach mapped ports from a loopback address. Networks may share it."""
    return f"lo/{gateway}"


def choices(
    network: NetworkGoal, uplink: tuple[Interface, ...], version: int, whole: Collection[Address]
) -> tuple[Choice, ...]:
    """What translates a network's packets of one IP version, by descending precedence; none: nothing can.

    `whole`: addresses that belong to one endpoint; named ones they are not.

    Raises:
        ObjectError: an external address that the network names is not on the uplink.
    """
    own = [address for address in uplink if address.version == version]
    named = tuple(address for address in map(_address, network.nat.addresses) if address.version == version)
    if named:
        if missing := [address for address in named if address not in {one.ip for one in own}]:
            found = ", ".join(str(one.ip) for one in own) or f"no IPv{version} address"
            raise ObjectError(
                f"external address {', '.join(map(str, missing))} is not on the uplink, which has {found};"
                f" give it to the uplink, or correct nat.externalAddresses"
            )
        if len(named) > MOST_ADDRESSES:
            raise ObjectError(f"{len(named)} external IPv{version} addresses; name at most {MOST_ADDRESSES}")
        return (Choice(_named(network, version), tuple(dict.fromkeys(named))),)
    first = default_source(uplink, version, whole)
    if first is None:
        return ()
    on_link: dict[Prefix, Address] = {}
    for one in own:
        if one.network.prefixlen < one.max_prefixlen and one.ip not in whole:
            on_link.setdefault(one.network, one.ip)
    secondary = [
        Choice(_of_uplink(network, source), (source,), prefix)
        for prefix, source in sorted(on_link.items(), key=lambda item: (-item[0].prefixlen, str(item[0])))
        if source != first
    ]
    return (*secondary, Choice(_of_uplink(network, first), (first,)))


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError as error:
        raise ObjectError(f"nat.externalAddresses: {error}") from None


def default_source(uplink: Iterable[Interface], version: int, whole: Collection[Address] = ()) -> Address | None:
    """The first address that reaches the world (RFC 3927 and RFC 4193 ones do not), else the first."""
    own = [one.ip for one in uplink if one.version == version and one.ip not in whole]
    return next((ip for ip in own if not (ip.is_link_local or ip in _UNIQUE_LOCAL)), next(iter(own), None))


def host_source(view: HostView, version: int, whole: Collection[Address] = ()) -> Address | None:
    """As which the host is spoken to by who cannot be told apart by address: one of its own addresses."""
    uplink = default_source(view.uplink.addresses if view.uplink else (), version, whole)
    if uplink is not None:
        return uplink
    own = (address for address in view.host_addresses if address.version == version and address not in whole)
    return min(own, default=None, key=int)


def make_pool(view: HostView, network: NetworkGoal, choice: Choice, uplink: int) -> Pool:
    """The pool of a choice, with all that the network says of it."""
    nat = network.nat
    ports = PortRange(*view.host.nat_ports)
    return Pool(
        id=view.pool_ids[choice.name],
        uplink=uplink,
        addresses=choice.addresses,
        ports=ports,
        filtering=Filtering(nat.filtering),
        block=nat.block,
        quota=nat.quota,
        held=_held(view, choice.addresses, ports),
        log=nat.log,
    )


def gateway_pools(view: HostView, networks: Iterable[NetworkGoal]) -> Iterator[Pool]:
    """A pool on the loopback uplink for each gateway."""
    ports = PortRange(*view.host.nat_ports)
    for address in dict.fromkeys(gateway.ip for network in networks for gateway in gateways(network)):
        if gateway_pool(address) in view.pool_ids:
            yield Pool(view.pool_ids[gateway_pool(address)], view.loopback, (address,), ports)


def mapped_networks(view: HostView) -> tuple[NetworkGoal, ...]:
    """The nat networks that a static mapping leads into."""
    found = {view.ports[goal.port].network for goal in view.mappings if goal.port in view.ports}
    return tuple(network for network in view.networks.values() if network.mode == "nat" and network.id in found)


def _held(view: HostView, addresses: tuple[Address, ...], ports: PortRange) -> tuple[tuple[int, int], ...]:
    """Ports that may be chosen and on which sockets of the host listen, at one of the addresses or at any.

    SCTP keeps its port, in the range or not.
    """
    ours = {str(address) for address in addresses}
    return tuple(sorted({
        (_HELD_PROTOCOLS[protocol], port) for protocol, address, port in view.listeners
        if protocol in _HELD_PROTOCOLS and (ports.low <= port <= ports.high or protocol == "sctp")
        and (address in ours or address in ("0.0.0.0", "::"))
    }))
