"""Addresses and default routes of one link, of both families: mended by difference.

What is missing comes before what is wrong goes, so that a link that is renumbered is never without an address: the
kernel would take its routes away with the last one.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence
from ipaddress import ip_interface

from vswitch.checks import Address, Interface, family_of
from vswitch.errors import KernelRefused
from vswitch.netlink import Message, Netlink, Request
from vswitch.requests import (
    RT_TABLE_MAIN,
    RTN_UNICAST,
    address_delete,
    address_dump,
    address_set,
    default_route_add,
    default_route_delete,
    route_dump,
)
from vswitch.settings import IPV4, disable_ipv6, enable_ipv6, set_setting

FAMILIES = (socket.AF_INET, socket.AF_INET6)
MEND_TRIES = 4
IFAPROT_KERNEL_RA, RTPROT_RA = 2, 9  # what the kernel makes by a router advertisement

# What the kernel gives a default route that names no metric.
METRIC: dict[int, int] = {socket.AF_INET: 0, socket.AF_INET6: 1024}
# A namespace may have a default route of its own already; ours then takes second place.
METRIC_BEHIND_ANOTHER = 1024


def ready_for(
    interface: str, addresses: Iterable[Interface], *, link_local: bool, accept_ra: bool = False, slaac: bool = False
) -> None:
    """Settle what a link of the thread's namespace needs before it gets these addresses.

    Args:
        link_local: whether it may have the IPv6 address that is made of its MAC besides.
        accept_ra: whether it listens to router advertisements; `slaac`: and makes addresses by them.

    Raises:
        PermissionDenied, KernelRefused: no IPv6.
    """
    # The second address of a prefix stays when the first goes.
    set_setting(IPV4 / interface / "promote_secondaries", "1")
    if any(address.version == 6 for address in addresses):
        enable_ipv6(interface, link_local, accept_ra=accept_ra, slaac=slaac)
    else:
        disable_ipv6(interface)


def addresses_of(
    netlink: Netlink, ifindex: int, family: int = socket.AF_INET, *, learned: bool = True
) -> list[Interface]:
    """Addresses of a link, primary first; no link-local IPv6 ones, and without `learned` none by an advertisement."""
    found: list[Interface] = []
    for message in address_messages(netlink, ifindex, family):
        if not learned and message.get_attr("IFA_PROTO") == IFAPROT_KERNEL_RA:
            continue
        local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        address = ip_interface(f"{local}/{message['prefixlen']}")
        if family == socket.AF_INET or not address.ip.is_link_local:
            found.append(address)
    return found


def address_messages(netlink: Netlink, ifindex: int, family: int) -> list[Message]:
    """What the kernel tells of a link's addresses of one family."""
    messages = netlink.dump(address_dump(family, ifindex))
    return [message for message in messages if message["index"] == ifindex and message["family"] == family]


def mend_addresses(
    netlink: Netlink, ifindex: int, wanted: Sequence[Interface], families: Iterable[int] = FAMILIES, *,
    keep_learned: bool = False,
) -> None:
    """Make `wanted` the addresses of the link, but for a link-local IPv6 one.

    Args:
        families: others are not touched.
        keep_learned: those that the link made by an advertisement stay.

    Raises:
        KernelRefused: also when somebody else sets them again and again.
    """
    for family in families:
        mine = [address for address in wanted if family_of(address) == family]
        for _ in range(MEND_TRIES):
            if not _mend_once(netlink, ifindex, family, mine, keep_learned):
                break
        else:
            found = ", ".join(map(str, addresses_of(netlink, ifindex, family))) or "none"
            raise KernelRefused(f"addresses of link {ifindex}", f"they keep changing: {found}",
                                "see who else sets them", errno.EBUSY)


def _mend_once(
    netlink: Netlink, ifindex: int, family: int, wanted: Sequence[Interface], keep_learned: bool
) -> bool:
    """Whether anything had to be changed: then the kernel may have done more than it was asked for."""
    present = addresses_of(netlink, ifindex, family, learned=not keep_learned)
    missing = [address_set(ifindex, address) for address in wanted if address not in present]
    wrong = [address_delete(ifindex, address) for address in present if address not in wanted]
    netlink.run(*missing)
    for request in wrong:
        try:
            netlink.run(request)
        except KernelRefused as error:
            if error.code != errno.EADDRNOTAVAIL:  # it went with its primary
                raise
    return bool(missing or wrong)


def mend_default_routes(
    netlink: Netlink, ifindex: int, gateways: Sequence[Address], families: Iterable[int] = FAMILIES, *,
    keep_learned: bool = False, last: bool = False,
) -> None:
    """Make the link's default routes exactly those through `gateways`, at most one of each family.

    Other links keep theirs, and this one with `keep_learned` those by an advertisement. `last`: they take second place
    also to routes that come later.
    """
    for family in families:
        gateway = next((gateway for gateway in gateways if family_of(gateway) == family), None)
        _mend_default_route(netlink, ifindex, family, gateway, keep_learned, last)


def _mend_default_route(
    netlink: Netlink, ifindex: int, family: int, gateway: Address | None, keep_learned: bool,
    last: bool,
) -> None:
    kept = False
    others = False
    stale: list[Request] = []
    for message in netlink.dump(route_dump(family, table=RT_TABLE_MAIN)):
        if message["dst_len"] or message["type"] != RTN_UNICAST or message["family"] != family:
            continue
        if message.get_attr("RTA_TABLE") != RT_TABLE_MAIN:
            continue
        metric = message.get_attr("RTA_PRIORITY") or 0
        if message.get_attr("RTA_OIF") != ifindex or (keep_learned and message["proto"] == RTPROT_RA):
            others = others or metric == METRIC[family]
            continue
        via = message.get_attr("RTA_GATEWAY")
        if gateway is not None and via == str(gateway) and not kept:
            kept = True
        else:
            stale.append(default_route_delete(ifindex, family, via, metric))
    netlink.run(*stale)
    if gateway is not None and not kept:
        metric = METRIC_BEHIND_ANOTHER + ifindex if others or last else METRIC[family]
        netlink.run(default_route_add(ifindex, gateway, metric))
