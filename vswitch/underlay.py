"""What carries the overlay: which links have the host's underlay addresses, and how large a packet gets to whom.

A path's MTU is what the kernel would use: that of the route's link, less if the route says so, or if a router said "too
big" (RFC 1191, RFC 8201). What routers say the kernel learns by itself also of packets that it did not send: the
VXLAN device's socket takes their errors.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from pyroute2.netlink import rtnl

from vswitch.addressing import FAMILIES
from vswitch.checks import Address, checked_address, family_of
from vswitch.links import PathState, UnderlayState
from vswitch.netlink import ATTRIBUTE, HEADER, Netlink, attributes
from vswitch.ownership import Found, find_link, number
from vswitch.requests import address_dump

ETHERNET = 1  # ARPHRD_ETHER
LOOPBACK_MTU = 65536

ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
RTA_DST, RTA_OIF, RTA_METRICS, RTA_CACHEINFO = 1, 4, 8, 12
RTAX_MTU = 2
CACHEINFO_EXPIRES = slice(8, 12)  # of struct rta_cacheinfo
TICKS_PER_S = 100  # USER_HZ


def underlays(netlink: Netlink, addresses: Sequence[str]) -> dict[str, UnderlayState]:
    """Those of the addresses that this host has, in the order given.

    Raises:
        LinkInvalid: not an address. PermissionDenied, KernelRefused.
    """
    wanted = {str(checked_address(address, "underlay")): address for address in addresses}
    holders: dict[str, int] = {}
    for family in FAMILIES if wanted else ():
        for message in netlink.dump(address_dump(family)):
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text in wanted:
                holders.setdefault(wanted[text], message["index"])
    links = {ifindex: find_link(netlink, ifindex=ifindex) for ifindex in set(holders.values())}
    found = ((address, links[holders[address]]) for address in addresses if address in holders)
    return {address: _state(netlink, address, link) for address, link in found if link is not None}


def paths(netlink: Netlink, addresses: Iterable[str]) -> dict[str, PathState]:
    """The path to each address that there is a route to.

    Raises:
        LinkInvalid: not an address. PermissionDenied, KernelRefused.
    """
    wanted = list(addresses)
    answers = netlink.ask_many(rtnl.RTM_GETROUTE, [_question(checked_address(one, "VTEP")) for one in wanted])
    links: dict[int, int] = {}
    found: dict[str, PathState] = {}
    for address, answer in zip(wanted, answers, strict=True):
        if answer is None:
            continue
        told = attributes(answer[HEADER.size + ROUTE.size :])
        ifindex = number(told.get(RTA_OIF, b""))
        if ifindex not in links:
            link = find_link(netlink, ifindex=ifindex)
            links[ifindex] = link.mtu_bytes if link is not None else 0
        mtu = number(attributes(told.get(RTA_METRICS, b"")).get(RTAX_MTU, b""))
        expires = number(told.get(RTA_CACHEINFO, b"")[CACHEINFO_EXPIRES])
        if least := min((one for one in (mtu, links[ifindex]) if one), default=0):
            found[address] = PathState(least, expires / TICKS_PER_S if expires < 1 << 31 else 0.0)
    return found


def _state(netlink: Netlink, address: str, link: Found) -> UnderlayState:
    if link.type == ETHERNET and link.kind != "dummy":
        return UnderlayState(address, link.ifindex, link.name, link.mtu_bytes)
    # An address of the host rather than of a link: packets come by any, and the one they leave by says how large.
    mtu = link.mtu_bytes
    if link.kind == "dummy" or mtu >= LOOPBACK_MTU:
        mtu = 1500
    return UnderlayState(address, 0, link.name, mtu)


def _question(address: Address) -> bytes:
    """RTM_GETROUTE as the kernel's strict check wants it. By hand: a host may have a thousand VTEPs to ask about."""
    raw = address.packed
    fields = ROUTE.pack(family_of(address), len(raw) * 8, 0, 0, 0, 0, 0, 0, 0)
    return fields + ATTRIBUTE.pack(ATTRIBUTE.size + len(raw), RTA_DST) + raw


