"""Answers to the controller's questions about the inside: trace, flows, drops, logs, rules,
meters, nat. Blocking; for the worker.

`trace` is a dry run of the reference engine on the state that was programmed last (and of the kernel's programs on
its tables); the rest comes from the kernel's tables, with ids put back into names.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from agent import arguments
from agent.arguments import Args
from agent.build import Built
from agent.claims import Claims
from agent.errors import BadQuery
from agent.goals import Goals
from agent.names import Names, Place, Row, event_row, packet_row, places
from agent.nat import NatSight, Recorder
from agent.overlaps import Overlap
from agent.seams import DatapathSeam
from agent.trace import trace
from agent.words import action_text, match_text
from vfp.datapath.records import DropEvent, LogEvent, MeterCount
from vfp.datapath.select import STATES, FlowFilter
from vfp.layout import Ring
from vfp.model import Direction, Port

__all__ = ["MOST_ROWS", "RECENT_DROPS", "RECENT_LOGS", "Inspector"]

RECENT_DROPS = 1000
RECENT_LOGS = 1000
MOST_ROWS = 20_000                          # of one answer: a frame of the session takes 8 MiB

_ORDERS = ("order", "hits", "drops")
_DUPLICATE = "duplicate-address"            # the rule of `policy.guard` for who announces another's address
_NOTHING = MeterCount(0, 0, 0, 0)


class Inspector:
    """Looks into one host's engine. `built`: what was programmed last, or None; `host`: our name.

    `goals`, `overlaps`: what it was made of, and the networks that the host's surroundings overlap.
    """

    def __init__(
        self, host: str, datapath: DatapathSeam, built: Callable[[], Built | None],
        goals: Callable[[], Goals] = Goals, overlaps: Callable[[], Mapping[str, Overlap]] = dict,
        claims: Claims | None = None,
    ) -> None:
        self._host = host
        self._datapath = datapath
        self._built = built
        self._goals = goals
        self._overlaps = overlaps
        self._claims = claims
        self._recorder = Recorder()
        self._recent: deque[tuple[float, DropEvent]] = deque(maxlen=RECENT_DROPS)
        self._logs: deque[tuple[float, LogEvent]] = deque(maxlen=RECENT_LOGS)
        self._places: tuple[Built, dict[tuple[int, int], Place]] | None = None
        self.listener: Callable[[list[Row], int], None] | None = None
        """Gets drops as they are collected, as rows with the port's uid, and how many events the kernel lost so far."""

    def collect(self) -> None:
        """Take what is in the event ring; the oldest beyond `RECENT_DROPS` and `RECENT_LOGS` are forgotten."""
        epoch_s = time.time() - time.monotonic()    # the engine stamps by the monotonic clock
        dropped: list[tuple[float, DropEvent]] = []
        for event in self._datapath.read_events():
            time_s = epoch_s + event.time_s
            match event:
                case DropEvent():
                    dropped.append((time_s, event))
                case LogEvent():
                    self._logs.append((time_s, event))
        self._recent.extend(dropped)
        if self._claims is not None and dropped and (built := self._built()) is not None:
            self._note_claims(built, dropped, self._claims)
        if self.listener is not None and dropped and (built := self._built()) is not None:
            uids = {number: uid for uid, number in built.port_ids.items()}
            rows = self._event_rows(built, dropped)
            told = [row | {"port": uids.get(event.port, "")} for row, (_, event) in zip(rows, dropped, strict=True)]
            self.listener(told, self._datapath.lost(Ring.EVENTS))

    def _note_claims(self, built: Built, dropped: list[tuple[float, DropEvent]], claims: Claims) -> None:
        known = self._places_of(built)
        uids: dict[int, str] = {}
        for _, event in dropped:
            place = known.get((event.port, event.cookie))
            if place is not None and place.rule.name == _DUPLICATE and event.src is not None:
                uids = uids or {number: uid for uid, number in built.port_ids.items()}
                claims.note(uids.get(event.port, ""), str(event.src))

    def answer(self, what: str, args: Args) -> Row:
        """The data of an `Answer`.

        Raises:
            BadQuery: an unknown question, a missing or wrong argument, or a port that is not here.
        """
        questions: dict[str, Callable[[Built, Args], Row]] = {
            "trace": self._trace,
            "flows": self._flows,
            "drops": self._drops,
            "logs": self._logged,
            "rules": self._rules,
            "meters": self._meters,
            "nat": self._nat,
        }
        if what not in questions:
            raise BadQuery(f"this agent does not know {what!r}; it knows {', '.join(questions)}")
        return questions[what](self.programmed(), args)

    def programmed(self) -> Built:
        """What was programmed last.

        Raises:
            BadQuery: nothing yet.
        """
        built = self._built()
        if built is None:
            raise BadQuery("this host has no goal state yet; wait for its first synchronisation")
        return built

    def _trace(self, built: Built, args: Args) -> Row:
        def current() -> tuple[Built, Mapping[tuple[int, int], Place]]:
            now = self.programmed()
            return now, self._places_of(now) if args.get("live") else {}

        return {"host": self._host, **trace(current, self._datapath, args)}

    def _flows(self, built: Built, args: Args) -> Row:
        port = arguments.asked_port(built, args)
        names = Names(built)
        page = self._datapath.select_flows(FlowFilter(
            port=port.id if port else 0, address=arguments.prefix(args, "address"),
            protocol=arguments.optional(args, "protocol", 255),
            transport_port=arguments.number(args, "transportPort", 65535),
            state=arguments.word(args, "state", STATES), limit=_limit(args),
        ))
        return {"flows": [names.flow(flow) for flow in page.flows], "total": page.total}

    def _drops(self, built: Built, args: Args) -> Row:
        self.collect()
        port = arguments.asked_port(built, args)
        known = self._places_of(built)
        counts = self._datapath.drop_counts()
        rules = []
        for key, hits in sorted(self._datapath.rule_hits().items()):
            place = known.get(key)
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
        wanted = [one for one in reversed(self._recent) if port is None or one[1].port == port.id]
        reasons = [
            {"reason": reason.name, "packets": count} for reason, count in sorted(counts.items()) if count
        ]
        inspections = self._datapath.inspect_counts()
        if lost := max(0, inspections.sent - inspections.returned):
            reasons.append({"reason": "INSPECT_NOT_RETURNED", "packets": lost})    # an inspector's drops, or nobody's
        return {"reasons": reasons, "rules": rules, "recent": self._event_rows(built, wanted)}

    def _logged(self, built: Built, args: Args) -> Row:
        self.collect()
        port = arguments.asked_port(built, args)
        known = self._places_of(built)
        ports = {one.id: one for one in built.engine.ports}
        rows = [
            {"time": time_s, **packet_row(event, ports, known)}
            for time_s, event in reversed(self._logs)
            if port is None or event.port == port.id
        ]
        return {"logs": rows[: _limit(args) or None], "total": len(rows)}

    def _nat(self, built: Built, args: Args) -> Row:
        return self._sight(built).answer(self._datapath, args)

    def read_bindings(self) -> list[Row]:
        """Take the records of bindings that have come, as rows for who follows."""
        events = self._datapath.read_binding_events()
        built = self._built()
        if built is None:
            return []
        return self._recorder.rows(self._sight(built), events, time.time() - time.monotonic())

    def _sight(self, built: Built) -> NatSight:
        return NatSight(self._goals(), built, self._overlaps())

    def _rules(self, built: Built, args: Args) -> Row:
        port = arguments.asked_port(built, args)
        layer = arguments.word(args, "layer")
        if layer and not any(layer == one.name for each in built.engine.ports for one in each.layers):
            known = dict.fromkeys(one.name for each in built.engine.ports for one in each.layers)
            raise BadQuery(f"no port here has a layer {layer!r}; there are {', '.join(known) or 'none'}")
        rows = self._rule_rows(built, port, layer)
        if arguments.flag(args, "unused"):
            rows = [row for row in rows if not row["hits"]]
        sort = arguments.word(args, "sort", _ORDERS) or "order"
        if sort != "order":
            rows.sort(key=lambda row: -int(row[sort]))      # stable: equals stay in the order of the walk
        return {"rules": rows[: _limit(args) or None], "total": len(rows)}

    def _meters(self, built: Built, args: Args) -> Row:
        """What metered endpoints sent and got, by the rule that let the flow begin."""
        port, network = args.get("port"), arguments.word(args, "network")
        ports = {one.id: one for one in self._goals().ports}
        networks = {one.id: f"{one.tenant}/{one.name}" for one in self._goals().networks}
        counts = self._datapath.meters() if built.meters else {}
        rows = []
        for meter in built.meters:
            goal = ports.get(meter.port)
            if goal is None or port not in (None, meter.port) or network not in ("", networks.get(goal.network)):
                continue
            counted = counts.get(meter.meter, _NOTHING)
            forward, reply = (counted.packets, counted.bytes), (counted.reply_packets, counted.reply_bytes)
            sent, received = (forward, reply) if meter.direction == "out" else (reply, forward)
            rows.append({
                "endpoint": f"{goal.tenant}/{goal.name}",
                "network": networks.get(goal.network, ""),
                "direction": meter.direction,
                "policy": meter.policy,
                "rule": meter.rule,
                "sent_packets": sent[0],
                "sent_bytes": sent[1],
                "received_packets": received[0],
                "received_bytes": received[1],
            })
        rows.sort(key=lambda row: (row["endpoint"], row["direction"] != "out", row["policy"], row["rule"]))
        return {"meters": rows[: _limit(args)], "total": len(rows)}

    def _rule_rows(self, built: Built, port: Port | None, layer: str) -> list[Row]:
        hits = self._datapath.rule_hits()
        rows: dict[tuple[int, int, Direction], Row] = {}
        sets = {given.id: given.name for given in built.engine.sets}
        for place in places(built):
            if (port is not None and place.port != port) or (layer and place.layer != layer):
                continue
            counter = place.counter
            key = (*counter, place.direction)
            text = match_text(place.rule.match, sets)
            if key in rows:                 # one rule of a policy, several peers or ports: one counter
                rows[key]["match"] += f" or {text}"
                continue
            counted = hits.get(counter)
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
        return list(rows.values())

    def _event_rows(self, built: Built, events: list[tuple[float, DropEvent]]) -> list[Row]:
        ports = {one.id: one for one in built.engine.ports}
        known = self._places_of(built)
        return [{"time": time_s, **event_row(event, ports, known)} for time_s, event in events]

    def _places_of(self, built: Built) -> dict[tuple[int, int], Place]:
        """Where each counted rule stands. Kept: a host may have 100,000 rules, and drops come all the time."""
        if self._places is None or self._places[0] is not built:
            self._places = built, {place.counter: place for place in places(built)}
        return self._places[1]


def _limit(args: Args) -> int:
    """Rows of the answer. Not given, or 0: as many as an answer takes."""
    return min(arguments.number(args, "limit") or MOST_ROWS, MOST_ROWS)
