"""Traces: a packet followed through this host by the reference engine, and beside it by the kernel's programs."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent import arguments
from agent.arguments import Args
from agent.build import Built
from agent.errors import BadQuery
from agent.names import Names, Place, Row
from agent.seams import DatapathSeam
from vfp.compile import rule_cookie
from vfp.datapath.engine import Hook as DatapathHook
from vfp.datapath.errors import DatapathError
from vfp.datapath.records import FlowRecord
from vfp.datapath.trace import Traced
from vfp.layout import PlaceKind, ZoneKind
from vfp.reasons import DropReason
from vfp.reference.bindings import PeekedBindings
from vfp.reference.craft import frame_of
from vfp.reference.explain import Explanation, explain_frame, probe
from vfp.reference.packet import TCP_SYN, FlowTuple
from vfp.reference.zones import Hook

__all__ = ["trace"]

LONGEST_LIVE = 3400                         # bytes: BPF_PROG_TEST_RUN takes what fits a page

_ZONES = {Hook.PORT_OUT: ZoneKind.PORT, Hook.OVERLAY_IN: ZoneKind.OVERLAY, Hook.PORT_IN: ZoneKind.HOST}
_VERDICTS = {PlaceKind.NONE: "drop", PlaceKind.STACK: "stack", PlaceKind.REPLY: "reply"}
_AGAIN, _PAUSE_S = 3, 0.05                  # traffic may take a NAT port between the two, a change the policy

Places = Mapping[tuple[int, int], Place]


def trace(current: Callable[[], tuple[Built, Places]], datapath: DatapathSeam, args: Args) -> Row:
    """What becomes of a packet that enters here, and whether a flow for it exists.

    Args:
        current: what is programmed, and where its rules stand by (port id, cookie).
        args: port (uid) and direction, or vni; a frame, or the fields of one; `live`: run it in the kernel, too.

    Raises:
        BadQuery: an argument is missing or wrong.
    """
    for _ in range(_AGAIN):
        built, places = current()
        port = arguments.asked_port(built, args, required=args.get("vni") is None)
        hook, number = arguments.entrance(port, args)
        frame = arguments.data(args, "frame") or _imagined(built, hook, number, args)
        bindings = PeekedBindings(datapath)
        members = {given.id: datapath.members(given.id) for given in built.engine.sets if given.dynamic}
        explained = explain_frame(built.engine, hook, number, frame, time.monotonic(), bindings=bindings,
                                  members=members)
        live = _live(built, places, datapath, hook, number, frame, explained) if args.get("live") else None
        if live is None or live["agrees"]:
            break
        time.sleep(_PAUSE_S)
    answer = explained.to_dict() | {"frame": base64.b64encode(explained.frame).decode(), "live": live}
    what = explained.packet.tuple if explained.packet and explained.packet.is_flow else None
    flow = _flow(datapath, hook, number, what, args) if what else None
    return answer | {"packet": _tuple_row(what), "flow": Names(built).flow(flow) if flow else None}


def _imagined(built: Built, hook: Hook, number: int, args: Args) -> bytes:
    source, destination = arguments.address(args, "source"), arguments.address(args, "destination")
    if source.version != destination.version:
        raise BadQuery(f"argument destination: {destination} is of another family than {source}")
    flags = arguments.optional(args, "tcp_flags", 255)
    icmp_id = arguments.optional(args, "icmp_id", 65535)
    packet = probe(
        built.engine, hook, number, source=source, destination=destination,
        protocol=arguments.number(args, "protocol", 255), source_port=arguments.number(args, "source_port", 65535),
        destination_port=arguments.number(args, "destination_port", 65535),
        tcp_flags=TCP_SYN if flags is None else flags, icmp_type=arguments.optional(args, "icmp_type", 255),
        icmp_code=arguments.number(args, "icmp_code", 255), icmp_id=1 if icmp_id is None else icmp_id,
        dscp=arguments.number(args, "dscp", 63), src_mac=arguments.mac(args, "source_mac"),
        dst_mac=arguments.mac(args, "destination_mac"),
    )
    return frame_of(packet.tuple, packet.headers)


def _flow(datapath: DatapathSeam, hook: Hook, number: int, what: FlowTuple, args: Args) -> FlowRecord | None:
    """The entry for a packet; a source port or identifier that nobody named fits any."""
    if not arguments.flag(args, "any_source_port"):
        return datapath.flow_at(DatapathHook(hook.value), number, what)
    for flow in datapath.flows():
        if ((flow.zone_kind, flow.zone, flow.protocol) == (_ZONES[hook], number, what.protocol)
                and (flow.src, flow.dst) == (what.src, what.dst)
                and (flow.protocol in (1, 58) or flow.dst_port == what.dst_port)):
            return flow
    return None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one of the two engines says."""

    verdict: str
    reason: str
    decided_by: Row | None
    leaves: Row
    rules: tuple[str, ...]
    frame: bytes                            # empty if it was dropped

    def row(self) -> Row:
        return {"verdict": self.verdict, "reason": self.reason, "denied_by": self.decided_by, "leaves": self.leaves,
                "frame": base64.b64encode(self.frame).decode()}

    def texts(self) -> dict[str, str]:
        return {
            "verdict": self.verdict, "reason": self.reason, "decided by": _place_text(self.decided_by),
            "leaves": " ".join(str(value) for value in self.leaves.values()),
            "rules that matched": ", ".join(self.rules), "bytes": self.frame.hex(),
        }


