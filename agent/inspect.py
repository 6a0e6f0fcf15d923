"""Answers to the controller's questions about the inside: trace, flows, drops, logs, rules. Blocking; for the worker.

`trace` is a dry run of the reference engine on the state that was programmed last; the rest comes from the
kernel's tables, with ids put back into names.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from agent.build import Built
from agent.errors import BadQuery
from agent.seams import DatapathSeam
from agent.words import action_text, match_text, packet_text
from vfp.compile import rule_cookie
from vfp.datapath.records import DropEvent, FlowRecord, LogEvent, PacketEvent
from vfp.layout import ZoneKind
from vfp.model import Direction, Port, Rule
from vfp.reference.explain import explain, probe
from vfp.reference.zones import Hook

__all__ = ["RECENT_DROPS", "RECENT_LOGS", "Inspector"]

RECENT_DROPS = 1000
RECENT_LOGS = 1000

Args = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Place:
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


class Inspector:
    """Looks into one host's engine. `built`: what was programmed last, or None; `host`: our name."""

    def __init__(self, host: str, datapath: DatapathSeam, built: Callable[[], Built | None]) -> None:
        self._host = host
        self._datapath = datapath
        self._built = built
        self._recent: deque[tuple[float, DropEvent]] = deque(maxlen=RECENT_DROPS)
        self._logs: deque[tuple[float, LogEvent]] = deque(maxlen=RECENT_LOGS)

    def collect(self) -> None:
        """Take what is in the event ring; the oldest beyond `RECENT_DROPS` and `RECENT_LOGS` are forgotten."""
        epoch_s = time.time() - time.monotonic()    # the engine stamps by the monotonic clock
        for event in self._datapath.read_events():
            time_s = epoch_s + event.time_s
            match event:
                case DropEvent():
                    self._recent.append((time_s, event))
                case LogEvent():
                    self._logs.append((time_s, event))

    def answer(self, what: str, args: Args) -> dict[str, Any]:
        """The data of an `Answer`.

        Raises:
            BadQuery: an unknown question, a missing or wrong argument, or a port that is not here.
        """
        questions: dict[str, Callable[[Built, Args], dict[str, Any]]] = {
            "trace": self._trace,
            "flows": self._flows,
            "drops": self._drops,
            "logs": self._logged,
            "rules": self._rules,
        }
        if what not in questions:
            raise BadQuery(f"this agent does not know {what!r}; it knows {', '.join(questions)}")
        built = self._built()
        if built is None:
            raise BadQuery("this host has no goal state yet; wait for its first synchronisation")
        return questions[what](built, args)

    def _trace(self, built: Built, args: Args) -> dict[str, Any]:
        state = built.engine
        port = _asked_port(built, args, required=args.get("vni") is None)
        hook, number = _entrance(port, args)
        packet = probe(
            state,
            hook,
            number,
            source=_address(args, "source"),
            destination=_address(args, "destination"),
            protocol=_number(args, "protocol"),
            source_port=_number(args, "source_port"),
            destination_port=_number(args, "destination_port"),
        )
        members = {given.id: self._datapath.members(given.id) for given in state.sets if given.dynamic}
        answer = explain(state, hook, number, packet, time.monotonic(), members=members).to_dict()
        flow = next((flow for flow in self._datapath.flows() if _is_of(flow, hook, number, args)), None)
        return {"host": self._host, **answer, "flow": _Names(built).flow(flow) if flow else None}

    def _flows(self, built: Built, args: Args) -> dict[str, Any]:
        port = _asked_port(built, args)
        names = _Names(built)
        found = (flow for flow in self._datapath.flows() if port is None or _concerns(flow, port.id))
        return {"flows": [names.flow(flow) for flow in found]}

    def _drops(self, built: Built, args: Args) -> dict[str, Any]:
        self.collect()
        port = _asked_port(built, args)
        places = {place.counter: place for place in _places(built)}
        counts = self._datapath.drop_counts()
        rules = []
        for key, hits in sorted(self._datapath.rule_hits().items()):
            place = places.get(key)
            if hits.drops and place is not None and (port is None or place.port == port):
                rules.append(
                    {
                        "endpoint": place.port.name,
                        "layer": place.layer,
                        "group": place.group,
                        "rule": place.rule.name,
                        "packets": hits.drops,
                    }
                )
        ports = {one.id: one for one in built.engine.ports}
        recent = [
            {"time": time_s, **_event_row(event, ports, places)}
            for time_s, event in reversed(self._recent)
            if port is None or event.port == port.id
        ]
        reasons = [
            {"reason": reason.name, "packets": count} for reason, count in sorted(counts.items()) if count
        ]
        inspections = self._datapath.inspect_counts()
        if lost := max(0, inspections.sent - inspections.returned):
            reasons.append({"reason": "INSPECT_NOT_RETURNED", "packets": lost})    # an inspector's drops, or nobody's
        return {"reasons": reasons, "rules": rules, "recent": recent}

    def _logged(self, built: Built, args: Args) -> dict[str, Any]:
        self.collect()
        port = _asked_port(built, args)
        places = {place.counter: place for place in _places(built)}
        ports = {one.id: one for one in built.engine.ports}
        return {
            "recent": [
                {"time": time_s, **_packet_row(event, ports, places)}
                for time_s, event in reversed(self._logs)
                if port is None or event.port == port.id
            ]
        }

    def _rules(self, built: Built, args: Args) -> dict[str, Any]:
        port = _asked_port(built, args)
        hits = self._datapath.rule_hits()
        rows: dict[tuple[int, int, Direction], dict[str, Any]] = {}
        sets = {given.id: given.name for given in built.engine.sets}
        for place in _places(built):
            if port is not None and place.port != port:
                continue
            key = (*place.counter, place.direction)
            text = match_text(place.rule.match, sets)
            if key in rows:                 # one rule of a policy, several ports: one counter
                rows[key]["match"] += f" or {text}"
                continue
            counted = hits.get(place.counter)
            rows[key] = {
                "endpoint": place.port.name,
                "direction": place.direction.value,
                "layer": place.layer,
                "group": place.group,
                "priority": place.rule.priority,
                "match": text,
                "action": action_text(place.rule.action),
                "rule": place.rule.name,
                "hits": counted.hits if counted else 0,
                "drops": counted.drops if counted else 0,
            }
        return {"rules": list(rows.values())}


