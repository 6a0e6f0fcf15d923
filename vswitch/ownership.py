"""How a link is known as ours, whenever the process that made it died.

The alias (`sluice:...`) says what a link is for. The kernel does not take an alias in the request that makes
a link, but it takes a link group: ours is `LINK_GROUP`. A link with our group and no alias is one that was
never finished; both are ours. A link with one of our names and neither mark is somebody else's, and is left
alone. So is the far end of a pair in the namespace where it is: that may be a host with its own Sluice, whose uplink
it is (NAT behind NAT).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP

from vswitch.errors import InterfaceTaken
from vswitch.links import OWNER_ALIAS, OwnedLink
from vswitch.netlink import ATTRIBUTE, HEADER, NESTED_OR_SWAPPED, Netlink, attributes
from vswitch.requests import LINK_GROUP, link_get

# Attributes of links (uapi/linux/if_link.h).
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_GROUP, IFLA_LINK_NETNSID = 18, 20, 27, 37
_READ = frozenset((IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_GROUP,
                   IFLA_LINK_NETNSID))
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_DATA = 1, 2, 5

LINK_HEADER = struct.Struct("=BxHiII")  # struct ifinfomsg


@dataclass(frozen=True, slots=True)
class Found:
    """A link as the kernel shows it."""

    ifindex: int
    name: str
    kind: str
    alias: str
    group: int
    mtu_bytes: int
    mac: str
    is_up: bool
    master: int  # ifindex of its bridge; 0: none
    peer_ifindex: int  # other end of a veth pair; 0: none
    peer_nsid: int  # namespace of the other end, as numbered here; -1: this one
    data: dict[int, bytes] = field(default_factory=dict)  # IFLA_INFO_DATA
    port_data: dict[int, bytes] = field(default_factory=dict)  # IFLA_INFO_SLAVE_DATA
    type: int = 1  # ARPHRD_*, 1: Ethernet
    flags: int = 0  # IFF_*

    @property
    def is_ours(self) -> bool:
        """Whether Sluice made it."""
        return self.alias.startswith(OWNER_ALIAS) or (self.group == LINK_GROUP and not self.alias)

    def as_owned(self) -> OwnedLink:
        """What callers see of it."""
        here = self.peer_ifindex > 0 and self.peer_nsid < 0
        return OwnedLink(self.name, self.ifindex, self.kind, self.mtu_bytes, self.alias, here)


def found_link(message: bytes) -> Found:
    """Read an RTM_NEWLINK message. Most links are as they were when they were read last, but for their counters."""
    _family, kind, ifindex, flags, _change = LINK_HEADER.unpack_from(message, HEADER.size)
    wanted: list[tuple[int, bytes]] = []
    offset = HEADER.size + LINK_HEADER.size
    while offset + ATTRIBUTE.size <= len(message):
        length, kind_ = ATTRIBUTE.unpack_from(message, offset)
        if length < ATTRIBUTE.size:
            break
        if kind_ & ~NESTED_OR_SWAPPED in _READ:
            wanted.append((kind_ & ~NESTED_OR_SWAPPED, message[offset + ATTRIBUTE.size : offset + length]))
        offset += (length + 3) & ~3
    return _read(kind, ifindex, flags, tuple(wanted))


@lru_cache(maxsize=4096)
def _read(kind: int, ifindex: int, flags: int, wanted: tuple[tuple[int, bytes], ...]) -> Found:
    """By hand: pyroute2 takes a third of a millisecond for a link, and a host may have thousands."""
    got = dict(wanted)
    info = attributes(got.get(IFLA_LINKINFO, b""))
    return Found(
        ifindex=ifindex,
        name=_text(got[IFLA_IFNAME]),
        kind=_text(info.get(IFLA_INFO_KIND, b"")),
        alias=_text(got.get(IFLA_IFALIAS, b"")),
        group=number(got.get(IFLA_GROUP, b"")),
        mtu_bytes=number(got.get(IFLA_MTU, b"")),
        mac=got.get(IFLA_ADDRESS, b"").hex(":"),
        is_up=bool(flags & IFF_UP),
        master=number(got.get(IFLA_MASTER, b"")),
        peer_ifindex=number(got.get(IFLA_LINK, b"")),
        peer_nsid=number(got[IFLA_LINK_NETNSID]) if IFLA_LINK_NETNSID in got else -1,
        data=attributes(info.get(IFLA_INFO_DATA, b"")),
        port_data=attributes(info.get(IFLA_INFO_SLAVE_DATA, b"")),
        type=kind,
        flags=flags,
    )


def find_link(netlink: Netlink, name: str = "", *, ifindex: int = 0) -> Found | None:
    """The link with this name or index, ours or not."""
    message = netlink.get(link_get(name, ifindex))
    return None if message is None else found_link(message)


def find_own_link(netlink: Netlink, name: str, kind: str) -> Found | None:
    """Our link with this name.

    Raises:
        InterfaceTaken: somebody else's link has the name.
    """
    found = find_link(netlink, name)
    if found is None:
        return None
    if not found.is_ours or found.kind != kind:
        what = f"{found.kind or 'device'} that Sluice did not make" if not found.is_ours else f"{found.kind} of ours"
        raise InterfaceTaken(f"{kind} link {name!r}", f"the name belongs to a {what}", f"rename or remove {name!r}")
    return found


def differing(found: Mapping[int, bytes], wanted: Mapping[tuple[str, int], int]) -> list[tuple[str, int]]:
    """Those of the wanted attributes, (name, number) to value, that are another or not there."""
    return [
        (name, value)
        for (name, attribute), value in wanted.items()
        if attribute not in found or number(found[attribute]) != value
    ]


def number(value: bytes) -> int:
    """An unsigned number in the host's byte order; 0 for one that is not there."""
    return int.from_bytes(value, sys.byteorder)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="surrogateescape")
