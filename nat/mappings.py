"""Static mappings: the goal's external address and ports to the engine's inbound translations.

A mapping is open at doors: addresses of the uplink for the world, and, on the loopback uplink, the same and 127.0.0.1
or ::1 for the host's own processes. `0.0.0.0` (`::`) is every IPv4 (IPv6) address; on the loopback uplink that means
all addresses of the host. `127.0.0.1` (`::1`) is the host alone.

`any` gives a whole external address to one endpoint: all protocols, in and out. Such an address is no other's: no
network is translated to it, and mappings to all addresses leave it out; one that names it goes before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from nat.pools import default_source
from policy.addresses import Interface, own_addresses
from policy.contribution import Fault, HostView, ObjectError
from southbound.messages import MappingGoal, PortGoal, key_of
from vfp import model
from vfp.model import Address

__all__ = ["PROTOCOLS", "Expanded", "Expander"]

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "any": 0}
_ICMPV6 = 58
_MOST_PORT = 65535
_EVERY: tuple[Address, ...] = (IPv4Address(0), IPv6Address(0))
_LOOPBACK: dict[int, Address] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}
_TRANSLATED = ("tcp", "udp", "icmp")        # whose ports or identifiers NAT chooses from spec.natPorts
_LISTENING = ("tcp", "udp", "sctp")

_Door = tuple[int, Address]                 # uplink, external address
_Doors = tuple[_Door, ...]


@dataclass(frozen=True, slots=True)
class Expanded:
    """The engine's mappings, and what follows from them.

    `opened`: MappingGoal.id to the addresses where it is open to the world, or if there are none, to the host.
    `whole`: PortGoal.id to (internal, external) addresses of `any` mappings.
    """

    mappings: tuple[model.Mapping, ...] = ()
    faults: tuple[Fault, ...] = ()
    opened: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    whole: Mapping[str, tuple[tuple[Address, Address], ...]] = field(default_factory=dict)

    @property
    def whole_addresses(self) -> frozenset[Address]:
        """External addresses that belong to one endpoint each."""
        return frozenset(external for pairs in self.whole.values() for _, external in pairs)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a goal became, and from what. `goal`, `port` and `doors` are compared by identity: there may be 30,000."""

    goal: MappingGoal
    port: PortGoal
    number: int
    doors: _Doors
    external: Address
    internal: Address
    mappings: tuple[model.Mapping, ...]
    shown: tuple[str, ...]


