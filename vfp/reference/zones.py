"""Where a packet enters the engine: the hook and its number form the zone, the first part of a flow id."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

NUMBER_BITS = 24


class Hook(StrEnum):
    """The four places where the engine sees packets."""

    PORT_OUT = "port_out"
    PORT_IN = "port_in"
    OVERLAY_IN = "overlay_in"
    UPLINK_IN = "uplink_in"


class ZoneKind(IntEnum):
    """What the number of a zone means."""

    PORT = 0        # port id: packets from the endpoint
    OVERLAY = 1     # VNI: packets from the VXLAN device
    UPLINK = 2      # uplink id: packets from the world
    HOST = 3        # port id: packets that the host's stack or a bridge sends to the endpoint


_KIND_OF_HOOK = {
    Hook.PORT_OUT: ZoneKind.PORT,
    Hook.OVERLAY_IN: ZoneKind.OVERLAY,
    Hook.UPLINK_IN: ZoneKind.UPLINK,
    Hook.PORT_IN: ZoneKind.HOST,
}


@dataclass(frozen=True, slots=True)
class Zone:
    """One source of packets; two packets with equal headers in different zones are different flows."""

    kind: ZoneKind
    number: int                             # 0..2**24-1

    def __int__(self) -> int:
        return self.kind << NUMBER_BITS | self.number


def zone_of(hook: Hook, number: int) -> Zone:
    """Zone of a packet at `hook`.

    Raises:
        ValueError: `number` does not fit in 24 bits.
    """
    if not 0 <= number < 1 << NUMBER_BITS:
        raise ValueError(f"number {number} of hook {hook}: must be 0..{(1 << NUMBER_BITS) - 1}")
    return Zone(_KIND_OF_HOOK[Hook(hook)], number)
