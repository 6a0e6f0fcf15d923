"""Links of one host: ports, bridges, the tunnel device, uplinks, TC attachment, and what surrounds them.

Knows netlink and nothing of Sluice above it: imports none of our other rooms.
"""

from vswitch.errors import (
    AddressTaken,
    HookTaken,
    InspectUnsupported,
    InterfaceTaken,
    KernelRefused,
    LinkInvalid,
    LinkMissing,
    NamespaceMissing,
    PermissionDenied,
    UplinkMissing,
    VSwitchError,
)
from vswitch.links import (
    OWNER_ALIAS,
    BridgeLink,
    Detour,
    HookedProgram,
    InspectPrograms,
    Limit,
    OwnedLink,
    PathState,
    PortLink,
    ShaperLink,
    Surroundings,
    TunnelLink,
    UnderlayState,
    UplinkState,
    Where,
    port_interface,
)
from vswitch.switch import Switch

__all__ = [
    "OWNER_ALIAS",
    "AddressTaken",
    "BridgeLink",
    "Detour",
    "HookTaken",
    "HookedProgram",
    "InspectPrograms",
    "InspectUnsupported",
    "InterfaceTaken",
    "KernelRefused",
    "Limit",
    "LinkInvalid",
    "LinkMissing",
    "NamespaceMissing",
    "OwnedLink",
    "PathState",
    "PermissionDenied",
    "PortLink",
    "ShaperLink",
    "Surroundings",
    "Switch",
    "TunnelLink",
    "UnderlayState",
    "UplinkMissing",
    "UplinkState",
    "VSwitchError",
    "Where",
    "port_interface",
]
