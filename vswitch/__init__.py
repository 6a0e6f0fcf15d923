"""Links of one host: ports, bridges, the tunnel device, uplinks, TC attachment, and what surrounds them.

Knows netlink and nothing of Sluice above it: imports none of our other rooms.
"""

from vswitch.errors import (
    AddressTaken,
    HookTaken,
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
    HookedProgram,
    OwnedLink,
    PortLink,
    Surroundings,
    TunnelLink,
    UplinkState,
    Where,
    port_interface,
)
from vswitch.switch import Switch

__all__ = [
    "OWNER_ALIAS",
    "AddressTaken",
    "BridgeLink",
    "HookTaken",
    "HookedProgram",
    "InterfaceTaken",
    "KernelRefused",
    "LinkInvalid",
    "LinkMissing",
    "NamespaceMissing",
    "OwnedLink",
    "PermissionDenied",
    "PortLink",
    "Surroundings",
    "Switch",
    "TunnelLink",
    "UplinkMissing",
    "UplinkState",
    "VSwitchError",
    "Where",
    "port_interface",
]
