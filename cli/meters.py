"""What metered endpoints sent and got."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import options
from cli.connection import controller
from cli.kinds import DEFAULT_TENANT, kind_named, parse_reference
from cli.look import Row, complain, rows_of
from cli.output import Column, Format, dump, plain, show

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")

EndpointName = Annotated[
    str, typer.Option("--endpoint", metavar="NAME", help="Only this endpoint: NAME or TENANT/NAME.", show_default=False)
]
NetworkName = Annotated[
    str, typer.Option("--network", metavar="NAME", help="Only of this network: NAME or TENANT/NAME.",
                      show_default=False)
]


def meters(
    endpoint: EndpointName = "",
    network: NetworkName = "",
    host: options.Host = "",
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """Bytes and packets of endpoints with `qos.metering`, by direction and rule."""
    wanted = {"network": _path("Network", network, tenant)} if network else {}
    with controller(api) as client:
        answers = client.meters(host=host, endpoint=_path("Endpoint", endpoint, tenant) if endpoint else "", **wanted)
    if output is Format.TABLE:
        show(rows_of(answers.get("hosts") or [], "meters"), _METERS, output, "no endpoint is metered")
    else:
        dump(answers, output)
    complain(answers)


def _path(kind: str, name: str, tenant: str | None) -> str:
    reference = parse_reference(kind_named(kind), name, tenant)
    return f"{reference.tenant or DEFAULT_TENANT}/{reference.name}"


def _cell(field: str) -> Any:
    return lambda row: plain("-" if row.get(field) in (None, "") else row[field])


def _size(field: str) -> Any:
    return lambda row: plain(_bytes_text(int(row.get(field) or 0)))


def _bytes_text(size: int) -> str:
    """Decimal, with three digits at least: `-o json` has them all."""
    value = float(size)
    for unit in _UNITS:
        if value < 10_000 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("the last unit takes all")


def _begun(row: Row) -> Any:
    return plain("from it" if row.get("direction") == "out" else "to it")


_METERS: list[Column] = [
    ("HOST", _cell("host")),
    ("ENDPOINT", _cell("endpoint")),
    ("NETWORK", _cell("network")),
    ("FLOWS", _begun),
    ("POLICY", _cell("policy")),
    ("RULE", _cell("rule")),
    ("SENT", _size("sent_bytes")),
    ("PACKETS", _cell("sent_packets")),
    ("RECEIVED", _size("received_bytes")),
    ("PACKETS", _cell("received_packets")),
]
