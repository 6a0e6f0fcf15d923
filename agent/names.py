"""Numbers of the engine as people's words: where a rule stands, rows of listings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agent.build import Built
from agent.words import packet_text
from vfp.compile import rule_cookie
from vfp.datapath.records import DropEvent, FlowRecord, PacketEvent
from vfp.layout import ZoneKind
from vfp.model import Direction, Port, Rule

__all__ = ["Names", "Place", "event_row", "packet_row", "places"]

Row = dict[str, Any]

_PORT_ZONES = (ZoneKind.PORT, ZoneKind.HOST)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rule stands."""

    port: Port
    direction: Direction
    layer: str
    group: str
    rule: Rule

    @property
    def counter(self) -> tuple[int, int]:
        """Key of the rule's hit counter."""
        return (self.port.id, rule_cookie(self.layer, self.group, self.rule))

    def row(self) -> Row:
        """The place by its names."""
        rule = self.rule.name or f"priority {self.rule.priority}"
        return {"port": self.port.name, "layer": self.layer, "group": self.group, "rule": rule}


def places(built: Built) -> Iterator[Place]:
    """Every rule that is programmed, in the order of the walk."""
    for port in built.engine.ports:
        for layer in port.layers:
            for direction, groups in ((Direction.OUT, layer.groups_out), (Direction.IN, layer.groups_in)):
                for group in groups:
                    for rule in sorted(group.rules, key=lambda rule: rule.priority):
                        yield Place(port, direction, layer.name, group.name, rule)


class Names:
    """Ids of the engine as words."""

    def __init__(self, built: Built) -> None:
        self._ports = {port.id: port.name for port in built.engine.ports}
        self._links = {port.ifindex: f"port {port.name}" for port in built.engine.ports}
        self._uplinks = {uplink.id: uplink.name for uplink in built.engine.uplinks}
        self._links |= {uplink.ifindex: f"uplink {uplink.name}" for uplink in built.engine.uplinks}

    def leaves(self, place: str, ifindex: int, vtep: str, vni: int) -> Row:
        """Where a packet leaves, as `Explanation` says it."""
        if place == "tunnel":
            return {"to": "vtep", "vtep": vtep, "vni": vni}
        if place in ("port", "uplink", "wire"):
            name = self._links.get(ifindex, f"{place} {ifindex}").partition(" ")[2]
            return {"to": "port" if place == "port" else "uplink", "name": name}
        if place == "flood":
            return {"to": "many"}
        return {"to": "" if place == "none" else place}

    def flow(self, flow: FlowRecord) -> dict[str, Any]:
        """One row of a listing."""
        return {
            "endpoint": self._endpoint(flow),
            "zone": self._zone(flow),
            "direction": "reply" if flow.reply else "forward",
            "protocol": flow.protocol,
            "source": str(flow.src),
            "source_port": flow.src_port,
            "destination": str(flow.dst),
            "destination_port": flow.dst_port,
            "state": flow.state,
            "packets": flow.packets,
            "bytes": flow.bytes,
            "age_s": flow.age_s,
            "idle_s": flow.idle_s,
            "place": self._exit(flow),
            "current": flow.current,
        }

    def _endpoint(self, flow: FlowRecord) -> str:
        """Who sends, if it is one of ours; else who receives."""
        first = flow.zone if flow.zone_kind in _PORT_ZONES else 0
        return next((self._ports[port] for port in (first, *flow.ports) if port in self._ports), "")

    def _zone(self, flow: FlowRecord) -> str:
        match flow.zone_kind:
            case ZoneKind.OVERLAY:
                return f"vni {flow.zone}"
            case ZoneKind.UPLINK:
                return f"uplink {self._uplinks.get(flow.zone, flow.zone)}"
            case kind:
                return f"{kind.name.lower()} {self._ports.get(flow.zone, flow.zone)}"

    def _exit(self, flow: FlowRecord) -> str:
        if flow.place == "tunnel":
            return f"vtep {flow.vtep or 'unknown'} vni {flow.vni}"
        return self._links.get(flow.ifindex, flow.place) if flow.place in ("port", "uplink", "wire") else flow.place


def event_row(
    event: DropEvent, ports: Mapping[int, Port], places: Mapping[tuple[int, int], Place]
) -> Row:
    """One dropped packet."""
    port = ports.get(event.port)
    row = packet_row(event, ports, places)
    if not row["layer"] and port is not None and event.layer is not None and event.layer < len(port.layers):
        row["layer"] = port.layers[event.layer].name
    return {"reason": event.reason.name, **row}


def packet_row(
    event: PacketEvent, ports: Mapping[int, Port], places: Mapping[tuple[int, int], Place]
) -> Row:
    """A packet and the rule that is why it is told."""
    port = ports.get(event.port)
    place = places.get((event.port, event.cookie))
    return {
        "endpoint": port.name if port else "",
        "layer": place.layer if place else "",
        "group": place.group if place else "",
        "rule": place.rule.name if place else "",
        "packet": packet_text(
            event.ethertype,
            event.protocol,
            event.src,
            event.dst,
            event.src_port,
            event.dst_port,
            (event.src_mac, event.dst_mac),
            event.length,
        ),
    }
