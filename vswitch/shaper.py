"""The shaper: a veth pair by which what ports send passes queues before it goes its way.

Both ends are here, know no protocol and have no addresses: frames come to the first by redirection only, wait there in
the class of their port (`queues`), and meet the engine's program again at the second. A frame passes whatever its size.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from vswitch.checks import MTU_MOST_BYTES, check_alias, check_name
from vswitch.errors import InterfaceTaken, KernelRefused, LinkMissing
from vswitch.hooks import attach
from vswitch.links import HookedProgram, ShaperLink
from vswitch.namespaces import Visitor
from vswitch.netlink import Netlink, Request
from vswitch.ownership import Found, find_own_link
from vswitch.requests import LINK_GROUP, Attributes, link_delete, link_new, link_set, veth_beside
from vswitch.settings import disable_ipv6

IFF_NOARP = 0x80


def ensure_shaper(netlink: Netlink, visitor: Visitor, link: ShaperLink, hooked: Sequence[HookedProgram] = ()) -> int:
    """Make or mend the pair; ifindex of the first end. The programs are those of the second.

    Raises:
        LinkInvalid, InterfaceTaken, HookTaken, PermissionDenied, KernelRefused.
    """
    check_name(link.name, "name")
    check_name(link.peer, "peer")
    check_alias(link.alias)
    first, second = (find_own_link(netlink, name, "veth") for name in (link.name, link.peer))
    if first is None or second is None or first.peer_ifindex != second.ifindex:
        for odd in (first, second):
            if odd is not None:
                _remove(netlink, odd)
        first, second = _make(netlink, link)
    for end in (second, first):  # the way out before the way in
        visitor.at_home(lambda name=end.name: disable_ipv6(name))  # type: ignore[misc]
        attributes: Attributes = []
        if end.alias != link.alias:
            attributes.append(("IFLA_IFALIAS", link.alias))
        if end.group != LINK_GROUP:
            attributes.append(("IFLA_GROUP", LINK_GROUP))
        if end.mtu_bytes != MTU_MOST_BYTES:
            attributes.append(("IFLA_MTU", MTU_MOST_BYTES))
        if end is second:
            for program in hooked:
                attach(netlink, end.ifindex, program.where, program.program_fd, program.name)
        if attributes or not end.is_up or not end.flags & IFF_NOARP:
            netlink.run(_up(end, attributes))
    return first.ifindex


def _make(netlink: Netlink, link: ShaperLink) -> tuple[Found, Found]:
    try:
        netlink.run(
            link_new(link.name, "veth", veth_beside(link.peer, MTU_MOST_BYTES), MTU_MOST_BYTES),
            *(link_set(f"mark link {name!r}", name=name, attributes=[("IFLA_IFALIAS", link.alias)])
              for name in (link.name, link.peer)),
        )
    except KernelRefused as error:
        if error.code == errno.EEXIST:
            raise InterfaceTaken(error.asked, error.found, f"remove the other {link.name!r} or {link.peer!r}") from None
        raise
    made = tuple(find_own_link(netlink, name, "veth") for name in (link.name, link.peer))
    if made[0] is None or made[1] is None:
        raise LinkMissing(f"shaper {link.name!r}", "it vanished right after it was made", "see what removes it")
    return made[0], made[1]


def _remove(netlink: Netlink, found: Found) -> None:
    try:
        netlink.run(link_delete(found.ifindex))
    except KernelRefused as error:
        if error.code != errno.ENODEV:  # went with its other end
            raise


def _up(end: Found, attributes: Attributes) -> Request:
    request = link_set(f"set up {end.name!r}", ifindex=end.ifindex, up=True, attributes=attributes)
    request.fields["flags"] |= IFF_NOARP
    request.fields["change"] |= IFF_NOARP
    return request
