"""How a link is known as ours, whenever the process that made it died.

The alias (`sluice:...`) says what a link is for. The kernel does not take an alias in the request that makes
a link, but it takes a link group: ours is `LINK_GROUP`. A link with our group and no alias is one that was
never finished; both are ours. A link with one of our names and neither mark is somebody else's, and is left
alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP

from vswitch.errors import InterfaceTaken
from vswitch.links import OWNER_ALIAS, OwnedLink
from vswitch.netlink import Message, Netlink
from vswitch.requests import LINK_GROUP, link_get


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
    data: dict[str, Any] = field(default_factory=dict)  # IFLA_INFO_DATA
    port_data: dict[str, Any] = field(default_factory=dict)  # IFLA_INFO_SLAVE_DATA

    @property
    def is_ours(self) -> bool:
        """Whether Sluice made it."""
        return self.alias.startswith(OWNER_ALIAS) or (self.group == LINK_GROUP and not self.alias)

    def as_owned(self) -> OwnedLink:
        """What callers see of it."""
        return OwnedLink(self.name, self.ifindex, self.kind, self.mtu_bytes, self.alias)


def found_link(message: Message) -> Found:
    """Read an RTM_NEWLINK message."""
    info = message.get_attr("IFLA_LINKINFO")
    nsid = message.get_attr("IFLA_LINK_NETNSID")
    return Found(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=(info.get_attr("IFLA_INFO_KIND") or "") if info else "",
        alias=message.get_attr("IFLA_IFALIAS") or "",
        group=message.get_attr("IFLA_GROUP") or 0,
        mtu_bytes=message.get_attr("IFLA_MTU") or 0,
        mac=message.get_attr("IFLA_ADDRESS") or "",
        is_up=bool(message["flags"] & IFF_UP),
        master=message.get_attr("IFLA_MASTER") or 0,
        peer_ifindex=message.get_attr("IFLA_LINK") or 0,
        peer_nsid=-1 if nsid is None else nsid,
        data=_attributes(info.get_attr("IFLA_INFO_DATA")) if info else {},
        port_data=_attributes(info.get_attr("IFLA_INFO_SLAVE_DATA")) if info else {},
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
        what = (
            f"{found.kind or 'device'} that Sluice did not make"
            if not found.is_ours
            else f"{found.kind} of ours"
        )
        raise InterfaceTaken(
            f"{kind} link {name!r}", f"the name belongs to a {what}", f"rename or remove {name!r}"
        )
    return found


def _attributes(nested: Any) -> dict[str, Any]:
    return dict(nested["attrs"]) if nested and not isinstance(nested, str) else {}