def _live(built: Built, places: Places, datapath: DatapathSeam, hook: Hook, number: int, frame: bytes,
          explained: Explanation) -> Row:
    """The kernel's word, and where it differs from the reference's."""
    if len(frame) > LONGEST_LIVE:
        raise BadQuery(f"the packet has {len(frame)} bytes; the kernel runs at most {LONGEST_LIVE}; leave --live out")
    try:
        traced = datapath.trace(DatapathHook(hook.value), number, frame)
    except DatapathError as error:
        raise BadQuery(f"the kernel does not run this packet: {error}") from error
    reference, kernel = _of_reference(explained, places), _of_kernel(built, traced, places)
    theirs = kernel.texts()
    differences = [{"field": field, "reference": said, "kernel": theirs[field]}
                   for field, said in reference.texts().items() if said != theirs[field]]
    return {**kernel.row(), "agrees": not differences, "differences": differences}


def _of_reference(explained: Explanation, places: Places) -> _Outcome:
    answer = explained.to_dict()
    hits = ((ref.port, rule_cookie(ref.layer, ref.group, ref.rule)) for ref in explained.decision.hits)
    dropped = explained.verdict == "drop"
    leaves = answer["leaves"] if explained.verdict == "forward" else {"to": "" if dropped else explained.verdict}
    return _Outcome(explained.verdict, answer["reason"], answer["denied_by"], leaves, _rules(hits, places),
                    b"" if dropped else explained.frame)


def _of_kernel(built: Built, traced: Traced, places: Places) -> _Outcome:
    verdict = _VERDICTS.get(traced.place, "forward")
    denied = None
    if traced.reason in (DropReason.DENIED, DropReason.REJECTED):
        place = places.get((traced.port, traced.cookie))
        denied = place.row() if place else {"port": str(traced.port), "layer": "", "group": "",
                                            "rule": f"{traced.cookie:#x}"}
    elif traced.reason is DropReason.LAYER_DEFAULT:
        port = next((port for port in built.engine.ports if port.id == traced.port), None)
        known = port is not None and traced.layer is not None and traced.layer < len(port.layers)
        layer = port.layers[traced.layer].name if known and port and traced.layer is not None else ""
        denied = {"port": port.name if port else str(traced.port), "layer": layer, "group": "", "rule": ""}
    leaves = Names(built).leaves(traced.place.name.lower(), traced.target, str(traced.vtep or ""), traced.target)
    reason = traced.reason.name if traced.reason else ""
    return _Outcome(verdict, reason, denied, leaves, _rules(traced.hits, places),
                    b"" if verdict == "drop" else traced.frame)


def _rules(hits: Any, places: Places) -> tuple[str, ...]:
    texts = []
    for port, cookie in hits:
        place = places.get((port, cookie))
        texts.append(_place_text(place.row()) if place else f"port {port} rule {cookie:#x}")
    return tuple(texts)


def _place_text(place: Row | None) -> str:
    if place is None:
        return ""
    within = f"{place['layer']}/{place['group']}" if place["group"] else place["layer"]
    return f"{place['port']} {within} {place['rule'] or 'default'}"


def _tuple_row(what: FlowTuple | None) -> Row | None:
    if what is None:
        return None
    return {"source": str(what.src), "destination": str(what.dst), "protocol": what.protocol,
            "source_port": what.src_port, "destination_port": what.dst_port}
