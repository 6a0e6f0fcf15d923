"""`sluice trace`: a packet, imagined or from a file, followed through the hosts; beside it, what the kernels say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import options
from cli.connection import controller
from cli.kinds import kind_named, parse_reference
from cli.output import Format, console, dump
from cli.problems import USAGE, Fault, Problem, problem, report
from cli.protocols import PROTOCOLS, Protocol, protocol_number, protocol_word

FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}

_Number = Mapping[str, Any]


def _option(name: str, most: int, text: str) -> Any:
    return typer.Option(name, min=0, max=most, help=text, show_default=False)


def trace(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The sending endpoint: NAME or TENANT/NAME.")],
    destination: Annotated[
        str | None, typer.Argument(metavar="[TO]", help="An endpoint, or an address.", show_default=False)
    ] = None,
    proto: Protocol = "tcp",
    port: Annotated[int | None, _option("--port", 65535, "Destination port.")] = None,
    source_port: Annotated[int | None, _option("--source-port", 65535, "Source port.")] = None,
    source_address: Annotated[
        str, typer.Option("--source-address", help="Not the endpoint's own address.", show_default=False)
    ] = "",
    source_mac: Annotated[
        str, typer.Option("--source-mac", help="Not the endpoint's own MAC.", show_default=False)
    ] = "",
    flags: Annotated[
        str, typer.Option("--flags", help="Of TCP: syn,ack or a number; default syn.", show_default=False)
    ] = "",
    icmp_type: Annotated[int | None, _option("--icmp-type", 255, "Default: echo request.")] = None,
    icmp_code: Annotated[int | None, _option("--icmp-code", 255, "Default: 0.")] = None,
    icmp_id: Annotated[int | None, _option("--icmp-id", 65535, "Identifier of an echo; default 1.")] = None,
    dscp: Annotated[int | None, _option("--dscp", 63, "Default: 0.")] = None,
    pcap: Annotated[
        Path | None,
        typer.Option("--pcap", metavar="FILE", help="Take a packet from a pcap or pcapng file.", show_default=False),
    ] = None,
    packet: Annotated[int, typer.Option("--packet", min=1, metavar="N", help="Which one of the file.")] = 1,
    live: Annotated[
        bool, typer.Option("--live", help="Run it through the kernels' programs, too; status 1 if they differ.")
    ] = False,
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """What would happen to a packet: each host, layer and rule it meets, and which one decides.

    It is judged as the first of a connection; whether there is a flow for it already is told beside. The status is 0
    when the question was answered, also when the answer is that the packet is dropped.
    """
    reference = parse_reference(kind_named("Endpoint"), source, tenant)
    more: dict[str, Any] = {
        name: value
        for name, value in (
            ("sourceAddress", source_address), ("sourceMac", source_mac), ("tcpFlags", _flags(flags)),
            ("icmpType", icmp_type), ("icmpCode", icmp_code), ("icmpId", icmp_id), ("dscp", dscp),
        )
        if value not in (None, "")
    }
    frame = b""
    if pcap is not None:
        _alone(destination, {"--port": port, "--source-port": source_port} | {f"--{key}": more[key] for key in more})
        frame, title = _from_file(pcap, packet)
    elif packet != 1:
        raise problem("--packet", "of which file?", str(packet), "name it by --pcap FILE", USAGE)
    else:
        destination, title = _imagined(destination, proto, port, more)
    number = protocol_number(proto)
    with controller(api) as client:
        answer = client.trace(
            reference.name, destination or "", protocol=PROTOCOLS.get(number, number),
            destination_port=port or 0, source_port=source_port or 0, tenant=reference.tenant, frame=frame, live=live,
            **more,
        )
    if output is not Format.TABLE:
        dump(answer, output)
    else:
        from cli.trace_view import draw

        console().print(draw(f"{reference.tenant}/{reference.name} → {title}", answer))
    _say_if_they_differ(answer)


def _imagined(destination: str | None, proto: str, port: int | None, more: _Number) -> tuple[str, str]:
    """Destination, and the packet in words."""
    if not destination:
        raise problem("TO", "to whom?", "", "name an endpoint, give an address, or take a packet by --pcap FILE", USAGE)
    number = protocol_number(proto)
    word = protocol_word(number)
    if port is None and word in ("tcp", "udp", "sctp"):
        raise problem("--port", f"{word} needs a destination port", "", "give --port N", USAGE)
    for option, field, wanted in (("--flags", "tcpFlags", "tcp"), ("--icmp-type", "icmpType", "icmp"),
                                  ("--icmp-code", "icmpCode", "icmp"), ("--icmp-id", "icmpId", "icmp")):
        if field in more and word != wanted and not (wanted == "icmp" and number == 58):
            raise problem(option, f"{word} has none", str(more[field]), f"use it with --proto {wanted}", USAGE)
    return destination, f"{destination}  {word}{f' port {port}' if port else ''}"


def _alone(destination: str | None, others: Mapping[str, Any]) -> None:
    """A packet of a file says itself all that the others say."""
    given = ["TO"] if destination else []
    given += [option for option, value in others.items() if value not in (None, "")]
    if given:
        raise problem("--pcap", f"the packet says itself what {given[0]} says", ", ".join(given),
                      "leave one of the two out", USAGE)


def _from_file(path: Path, number: int) -> tuple[bytes, str]:
    from cli.pcap import read_frame

    frame = read_frame(path, number)
    cut = "" if frame.captured == len(frame.data) else f", of which {frame.captured} are in the file"
    return frame.data, f"packet {number} of {path}, {len(frame.data)} bytes{cut}"


def _flags(text: str) -> int | None:
    if not text:
        return None
    try:
        return sum({FLAGS[word] for word in text.lower().split(",")})
    except KeyError:
        pass
    try:
        if 0 <= (value := int(text, 0)) <= 255:
            return value
    except ValueError:
        pass
    raise problem("--flags", "no such TCP flags", repr(text), f"use some of {','.join(FLAGS)}, or a number", USAGE)


def _say_if_they_differ(answer: Mapping[str, Any]) -> None:
    if answer.get("agrees", True):
        return
    faults = [
        Fault(f"host {hop.get('host')}: {each['field']}", "reference and kernel differ",
              f"reference {each['reference'] or 'nothing'!r}, kernel {each['kernel'] or 'nothing'!r}",
              "report this as a bug, with `sluice trace ... --live -o json`")
        for hop in answer.get("hops") or [] for each in (hop.get("live") or {}).get("differences") or []
    ]
    report(Problem(faults or [Fault("--live", "a host did not run the packet", "", "bring its agent to this version")]))
    raise typer.Exit(1)