def _asked_port(built: Built, args: Args, required: bool = False) -> Port | None:
    uid = args.get("port")
    if uid is None:
        if required:
            raise BadQuery("argument port is missing: give the endpoint's uid")
        return None
    number = built.port_ids.get(uid)
    for port in built.engine.ports:
        if port.id == number:
            return port
    raise BadQuery(f"endpoint {uid} is not programmed on this host; see its status")


def _entrance(port: Port | None, args: Args) -> tuple[Hook, int]:
    """Where the imagined packet enters: from the endpoint, from the overlay, or from the host's stack."""
    direction = args.get("direction", "out")
    if direction == "in" and args.get("vni") is not None:
        return Hook.OVERLAY_IN, _number(args, "vni")
    if direction not in ("in", "out") or port is None:
        raise BadQuery(f"direction {direction!r}: use out with a port, or in with a port or a vni")
    return (Hook.PORT_OUT if direction == "out" else Hook.PORT_IN), port.id


def _address(args: Args, name: str) -> IPv4Address:
    try:
        return IPv4Address(args.get(name, ""))
    except ValueError:
        raise BadQuery(f"argument {name}: {args.get(name)!r} is no IPv4 address") from None


def _number(args: Args, name: str) -> int:
    value = args.get(name) or 0
    if not isinstance(value, int) or not 0 <= value < 1 << 24:
        raise BadQuery(f"argument {name}: {value!r} is not a number that fits")
    return value


_HOOK_ZONES = {Hook.PORT_OUT: ZoneKind.PORT, Hook.OVERLAY_IN: ZoneKind.OVERLAY, Hook.PORT_IN: ZoneKind.HOST}
_PORT_ZONES = (ZoneKind.PORT, ZoneKind.HOST)


def _concerns(flow: FlowRecord, port: int) -> bool:
    return port in flow.ports or (flow.zone_kind in _PORT_ZONES and flow.zone == port)


def _is_of(flow: FlowRecord, hook: Hook, number: int, args: Args) -> bool:
    """Whether a flow is that of the traced packet; a source port that was not given fits any."""
    return (
        (flow.zone_kind, flow.zone) == (_HOOK_ZONES[hook], number)
        and flow.protocol == _number(args, "protocol")
        and (str(flow.src), str(flow.dst)) == (args["source"], args["destination"])
        and (flow.protocol == 1 or flow.dst_port == _number(args, "destination_port"))
        and _number(args, "source_port") in (0, flow.src_port)
    )


def _places(built: Built) -> Iterator[_Place]:
    for port in built.engine.ports:
        for layer in port.layers:
            for direction, groups in ((Direction.OUT, layer.groups_out), (Direction.IN, layer.groups_in)):
                for group in groups:
                    for rule in sorted(group.rules, key=lambda rule: rule.priority):
                        yield _Place(port, direction, layer.name, group.name, rule)


class _Names:
    """Ids of the engine as words."""

    def __init__(self, built: Built) -> None:
        self._ports = {port.id: port.name for port in built.engine.ports}
        self._links = {port.ifindex: f"port {port.name}" for port in built.engine.ports}
        self._uplinks = {uplink.id: uplink.name for uplink in built.engine.uplinks}
        self._links |= {uplink.ifindex: f"uplink {uplink.name}" for uplink in built.engine.uplinks}

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
            return f"vtep {IPv4Address(flow.vtep)} vni {flow.vni}"
        return self._links.get(flow.ifindex, flow.place) if flow.place in ("port", "uplink") else flow.place


def _event_row(
    event: DropEvent, ports: Mapping[int, Port], places: Mapping[tuple[int, int], _Place]
) -> dict[str, Any]:
    port = ports.get(event.port)
    row = _packet_row(event, ports, places)
    if not row["layer"] and port is not None and event.layer is not None and event.layer < len(port.layers):
        row["layer"] = port.layers[event.layer].name
    return {"reason": event.reason.name, **row}


def _packet_row(
    event: PacketEvent, ports: Mapping[int, Port], places: Mapping[tuple[int, int], _Place]
) -> dict[str, Any]:
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
