"""The netlink requests of this room, one function each. Constants are those of uapi/linux/rtnetlink.h."""

from __future__ import annotations

import socket
from ipaddress import IPv4Interface
from typing import Any

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, rtnl
from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP
from pyroute2.netlink.rtnl.ndmsg import NTF_MASTER, NUD_NOARP, NUD_PERMANENT

from vswitch.checks import Address, Interface, family_of
from vswitch.netlink import Request

LINK_GROUP = 0x51CE  # link group of all that we make here
FAR_GROUP = 0x51CF  # of the far ends of pairs: where they are, another host's Sluice may run

RTEXT_FILTER_SKIP_STATS = 1 << 3
RT_TABLE_MAIN = 254
RTPROT_STATIC = 4
RT_SCOPE_LINK = 253
RT_SCOPE_NOWHERE = 255  # in a deletion: any
RTN_UNICAST = 1
RTNH_F_ONLINK = 4
IFA_F_NODAD = 2

Attributes = list[tuple[str, Any]]


def nested(attributes: Attributes) -> dict[str, Attributes]:
    """Attributes inside an attribute, as pyroute2 wants them."""
    return {"attrs": attributes}


def link_info(kind: str, data: Attributes) -> tuple[str, Any]:
    """IFLA_LINKINFO of a kind of link."""
    return ("IFLA_LINKINFO", nested([("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", nested(data))]))


def link_info_port(kind: str, data: Attributes) -> tuple[str, Any]:
    """IFLA_LINKINFO of a link as a port of its master."""
    return ("IFLA_LINKINFO", nested([("IFLA_INFO_SLAVE_KIND", kind), ("IFLA_INFO_SLAVE_DATA", nested(data))]))


def link_get(name: str, ifindex: int) -> Request:
    """One link by name, or by index."""
    attributes: Attributes = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
    if name:
        attributes.append(("IFLA_IFNAME", name))
    return Request(f"look at link {name or ifindex}", rtnl.RTM_GETLINK, {"index": ifindex}, attributes)


def link_dump() -> Request:
    """Every link."""
    return Request("list links", rtnl.RTM_GETLINK, {}, [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)])


def link_new(name: str, kind: str, data: Attributes, mtu_bytes: int, mac: str = "") -> Request:
    """Make a link, marked with our group; refused if the name is taken."""
    attributes: Attributes = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu_bytes), ("IFLA_GROUP", LINK_GROUP)]
    if mac:
        attributes.append(("IFLA_ADDRESS", mac))
    attributes.append(link_info(kind, data))
    return Request(f"make {kind} link {name!r}", rtnl.RTM_NEWLINK, {}, attributes, NLM_F_CREATE | NLM_F_EXCL)


def veth_peer(namespace: int, name: str, mac: str, mtu_bytes: int) -> Attributes:
    """Link data of a veth whose other end appears directly in the namespace of this descriptor."""
    peer: Attributes = [
        ("IFLA_IFNAME", name),
        ("IFLA_ADDRESS", mac),
        ("IFLA_MTU", mtu_bytes),
        ("IFLA_GROUP", FAR_GROUP),
        ("IFLA_NET_NS_FD", namespace),
    ]
    return [("VETH_INFO_PEER", nested(peer))]


def veth_handed(name: str, mac: str, mtu_bytes: int) -> Attributes:
    """Link data of a veth whose other end waits in this namespace for whoever takes it."""
    peer: Attributes = [
        ("IFLA_IFNAME", name),
        ("IFLA_ADDRESS", mac),
        ("IFLA_MTU", mtu_bytes),
        ("IFLA_GROUP", FAR_GROUP),
    ]
    return [("VETH_INFO_PEER", nested(peer))]


def veth_beside(name: str, mtu_bytes: int) -> Attributes:
    """Link data of a veth whose other end is in this namespace, too, and ours."""
    peer: Attributes = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu_bytes), ("IFLA_GROUP", LINK_GROUP)]
    return [("VETH_INFO_PEER", nested(peer))]


def link_set(
    asked: str, *, name: str = "", ifindex: int = 0, up: bool = False, attributes: Attributes | None = None
) -> Request:
    """Change a link by name or index; `up` brings it up."""
    given = list(attributes or [])
    if name:
        given.append(("IFLA_IFNAME", name))
    flags = IFF_UP if up else 0
    fields = {"index": ifindex, "flags": flags, "change": flags}
    return Request(asked, rtnl.RTM_NEWLINK, fields, given)


def link_delete(ifindex: int) -> Request:
    """Remove a link."""
    return Request(f"remove link {ifindex}", rtnl.RTM_DELLINK, {"index": ifindex}, [])


def nsid_get(namespace: int) -> Request:
    """The number that our namespace has for another."""
    return Request("number of a namespace", rtnl.RTM_GETNSID, {}, [("NETNSA_FD", namespace)])


def address_dump(family: int = socket.AF_INET, ifindex: int = 0) -> Request:
    """Addresses, of one link or all."""
    return Request("list addresses", rtnl.RTM_GETADDR, {"family": family, "index": ifindex}, [])


