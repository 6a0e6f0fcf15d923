"""The contract between the agent and the features: what a feature is given, and what it gives.

A feature is a `Contributor`. For a port it may give one layer; for the whole host it may give tables
(spaces, pools, mappings, sets). It is a pure function of the goal state and of a few facts of the host; it
knows no sockets and no netlink. The agent lists its contributors in OUT order in one tuple, so that
adding a feature is adding one entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Interface, IPv6Interface
from typing import Literal, Protocol

from southbound.messages import HostGoal, Key, MappingGoal, NetworkGoal, PortGoal, RemotesGoal
from vfp import model
from vfp.timeouts import Timeouts

__all__ = [
    "Contributor",
    "DomainRule",
    "Fault",
    "HostView",
    "MeterRow",
    "ObjectError",
    "Tables",
    "UplinkView",
    "mac_bytes",
]


class ObjectError(Exception):
    """A goal-state object cannot be programmed; the text says what was found and what to do.

    `culprit`: PortGoal.id of the endpoint that it is about, if it is not the port that a layer was asked for.
    """

    def __init__(self, text: str, culprit: str = "") -> None:
        super().__init__(text)
        self.culprit = culprit


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one goal-state object is not, or not wholly, programmed."""

    key: Key
    message: str


@dataclass(frozen=True, slots=True)
class UplinkView:
    """The host's link towards the world."""

    id: int
    name: str
    ifindex: int
    addresses: tuple[IPv4Interface | IPv6Interface, ...]        # no link-local IPv6
    mtu_bytes: int
    mac: str = ""                                               # "": it has none


@dataclass(frozen=True, slots=True)
class HostView:
    """The goal state of one host, indexed, with the identities and surroundings that the agent found.

    `ports` holds only the ports that the engine will have; a port with a fault is not in it. `nested` are endpoints
    that have no link of their own: they are reached by that of a port.
    """

    host: HostGoal
    networks: Mapping[str, NetworkGoal]
    ports: Mapping[str, PortGoal]
    remotes: tuple[RemotesGoal, ...] = ()
    mappings: tuple[MappingGoal, ...] = ()
    port_ids: Mapping[str, int] = field(default_factory=dict)   # PortGoal.id -> model.Port.id
    uplink: UplinkView | None = None
    loopback: int = 0                                           # id of lo as an uplink; 0: it is none
    pool_ids: Mapping[str, int] = field(default_factory=dict)   # by name; stable across restarts
    host_addresses: frozenset[model.Address] = frozenset()      # all of the host's own, not those Sluice made
    listeners: tuple[tuple[str, str, int], ...] = ()            # (protocol, address, port) of the host's sockets
    served: frozenset[str] = frozenset()                        # MappingGoal.id of those that are in force already
    shadowed: frozenset[str] = frozenset()                      # NetworkGoal.id of those the host's stack knows not
    timeouts: Timeouts = field(default_factory=Timeouts)        # of the engine
    nested: Mapping[str, tuple[PortGoal, ...]] = field(default_factory=dict)    # by PortGoal.id of whom they are behind
    segments: Mapping[str, UplinkView] = field(default_factory=dict)    # NetworkGoal.id -> the link it is a part of
    segment_errors: Mapping[str, str] = field(default_factory=dict)     # NetworkGoal.id -> why there is none
    underlays: tuple[str, ...] = ()                             # VTEP addresses of this host that are there
    exits: Mapping[str, int] = field(default_factory=dict)      # NetworkGoal.id -> model.Port.id of its exit here
    leases: Mapping[str, IPv4Interface] = field(default_factory=dict)   # PortGoal.id -> address got by DHCP

    _by_network: dict[str, list[PortGoal]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for port in sorted(self.ports.values(), key=lambda port: self.port_ids[port.id]):
            self._by_network.setdefault(port.network, []).append(port)

    def ports_of(self, network: NetworkGoal) -> list[PortGoal]:
        """The network's ports on this host, by port id."""
        return self._by_network.get(network.id, [])

    def judged(self) -> list[tuple[int, PortGoal]]:
        """Every endpoint with policies here, and the engine's port that runs them: ports, and who is behind."""
        found = [(self.port_ids[port.id], port) for port in self.ports.values()]
        found += [(self.port_ids[uid], port) for uid, ports in self.nested.items() for port in ports]
        return sorted(found, key=lambda pair: (pair[0], pair[1].behind, pair[1].id))

    def peers_of(self, network: NetworkGoal) -> list[NetworkGoal]:
        """The networks that it is peered with, as far as they are here, by space."""
        found = (self.networks[uid] for uid in dict.fromkeys(network.peers) if uid in self.networks)
        joined = (peer for peer in found if peer.mode == network.mode == "overlay" and peer is not network)
        return sorted(joined, key=lambda peer: peer.space)


@dataclass(frozen=True, slots=True)
class DomainRule:
    """A rule of a port that names domains: their addresses are the members of a dynamic set."""

    port: int                               # model.Port.id
    set_id: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MeterRow:
    """What a meter counts: flows of an endpoint that a rule let through. `direction`: in which they begin."""

    meter: int                              # model.Meter.meter
    port: str                               # PortGoal.id
    direction: Literal["in", "out"]
    policy: str                             # "": no policy decided
    rule: str


@dataclass(frozen=True, slots=True)
class Tables:
    """What a feature adds to the tables of the host, and the goal-state objects it could not serve."""

    spaces: tuple[model.Space, ...] = ()
    pools: tuple[model.Pool, ...] = ()
    mappings: tuple[model.Mapping, ...] = ()
    faults: tuple[Fault, ...] = ()
    sets: tuple[model.AddressSet, ...] = ()
    domains: tuple[DomainRule, ...] = ()
    prefixes: tuple[model.PrefixMapping, ...] = ()
    opened: Mapping[str, tuple[str, ...]] = field(default_factory=dict)     # MappingGoal.id -> external addresses
    meters: tuple[MeterRow, ...] = ()


class Contributor(Protocol):
    """One feature. What a layer names is in the tables of the same view."""

    def layer(self, port: PortGoal, view: HostView) -> model.Layer | None:
        """The feature's layer of this port; None if it has none for the port's network.

        Raises:
            ObjectError: the port's part of the goal state makes no layer; the port is left out of the engine.
        """
        ...

    def tables(self, view: HostView) -> Tables:
        """What the feature adds to the host's tables. Never raises: a bad object becomes a `Fault`."""
        ...


@lru_cache(maxsize=16_384)
def mac_bytes(text: str) -> bytes:
    """`02:00:00:00:00:07` as 6 bytes.

    Raises:
        ObjectError: the text is no MAC address.
    """
    try:
        raw = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        raw = b""
    if len(raw) != 6:
        raise ObjectError(f"MAC address {text!r} is not six bytes in hex like 02:00:00:00:00:07")
    return raw
