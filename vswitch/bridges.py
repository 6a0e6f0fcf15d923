"""The bridge of a network whose gateway is the host's stack: addresses of the host among its endpoints.

It neither floods nor learns (its ports see to that), runs no spanning tree and snoops no multicast. Whom the
host may talk to on it is said by permanent neighbours. Without an address it only joins its ports: the host's
stack has no part in that network.

It says nothing about forwarding. Where packets from the world are to reach an IPv6 prefix behind it untranslated, the
administrator lets the host forward (net.ipv6.conf.all.forwarding=1; a host that has its own address by router
advertisements then also needs accept_ra=2 on the uplink), and gives the router a route to the prefix by this host.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from vswitch.addressing import FAMILIES, mend_addresses, ready_for
from vswitch.checks import check_alias, check_mtu, check_name, checked_address, checked_interfaces, checked_mac
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
from vswitch.settings import has_ipv6

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
    addresses = checked_interfaces(link.addresses, link.mtu_bytes)
    found = find_own_link(netlink, link.name, "bridge")
    if found is None:
        netlink.run(
            link_new(link.name, "bridge", differing({}, BRIDGE_DATA), link.mtu_bytes, mac),
            link_set(f"mark link {link.name!r}", name=link.name, attributes=[("IFLA_IFALIAS", link.alias)]),
        )
        found = find_own_link(netlink, link.name, "bridge")
        if found is None:
            raise LinkMissing(f"bridge {link.name!r}", "it vanished right after it was made", "see what removes it")
    visitor.at_home(lambda: ready_for(link.name, addresses, link_local=False))
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
    mend_addresses(netlink, found.ifindex, addresses)
    return found.ifindex


def set_neighbours(netlink: Netlink, visitor: Visitor, bridge: str, entries: Mapping[str, str]) -> None:
    """Make the permanent neighbours of a bridge of ours exactly `entries`, address to MAC.

    IPv6 ones are left out where the bridge has no IPv6 address: the host's stack could not talk to them.

    Raises:
        LinkMissing: no such bridge of ours. LinkInvalid, PermissionDenied, KernelRefused.
    """
    wanted = {checked_address(address, "neighbour"): checked_mac(mac) for address, mac in entries.items()}
    found = find_own_link(netlink, bridge, "bridge")
    if found is None:
        raise LinkMissing(f"neighbours of bridge {bridge!r}", "no such link", "ensure the bridge first")
    if not visitor.at_home(lambda: has_ipv6(bridge)):
        wanted = {address: mac for address, mac in wanted.items() if address.version == 4}
    present = {
        ip_address(message.get_attr("NDA_DST")): message.get_attr("NDA_LLADDR")
        for family in FAMILIES
        for message in netlink.dump(neighbour_dump(family, found.ifindex))
        if message["family"] == family
        and message["ifindex"] == found.ifindex
        and message["state"] & NUD_PERMANENT
    }
    gone = [neighbour_delete(found.ifindex, address) for address in present if address not in wanted]
    changed = [
        neighbour_set(found.ifindex, address, mac) for address, mac in wanted.items() if present.get(address) != mac
    ]
    netlink.run_in_batches(gone + changed)
