"""Addresses of endpoints and networks, of both families, as every feature needs them."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)

from policy.contribution import HostView, ObjectError, mac_bytes
from southbound.messages import NetworkGoal, PortGoal
from vfp.model import ETH_P_IP, ETH_P_IPV6, Address, Match, Prefix

__all__ = [
    "ETHERTYPES",
    "ICMPV6",
    "LINK_LOCAL",
    "ND_TYPES",
    "Interface",
    "behind_port",
    "gateways",
    "gateways_of",
    "held_addresses",
    "host_prefix",
    "link_local",
    "nd",
    "network_prefixes",
    "own_addresses",
    "to_prefix",
]

Interface = IPv4Interface | IPv6Interface

ETHERTYPES = {4: ETH_P_IP, 6: ETH_P_IPV6}
LINK_LOCAL = IPv6Network("fe80::/64")
ICMPV6 = 58
ND_TYPES = (135, 136)                       # neighbour solicitation and advertisement


def own_addresses(port: PortGoal) -> tuple[Interface, ...]:
    """The addresses that the port was given, with prefix length: one of a family, one or two; none of a `dhcp` one yet.

    Raises:
        ObjectError: one is none of its family, or there is none.
    """
    name = f"{port.tenant}/{port.name}"
    found: list[Interface] = []
    for text, kind in ((port.address, IPv4Interface), (port.address6, IPv6Interface)):
        try:
            found += [_interface(kind, text)] if text else []
        except ValueError as error:
            raise ObjectError(f"address {text!r} of endpoint {name}: {error}") from None
    if not found and not port.dhcp:
        raise ObjectError(f"endpoint {name} has neither an IPv4 nor an IPv6 address; give it one")
    return tuple(found)


@lru_cache(maxsize=16_384)                  # each is asked for many times in a build
def _interface(kind: type[Interface], text: str) -> Interface:
    return kind(text)


def held_addresses(port: PortGoal) -> tuple[Address, ...]:
    """All that the port answers to: its own addresses and, if one is IPv6, the link-local one of its MAC.

    Raises:
        ObjectError: as `own_addresses`, or the MAC is none.
    """
    own = tuple(address.ip for address in own_addresses(port))
    return (*own, link_local(mac_bytes(port.mac))) if any(address.version == 6 for address in own) else own


def behind_port(port: PortGoal, view: HostView) -> tuple[Address, ...]:
    """All addresses that are reached by the port's link: its own, one that DHCP gave it, and those nested behind it.

    Raises:
        ObjectError: as `held_addresses`.
    """
    found = list(held_addresses(port))
    if port.id in view.leases:
        found.append(view.leases[port.id].ip)
    for nested in view.nested.get(port.id, ()):
        found += [address.ip for address in own_addresses(nested)]
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=16_384)
def link_local(mac: bytes) -> IPv6Address:
    """The link-local address that an interface makes from its MAC (RFC 4291 appendix A, RFC 2464 section 5)."""
    identifier = bytes((mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]))
    return IPv6Address(LINK_LOCAL.network_address.packed[:8] + identifier)


@lru_cache(maxsize=4096)
def network_prefixes(network: NetworkGoal) -> tuple[Prefix, ...]:
    """The prefixes of a network's subnets.

    Raises:
        ObjectError: one is no prefix, or has host bits.
    """
    prefixes = []
    for subnet in network.subnets:
        try:
            prefixes.append(ip_network(subnet.prefix))
        except ValueError as error:
            name = f"{network.tenant}/{network.name}"
            raise ObjectError(f"network {name}: prefix {subnet.prefix!r}: {error}") from None
    return tuple(prefixes)


@lru_cache(maxsize=4096)
def gateways(network: NetworkGoal) -> tuple[Interface, ...]:
    """The gateway of each subnet, with the subnet's prefix length.

    Raises:
        ObjectError: a gateway is no address of its prefix, or a prefix is none.
    """
    found: list[Interface] = []
    for subnet, prefix in zip(network.subnets, network_prefixes(network), strict=True):
        try:
            address = ip_address(subnet.gateway)
        except ValueError as error:
            raise ObjectError(f"gateway {subnet.gateway!r}: {error}") from None
        if address not in prefix:
            raise ObjectError(f"gateway {subnet.gateway} is outside prefix {prefix}")
        kind = IPv4Interface if address.version == 4 else IPv6Interface
        found.append(kind((address, prefix.prefixlen)))
    return tuple(found)


def gateways_of(port: PortGoal, network: NetworkGoal) -> tuple[Address, ...]:
    """The gateways of the port's own subnets, at most one of each family; of a `dhcp` one those of its network."""
    found: dict[int, Address] = {}
    own = own_addresses(port)
    for gateway in gateways(network):
        unknown = port.dhcp and gateway.version == 4
        if unknown or any(one.version == gateway.version and one.ip in gateway.network for one in own):
            found.setdefault(gateway.version, gateway.ip)
    return tuple(found.values())


@lru_cache(maxsize=16_384)
def host_prefix(address: Address) -> Prefix:
    """The prefix that has this address alone. (By number: by text takes five times as long.)"""
    return IPv4Network(int(address)) if address.version == 4 else IPv6Network(int(address))


def nd(icmp_type: int) -> Match:
    """Neighbour discovery of one type (RFC 4861)."""
    return Match(ethertype=ETH_P_IPV6, protocol=ICMPV6, icmp_type=icmp_type)


def to_prefix(prefix: Prefix) -> Match:
    """What goes to a prefix, in IP; not ARP that asks for it."""
    return Match(ethertype=ETHERTYPES[prefix.version], dst=prefix)
