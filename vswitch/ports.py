"""Ports: a veth pair between the host and an endpoint's namespace, or a tap with a machine behind it.

    absent --make--> bare --mend inside--> addressed --mend here--> ready

`make` is one datagram: the pair exists with both marks, its far end already in the namespace, or it does not
exist. Every later step is a difference between what is found and what is wanted, so that it does not matter
where the last process stopped. A pair whose far end is not where it should be is made anew. Of a tap port there is
nothing to mend inside: addresses and routes are the machine's own business. Nor of a handed port, whose far end a
container runtime takes from here: the pair is this port's wherever that end is now.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from vswitch.addressing import FAMILIES, mend_addresses, mend_default_routes, ready_for
from vswitch.checks import check_alias, check_mtu, check_name, checked_gateways, checked_interfaces, checked_mac
from vswitch.errors import (
    InterfaceTaken,
    KernelRefused,
    LinkInvalid,
    LinkMissing,
    NamespaceGone,
    NamespaceMissing,
)
from vswitch.hooks import attach
from vswitch.links import HookedProgram, PortLink
from vswitch.namespaces import Visitor, open_namespace
from vswitch.netlink import Netlink, Request
from vswitch.ownership import Found, differing, find_link, find_own_link
from vswitch.requests import (
    FAR_GROUP,
    LINK_GROUP,
    Attributes,
    forwarding_delete,
    forwarding_dump,
    forwarding_set,
    link_delete,
    link_info_port,
    link_new,
    link_set,
    nsid_get,
    veth_handed,
    veth_peer,
)
from vswitch.settings import disable_ipv6
from vswitch.taps import ensure_tap

LOOPBACK = 1  # ifindex of lo in every namespace
NUD_PERMANENT = 0x80  # a forwarding entry of the bridge's own

# What a port of ours does in a bridge: nothing that a hub would do. By name it is sent, by number it is read.
PORT_FLAGS = {
    ("IFLA_BRPORT_LEARNING", 8): 0,
    ("IFLA_BRPORT_UNICAST_FLOOD", 9): 0,
    ("IFLA_BRPORT_MCAST_FLOOD", 27): 0,
    ("IFLA_BRPORT_BCAST_FLOOD", 30): 0,
}


def ensure_port(netlink: Netlink, visitor: Visitor, link: PortLink, hooked: Sequence[HookedProgram] = ()) -> int:
    """Make or mend the pair, or the tap, and its hooks; ifindex of the host side.

    Raises:
        LinkInvalid, NamespaceMissing, NamespaceGone, InterfaceTaken, PermissionDenied, KernelRefused.
            LinkMissing: the bridge.
    """
    _check(link)
    if link.tap:
        bridge = _bridge(netlink, link.bridge)
        tap = ensure_tap(netlink, visitor, link.host_interface, link.alias, link.queues)
        _mend_here(netlink, visitor, link, tap, bridge, hooked)
        return tap.ifindex
    if link.handed:
        bridge = _bridge(netlink, link.bridge)
        pair = _handed(netlink, link)
        _mend_here(netlink, visitor, link, pair, bridge, hooked)
        return pair.ifindex
    with _meant(visitor, link) as namespace:
        bridge = _bridge(netlink, link.bridge)
        host = _adoptable(netlink, namespace, link)
        if not visitor.visit(namespace, partial(_mend_inside, link, host)):
            if host is not None:  # its far end was renamed or removed
                _remove(netlink, host)
            peer = veth_peer(namespace, link.interface, checked_mac(link.mac), link.mtu_bytes)
            host = _make(netlink, link, peer)
            if not visitor.visit(namespace, partial(_mend_inside, link, host)):
                found = "the far end vanished while it was set up"
                todo = f"see what removes links in {link.netns!r}"
                raise NamespaceMissing(f"port {link.host_interface}", found, todo)
        assert host is not None  # _mend_inside is true only of a pair
        _mend_here(netlink, visitor, link, host, bridge, hooked)
        return host.ifindex


def identify(visitor: Visitor, netns: str) -> str:
    """What the namespace is called as long as it lives, and no other ever.

    Raises:
        LinkInvalid, NamespaceMissing, PermissionDenied.
    """
    with open_namespace(netns) as namespace:
        _not_home(visitor, namespace, netns)
        return visitor.identify(namespace)


@contextmanager
def _meant(visitor: Visitor, link: PortLink) -> Iterator[int]:
    """A descriptor of the namespace, if it is the one that is meant."""
    todo = "attach the endpoint anew, or remove it"
    with ExitStack() as stack:
        try:
            namespace = stack.enter_context(open_namespace(link.netns))
        except NamespaceMissing as error:
            if link.namespace:
                raise NamespaceGone(error.asked, error.found, todo) from None
            raise
        _not_home(visitor, namespace, link.netns)
        if link.namespace and visitor.identify(namespace) != link.namespace:
            raise NamespaceGone(f"network namespace {link.netns!r}", "another one has its place now", todo)
        yield namespace


def _not_home(visitor: Visitor, namespace: int, netns: str) -> None:
    if visitor.is_home(namespace):
        raise LinkInvalid("namespace of the endpoint", f"{netns!r} is the host's own", "give another")


def _handed(netlink: Netlink, link: PortLink) -> Found:
    """The pair of this port, wherever its far end is; made here, both ends, if there is none."""
    host = find_own_link(netlink, link.host_interface, "veth")
    if host is not None and host.alias not in ("", link.alias):
        _remove(netlink, host)  # another endpoint's
        host = None
    if host is None:
        host = _make(netlink, link, veth_handed(link.interface, checked_mac(link.mac), link.mtu_bytes))
    elif host.peer_nsid < 0:
        _mend_waiting(netlink, link, host)
    return host


def _mend_waiting(netlink: Netlink, link: PortLink, host: Found) -> None:
    """The far end that nobody has taken yet, or that came back."""
    far = find_link(netlink, ifindex=host.peer_ifindex)
    if far is None or far.name != link.interface:
        return  # somebody is about to take it
    attributes: list[tuple[str, object]] = []
    if far.mac != checked_mac(link.mac):
        attributes.append(("IFLA_ADDRESS", checked_mac(link.mac)))
    if far.mtu_bytes != link.mtu_bytes:
        attributes.append(("IFLA_MTU", link.mtu_bytes))
    try:
        if attributes:
            netlink.run(link_set(f"set up {far.name!r}", ifindex=far.ifindex, attributes=attributes))
    except KernelRefused as error:
        if error.code != errno.ENODEV:  # it was taken this moment
            raise


def _adoptable(netlink: Netlink, namespace: int, link: PortLink) -> Found | None:
    """The host side of this very port, if there is one; one that is in its place but not it is removed."""
    host = find_own_link(netlink, link.host_interface, "veth")
    if host is None:
        return None
    nsid = _nsid(netlink, namespace)
    if host.alias in ("", link.alias) and host.peer_nsid == nsid >= 0:
        return host
    _remove(netlink, host)  # another endpoint's, or its far end is elsewhere
    return None


def _check(link: PortLink) -> None:
    check_name(link.host_interface, "host_interface")
    if not link.tap:
        check_name(link.interface, "interface")
    check_alias(link.alias)
    checked_mac(link.mac)
    check_mtu(link.mtu_bytes)
    checked_interfaces(link.addresses, link.mtu_bytes)
    checked_gateways(link.gateways)


def _bridge(netlink: Netlink, name: str) -> int:
    if not name:
        return 0
    bridge = find_own_link(netlink, name, "bridge")
    if bridge is None:
        raise LinkMissing(f"bridge {name!r} for a port", "no such link", "ensure the bridge first")
    return bridge.ifindex


def _nsid(netlink: Netlink, namespace: int) -> int:
    """The number of the namespace as seen from here; -1 if it has none, and so no link of ours."""
    message = netlink.get(nsid_get(namespace))
    number = None if message is None else message.get_attr("NETNSA_NSID")
    return -1 if number is None or number >= 1 << 31 else int(number)


def _remove(netlink: Netlink, host: Found) -> None:
    try:
        netlink.run(link_delete(host.ifindex))
    except KernelRefused as error:
        if error.code != errno.ENODEV:  # went with the namespace of its far end
            raise


def _make(netlink: Netlink, link: PortLink, peer: Attributes) -> Found:
    name = link.host_interface
    try:
        netlink.run(
            link_new(name, "veth", peer, link.mtu_bytes),
            link_set(f"mark link {name!r}", name=name, attributes=[("IFLA_IFALIAS", link.alias)]),
        )
    except KernelRefused as error:
        if error.code == errno.EEXIST:
            raise InterfaceTaken(error.asked, error.found, f"remove the other {name!r} or {link.interface!r}") from None
        raise
    made = find_link(netlink, name)
    if made is None:
        raise NamespaceMissing(
            f"port {name}", "it vanished right after it was made", f"see what removes {link.netns or link.interface!r}"
        )
    return made


def _mend_inside(link: PortLink, host: Found | None) -> bool:
    """Bring the far end into shape; False if there is no far end of `host`. Runs inside the namespace.

    Raises:
        InterfaceTaken: the name is in use there by a link that is not the far end of `host`.
    """
    with Netlink() as inside:
        far = find_link(inside, link.interface)
        if far is None:
            return False
        if host is None or (far.ifindex, far.peer_ifindex) != (host.peer_ifindex, host.ifindex):
            whose = "another port of Sluice" if far.group == FAR_GROUP else "somebody else"
            raise InterfaceTaken(
                f"interface {link.interface!r} in namespace {link.netns!r}",
                f"{far.kind or 'a device'} of {whose} has the name",
                "choose another interface name for the endpoint, or remove that one",
            )
        addresses = checked_interfaces(link.addresses, link.mtu_bytes)
        if far.mac != checked_mac(link.mac):
            disable_ipv6(link.interface)  # its link-local address is made of the MAC
        changes: list[Request] = []
        loopback = find_link(inside, ifindex=LOOPBACK)
        if loopback is not None and not loopback.is_up:
            changes.append(link_set("bring up lo", ifindex=LOOPBACK, up=True))
        attributes: list[tuple[str, object]] = []
        if far.mac != checked_mac(link.mac):
            attributes.append(("IFLA_ADDRESS", checked_mac(link.mac)))
        if far.mtu_bytes != link.mtu_bytes:
            attributes.append(("IFLA_MTU", link.mtu_bytes))
        if attributes or not far.is_up:
            changes.append(link_set(f"set up {link.interface!r}", ifindex=far.ifindex, up=True, attributes=attributes))
        inside.run(*changes)
        ready_for(link.interface, addresses, link_local=True, accept_ra=link.accept_ra, slaac=link.slaac)
        families = [family for family in FAMILIES if family != socket.AF_INET or not link.dhcp]
        mend_addresses(inside, far.ifindex, addresses, families, keep_learned=link.accept_ra and link.slaac)
        gateways = checked_gateways(link.gateways)
        mend_default_routes(inside, far.ifindex, gateways, families, keep_learned=link.accept_ra, last=link.dead_end)
        return True


def _mend_here(
    netlink: Netlink, visitor: Visitor, link: PortLink, host: Found, bridge: int, hooked: Sequence[HookedProgram]
) -> None:
    visitor.at_home(lambda: disable_ipv6(link.host_interface))
    attributes: list[tuple[str, object]] = []
    if host.alias != link.alias:
        attributes.append(("IFLA_IFALIAS", link.alias))
    if host.group != LINK_GROUP:
        attributes.append(("IFLA_GROUP", LINK_GROUP))
    # The far end of a handed port keeps the MTU that it was taken with. What it sends must not be lost here, unheard:
    # the engine says that it is too big.
    taken = link.handed and host.peer_nsid >= 0
    if host.mtu_bytes < link.mtu_bytes or (host.mtu_bytes > link.mtu_bytes and not taken):
        attributes.append(("IFLA_MTU", link.mtu_bytes))
    if host.master != bridge:
        attributes.append(("IFLA_MASTER", bridge))
    changes: list[Request] = []
    if attributes:
        changes.append(link_set(f"set up {host.name!r}", ifindex=host.ifindex, attributes=attributes))
    joined = host.master == bridge
    if bridge and not (joined and differing(host.port_data, PORT_FLAGS) == []):
        changes.append(
            link_set(
                f"no flooding or learning on {host.name!r}",
                ifindex=host.ifindex,
                attributes=[link_info_port("bridge", differing({}, PORT_FLAGS))],
            )
        )
    netlink.run(*changes)
    for program in hooked:
        attach(netlink, host.ifindex, program.where, program.program_fd, program.name)
    # Last: it carries nothing before it is up, so nothing floods, and nothing passes unseen by the programs.
    if not host.is_up:
        netlink.run(link_set(f"bring up {host.name!r}", ifindex=host.ifindex, up=True))
    if bridge:
        _mend_forwarding(netlink, bridge, host.ifindex, checked_mac(link.mac))


def _mend_forwarding(netlink: Netlink, bridge: int, port: int, mac: str) -> None:
    """Make the endpoint's MAC the only one that the bridge forwards to this port."""
    present = {
        message.get_attr("NDA_LLADDR")
        for message in netlink.dump(forwarding_dump(bridge, port))
        if message["ifindex"] == port
        and message["family"] == socket.AF_BRIDGE
        and message.get_attr("NDA_MASTER") == bridge
        and not message["state"] & NUD_PERMANENT
    }
    changes = [forwarding_delete(port, wrong) for wrong in sorted(present - {mac})]
    if mac not in present:
        changes.append(forwarding_set(port, mac))
    netlink.run(*changes)