def _address_attributes(address: Interface) -> Attributes:
    attributes: Attributes = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
    if isinstance(address, IPv4Interface) and address.network.prefixlen < 31:
        attributes.append(("IFA_BROADCAST", str(address.network.broadcast_address)))
    return attributes


def address_set(ifindex: int, address: Interface) -> Request:
    """Give a link an address, usable at once; no error if it has it."""
    fields = {"family": family_of(address), "prefixlen": address.network.prefixlen, "index": ifindex}
    if address.version == 6:
        fields["flags"] = IFA_F_NODAD
    return Request(
        f"set address {address}",
        rtnl.RTM_NEWADDR,
        fields,
        _address_attributes(address),
        NLM_F_CREATE | NLM_F_REPLACE,
    )


def address_delete(ifindex: int, address: Interface) -> Request:
    """Take an address from a link."""
    fields = {"family": family_of(address), "prefixlen": address.network.prefixlen, "index": ifindex}
    return Request(f"remove address {address}", rtnl.RTM_DELADDR, fields, [("IFA_LOCAL", str(address.ip))])


def route_dump(family: int = socket.AF_INET, table: int = 0, ifindex: int = 0) -> Request:
    """Routes, of one table (0: all), through one link (0: all)."""
    attributes: Attributes = [("RTA_TABLE", table)] if table else []
    if ifindex:
        attributes.append(("RTA_OIF", ifindex))
    return Request("list routes", rtnl.RTM_GETROUTE, {"family": family}, attributes)


def default_route_add(ifindex: int, gateway: Address, metric: int) -> Request:
    """Add a default route; refused if there is one with this metric."""
    fields = {
        "family": family_of(gateway),
        "table": RT_TABLE_MAIN,
        "proto": RTPROT_STATIC,
        "type": RTN_UNICAST,
        "flags": RTNH_F_ONLINK,  # the gateway need not be in the link's prefix
    }
    attributes: Attributes = [("RTA_GATEWAY", str(gateway)), ("RTA_OIF", ifindex), ("RTA_PRIORITY", metric)]
    asked = f"default route via {gateway}"
    return Request(asked, rtnl.RTM_NEWROUTE, fields, attributes, NLM_F_CREATE | NLM_F_EXCL)


def default_route_delete(ifindex: int, family: int, gateway: str | None, metric: int) -> Request:
    """Remove a default route, whoever set it."""
    fields = {"family": family, "table": RT_TABLE_MAIN, "scope": RT_SCOPE_NOWHERE}
    attributes: Attributes = [("RTA_OIF", ifindex), ("RTA_PRIORITY", metric)]
    if gateway is not None:
        attributes.append(("RTA_GATEWAY", gateway))
    return Request(f"remove default route via {gateway}", rtnl.RTM_DELROUTE, fields, attributes)


def neighbour_dump(family: int, ifindex: int) -> Request:
    """Neighbours of a link, of one family."""
    return Request("list neighbours", rtnl.RTM_GETNEIGH, {"family": family}, [("NDA_IFINDEX", ifindex)])


def neighbour_set(ifindex: int, address: Address, mac: str) -> Request:
    """A permanent neighbour, in place of any other for the address."""
    fields = {"family": family_of(address), "ifindex": ifindex, "state": NUD_PERMANENT}
    return Request(
        f"set neighbour {address}",
        rtnl.RTM_NEWNEIGH,
        fields,
        [("NDA_DST", str(address)), ("NDA_LLADDR", mac)],
        NLM_F_CREATE | NLM_F_REPLACE,
    )


def neighbour_delete(ifindex: int, address: Address) -> Request:
    """Remove a neighbour."""
    fields = {"family": family_of(address), "ifindex": ifindex}
    return Request(f"remove neighbour {address}", rtnl.RTM_DELNEIGH, fields, [("NDA_DST", str(address))])


def forwarding_dump(bridge: int, port: int) -> Request:
    """Forwarding entries of one bridge port. The kernel takes the filter in an ifinfomsg or in an ndmsg."""
    return Request(
        "list forwarding entries",
        rtnl.RTM_GETNEIGH,
        {"family": socket.AF_BRIDGE, "ifindex": port},
        [("NDA_MASTER", bridge)],
    )


def forwarding_set(port: int, mac: str) -> Request:
    """A static forwarding entry of a bridge: this MAC is behind this port."""
    fields = {"family": socket.AF_BRIDGE, "ifindex": port, "state": NUD_NOARP, "flags": NTF_MASTER}
    return Request(
        f"set forwarding entry {mac}",
        rtnl.RTM_NEWNEIGH,
        fields,
        [("NDA_LLADDR", mac)],
        NLM_F_CREATE | NLM_F_REPLACE,
    )


def forwarding_delete(port: int, mac: str) -> Request:
    """Remove a forwarding entry."""
    fields = {"family": socket.AF_BRIDGE, "ifindex": port, "flags": NTF_MASTER}
    return Request(f"remove forwarding entry {mac}", rtnl.RTM_DELNEIGH, fields, [("NDA_LLADDR", mac)])
