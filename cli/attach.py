"""`sluice attach` and `sluice detach`: this host's namespaces and machines, by the agent's local socket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.kinds import DEFAULT_TENANT, kind_named, parse_reference
from cli.output import Column, Format, dump, join, plain, show
from cli.problems import USAGE, Problem, problem
from cli.publish import mapping

if TYPE_CHECKING:
    from runtimes.local import LocalError

RUNTIME = "attach"
INTERFACE = "eth0"
_NAMED = ("/run/netns/", "/var/run/netns/")

Socket = Annotated[
    str, typer.Option("--socket", metavar="PATH", show_default=False,
                      help="The agent to ask. Default: $SLUICE_AGENT, else /run/sluice/agent.sock."),
]
Netns = Annotated[
    str, typer.Option("--netns", metavar="NAME|PID", show_default=False,
                      help="A namespace under /run/netns, a path of one, or a process in one."),
]
Tap = Annotated[str, typer.Option("--tap", metavar="NAME", help="A tap device, for a machine.", show_default=False)]


def attach(
    network: Annotated[str, typer.Option("--network", metavar="NAME", help="NAME or TENANT/NAME.")],
    netns: Netns = "",
    tap: Tap = "",
    name: Annotated[str, typer.Option("--name", help="Of the endpoint. Default: made of the place.",
                                      show_default=False)] = "",
    ip: Annotated[list[str] | None, typer.Option(
        "--ip", metavar="ADDRESS", show_default=False,
        help="This address; once for each family. Default: a free one.")] = None,
    mac: Annotated[str, typer.Option("--mac", help="Default: one of its own.", show_default=False)] = "",
    interface: Annotated[str, typer.Option("--interface", metavar="NAME", help="Name in the namespace. Default: eth0.",
                                           show_default=False)] = "",
    publish: Annotated[list[str] | None, typer.Option(
        "-p", "--publish", metavar="[IP:][OUTER]:INNER[/PROTO]", show_default=False,
        help="Ports of this host that lead to it: 8080:80, 127.0.0.1:53:53/udp, 8000-8010:8000-8010, :80 for a free"
        " one.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", show_default=False,
                                                    help="What policies select it by.")] = None,
    egress: Annotated[str, typer.Option("--egress", metavar="RATE", help="At most so much from it: 100mbit.",
                                        show_default=False)] = "",
    ingress: Annotated[str, typer.Option("--ingress", metavar="RATE", help="At most so much to it.",
                                         show_default=False)] = "",
    queues: Annotated[int, typer.Option("--queues", min=1, max=64, help="Of a tap device.")] = 1,
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    socket: Socket = "",
) -> None:
    """Attach a namespace or a machine of this host to a network. The port is up when this returns.

    Repeated with the same arguments it says what is there.
    """
    reference = parse_reference(kind_named("network"), network, tenant)
    place, identity = _place(netns, tap, interface)
    if queues > 1 and not tap:
        raise problem("--queues", "only tap devices have queues", str(queues), "leave it out, or give --tap", USAGE)
    qos = {direction: {"rate": rate} for direction, rate in (("egress", egress), ("ingress", ingress)) if rate}
    published = publish or []
    found = _ask(
        "attach", socket, published, runtime=RUNTIME, id=identity, network=reference.name, tenant=reference.tenant,
        name=name or None, interface=None if tap else interface or INTERFACE, addresses=ip or None, mac=mac or None,
        labels=_labels(label or ()) or None, qos=qos or None, mappings=[mapping(each) for each in published] or None,
        queues=queues if tap else None, **place)
    if output is not Format.TABLE:
        dump(found, output)
        return
    show([found], _COLUMNS, output)


def detach(
    endpoint: Annotated[str, typer.Argument(metavar="[ENDPOINT]", help="NAME or TENANT/NAME.",
                                            show_default=False)] = "",
    netns: Netns = "",
    tap: Tap = "",
    interface: Annotated[str, typer.Option("--interface", metavar="NAME", show_default=False,
                                           help="With --netns: only this one. Default: all that were attached.")] = "",
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="It is no error if it is not there.")] = False,
    tenant: options.Tenant = None,
    socket: Socket = "",
) -> None:
    """Release what `sluice attach` attached: its interface, address and ports."""
    if bool(endpoint) + bool(netns) + bool(tap) != 1:
        raise problem("", "what is to be detached is not said, or said twice", "", "give one of ENDPOINT, --netns and"
                      " --tap", USAGE)
    going, what = _matching(_ask("list", socket, ())["attachments"], endpoint, netns, tap, interface, tenant)
    for each in going:
        _ask("detach", socket, (), runtime=RUNTIME, id=each["id"])
        print(f"{each['tenant']}/{each['name']} detached")
    if not going and not missing_ok:
        raise problem(what[0], "nothing is attached there" if not endpoint else "no such endpoint is attached here",
                      what[1], "`sluice get endpoints` lists them")


def _matching(
    attachments: list[dict[str, Any]], endpoint: str, netns: str, tap: str, interface: str, tenant: str | None
) -> tuple[list[dict[str, Any]], tuple[str, str]]:
    """Those that are meant, and how they were named."""
    if endpoint:
        reference = parse_reference(kind_named("endpoint"), endpoint, tenant)
        found = [each for each in attachments if (each["tenant"], each["name"]) == (reference.tenant, reference.name)]
        for other in found:
            if other["runtime"] != RUNTIME:
                raise problem("ENDPOINT", f"{endpoint} is not of `sluice attach`", f"attached by {other['runtime']}",
                              f"have {other['runtime']} disconnect it, or stop its container")
        return found, ("ENDPOINT", f"{reference.tenant or DEFAULT_TENANT}/{reference.name}")
    place, _ = _place(netns, tap, interface)
    where = f"/proc/{place['pid']}/ns/net" if "pid" in place else place.get("netns")
    mine = [each for each in attachments if each["runtime"] == RUNTIME]
    if tap:
        return [each for each in mine if not each["netns"] and each["interface"] == tap], ("--tap", tap)
    there = [each for each in mine if each["netns"] == where and interface in ("", each["interface"])]
    return there, ("--netns", netns)


def _place(netns: str, tap: str, interface: str) -> tuple[dict[str, Any], str]:
    """Where it is, as the agent is told, and an id for it: what no two attachments share."""
    if bool(netns) == bool(tap):
        raise problem("--netns", "exactly one of --netns and --tap says where the endpoint is",
                      f"{netns} and {tap}" if tap else "neither", "give one of them", USAGE)
    if tap:
        if interface:
            raise problem("--interface", "a machine names its interface itself", interface, "leave it out", USAGE)
        return {"tap": tap}, f"tap:{tap}"
    for folder in _NAMED:
        if netns.startswith(folder):
            netns = netns.removeprefix(folder)
    suffix = interface or INTERFACE
    if netns.isascii() and netns.isdecimal() and not (Path(_NAMED[0]) / netns).exists():
        return {"pid": int(netns)}, f"pid:{int(netns)}:{suffix}"
    return {"netns": netns}, f"netns:{netns}:{suffix}"


def _labels(given: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise problem("--label", "is not KEY=VALUE", text, "write it like --label app=web", USAGE)
        if found.setdefault(key, value) != value:
            raise problem("--label", f"{key} is given twice", text, "keep one of them", USAGE)
    return found


def _ask(op: str, socket: str, published: Iterable[str], **arguments: Any) -> dict[str, Any]:
    from runtimes.local import LocalError
    from runtimes.patient import ask

    try:
        return ask(op, socket, **arguments)
    except LocalError as error:
        raise _refused(error, list(published)) from None


# Fields of the agent's and the controller's refusals, as they are called here.
_OPTIONS = {
    "network": "--network", "netns": "--netns", "pid": "--netns", "tap": "--tap", "name": "--name", "mac": "--mac",
    "interface": "--interface", "addresses": "--ip", "labels": "--label", "qos": "--egress", "mappings": "-p",
    "tenant": "--tenant", "queues": "--queues", "socket": "--socket",
    "spec.network": "--network", "spec.netns": "--netns", "spec.tap": "--tap", "spec.mac": "--mac",
    "spec.interface": "--interface", "spec.address": "--ip", "spec.address6": "--ip", "spec.externalPort": "-p",
    "spec.internalPort": "-p", "spec.externalAddress": "-p", "spec.qos": "--egress", "spec.qos.egress": "--egress",
    "spec.qos.egress.rate": "--egress", "spec.qos.ingress": "--ingress", "spec.qos.ingress.rate": "--ingress",
    "metadata.name": "--name", "metadata.tenant": "--tenant", "metadata.labels": "--label",
}


def _refused(error: LocalError, published: list[str]) -> Problem:
    """The agent's refusal, by the option that it is about."""
    head, bracket, rest = error.field.partition("[")
    where = _OPTIONS.get(error.field) or _OPTIONS.get(head, error.field)
    number = rest.partition("]")[0]
    if head == "mappings" and bracket and number.isdecimal() and int(number) < len(published):
        where = f"-p {published[int(number)]}"
    return problem(where, error.message, error.found, error.todo)


def _mapping_cell(one: Mapping[str, Any]) -> str:
    address = one.get("externalAddress", "")
    address = f"[{address}]" if ":" in address else address
    outer = f"{address}:{one.get('externalPort', '')}" if address else one.get("externalPort", "")
    return f"{outer}->{one.get('internalPort', one.get('externalPort', ''))}/{one['protocol']}"


_COLUMNS: list[Column] = [
    ("ENDPOINT", lambda row: plain(f"{row['tenant']}/{row['name']}")),
    ("NETWORK", lambda row: plain(row["network"])),
    ("ADDRESS", lambda row: plain(join(row["addresses"]) or "-")),
    ("MAC", lambda row: plain(row["mac"] or "-")),
    ("INTERFACE", lambda row: plain(f"{row['interface']} in {row['netns']}" if row["netns"] else row["interface"])),
    ("PORTS", lambda row: plain(join(map(_mapping_cell, row["mappings"])) or "-")),
]

__all__ = ["attach", "detach"]
