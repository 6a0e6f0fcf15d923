"""802.1Q tags: who may have them, and frames without."""

from __future__ import annotations

from dataclasses import replace

from vfp.layout import UplinkFlag
from vfp.reasons import DropReason
from vfp.reference.extensions import Malformed
from vfp.reference.index import Index
from vfp.reference.packet import ETHERNET_BYTES, Packet, parse
from vfp.reference.zones import Zone, ZoneKind

ETH_P_8021Q, ETH_P_8021AD = 0x8100, 0x88A8
VLAN_BYTES, LAST_VLAN = 4, 4094


def untagged(frame: bytes) -> tuple[bytes, int]:
    """A frame without its one tag, and that; 0: it has none, or one that nobody may have."""
    if len(frame) < ETHERNET_BYTES + VLAN_BYTES or _ethertype(frame, 12) != ETH_P_8021Q:
        return frame, 0
    vlan = _ethertype(frame, 14) & 0xFFF
    if not 0 < vlan <= LAST_VLAN or _ethertype(frame, 16) in (ETH_P_8021Q, ETH_P_8021AD):
        return frame, 0
    return frame[:12] + frame[16:], vlan


def parse_tagged(index: Index, zone: Zone, frame: bytes) -> tuple[bytes, Packet]:
    """`parse`, of a frame that may have a tag where it came from: without it, it is in the packet's tuple.

    Raises:
        Malformed: as `parse`; `VLAN_TAGGED` where nobody may have the tag.
    """
    bare, vlan = untagged(frame)
    if not vlan:
        return frame, parse(frame)
    if not _may_be_tagged(index, zone, vlan):
        raise Malformed(DropReason.VLAN_TAGGED)
    packet = parse(bare)
    return bare, replace(packet, tuple=replace(packet.tuple, vlan=vlan))


def _may_be_tagged(index: Index, zone: Zone, vlan: int) -> bool:
    match zone.kind:
        case ZoneKind.PORT | ZoneKind.HOST:
            return index.has_vlan(zone.number, vlan)
        case ZoneKind.UPLINK:
            return zone.number in index.uplinks and bool(index.uplink_flags(zone.number) & UplinkFlag.STATIONS)
        case _:
            return False


def _ethertype(frame: bytes, at: int) -> int:
    return int.from_bytes(frame[at:at + 2], "big")
