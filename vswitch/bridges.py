"""The bridge of a network whose gateway is the host's stack: an address of the host among its endpoints.

It neither floods nor learns (its ports see to that), runs no spanning tree and snoops no multicast. Whom the
host may talk to on it is said by permanent neighbours.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from vswitch.addressing import disable_ipv6, mend_address
from vswitch.checks import check_alias, check_mtu, check_name, checked_address, checked_interface, checked_mac
from vswitch.errors import LinkMissing
from vswitch.links import BridgeLink
from vswitch.namespaces import Visitor
from vswitch.netlink import Netlink
from vswitch.ownership import differing, find_own_link
from vswitch.requests import (
    LINK_GROUP,
    Attributes,
    link_info,
    link_new,
    link_set,
    neighbour_delete,
    neighbour_dump,
    neighbour_set,
)

NUD_PERMANENT = 0x80

# By name it is sent, by number it is read.
BRIDGE_DATA = {
    ("IFLA_BR_STP_STATE", 5): 0,
    ("IFLA_BR_MCAST_SNOOPING", 23): 0,
}


def ensure_bridge(netlink: Netlink, visitor: Visitor, link: BridgeLink) -> int:
    """Make or mend the bridge; its ifindex.

    Raises:
        LinkInvalid, InterfaceTaken, PermissionDenied, KernelRefused.
    """
    check_name(link.name, "name")
    check_alias(link.alias)
    check_mtu(link.mtu_bytes)
    mac = checked_mac(link.mac)
    addresses = [checked_interface(address) for address in link.addresses]
    found = find_own_link(netlink, link.name, "bridge")
    if found is None:
        netlink.run(
            link_new(link.name, "bridge", differing({}, BRIDGE_DATA), link.mtu_bytes, mac),
            link_set(f"mark link {link.name!r}", name=link.name, attributes=[("IFLA_IFALIAS", link.alias)]),
        )
        found = find_own_link(netlink, link.name, "bridge")
        if found is None:
            raise LinkMissing(f"bridge {link.name!r}", "it vanished right after it was made", "see what removes it")
    visitor.at_home(lambda: disable_ipv6(link.name))
    attributes: Attributes = []
    if found.alias != link.alias:
        attributes.append(("IFLA_IFALIAS", link.alias))
    if found.group != LINK_GROUP:
        attributes.append(("IFLA_GROUP", LINK_GROUP))
    if found.mac != mac:
        attributes.append(("IFLA_ADDRESS", mac))
    if found.mtu_bytes != link.mtu_bytes:
        attributes.append(("IFLA_MTU", link.mtu_bytes))
    if differing(found.data, BRIDGE_DATA):
        attributes.append(link_info("bridge", differing({}, BRIDGE_DATA)))
    if attributes or not found.is_up:
        netlink.run(link_set(f"set up {link.name!r}", ifindex=found.ifindex, up=True, attributes=attributes))
    for address in addresses:
        mend_address(netlink, found.ifindex, address)
    return found.ifindex


def set_neighbours(netlink: Netlink, bridge: str, entries: Mapping[str, str]) -> None:
    """Make the permanent IPv4 neighbours of a bridge of ours exactly `entries`, address to MAC.

    Raises:
        LinkMissing: no such bridge of ours. LinkInvalid, PermissionDenied, KernelRefused.
    """
    wanted = {str(checked_address(address, "neighbour")): checked_mac(mac) for address, mac in entries.items()}
    found = find_own_link(netlink, bridge, "bridge")
    if found is None:
        raise LinkMissing(f"neighbours of bridge {bridge!r}", "no such link", "ensure the bridge first")
    present = {
        message.get_attr("NDA_DST"): message.get_attr("NDA_LLADDR")
        for message in netlink.dump(neighbour_dump(found.ifindex))
        if message["family"] == socket.AF_INET
        and message["ifindex"] == found.ifindex
        and message["state"] & NUD_PERMANENT
    }
    gone = [neighbour_delete(found.ifindex, address) for address in present if address not in wanted]
    changed = [
        neighbour_set(found.ifindex, address, mac) for address, mac in wanted.items() if present.get(address) != mac
    ]
    netlink.run_in_batches(gone + changed)