class Expander:
    """Expands mappings; remembers what became of each, so that one that did not change costs next to nothing."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}             # by MappingGoal.id
        self._rooms: _Rooms | None = None

    def expand(self, view: HostView, no_uplink: str = "") -> Expanded:
        """The engine's mappings, and the goals that cannot be served, or (`no_uplink`: why) only for the host itself.

        Those of whole addresses come first, then goals that name an address, then those that do not; so that the
        specific one holds when several ask for the same port.
        """
        rooms = _Rooms(view)
        if self._rooms is None or self._rooms.basis != rooms.basis:
            self._known = {}
        else:
            rooms.take_over(self._rooms)
        known: dict[str, _Known] = {}
        taken: dict[tuple[int, int], list[_Known]] = {}
        made: list[model.Mapping] = []
        faults: list[Fault] = []
        opened: dict[str, tuple[str, ...]] = {}
        whole: dict[str, tuple[tuple[Address, Address], ...]] = {}
        for goal in sorted(view.mappings, key=_specific_first):
            try:
                one = known[goal.id] = self._one(goal, view, rooms, no_uplink)
                _take(one, taken)
                if view.listeners and goal.id not in view.served:
                    rooms.refuse_listeners(one)
            except ObjectError as error:
                faults.append(Fault(key_of(goal), str(error)))
                continue
            if no_uplink and one.external in _EVERY:
                faults.append(Fault(key_of(goal), f"open to this host alone: {no_uplink}"))
            if goal.protocol == "any":
                whole[goal.port] = (*whole.get(goal.port, ()), (one.internal, one.external))
                rooms.give_away(one.external)
            opened[goal.id] = one.shown
            made.extend(one.mappings)
        self._known, self._rooms = known, rooms
        return Expanded(tuple(made), tuple(faults), opened, whole)

    def _one(self, goal: MappingGoal, view: HostView, rooms: _Rooms, no_uplink: str) -> _Known:
        port = _endpoint(goal, view)
        number = view.port_ids[goal.port]
        before = self._known.get(goal.id)
        same = before is not None and before.goal is goal and before.port is port and before.number == number
        if before is not None and same and goal.protocol != "any" and before.doors is rooms.at(before.external):
            return before
        external, internal = _addresses(goal, port)
        _check_ports(goal, view)
        doors = rooms.doors(goal, external, no_uplink)
        mappings = tuple(_mappings(goal, number, internal, doors))
        return _Known(goal, port, number, doors, external, internal, mappings, rooms.shown(doors))


def _take(one: _Known, taken: dict[tuple[int, int], list[_Known]]) -> None:
    """Note the ports that a goal has.

    Raises:
        ObjectError: another has one of them.
    """
    protocol = one.mappings[0].protocol if one.mappings else 0
    first, last = one.goal.external_ports
    places = [taken.setdefault((protocol, port), []) for port in range(first, last + 1)]
    for port, others in enumerate(places, first):
        for other in others:
            if other.doors is one.doors or not set(other.doors).isdisjoint(one.doors):
                external = next(address for _, address in one.doors if any(address == at for _, at in other.doors))
                whole = one.goal.protocol == "any"
                raise ObjectError(
                    f"{one.goal.protocol} {external}{'' if whole else f':{port}'} is taken by static mapping"
                    f" {other.goal.tenant}/{other.goal.name}; choose another external {'address' if whole else 'port'}"
                )
    for others in places:
        others.append(one)


def _specific_first(goal: MappingGoal) -> tuple[bool, bool, str, str, str]:
    wildcard = goal.external_address in ("0.0.0.0", "::")
    return (goal.protocol != "any", wildcard, goal.tenant, goal.name, goal.id)


def _endpoint(goal: MappingGoal, view: HostView) -> PortGoal:
    port = view.ports.get(goal.port)
    if port is None:
        raise ObjectError("its endpoint is not ready on this host; see the endpoint's status")
    if view.networks[port.network].mode != "nat":
        raise ObjectError(f"endpoint {port.tenant}/{port.name} is not in a nat network")
    return port


def _addresses(goal: MappingGoal, port: PortGoal) -> tuple[Address, Address]:
    """The external address, which may be a wildcard, and the internal one."""
    try:
        external, internal = _address(goal.external_address), _address(goal.internal_address)
    except ValueError as error:
        raise ObjectError(str(error)) from None
    if external.version != internal.version:
        raise ObjectError(
            f"external address {external} and internal address {internal} are of different families; a mapping does not"
            f" translate between IPv4 and IPv6"
        )
    own = [address.ip for address in own_addresses(port)]
    if internal not in own:
        raise ObjectError(
            f"internal address {internal} is not that of endpoint {port.tenant}/{port.name}, which has"
            f" {' and '.join(map(str, own))}"
        )
    return external, internal


@lru_cache(maxsize=16_384)                  # many mappings, few endpoints
def _address(text: str) -> Address:
    return ip_address(text)


def _check_ports(goal: MappingGoal, view: HostView) -> None:
    first, last = goal.external_ports
    if goal.protocol == "any":
        if (first, last, goal.internal_port) != (0, 0, 0):
            raise ObjectError(f"protocol any has no ports; found {first}-{last} to {goal.internal_port}")
        return
    lowest = 0 if goal.protocol == "icmp" else 1
    if not lowest <= first <= last <= _MOST_PORT:
        raise ObjectError(f"external ports {first}-{last} are no range within {lowest}..{_MOST_PORT}")
    if not lowest <= goal.internal_port <= _MOST_PORT - (last - first):
        raise ObjectError(
            f"internal port {goal.internal_port} with {last - first + 1} ports from there on is not within"
            f" {lowest}..{_MOST_PORT}"
        )
    if goal.protocol == "sctp" and goal.internal_port != first:
        raise ObjectError(
            f"external port {first} and internal port {goal.internal_port} differ; SCTP ports cannot be translated:"
            f" give both the same"
        )
    low, high = view.host.nat_ports
    if goal.protocol in _TRANSLATED and first <= high and low <= last:
        raise ObjectError(
            f"external port {first} is in the host's NAT ports {low}-{high};"
            f" choose one outside, or change spec.natPorts of the host"
        )
    vxlan = view.host.vxlan_port
    if view.host.underlay and goal.protocol == "udp" and first <= vxlan <= last:
        raise ObjectError(f"external port udp/{vxlan} carries this host's overlay; choose another")


def _mappings(goal: MappingGoal, number: int, internal: Address, doors: _Doors) -> Iterator[model.Mapping]:
    first, last = goal.external_ports
    protocol = PROTOCOLS[goal.protocol]
    if goal.protocol == "icmp" and internal.version == 6:
        protocol = _ICMPV6
    name = f"{goal.tenant}/{goal.name}"
    for uplink, external in doors:
        for offset in range(last - first + 1):
            yield model.Mapping(
                uplink, protocol, external, first + offset, number, internal, goal.internal_port + offset, name
            )


class _Rooms:
    """The host's external addresses, and the doors at them."""

    def __init__(self, view: HostView) -> None:
        self._view = view
        uplink = view.uplink
        self._uplink: tuple[Interface, ...] = uplink.addresses if uplink else ()
        self._world: list[_Door] = [(uplink.id, one.ip) for one in self._uplink] if uplink else []
        own = {one.ip for one in self._uplink} | view.host_addresses
        self._host: list[_Door] = []
        if view.loopback:
            self._host = [(view.loopback, address) for address in
                          (*_LOOPBACK.values(), *sorted(own, key=lambda one: (one.version, int(one))))]
        self._at: dict[Address, _Doors] = {}
        self._heard: dict[tuple[str, int], list[Address]] = {}
        for protocol, address, port in view.listeners:
            self._heard.setdefault((protocol, port), []).append(ip_address(address))
        self._whole: set[Address] = set()
        self._before: _Rooms | None = None

    @property
    def basis(self) -> tuple[object, ...]:
        """What a goal's checks and doors depend on beside itself."""
        view = self._view
        nats = tuple((network.id, network.mode, network.nat.addresses) for network in view.networks.values())
        return (self._world, self._host, view.host, nats)

    def take_over(self, before: _Rooms) -> None:
        """Doors that are the same as in an earlier view are the same object."""
        before._before = None
        self._before = before

    def give_away(self, external: Address) -> None:
        """From now on the address belongs to one endpoint."""
        self._whole.add(external)
        self._at = {address: doors for address, doors in self._at.items() if address not in _EVERY}

    def at(self, external: Address) -> _Doors:
        """The doors at an address, or (a wildcard) at every one; none: the host does not have it."""
        doors = self._at.get(external)
        if doors is None:
            every = external in _EVERY
            doors = tuple(
                door for door in (*self._world, *self._host)
                if (door[1].version == external.version and door[1] not in self._whole if every
                    else door[1] == external)
            )
            if external.is_loopback and self._view.loopback:
                doors = ((self._view.loopback, external),)
            earlier = self._before._at.get(external) if self._before else None
            doors = self._at[external] = earlier if earlier == doors and earlier is not None else doors
        return doors

    def doors(self, goal: MappingGoal, external: Address, no_uplink: str) -> _Doors:
        """Where the goal is open.

        Raises:
            ObjectError: not at this address.
        """
        if goal.protocol == "any":
            self._check_whole(external)
        if external in _EVERY or external.is_loopback:
            return self.at(external)
        own = [one.ip for one in self._uplink]
        if external not in own:
            if self._view.uplink is None:
                raise ObjectError(no_uplink or "the host has no uplink")
            raise ObjectError(
                f"external address {external} is not on uplink {self._view.uplink.name}, which has"
                f" {', '.join(map(str, own))}; use one of them, or {_EVERY[external.version == 6]} for all"
            )
        return self.at(external)

    def shown(self, doors: _Doors) -> tuple[str, ...]:
        """The addresses that people see."""
        world = [str(address) for uplink, address in doors if uplink != self._view.loopback]
        return tuple(world or dict.fromkeys(str(address) for _, address in doors))

    def _check_whole(self, external: Address) -> None:
        """One endpoint may have it: neither the host nor the others need it."""
        if external in _EVERY or external.is_loopback:
            raise ObjectError(f"external address {external}: protocol any needs an address of the uplink for itself")
        if external == default_source(self._uplink, external.version) or str(external) == self._view.host.underlay:
            raise ObjectError(
                f"external address {external} is the one that the host itself uses; give the uplink another address"
                f" for the endpoint"
            )
        for network in self._view.networks.values():
            if network.mode == "nat" and str(external) in network.nat.addresses:
                raise ObjectError(
                    f"external address {external} is in nat.externalAddresses of network"
                    f" {network.tenant}/{network.name}; take it out there, or choose another"
                )

    def refuse_listeners(self, one: _Known) -> None:
        """Raise ObjectError if a socket of the host listens where a mapping would be."""
        if one.goal.protocol not in _LISTENING:
            return
        first, last = one.goal.external_ports
        at = {address for _, address in one.doors}
        for port in range(first, last + 1):
            for address in self._heard.get((one.goal.protocol, port), ()):
                # A socket at :: hears IPv4, too, unless it was told not to, which nobody can see.
                if address in at or address == _EVERY[1] or address == _EVERY[one.external.version == 6]:
                    raise ObjectError(
                        f"{one.goal.protocol} port {port}: a socket of the host listens at {address};"
                        f" stop it, or choose another external port"
                    )
