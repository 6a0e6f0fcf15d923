"""How a link is known as ours, whenever the process that made it died.

The alias (`sluice:...`) says what a link is for. The kernel does not take an alias in the request that makes
a link, but it takes a link group: ours is `LINK_GROUP`. A link with our group and no alias is one that was
never finished; both are ours. A link with one of our names and neither mark is somebody else's, and is left
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyroute2.netlink.rtnl.ifinfmsg import IFF_UP

from vswitch.errors import InterfaceTaken
from vswitch.links import OWNER_ALIAS, OwnedLink
from vswitch.netlink import Message, Netlink
from vswitch.requests import LINK_GROUP, link_get

LINK_ATTRIBUTES = frozenset({
    "IFLA_IFNAME", "IFLA_IFALIAS", "IFLA_GROUP", "IFLA_MTU", "IFLA_ADDRESS", "IFLA_MASTER", "IFLA_LINK",
    "IFLA_LINK_NETNSID", "IFLA_LINKINFO",
})  # fmt: skip
INFO_ATTRIBUTES = frozenset({"IFLA_INFO_KIND", "IFLA_INFO_DATA", "IFLA_INFO_SLAVE_DATA"})
DATA_ATTRIBUTES = frozenset({
    "IFLA_VXLAN_COLLECT_METADATA", "IFLA_VXLAN_LEARNING", "IFLA_VXLAN_PORT",
    "IFLA_BR_STP_STATE", "IFLA_BR_MCAST_SNOOPING",
    "IFLA_BRPORT_LEARNING", "IFLA_BRPORT_UNICAST_FLOOD", "IFLA_BRPORT_MCAST_FLOOD", "IFLA_BRPORT_BCAST_FLOOD",
})  # fmt: skip


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
    got = _pick(message, LINK_ATTRIBUTES)
    info = _pick(got.get("IFLA_LINKINFO"), INFO_ATTRIBUTES)
    return Found(
        ifindex=message["index"],
        name=got["IFLA_IFNAME"],
        kind=info.get("IFLA_INFO_KIND", ""),
        alias=got.get("IFLA_IFALIAS", ""),
        group=got.get("IFLA_GROUP", 0),
        mtu_bytes=got.get("IFLA_MTU", 0),
        mac=got.get("IFLA_ADDRESS", ""),
        is_up=bool(message["flags"] & IFF_UP),
        master=got.get("IFLA_MASTER", 0),
        peer_ifindex=got.get("IFLA_LINK", 0),
        peer_nsid=got.get("IFLA_LINK_NETNSID", -1),
        data=_pick(info.get("IFLA_INFO_DATA"), DATA_ATTRIBUTES),
        port_data=_pick(info.get("IFLA_INFO_SLAVE_DATA"), DATA_ATTRIBUTES),
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


def _pick(message: Message | None, wanted: frozenset[str]) -> dict[str, Any]:
    """The wanted attributes of a message or nest. pyroute2 decodes one when it is read; a link has some sixty."""
    if not isinstance(message, Mapping):    # not there, or of a kind that pyroute2 does not know
        return {}
    return {slot.name: slot.value for slot in message.get("attrs", ()) if slot.name in wanted}
