"""`sluice nat`: what the NAT of hosts does, and a record of each binding."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli import options
from cli.connection import controller
from cli.kinds import DEFAULT_TENANT, kind_named, parse_reference
from cli.look import complain, rows_of
from cli.output import Column, Format, dump, join, plain, show, styled
from cli.problems import USAGE, problem

Row = Mapping[str, Any]

MOST_ROWS = 20_000
SHOWN_BINDINGS = 50                         # in the overview; `sluice nat bindings` shows more
NEARLY_FULL, FULL = 80.0, 95.0              # percent

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 47: "gre", 50: "esp", 58: "icmpv6", 132: "sctp", 136: "udplite"}


class Section(StrEnum):
    """What to show."""

    PREFIXES = "prefixes"
    POOLS = "pools"
    MAPPINGS = "mappings"
    BINDINGS = "bindings"
    LOG = "log"


def nat(
    section: Annotated[
        Section | None, typer.Argument(help="Only this; log: records of bindings, until Ctrl-C.", show_default=False)
    ] = None,
    network: Annotated[
        str, typer.Option("--network", metavar="NETWORK", help="Only of this network: NAME or TENANT/NAME.",
                          show_default=False)
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, max=MOST_ROWS, show_default=False,
                     help=f"At most so many bindings of a host; default: 1000, {SHOWN_BINDINGS} without a section."),
    ] = None,
    host: options.Host = "",
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """Prefixes, pools with their use, static mappings with their hits, bindings; or the log of bindings."""
    path = _network(network, tenant)
    if section is Section.LOG:
        if output is Format.YAML:
            raise problem("-o", "the log is JSON lines", output.value, "leave it out", USAGE)
        _follow(host, path, api)
        return
    if limit is None:
        limit = 1000 if section else SHOWN_BINDINGS
    with controller(api) as client:
        answers = client.nat(host=host, network=path, section=section.value if section else "", limit=limit)
    if output is Format.TABLE:
        _tables(answers.get("hosts") or [], section)
    else:
        dump(answers, output)
    for answer in answers.get("hosts") or []:
        shown, total = len(answer.get("bindings") or []), answer.get("total") or 0
        if total > shown:
            text = f"{shown} of {total} bindings of host {answer.get('host')} are shown; --limit shows more"
            print(text, file=sys.stderr)
    complain(answers)


def _tables(hosts: list[Row], section: Section | None) -> None:
    if section is not None:
        show(rows_of(hosts, section.value), _COLUMNS[section], Format.TABLE, f"no {section.value}")
        return
    for number, (each, columns) in enumerate(_COLUMNS.items()):
        print(("\n" if number else "") + each.value.capitalize())
        sys.stdout.flush()
        show(rows_of(hosts, each.value), columns, Format.TABLE, "none")
        sys.stderr.flush()


def _network(text: str, tenant: str | None) -> str:
    if not text:
        return ""
    reference = parse_reference(kind_named("Network"), text, tenant)
    return f"{reference.tenant or DEFAULT_TENANT}/{reference.name}"


def _follow(host: str, network: str, api: str) -> None:
    """Print each record as a line of JSON. Does not return but by an exception.

    What came too fast to be told is a record of its own, in its place: whoever keeps records knows that some lack.
    """
    lost: dict[str, int] = {}
    with controller(api) as client:
        for message in client.nat_log(host, network):
            where = str(message.get("host", ""))
            if message.get("type") == "error":
                print(f"host {where}: {message['message']}", file=sys.stderr)
                if host or network:
                    raise problem(f"host {where}", "the log ended", str(message["message"]), "run the command again")
                _line({"time": _now(), "host": where, "event": "interrupted", "reason": message["message"]})
            if (more := message.get("lost", 0) - lost.get(where, 0)) > 0:
                _line({"time": _now(), "host": where, "event": "lost", "records": more})
            if "lost" in message:
                lost[where] = message["lost"]
            for record in message.get("records") or []:
                _line({"time": record.get("time"), "host": where, **record})
            sys.stdout.flush()
    raise problem("log", "the controller closed the connection", "", "run the command again")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _line(record: Row) -> None:
    sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")


def _protocol(row: Row) -> str:
    number = row.get("protocol")
    return _PROTOCOLS.get(number, str(number)) if isinstance(number, int) else str(number)


def _cell(field: str) -> Callable[[Row], Any]:
    return lambda row: plain("-" if row.get(field) in (None, "", 0) else row[field])


def _number(field: str) -> Callable[[Row], Any]:
    return lambda row: plain(row.get(field) or 0)


def _end(address: str, port: str) -> Callable[[Row], Any]:
    def cell(row: Row) -> Any:
        return plain(_with_port(str(row.get(address, "")), row.get(port)))

    return cell


def _with_port(address: str, port: object) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _outside(row: Row) -> Any:
    return plain(join(_with_port(str(one), row.get("external_ports")) for one in row.get("addresses") or []) or "-")


def _status(good: str) -> Callable[[Row], Any]:
    return lambda row: styled(row.get("status") or "-", "green" if row.get("status") == good else "yellow")


def _used(row: Row) -> Any:
    percent = float(row.get("percent") or 0)
    style = "bold red" if percent >= FULL else "yellow" if percent >= NEARLY_FULL else ""
    return styled(f"{percent:.1f}%", style)


def _blocks(row: Row) -> Any:
    return plain(f"{row.get('blocks') or 0} of {row['block']} ports" if row.get("block") else "-")


def _idle(row: Row) -> Any:
    return plain(f"{float(row.get('idle_s') or 0):.0f}s")


_HOST: Column = ("HOST", _cell("host"))
_COLUMNS: dict[Section, list[Column]] = {
    Section.PREFIXES: [
        _HOST,
        ("NETWORK", _cell("network")),
        ("PREFIX", _cell("prefix")),
        ("GATEWAY", _cell("gateway")),
        ("ENDPOINTS", _number("endpoints")),
        ("TRANSLATED", _cell("translation")),
        ("STATUS", _status("ready")),
    ],
    Section.POOLS: [
        _HOST,
        ("NETWORK", _cell("network")),
        ("UPLINK", _cell("uplink")),
        ("ADDRESS", _cell("address")),
        ("PORTS", _cell("ports")),
        ("TCP", _number("tcp")),
        ("UDP", _number("udp")),
        ("ICMP", _number("icmp")),
        ("OTHER", _number("other")),
        ("USED", _used),
        ("FILTERING", _cell("filtering")),
        ("BLOCKS", _blocks),
        ("QUOTA", _cell("quota")),
    ],
    Section.MAPPINGS: [
        _HOST,
        ("MAPPING", _cell("mapping")),
        ("PROTO", _cell("protocol")),
        ("OUTSIDE", _outside),
        ("ENDPOINT", _cell("endpoint")),
        ("INSIDE", _end("internal", "internal_ports")),
        ("HITS", _number("hits")),
        ("STATUS", _status("open")),
    ],
    Section.BINDINGS: [
        _HOST,
        ("ENDPOINT", _cell("endpoint")),
        ("NETWORK", _cell("network")),
        ("PROTO", lambda row: plain(_protocol(row))),
        ("INSIDE", _end("source", "source_port")),
        ("OUTSIDE", _end("external", "external_port")),
        ("IDLE", _idle),
    ],
}
