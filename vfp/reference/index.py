"""An `EngineState` arranged for look-ups, and what a change of it means for each port."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from vfp.layout import WIRE_SPACE, SegmentKind
from vfp.model import (
    Address,
    AnswerArp,
    EngineState,
    Forward,
    Hairpin,
    LocalPort,
    Location,
    Mapping,
    Meter,
    Pool,
    Port,
    Prefix,
    PrefixMapping,
    Rate,
    Remote,
    Rule,
    Space,
    Switch,
    TranslateSource,
)
from vfp.reference.transposition import Exit, Flood, ToPort, ToVtep, ToWire
from vfp.reference.zones import Zone, ZoneKind
from vfp.switching import (
    Segment,
    at_the_wire,
    members,
    segment_of,
    stations_of,
    switched_spaces,
    uplink_flags,
    wire_of,
    wire_spaces,
)


class Index:
    """Look-ups over one state; never changes."""

    def __init__(self, state: EngineState) -> None:
        self.state = state
        self.ports: dict[int, Port] = {port.id: port for port in state.ports}
        self.pools: dict[int, Pool] = {pool.id: pool for pool in state.pools}
        self.uplinks = {uplink.id: uplink for uplink in state.uplinks}
        self.has_tunnel = state.tunnel_ifindex != 0
        self._spaces = {space.id: space for space in state.spaces}
        self._entries: dict[tuple[int, Address], Location] = {
            (space.id, address): location for space in (*state.spaces, *wire_spaces(state))
            for address, location in space.entries
        }
        self._stations = stations_of(state)
        self._switched = {space.id: space for space in switched_spaces(state)}
        self._flags = uplink_flags(state)
        self._mappings = {(m.uplink, m.protocol, m.external, m.external_port): m for m in state.mappings}

    def place(self, space: int, address: Address) -> Location | None:
        """Where `address` is, by the entries and blocks of `space`."""
        return self._entries.get((space, address)) or self._in_block(space, address)

    def where(self, space: int, address: Address) -> Location | None:
        """Where packets to `address` go: to its place, or, if it has none, by the longest route of `space`."""
        if (place := self.place(space, address)) is not None or space not in self._spaces:
            return place
        found = [route for route in self._spaces[space].routes
                 if route.prefix.version == address.version and address in route.prefix]
        if not found:
            return None
        via = max(found, key=lambda route: route.prefix.prefixlen).via
        return self.place(space, via) if isinstance(via, Address) else via

    def exit(self, port: int) -> int | None:
        """The space that a port is the way out of; None: of none."""
        return self.ports[port].exit_of if port in self.ports else None

    def _in_block(self, space: int, address: Address) -> Remote | None:
        """As blocks are: 100,000 remotes are not worth a dictionary for the few packets that are explained."""
        if space not in self._spaces:
            return None
        wanted, size = address.packed, len(address.packed)
        for block in self._spaces[space].blocks:
            at = block.addresses.find(wanted) if block.version == address.version else -1
            while at >= 0 and at % size:
                at = block.addresses.find(wanted, at + 1)
            if at >= 0:
                return Remote(block.vtep, block.vni, block.macs[at // size * 6 : at // size * 6 + 6])
        return None

    def has_vlan(self, port: int, vlan: int) -> bool:
        """Whether a port may have frames with a tag."""
        return port in self.ports and vlan in self.ports[port].vlans

    def uplink_flags(self, uplink: int) -> int:
        """What an uplink's wire has of ours."""
        return self._flags.get(uplink, 0)

    def segment(self, space: int) -> Space | None:
        """A space in which frames have somewhere to go by their MACs."""
        return self._switched.get(space)

    def station(self, space: int, mac: bytes) -> int | None:
        """The port that has a MAC on the segment of a space."""
        segment = self._switched.get(space)
        return self._stations.get((segment_of(segment), mac)) if segment else None

    def station_on_wire(self, uplink: int, mac: bytes) -> int | None:
        """The port that has a MAC on an uplink's wire."""
        return self._stations.get(((uplink, SegmentKind.WIRE), mac))

    def proxied(self, uplink: int, address: Address) -> int | None:
        """The port that has an address on an uplink's wire, with the uplink's MAC."""
        place = self._entries.get((WIRE_SPACE | uplink, address))
        return place.port if isinstance(place, LocalPort) else None

    def flood_rate(self, exit: Flood) -> Rate | None:
        """How many frames to groups may be spread there; None: none are."""
        if exit.by_wire:
            return at_the_wire(self.state, exit.number)
        space = self._switched.get(exit.number)
        return space.flooding.rate if space and space.flooding else None

    def flooded(self, exit: Flood, zone: Zone, vlan: int) -> tuple[Exit, ...]:
        """Whom a frame to a group goes to: from a port, the wire and other hosts, too, and not the port itself."""
        if exit.by_wire:
            wired = members(self.state, (exit.number, SegmentKind.WIRE))
            return tuple(ToPort(id) for id in wired if not vlan or self.has_vlan(id, vlan))
        space = self._switched[exit.number]
        assert space.flooding is not None
        ours = zone.number if zone.kind is ZoneKind.PORT else None
        ports = tuple(ToPort(id) for id in members(self.state, segment_of(space))
                      if id != ours and (not vlan or self.has_vlan(id, vlan)))
        if ours is None:
            return ports
        wire = wire_of(space)
        vteps = space.flooding.vteps if self.has_tunnel and not vlan else ()
        return (*((ToWire(wire),) if wire else ()), *(ToVtep(vtep, space.flooding.vni) for vtep in vteps), *ports)

    def floods_wire(self, uplink: int) -> bool:
        """Whether frames to groups that come by an uplink are spread."""
        return at_the_wire(self.state, uplink) is not None

    def mapping(self, uplink: int, protocol: int, external: Address, port: int) -> Mapping | None:
        """The fixed inbound translation for what arrives at an uplink. Protocol and port 0: of a whole address."""
        return self._mappings.get((uplink, protocol, external, port))

    def prefix(self, uplink: int, destination: Address) -> PrefixMapping | None:
        """The prefix translation for what arrives at an uplink; the longest prefix counts."""
        found = [mapping for mapping in self.state.prefixes if mapping.uplink == uplink
                 and isinstance(destination, IPv6Address) and destination in mapping.external]
        return max(found, key=lambda mapping: mapping.external.prefixlen, default=None)

    def meters(self) -> set[int]:
        """Those that rules name."""
        return {rule.action.meter for port in self.state.ports for rule in rules_of(port)
                if isinstance(rule.action, Meter)}

    def links(self) -> tuple[object, ...]:
        """Interfaces other than those of ports: the tunnel device, uplinks by id, and how the underlay is reached."""
        takes_off = self.has_tunnel and any(underlay.ifindex for underlay in self.state.underlays)
        return self.state.tunnel_ifindex, self.state.underlays, self.state.tunnel_port if takes_off else 0, {
            uplink.id: (replace(uplink, name=""), self._flags.get(uplink.id, 0)) for uplink in self.state.uplinks}

    def whereabouts(self) -> dict[int, tuple[tuple[int, SegmentKind], int | None]]:
        """By space, the segment of its stations and its wire."""
        return {id: (segment_of(space), wire_of(space)) for id, space in self._switched.items()}

    def stations(self) -> dict[tuple[Segment, bytes], int]:
        """Who has which MAC."""
        return self._stations

    def routes(self) -> dict[tuple[int, Prefix], Address | Remote | LocalPort]:
        """All routes of all spaces."""
        return {(space.id, route.prefix): route.via for space in self.state.spaces for route in space.routes}

    def places(self) -> dict[tuple[int, Address], Location]:
        """All entries of all spaces, and all in their blocks."""
        places = dict(self._entries)
        for space in self.state.spaces:
            for block in space.blocks:
                size, kind = (4, IPv4Address) if block.version == 4 else (16, IPv6Address)
                for number in range(len(block.macs) // 6):
                    address = kind(block.addresses[number * size : (number + 1) * size])
                    mac = block.macs[number * 6 : (number + 1) * 6]
                    places[space.id, address] = Remote(block.vtep, block.vni, mac)
        return places


def rules_of(port: Port) -> Iterator[Rule]:
    """Every rule of a port, both directions."""
    for layer in port.layers:
        for group in (*layer.groups_out, *layer.groups_in):
            yield from group.rules


def changed_ports(old: Index, new: Index) -> set[int]:
    """The ports whose flows must be decided again when `old` becomes `new`.

    Those whose own record or layers changed (or that are gone); that belong to a space of which an entry
    changed or is gone (or is new, where there were routes of its family, which may have led there): their rules
    name the space, or an entry or route of it is theirs, or they are its exit; that translate by a pool, or
    receive by a mapping, or by a prefix into their space, that changed or is gone. What is only added concerns no
    flow. Names do not count.
    """
    before = {id: replace(port, name="") for id, port in old.ports.items()}
    after_ports = {id: replace(port, name="") for id, port in new.ports.items()}
    if old.links() != new.links():
        return before.keys() | after_ports.keys()
    changed = {id for id in before.keys() | after_ports.keys() if before.get(id) != after_ports.get(id)}
    places, after = old.places(), new.places()
    spaces = {key[0] for key, location in places.items() if after.get(key) != location}
    routes, routes_after = old.routes(), new.routes()
    spaces |= {key[0] for key, via in routes.items() if routes_after.get(key) != via}
    routed = {(space, prefix.version) for space, prefix in routes}
    spaces |= {key[0] for key in after.keys() - places.keys() if (key[0], key[1].version) in routed}
    spaces |= {key[0] for key in routes_after.keys() - routes.keys() if (key[0], key[1].version) in routed}
    switched, left = _changed_segments(old, new)
    changed |= left
    pools = {id for id, pool in old.pools.items() if new.pools.get(id) != pool}
    changed |= {via.port for (space, _), via in routes.items() if space in spaces and isinstance(via, LocalPort)}
    for port in new.state.ports:
        if port.exit_of in spaces:
            changed.add(port.id)
        for rule in rules_of(port):
            match rule.action:
                case (Forward(space) | AnswerArp(space) | Switch(space)) if space in spaces | switched:
                    changed.add(port.id)
                case TranslateSource(pool) | Hairpin(pool) if pool in pools:
                    changed.add(port.id)
    for (space, _), location in places.items():
        if space in spaces and isinstance(location, LocalPort):
            changed.add(location.port)
    kept_prefixes = set(new.state.prefixes)
    behind = {mapping.space for mapping in old.state.prefixes if mapping not in kept_prefixes}
    changed |= {location.port for (space, _), location in places.items()
                if space in behind and isinstance(location, LocalPort)}
    kept = set(new.state.mappings)
    changed |= {mapping.port for mapping in old.state.mappings if mapping not in kept}
    return changed & (before.keys() | after_ports.keys())


def _changed_segments(old: Index, new: Index) -> tuple[set[int], set[int]]:
    """Spaces on whose segment a station came, went or moved, or that are on another; and ports that lost one."""
    before, after = old.stations(), new.stations()
    keys = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    segments = {segment for segment, _ in keys}
    was, is_ = old.whereabouts(), new.whereabouts()
    spaces = {space for space in was.keys() | is_.keys()
              if was.get(space) != is_.get(space) or was[space][0] in segments}
    return spaces, {before[key] for key in keys if key in before}
