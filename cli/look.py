"""Look inside the data path: trace, flows, rules, drops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cli import options
from cli.connection import controller
from cli.kinds import DEFAULT_TENANT, kind_named, parse_reference
from cli.output import Column, Format, console, dump, plain, show, styled
from cli.problems import USAGE, Fault, Problem, problem, report

Row = Mapping[str, Any]

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}

EndpointName = Annotated[
    str | None,
    typer.Argument(
        metavar="[ENDPOINT]", help="Only of this endpoint: NAME or TENANT/NAME.", show_default=False
    ),
]
Protocol = Annotated[str, typer.Option("--proto", help="tcp, udp, icmp, sctp or an IP protocol number.")]
Port = Annotated[
    int | None, typer.Option("--port", min=1, max=65535, help="Destination port.", show_default=False)
]
SourcePort = Annotated[
    int | None, typer.Option("--source-port", min=1, max=65535, show_default=False, help="Source port.")
]


def trace(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The sending endpoint: NAME or TENANT/NAME.")],
    destination: Annotated[str, typer.Argument(metavar="TO", help="An endpoint, or an address.")],
    proto: Protocol = "tcp",
    port: Port = None,
    source_port: SourcePort = None,
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """What would happen to a packet: each host, layer and rule it meets, and which one decides.

    The status is 0 when the question was answered, also when the answer is that the packet is dropped.
    """
    protocol = _protocol(proto)
    if port is None and protocol in ("tcp", "udp", "sctp"):
        raise problem("--port", f"{protocol} needs a destination port", "", "give --port N", USAGE)
    reference = parse_reference(kind_named("Endpoint"), source, tenant)
    with controller(api) as client:
        answer = client.trace(
            reference.name,
            destination,
            protocol=protocol,
            destination_port=port or 0,
            source_port=source_port or 0,
            tenant=reference.tenant,
        )
    if output is not Format.TABLE:
        dump(answer, output)
        return
    from cli.trace_view import draw

    to_port = f" port {port}" if port else ""
    console().print(draw(f"{reference.tenant}/{reference.name} → {destination}  {protocol}{to_port}", answer))


def flows(
    endpoint: EndpointName = None,
    host: options.Host = "",
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """The live flows of an endpoint, a host, or all hosts."""
    _show("flows", endpoint, host, tenant, api, output, _FLOWS, "flows")


def rules(
    endpoint: EndpointName = None,
    host: options.Host = "",
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """The rules that are programmed, layer by layer, with how often each was hit."""
    _show("rules", endpoint, host, tenant, api, output, _RULES, "rules")


def drops(
    endpoint: EndpointName = None,
    host: options.Host = "",
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """What was dropped: by reason, by rule, and the latest packets."""
    answers = _ask("drops", endpoint, host, tenant, api)
    if output is not Format.TABLE:
        dump(answers, output)
    else:
        hosts = answers.get("hosts") or []
        if endpoint is None:
            print("By reason")
            show(_rows(hosts, "reasons"), _DROP_REASONS, output, "no drops")
        print("By rule" if endpoint else "\nBy rule")
        show(_rows(hosts, "rules"), _DROP_RULES, output, "no drops by a rule")
        print("\nLatest")
        show(_rows(hosts, "recent"), _DROP_EVENTS, output, "none seen")
    _complain(answers)


def _show(
    what: str,
    endpoint: str | None,
    host: str,
    tenant: str | None,
    api: str,
    output: Format,
    columns: list[Column],
    field: str,
) -> None:
    answers = _ask(what, endpoint, host, tenant, api)
    if output is Format.TABLE:
        show(_rows(answers.get("hosts") or [], field), columns, output, f"no {field}")
    else:
        dump(answers, output)
    _complain(answers)


def _ask(what: str, endpoint: str | None, host: str, tenant: str | None, api: str) -> dict[str, Any]:
    path = ""
    if endpoint:
        reference = parse_reference(kind_named("Endpoint"), endpoint, tenant)
        path = f"{reference.tenant or DEFAULT_TENANT}/{reference.name}"
    with controller(api) as client:
        ask = {"flows": client.flows, "rules": client.rules, "drops": client.drops}[what]
        return ask(host=host, endpoint=path)


def _rows(hosts: list[Row], field: str) -> list[dict[str, Any]]:
    """The rows of all hosts in one list, each with its host."""
    return [{"host": answer.get("host", ""), **row} for answer in hosts for row in answer.get(field) or []]


def _complain(answers: Mapping[str, Any]) -> None:
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


def _protocol(text: str) -> str:
    word = text.lower()
    if word in PROTOCOLS.values() or (word.isdecimal() and int(word) <= 255):
        return PROTOCOLS.get(int(word), word) if word.isdecimal() else word
    raise problem(
        "--proto", "no such protocol", repr(text), "use tcp, udp, icmp, sctp or a number up to 255", USAGE
    )


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
    from datetime import datetime

    at = row.get("time")
    if isinstance(at, int | float):
        return plain(datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S.%f")[:-3])
    return plain(at or "-")


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
