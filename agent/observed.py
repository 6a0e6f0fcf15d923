"""The host as the agent found it, before it is told how it should be. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface

from agent.standing import Standing
from vfp.model import Address
from vfp.timeouts import Timeouts
from vswitch.links import OwnedLink, UplinkState

__all__ = ["Observed", "UnderlayState"]


@dataclass(frozen=True, slots=True)
class UnderlayState:
    """A VTEP address of this host, and the link that has it."""

    address: Address
    link: UplinkState


@dataclass(frozen=True, slots=True)
class Observed:
    """The host as found. An `*_error` says why that part is not there although it was asked for."""

    uplink: UplinkState | None = None                           # of nat networks
    uplink_error: str = ""
    segments: Mapping[str, UplinkState] = field(default_factory=dict)   # by NetworkGoal.uplink of transparent,
    segment_errors: Mapping[str, str] = field(default_factory=dict)     # l2bridge and l2tunnel; "": by default route
    underlays: tuple[UnderlayState, ...] = ()                   # in the order declared; those that are there
    underlay_error: str = ""                                    # of those that are not
    paths: tuple[tuple[Address, int], ...] = ()                 # (VTEP, bytes): paths narrower than our own links
    addresses: frozenset[Address] = frozenset()                 # the host's own, not loopback, not those Sluice made
    owned: Mapping[str, OwnedLink] = field(default_factory=dict)
    listeners: tuple[tuple[str, str, int], ...] = ()            # (protocol, address, port) of the host's sockets
    served: frozenset[str] = frozenset()                        # MappingGoal.id of those in force already
    overlaps: Mapping[str, str] = field(default_factory=dict)   # NetworkGoal.id -> with what of the host's, in words
    timeouts: Timeouts = field(default_factory=Timeouts)        # of the engine
    leases: Mapping[str, IPv4Interface] = field(default_factory=dict)   # PortGoal.id -> address got by DHCP
    standing: Mapping[str, Standing] = field(default_factory=dict)      # by PortGoal.id, of runtimes' endpoints
