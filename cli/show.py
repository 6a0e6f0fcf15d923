"""Show resources: get, describe, watch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.connection import controller
from cli.kinds import KINDS, Kind, Reference, kind_named, parse_reference
from cli.output import Format, console, dump, join, plain, show, styled
from cli.problems import problem

if TYPE_CHECKING:
    from rich.console import Console

    from controller.client import Client

Labels = Annotated[
    str, typer.Option("-l", "--labels", help="Only with these labels: app=web,tier!=db.", show_default=False)
]
KindName = Annotated[
    str, typer.Argument(metavar="KIND", help=f"One of {', '.join(kind.plural for kind in KINDS)}.")
]


def get(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="A kind of resource, or all.")],
    name: Annotated[
        str | None, typer.Argument(help="NAME or TENANT/NAME; all of them if absent.", show_default=False)
    ] = None,
    tenant: options.Tenant = None,
    labels: Labels = "",
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """List resources, or show one. Without a name: of all tenants, or of the one -t names."""
    if kind == "all" and name is None:
        _get_all(tenant, labels, output, api)
        return
    known = kind_named(kind)
    with controller(api) as client:
        if name is None:
            _table(known, _list(client, known, tenant, labels), output)
            return
        reference = parse_reference(known, name, tenant)
        resource = _get(client, reference)
    if output is Format.TABLE:
        _table(known, [resource], output)
    else:
        dump(resource, output)


def describe(
    kind: KindName,
    name: Annotated[str, typer.Argument(help="NAME or TENANT/NAME.")],
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """Everything about one resource, and what hangs on it."""
    known = kind_named(kind)
    reference = parse_reference(known, name, tenant)
    with controller(api) as client:
        resource = _get(client, reference)
        if output is not Format.TABLE:
            dump(resource, output)
            return
        related = _related(client, reference)
    _print_description(reference, resource)
    for title, (other, rows) in related.items():
        if rows:
            sys.stdout.write(f"\n{title}\n")
            _table(other, rows, Format.TABLE)


def watch(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help="Only this kind.", show_default=False)
    ] = None,
    tenant: options.Tenant = None,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
    since: Annotated[
        int | None,
        typer.Option(
            "--since", metavar="REVISION", show_default=False, help="First what changed after this revision."
        ),
    ] = None,
) -> None:
    """Print changes as they happen, until Ctrl-C."""
    name = kind_named(kind).name if kind else ""
    out = console()
    with controller(api) as client:
        for event in client.watch(name, tenant or "", since):
            if event.get("type") == "bookmark":
                continue
            if output is Format.TABLE:
                _print_event(out, event)
            elif output is Format.JSON:
                import json

                sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
            else:
                sys.stdout.write("---\n")
                dump(event, output)
            sys.stdout.flush()
    raise problem("watch", "the controller closed the connection", "", "run the command again")


def _get_all(tenant: str | None, labels: str, output: Format, api: str) -> None:
    with controller(api) as client:
        found = {kind: _list(client, kind, tenant, labels) for kind in KINDS}
    if output is not Format.TABLE:
        dump([resource for resources in found.values() for resource in resources], output)
        return
    first = True
    for kind, resources in found.items():
        if resources:
            sys.stdout.write(f"{'' if first else chr(10)}{kind.plural}\n")
            _table(kind, resources, output)
            first = False


def _list(client: Client, kind: Kind, tenant: str | None, labels: str) -> list[dict[str, Any]]:
    rows = client.list(kind.name, tenant, labels)
    return [_beside_declared(client, row) for row in rows] if kind.name == "Host" else rows


def _get(client: Client, reference: Reference) -> dict[str, Any]:
    resource = client.get(reference.kind.name, reference.name, reference.tenant)
    return _beside_declared(client, resource) if reference.kind.name == "Host" else resource


def _beside_declared(client: Client, host: dict[str, Any]) -> dict[str, Any]:
    """A host with the revision that is declared beside the one it has applied."""
    status = {"declaredRevision": client.health()["revision"], **(host.get("status") or {})}
    return {**host, "status": status}


def _table(kind: Kind, rows: Sequence[Mapping[str, Any]], output: Format) -> None:
    from cli.columns import columns_of

    show(rows, columns_of(kind.name), output, f"no {kind.plural}")


def _related(client: Client, reference: Reference) -> dict[str, tuple[Kind, list[dict[str, Any]]]]:
    """What refers to a resource, by title."""

    def pick(word: str, tenant: str | None, field: str) -> tuple[Kind, list[dict[str, Any]]]:
        kind = kind_named(word)
        rows = client.list(kind.name, tenant)
        return kind, [row for row in rows if (row.get("spec") or {}).get(field) == reference.name]

    match reference.kind.name:
        case "Network":
            own = {
                word: pick(word, reference.tenant, "network")
                for word in ("endpoints", "policies", "staticmappings")
            }
            return {"networks that name it as their peer": _peered(client, reference), **own}
        case "Host":
            return {word: pick(word, None, "host") for word in ("networks", "endpoints")}
        case "Endpoint":
            return {
                "endpoints behind it": pick("endpoints", reference.tenant, "behind"),
                "staticmappings": pick("staticmappings", reference.tenant, "endpoint"),
            }
        case "Tenant":
            return {
                word: (kind_named(word), client.list(kind_named(word).name, reference.name))
                for word in ("networks", "endpoints", "policies", "staticmappings")
            }
    return {}


def _peered(client: Client, reference: Reference) -> tuple[Kind, list[dict[str, Any]]]:
    kind = kind_named("networks")
    path = f"{reference.tenant}/{reference.name}"

    def names_it(row: Mapping[str, Any]) -> bool:
        tenant = row["metadata"].get("tenant", "")
        return any((peer if "/" in peer else f"{tenant}/{peer}") == path for peer in row["spec"].get("peers", ()))

    return kind, [row for row in client.list(kind.name) if names_it(row)]


def _print_description(reference: Reference, resource: Mapping[str, Any]) -> None:
    from cli.output import to_yaml

    out = console()
    out.print(styled(str(reference), "bold"))
    for part in ("metadata", "spec", "status"):
        if resource.get(part):
            out.print(styled(part, "bold"))
            for line in to_yaml(resource[part]).splitlines():
                out.print(plain(f"  {line}"))


def _print_event(out: Console, event: Mapping[str, Any]) -> None:
    path = f"{event['tenant']}/{event['name']}" if event.get("tenant") else event.get("name", "")
    status = (event.get("resource") or {}).get("status") or {}
    brief = join(
        f"{key}={status[key]}"
        for key in ("phase", "connected", "appliedRevision", "message")
        if status.get(key) not in (None, "")
    )
    out.print(
        plain(
            f"{event.get('revision', ''):>6}  {event.get('type', ''):7} "
            f"{str(event.get('kind', '')).lower()} {path}  {brief}"
        )
    )
