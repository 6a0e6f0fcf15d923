"""The host as the agent found it, before it is told how it should be. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vfp.model import Address
from vfp.timeouts import Timeouts
from vswitch.links import OwnedLink, UplinkState

__all__ = ["Observed"]


@dataclass(frozen=True, slots=True)
class Observed:
    """The host as found. An `*_error` says why that part is None although it was asked for."""

    uplink: UplinkState | None = None
    uplink_error: str = ""
    underlay: UplinkState | None = None
    underlay_error: str = ""
    addresses: frozenset[Address] = frozenset()                 # the host's own, not loopback, not those Sluice made
    owned: Mapping[str, OwnedLink] = field(default_factory=dict)
    listeners: tuple[tuple[str, str, int], ...] = ()            # (protocol, address, port) of the host's sockets
    served: frozenset[str] = frozenset()                        # MappingGoal.id of those in force already
    overlaps: Mapping[str, str] = field(default_factory=dict)   # NetworkGoal.id -> with what of the host's, in words
    timeouts: Timeouts = field(default_factory=Timeouts)        # of the engine
