"""What the host has besides what Sluice made: addresses, routes, listening sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from vswitch.ears import Ears
from vswitch.links import Surroundings
from vswitch.netlink import Message, Netlink
from vswitch.ownership import Found, found_link
from vswitch.requests import FAR_GROUP, address_dump, link_dump, route_dump
from vswitch.tunnels import udp_port
from vswitch.uplinks import next_hops

MAX_LINKS = 256  # that are named
FAMILIES = (socket.AF_INET, socket.AF_INET6)

# Route types (rtnetlink(7)) that hold a prefix: unicast and local lead to a link; blackhole, unreachable and
# prohibit keep it from being used, on purpose.
TO_A_LINK = (1, 2)
TO_NOWHERE = (6, 7, 8)

# Routes that take half of everything, or more, are a default route in pieces (OpenVPN's `redirect-gateway def1`,
# 2000::/3): what is behind them is the world, and no network of somebody's.
WORLD_BITS = {4: 1, 6: 3}


def surroundings(netlink: Netlink, ears: Ears) -> Surroundings:
    """Look at everything once.

    Raises:
        PermissionDenied, KernelRefused.
    """
    links = [found_link(message) for message in netlink.dump(link_dump())]
    ours = _ours(links)
    names = {link.ifindex: link.name for link in links}
    addresses = tuple(_addresses(netlink, names, ours))
    hosts = {address.split("/")[0] for _name, address in addresses}
    routes = dict.fromkeys(_routes(netlink, names, ours, hosts))
    others = sorted(link.name for link in links if link.ifindex not in ours)
    return Surroundings(addresses, tuple(routes), _sockets(links, ears), tuple(others[:MAX_LINKS]))


def listeners(netlink: Netlink, ears: Ears) -> tuple[tuple[str, str, int], ...]:
    """The part of `surroundings` whose changes nothing tells.

    Raises:
        PermissionDenied, KernelRefused.
    """
    return _sockets(own_links(netlink), ears)


def _sockets(links: list[Found], ears: Ears) -> tuple[tuple[str, str, int], ...]:
    tunnel_ports = {udp_port(link) for link in links if link.is_ours and link.kind == "vxlan"}
    return tuple(dict.fromkeys(sorted(one for one in ears.heard() if one[0] != "udp" or one[2] not in tunnel_ports)))


def own_addresses(netlink: Netlink) -> tuple[tuple[str, str], ...]:
    """The part of `surroundings` that every change of policy needs.

    Raises:
        PermissionDenied, KernelRefused.
    """
    links = [found_link(message) for message in netlink.dump(link_dump())]
    names = {link.ifindex: link.name for link in links}
    return tuple(_addresses(netlink, names, _ours(links)))


def own_links(netlink: Netlink) -> list[Found]:
    """Every link that Sluice made in this namespace."""
    found = (found_link(message) for message in netlink.dump(link_dump()))
    return [link for link in found if link.is_ours]


def _ours(links: list[Found]) -> set[int]:
    """Index of each link of ours, and of the far ends that wait here for a runtime to take them."""
    ours = {link.ifindex for link in links if link.is_ours}
    return ours | {link.ifindex for link in links
                   if link.group == FAR_GROUP and link.peer_nsid < 0 and link.peer_ifindex in ours}


def _addresses(netlink: Netlink, names: Mapping[int, str], ours: set[int]) -> Iterator[tuple[str, str]]:
    for family in FAMILIES:
        for message in netlink.dump(address_dump(family)):
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if message["index"] in ours or (ip_address(address).is_link_local and family == socket.AF_INET6):
                continue
            yield names.get(message["index"], ""), f"{address}/{message['prefixlen']}"


def _routes(netlink: Netlink, names: Mapping[int, str], ours: set[int], hosts: set[str]) -> Iterator[tuple[str, str]]:
    for family in FAMILIES:
        for message in netlink.dump(route_dump(family)):
            prefix = _prefix(message)
            if prefix is None or prefix.prefixlen <= WORLD_BITS[prefix.version] or _is_housekeeping(prefix, hosts):
                continue
            if message["type"] in TO_NOWHERE:
                yield "", str(prefix)
            elif message["type"] in TO_A_LINK:
                foreign = [ifindex for ifindex in next_hops(message) if ifindex not in ours]
                if foreign:
                    yield names.get(foreign[0], ""), str(prefix)


def _prefix(message: Message) -> IPv4Network | IPv6Network | None:
    destination = message.get_attr("RTA_DST")
    return None if destination is None else ip_network(f"{destination}/{message['dst_len']}", strict=False)


def _is_housekeeping(prefix: IPv4Network | IPv6Network, hosts: set[str]) -> bool:
    """Routes that the kernel keeps for itself: to an address of the host, link-local and multicast IPv6."""
    if prefix.prefixlen == prefix.max_prefixlen and str(prefix.network_address) in hosts:
        return True
    return prefix.version == 6 and (prefix.is_link_local or prefix.is_multicast)
