"""Which link leads to the world."""

from __future__ import annotations

import socket

from vswitch.addressing import FAMILIES, address_messages, addresses_of
from vswitch.errors import UplinkMissing
from vswitch.links import UplinkState
from vswitch.netlink import Message, Netlink
from vswitch.ownership import Found, find_link
from vswitch.requests import RT_TABLE_MAIN, RTN_UNICAST, route_dump

RTNH_F_UNUSABLE = 1 | 16  # RTNH_F_DEAD | RTNH_F_LINKDOWN
# IFA_F_TEMPORARY, _DADFAILED, _DEPRECATED, _TENTATIVE: addresses that are not for new connections, or not ours yet.
IFA_F_UNFIT = 0x01 | 0x08 | 0x20 | 0x40
RT_SCOPE_UNIVERSE = 0


def uplink(netlink: Netlink, name: str) -> UplinkState:
    """The named link, or the one that the best usable default route of the main table leads through, IPv4 first.

    Raises:
        UplinkMissing: no such link, or no default route. PermissionDenied, KernelRefused.
    """
    if name:
        found = find_link(netlink, name)
        if found is None:
            raise UplinkMissing(f"uplink {name!r}", "no such interface", "name another in the Host's spec.uplink")
    else:
        found = _default(netlink)
        if found is None:
            raise UplinkMissing(
                "uplink by default route",
                "the main table has no usable default route",
                "add one, or name the interface in the Host's spec.uplink",
            )
    return _state(netlink, found)


def _default(netlink: Netlink) -> Found | None:
    for family in FAMILIES:
        candidates: list[tuple[int, int]] = []
        for message in netlink.dump(route_dump(family, table=RT_TABLE_MAIN)):
            if message["dst_len"] or message["type"] != RTN_UNICAST or message["family"] != family:
                continue
            metric = message.get_attr("RTA_PRIORITY") or 0
            candidates += [(metric, ifindex) for ifindex in next_hops(message)]
        for _metric, ifindex in sorted(candidates, key=lambda candidate: candidate[0]):
            found = find_link(netlink, ifindex=ifindex)
            if found is not None and found.is_up:
                return found
    return None


def next_hops(route: Message) -> list[int]:
    """ifindexes a route leads through, usable ones first; none for a route that leads nowhere."""
    single = route.get_attr("RTA_OIF")
    hops = [(route["flags"], single)] if single else []
    hops += [(hop["flags"], hop["oif"]) for hop in route.get_attr("RTA_MULTIPATH") or []]
    return [ifindex for _flags, ifindex in sorted(hops, key=lambda hop: bool(hop[0] & RTNH_F_UNUSABLE))]


def _state(netlink: Netlink, found: Found) -> UplinkState:
    addresses = tuple(str(address) for address in addresses_of(netlink, found.ifindex))
    addresses6 = tuple(
        f"{message.get_attr('IFA_LOCAL') or message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}"
        for message in address_messages(netlink, found.ifindex, socket.AF_INET6)
        if message["scope"] == RT_SCOPE_UNIVERSE and not _flags(message) & IFA_F_UNFIT
    )
    return UplinkState(found.ifindex, found.name, addresses, found.mtu_bytes, found.mac, addresses6)


def _flags(message: Message) -> int:
    """The kernel tells them twice; in the header there is room for the first eight only."""
    flags = message.get_attr("IFA_FLAGS")
    return int(message["flags"] if flags is None else flags)
