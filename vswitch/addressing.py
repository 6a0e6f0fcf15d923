"""IPv4 addresses and default routes of one link, and its IPv6 switch: mended by difference."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from vswitch.errors import KernelRefused, PermissionDenied
from vswitch.netlink import Netlink, Request
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

# A namespace may have a default route of its own already; ours then takes second place.
METRIC_BEHIND_ANOTHER = 1024


def disable_ipv6(interface: str) -> None:
    """Keep IPv6 off a link of the thread's namespace: no link-local address, no router solicitations.

    A kernel without IPv6 has no such file, and needs none.
    """
    path = Path("/proc/sys/net/ipv6/conf") / interface / "disable_ipv6"
    try:
        if path.read_text().strip() != "1":
            path.write_text("1")
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise PermissionDenied(f"write {path}", error.strerror or "", "run as root with a writable /proc/sys") from None


def addresses_of(netlink: Netlink, ifindex: int) -> list[IPv4Interface]:
    """IPv4 addresses of a link, primary first."""
    return [
        IPv4Interface(f"{message.get_attr('IFA_LOCAL')}/{message['prefixlen']}")
        for message in netlink.dump(address_dump(ifindex=ifindex))
        if message["index"] == ifindex
    ]


def mend_address(netlink: Netlink, ifindex: int, wanted: IPv4Interface) -> None:
    """Make `wanted` the only IPv4 address of the link.

    Wrong ones leave first: the kernel removes the secondaries of a prefix with its primary, and so could take
    away the right one.
    """
    present = addresses_of(netlink, ifindex)
    if present == [wanted]:
        return
    for wrong in present:
        if wrong != wanted:
            try:
                netlink.run(address_delete(ifindex, wrong))
            except KernelRefused as error:
                if error.code != errno.EADDRNOTAVAIL:  # went with its primary
                    raise
    netlink.run(address_set(ifindex, wanted))


def mend_default_route(netlink: Netlink, ifindex: int, gateway: IPv4Address | None) -> None:
    """Make the link's default routes exactly the one through `gateway`, or none; other links keep theirs."""
    kept = False
    others = False
    stale: list[Request] = []
    for message in netlink.dump(route_dump(table=RT_TABLE_MAIN)):
        if message["dst_len"] or message["type"] != RTN_UNICAST or message.get_attr("RTA_TABLE") != RT_TABLE_MAIN:
            continue
        metric = message.get_attr("RTA_PRIORITY") or 0
        if message.get_attr("RTA_OIF") != ifindex:
            others = others or metric == 0
            continue
        via = message.get_attr("RTA_GATEWAY")
        if gateway is not None and via == str(gateway) and not kept:
            kept = True
        else:
            stale.append(default_route_delete(ifindex, via, metric))
    netlink.run(*stale)
    if gateway is not None and not kept:
        metric = METRIC_BEHIND_ANOTHER + ifindex if others else 0
        netlink.run(default_route_add(ifindex, gateway, metric))
