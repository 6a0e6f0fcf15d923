"""The VXLAN device (RFC 7348) that carries all overlay networks of a host.

It is in external (collect metadata) mode: VNI and remote address come from the tunnel key that the engine
sets on each packet, and arrive as one. The device itself knows no peer and learns none.
"""

from __future__ import annotations

import errno

from vswitch.checks import check_alias, check_mtu, check_name
from vswitch.errors import AddressTaken, KernelRefused, LinkInvalid, LinkMissing
from vswitch.links import TunnelLink
from vswitch.namespaces import Visitor
from vswitch.netlink import Netlink
from vswitch.ownership import Found, differing, find_own_link
from vswitch.requests import LINK_GROUP, Attributes, link_delete, link_new, link_set
from vswitch.settings import disable_ipv6

IFLA_VXLAN_PORT = 15
SOURCE_PORTS = {"low": 49152, "high": 65535}       # RFC 7348 5; as the engine's (vfp/bpf/vxlan.h)
PLAIN_UDP6 = {("IFLA_VXLAN_UDP_ZERO_CSUM6_TX", 19): 1, ("IFLA_VXLAN_UDP_ZERO_CSUM6_RX", 20): 1}


def ensure_tunnel(netlink: Netlink, visitor: Visitor, link: TunnelLink) -> int:
    """Make or mend the device; its ifindex.

    The kernel cannot change a UDP port, nor what is done with checksums: with another wish it is made anew. One that
    takes IPv6 packets without checksum stays when there is no IPv6 underlay any more.

    Raises:
        AddressTaken: the UDP port is another's. LinkInvalid, InterfaceTaken, PermissionDenied, KernelRefused.
    """
    check_name(link.name, "name")
    check_alias(link.alias)
    check_mtu(link.mtu_bytes)
    if not 0 < link.udp_port < 1 << 16:
        raise LinkInvalid("udp_port", str(link.udp_port), "give 1 to 65535")
    found = find_own_link(netlink, link.name, "vxlan")
    if found is not None and not _has_wanted_mode(found, link):
        netlink.run(link_delete(found.ifindex))
        found = None
    if found is None:
        found = _make(netlink, link)
    visitor.at_home(lambda: disable_ipv6(link.name))
    attributes: Attributes = []
    if found.alias != link.alias:
        attributes.append(("IFLA_IFALIAS", link.alias))
    if found.group != LINK_GROUP:
        attributes.append(("IFLA_GROUP", LINK_GROUP))
    if found.mtu_bytes != link.mtu_bytes:
        attributes.append(("IFLA_MTU", link.mtu_bytes))
    if attributes or not found.is_up:
        try:
            netlink.run(link_set(f"set up {link.name!r}", ifindex=found.ifindex, up=True, attributes=attributes))
        except KernelRefused as error:  # the UDP socket is opened when the device comes up
            raise _port_taken(error, link) from None
    return found.ifindex


def _make(netlink: Netlink, link: TunnelLink) -> Found:
    data: Attributes = [
        ("IFLA_VXLAN_COLLECT_METADATA", 1),
        ("IFLA_VXLAN_LEARNING", 0),
        ("IFLA_VXLAN_PORT", link.udp_port),
        ("IFLA_VXLAN_PORT_RANGE", SOURCE_PORTS),
        *((name, value) for (name, _), value in (PLAIN_UDP6 if link.ipv6 else {}).items()),
    ]
    try:
        netlink.run(
            link_new(link.name, "vxlan", data, link.mtu_bytes),
            link_set(f"mark link {link.name!r}", name=link.name, attributes=[("IFLA_IFALIAS", link.alias)]),
        )
    except KernelRefused as error:
        raise _port_taken(error, link) from None
    found = find_own_link(netlink, link.name, "vxlan")
    if found is None:
        raise LinkMissing(f"tunnel {link.name!r}", "it vanished right after it was made", "see what removes it")
    return found


def _has_wanted_mode(found: Found, link: TunnelLink) -> bool:
    mode = {("IFLA_VXLAN_COLLECT_METADATA", 25): 1, ("IFLA_VXLAN_LEARNING", 7): 0}
    if link.ipv6:
        mode |= PLAIN_UDP6
    return not differing(found.data, mode) and udp_port(found) == link.udp_port


def udp_port(found: Found) -> int:
    """The UDP port of a VXLAN device."""
    return int.from_bytes(found.data.get(IFLA_VXLAN_PORT, b""), "big")


def _port_taken(error: KernelRefused, link: TunnelLink) -> KernelRefused | AddressTaken:
    if error.code not in (errno.EEXIST, errno.EADDRINUSE):
        return error
    return AddressTaken(
        f"VXLAN on UDP port {link.udp_port}",
        error.found,
        "remove the VXLAN device or the program that has the port (ip -d link; ss -ulnp), "
        "or choose another port on all hosts",
    )
