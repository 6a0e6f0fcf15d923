"""Look inside the data path: flows, rules, drops, logs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import ip_network
from typing import Annotated, Any

import typer

from cli import options
from cli.connection import controller
from cli.following import clock, watch_drops, watch_flows
from cli.kinds import DEFAULT_TENANT, kind_named, parse_reference
from cli.output import Column, Format, dump, plain, show, styled
from cli.problems import USAGE, Fault, Problem, problem, report
from cli.protocols import PROTOCOLS, protocol_number

Row = Mapping[str, Any]

MOST_ROWS = 20_000

EndpointName = Annotated[
    str | None,
    typer.Argument(
        metavar="[ENDPOINT]", help="Only of this endpoint: NAME or TENANT/NAME.", show_default=False
    ),
]
Address = Annotated[
    str, typer.Option("--address", metavar="PREFIX", help="Source or destination is in it.", show_default=False)
]
AnyPort = Annotated[
    int | None, typer.Option("--port", min=1, max=65535, help="Source or destination port.", show_default=False)
]
SomeProtocol = Annotated[
    str, typer.Option("--proto", help="tcp, udp, icmp, sctp or an IP protocol number.", show_default=False)
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=MOST_ROWS, help="At most so many of a host.")]


class FlowState(StrEnum):
    """States of flows."""

    NEW = "new"
    OPENING = "opening"
    SYN_RECEIVED = "syn-received"
    ESTABLISHED = "established"
    FIN_WAIT = "fin-wait"
    TIME_WAIT = "time-wait"
    RESET = "reset"


class Order(StrEnum):
    """How rules are sorted."""

    ORDER = "order"
    HITS = "hits"
    DROPS = "drops"


def flows(
    endpoint: EndpointName = None,
    address: Address = "",
    port: AnyPort = None,
    proto: SomeProtocol = "",
    state: Annotated[FlowState | None, typer.Option("--state", help="In this state.", show_default=False)] = None,
    limit: Limit = 1000,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print flows as they begin, change state and end, until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.2, metavar="SECONDS", help="With --watch: between two looks.")
    ] = 1.0,
    host: options.Host = "",
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """The live flows of an endpoint, a host, or all hosts."""
    wanted = {
        "address": _prefix(address),
        "protocol": protocol_number(proto) if proto else "",
        "transportPort": port or "",
        "state": state.value if state else "",
        "limit": MOST_ROWS if watch else limit,
    }
    wanted = {name: value for name, value in wanted.items() if value != ""}
    if watch:
        watch_flows(_path(endpoint, tenant), host, wanted, interval, output, api)
        return
    _show("flows", endpoint, host, tenant, api, output, _FLOWS, wanted)


def rules(
    endpoint: EndpointName = None,
    layer: Annotated[str, typer.Option("--layer", help="Only of this layer.", show_default=False)] = "",
    sort: Annotated[Order, typer.Option("--sort", help="By the order of the walk, or the largest counter first.")] = (
        Order.ORDER
    ),
    unused: Annotated[bool, typer.Option("--unused", help="Only those that nothing has hit.")] = False,
    limit: Limit = 1000,
    host: options.Host = "",
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """The rules that are programmed, layer by layer, with how often each was hit."""
    wanted = {"layer": layer, "sort": sort.value, "limit": limit} | ({"unused": "true"} if unused else {})
    _show("rules", endpoint, host, tenant, api, output, _RULES, wanted)


def drops(
    endpoint: EndpointName = None,
    watch: Annotated[bool, typer.Option("--watch", help="Print drops as they happen, until Ctrl-C.")] = False,
    host: options.Host = "",
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """What was dropped: by reason, by rule, and the latest packets."""
    if watch:
        watch_drops(_path(endpoint, tenant), host, output, api)
        return
    answers = _ask("drops", endpoint, host, tenant, api, {})
    if output is not Format.TABLE:
        dump(answers, output)
    else:
        hosts = answers.get("hosts") or []
        if endpoint is None:
            print("By reason")
            show(rows_of(hosts, "reasons"), _DROP_REASONS, output, "no drops")
        print("By rule" if endpoint else "\nBy rule")
        show(rows_of(hosts, "rules"), _DROP_RULES, output, "no drops by a rule")
        print("\nLatest")
        show(rows_of(hosts, "recent"), _DROP_EVENTS, output, "none seen")
    complain(answers)


def logs(
    endpoint: EndpointName = None,
    limit: Limit = 1000,
    host: options.Host = "",
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """The latest packets that rules have logged (`log: true` in a policy)."""
    _show("logs", endpoint, host, tenant, api, output, _LOGS, {"limit": limit})


def _show(
    what: str,
    endpoint: str | None,
    host: str,
    tenant: str | None,
    api: str,
    output: Format,
    columns: list[Column],
    wanted: Mapping[str, str | int],
) -> None:
    answers = _ask(what, endpoint, host, tenant, api, wanted)
    hosts = answers.get("hosts") or []
    if output is Format.TABLE:
        show(rows_of(hosts, what), columns, output, f"no {what}")
    else:
        dump(answers, output)
    for answer in hosts:
        shown, total = len(answer.get(what) or []), answer.get("total") or 0
        if total > shown:
            text = f"{shown} of {total} {what} of host {answer.get('host')} are shown; --limit shows more"
            print(text, file=sys.stderr)
    complain(answers)


def _path(endpoint: str | None, tenant: str | None) -> str:
    if not endpoint:
        return ""
    reference = parse_reference(kind_named("Endpoint"), endpoint, tenant)
    return f"{reference.tenant or DEFAULT_TENANT}/{reference.name}"


def _ask(
    what: str, endpoint: str | None, host: str, tenant: str | None, api: str, wanted: Mapping[str, str | int]
) -> dict[str, Any]:
    path = _path(endpoint, tenant)
    with controller(api) as client:
        match what:
            case "flows":
                return client.flows(host=host, endpoint=path, **wanted)
            case "rules":
                return client.rules(host=host, endpoint=path, **wanted)
            case "logs":
                return client.logs(host=host, endpoint=path, **wanted)
            case _:
                return client.drops(host=host, endpoint=path)


def rows_of(hosts: list[Row], field: str) -> list[dict[str, Any]]:
    """The rows of all hosts in one list, each with its host."""
    return [{"host": answer.get("host", ""), **row} for answer in hosts for row in answer.get(field) or []]


def complain(answers: Mapping[str, Any]) -> None:
    """Hosts that could not answer: the listing is not whole, and the status must say so."""
    faults = [
        Fault(
            f"host {answer.get('host')}",
            "did not answer",
            str(answer["error"]),
            "see `sluice get hosts`; is its agent running?",
        )
        for answer in answers.get("hosts") or []
        if answer.get("error")
    ]
    if faults:
        report(Problem(faults))
        raise typer.Exit(1)


def _prefix(text: str) -> str:
    try:
        return str(ip_network(text, strict=False)) if text else ""
    except ValueError:
        raise problem("--address", "is no address or prefix", repr(text), "such as 10.1.0.0/24", USAGE) from None


def _cell(field: str) -> Any:
    return lambda row: plain("-" if row.get(field) in (None, "") else row[field])


def _of(row: Row, address: str, port: str) -> str:
    return f"{row.get(address, '')}:{row[port]}" if row.get(port) else str(row.get(address, ""))


def _protocol_cell(row: Row) -> Any:
    number = row.get("protocol")
    return plain(PROTOCOLS.get(number, str(number)) if isinstance(number, int) else str(number))


def _seconds(field: str) -> Any:
    return lambda row: plain(f"{float(row.get(field) or 0):.0f}s")


def _drop_count(row: Row) -> Any:
    drops = row.get("drops") or 0
    return styled(drops, "red" if drops else "dim")


def _clock(row: Row) -> Any:
    return plain(clock(row.get("time")))


_HOST: Column = ("HOST", _cell("host"))
_FLOWS: list[Column] = [
    _HOST,
    ("ENDPOINT", _cell("endpoint")),
    ("DIRECTION", _cell("direction")),
    ("PROTO", _protocol_cell),
    ("FROM", lambda row: plain(_of(row, "source", "source_port"))),
    ("TO", lambda row: plain(_of(row, "destination", "destination_port"))),
    ("STATE", _cell("state")),
    ("PACKETS", _cell("packets")),
    ("BYTES", _cell("bytes")),
    ("AGE", _seconds("age_s")),
    ("IDLE", _seconds("idle_s")),
    ("GOES", _cell("place")),
]
_RULES: list[Column] = [
    _HOST,
    ("ENDPOINT", _cell("endpoint")),
    ("DIR", _cell("direction")),
    ("LAYER", _cell("layer")),
    ("GROUP", _cell("group")),
    ("PRIORITY", _cell("priority")),
    ("RULE", _cell("rule")),
    ("MATCH", _cell("match")),
    ("ACTION", _cell("action")),
    ("HITS", _cell("hits")),
    ("DROPS", _drop_count),
]
_DROP_REASONS: list[Column] = [_HOST, ("REASON", _cell("reason")), ("PACKETS", _cell("packets"))]
_DROP_RULES: list[Column] = [
    _HOST,
    ("ENDPOINT", _cell("endpoint")),
    ("LAYER", _cell("layer")),
    ("GROUP", _cell("group")),
    ("RULE", _cell("rule")),
    ("PACKETS", _cell("packets")),
]
_LOGS: list[Column] = [
    _HOST,
    ("TIME", _clock),
    ("ENDPOINT", _cell("endpoint")),
    ("LAYER", _cell("layer")),
    ("GROUP", _cell("group")),
    ("RULE", _cell("rule")),
    ("PACKET", _cell("packet")),
]
_DROP_EVENTS: list[Column] = [
    _HOST,
    ("TIME", _clock),
    ("REASON", _cell("reason")),
    ("ENDPOINT", _cell("endpoint")),
    ("LAYER", _cell("layer")),
    ("GROUP", _cell("group")),
    ("RULE", _cell("rule")),
    ("PACKET", _cell("packet")),
]
