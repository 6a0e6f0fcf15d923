"""What goes on, line by line, until Ctrl-C: drops as they are told, flows as they come, change and go.

Drops are events: hosts tell them. The flow table tells nothing, so that it is read at an interval, and the difference
between two looks is printed. A connection that begins and ends between two looks is not seen.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from cli.connection import controller
from cli.output import Format, dump
from cli.problems import problem
from cli.protocols import PROTOCOLS

Row = Mapping[str, Any]
Flows = dict[tuple[Any, ...], Row]

_GONE = ("the controller closed the connection", "", "run the command again")


def watch_drops(endpoint: str, host: str, output: Format, api: str) -> None:
    """Print each drop. Does not return but by an exception."""
    lost: dict[str, int] = {}
    with controller(api) as client:
        for message in client.watch_drops(host, endpoint):
            where = str(message.get("host", ""))
            if message.get("type") == "error":
                print(f"host {where}: {message['message']}", file=sys.stderr)
                if endpoint or host:
                    raise problem(f"host {where}", "the watch ended", str(message["message"]), "run the command again")
            for record in message.get("records") or []:
                _emit({"host": where, **record}, drop_line, output)
            if (more := message.get("lost", 0) - lost.get(where, 0)) > 0:
                print(f"host {where}: {more} drops are not shown, they came too fast", file=sys.stderr)
            if "lost" in message:
                lost[where] = message["lost"]
            sys.stdout.flush()
    raise problem("watch", *_GONE)


def watch_flows(endpoint: str, host: str, wanted: Mapping[str, str | int], interval_s: float, output: Format,
                api: str) -> None:
    """Print the flows that are open, then each that begins, changes its state, or ends. Ends by an exception."""
    before: Flows | None = None
    told: set[str] = set()
    with controller(api) as client:
        while True:
            hosts = client.flows(host=host, endpoint=endpoint, **wanted).get("hosts") or []
            missing = {str(answer.get("host")) for answer in hosts if answer.get("error")}
            for answer in hosts:
                _warn(answer, told)
            now: Flows = {flow_key(row): row for row in forward_rows(hosts)}
            # A host that does not answer has not lost its flows.
            now = {key: row for key, row in (before or {}).items() if key[0] in missing} | now
            events = (("open", row) for row in now.values()) if before is None else differences(before, now)
            for event, row in events:
                _emit({"time": time.time(), "event": event, **row}, flow_line, output)
            sys.stdout.flush()
            before = now
            time.sleep(interval_s)


def _warn(answer: Row, told: set[str]) -> None:
    host, text = answer.get("host"), ""
    if answer.get("error"):
        text = f"host {host}: {answer['error']}"
    elif (answer.get("total") or 0) > len(answer.get("flows") or []):
        text = f"host {host}: has more flows than can be watched; narrow it down, by endpoint or --address"
    if text and text not in told:
        print(text, file=sys.stderr)
        told.add(text)


def forward_rows(hosts: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """One row of each connection: its forward half."""
    for answer in hosts:
        for row in answer.get("flows") or []:
            if row.get("direction") == "forward":
                yield {"host": answer.get("host", ""), **row}


def flow_key(row: Row) -> tuple[Any, ...]:
    """What makes a flow this one."""
    return tuple(row.get(name) for name in ("host", "zone", "protocol", "source", "source_port", "destination",
                                            "destination_port"))


def differences(before: Mapping[Any, Row], now: Mapping[Any, Row]) -> Iterator[tuple[str, Row]]:
    """(new | changed | ended, flow) between two looks. One that has counted less than before began anew."""
    for key, row in before.items():
        if key not in now:
            yield "ended", row
    for key, row in now.items():
        old = before.get(key)
        if old is None or row.get("packets", 0) < old.get("packets", 0):
            yield "new", row
        elif old.get("state") != row.get("state"):
            yield "changed", row


def clock(at: Any) -> str:
    """Time of day of seconds since the epoch."""
    if isinstance(at, int | float):
        return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S.%f")[:-3]
    return str(at or "-")


def drop_line(row: Row) -> str:
    """`12:00:00.123  h1  default/web  DENIED  acl default/no-web others  tcp 10.1.0.2:4711 > ...`."""
    by = " ".join(str(row[name]) for name in ("layer", "group", "rule") if row.get(name))
    words = (clock(row.get("time")), row.get("host"), row.get("endpoint") or "-", row.get("reason"), by or "-",
             row.get("packet"))
    return "  ".join(str(word) for word in words)


def flow_line(row: Row) -> str:
    """`12:00:00.123  new      h1  default/web  tcp 10.1.0.2:4711 > 10.1.0.3:80  new  1 packets, ...`."""
    number = row.get("protocol")
    protocol = PROTOCOLS.get(number, str(number)) if isinstance(number, int) else str(number)
    ends = " > ".join(
        f"{row.get(name)}:{row[port]}" if row.get(port) else str(row.get(name))
        for name, port in (("source", "source_port"), ("destination", "destination_port")))
    counted = f"{row.get('packets', 0)} packets, {row.get('bytes', 0)} bytes"
    words = (clock(row.get("time")), f"{row.get('event'):7}", row.get("host"), row.get("endpoint") or "-",
             f"{protocol} {ends}", row.get("state"), counted, row.get("place"))
    return "  ".join(str(word) for word in words)


def _emit(row: Row, line: Any, output: Format) -> None:
    if output is Format.TABLE:
        print("".join(char if char.isprintable() else "?" for char in line(row)))
    elif output is Format.JSON:
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("---\n")
        dump(dict(row), output)
