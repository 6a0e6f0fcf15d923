"""Declare resources: apply, diff, delete."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.connection import controller
from cli.kinds import KINDS, Reference, kind_named, parse_reference, rank, reference_of
from cli.output import Format, console, dump, join, plain, styled
from cli.problems import USAGE, Fault, Problem, problem
from cli.standing import standing

if TYPE_CHECKING:
    from cli.documents import Document
    from controller.client import Written

Files = Annotated[
    list[str],
    typer.Option(
        "-f",
        "--file",
        metavar="FILE",
        help="YAML or JSON file, folder of them, or - for standard input. May be repeated.",
    ),
]
MaybeFiles = Annotated[
    list[str] | None,
    typer.Option("-f", "--file", metavar="FILE", help="Delete what these files name.", show_default=False),
]

_STYLES = {"created": "green", "configured": "yellow", "deleted": "red", "unchanged": "dim"}
_OF_SERVER = ("uid", "revision", "createdAt")


def apply(
    file: Files,
    tenant: options.Tenant = None,
    wait: options.Wait = 10,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, store nothing.")] = False,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """Declare resources: all of a file or, when one is wrong, nothing of it.

    When it returns, what was declared is in the kernels of the connected hosts concerned (see --wait). What a host
    could not program is waited for, too, as long as something moves and a few seconds longer.
    """
    documents = _read(file, tenant)
    with controller(api, documents) as client:
        deadline_s = time.monotonic() + wait
        written = client.apply(
            [_declared(document.resource) for document in documents],
            wait_s=0 if dry_run else wait,
            dry_run=dry_run,
        )
        _print_written(written, output, " (dry run)" if dry_run else "")
        if not dry_run:
            faults = _pending(written, wait) + (standing(client, written, deadline_s) if wait else [])
            if faults:
                raise Problem(faults)


def diff(
    file: Files,
    tenant: options.Tenant = None,
    api: options.Api = "",
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if anything differs.")] = False,
) -> None:
    """Show what apply would change, line by line."""
    documents = _read(file, tenant)
    differs = False
    with controller(api, documents) as client:
        written = client.apply([_declared(document.resource) for document in documents], dry_run=True)
        for item in written.items:
            if item["result"] == "unchanged":
                continue
            differs = True
            reference = reference_of(item["resource"])
            before = (
                {}
                if item["result"] == "created"
                else client.get(reference.kind.name, reference.name, reference.tenant)
            )
            _print_diff(reference, before, item["resource"])
    if differs and exit_code:
        raise typer.Exit(1)


def delete(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND", show_default=False)] = None,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...]", help="NAME or TENANT/NAME.", show_default=False)
    ] = None,
    file: MaybeFiles = None,
    tenant: options.Tenant = None,
    wait: options.Wait = 10,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="It is fine if some are not there.")
    ] = False,
    output: options.Output = Format.TABLE,
    api: options.Api = "",
) -> None:
    """Remove resources, by name or as listed in files: all of them or, when one cannot go, none."""
    documents: list[Document] = []
    if file and kind is None:
        documents = _read(file, tenant)
        references = [_named(document) for document in documents]
    elif kind is not None and names and not file:
        known = kind_named(kind)
        references = [parse_reference(known, name, tenant) for name in names]
    else:
        raise problem(
            "delete", "what to delete is not clear", "", "give either KIND NAME... or -f FILE", USAGE
        )
    with controller(api, documents) as client:
        from controller.client import Reference as ClientReference

        written = client.delete_all(
            [ClientReference(each.kind.name, each.name, each.tenant) for each in references],
            wait_s=wait,
            missing_ok=missing_ok,
        )
    _print_written(written, output)
    faults = _pending(written, wait)
    if faults:
        raise Problem(faults)


def _read(files: Sequence[str], tenant: str | None) -> list[Document]:
    """The documents, in the order in which they depend on each other, with `-t` filled in."""
    from cli.documents import read_documents

    documents = read_documents(files)
    tenanted = {kind.name for kind in KINDS if kind.tenanted}
    for document in documents:
        metadata = document.resource.get("metadata")
        if tenant and document.resource.get("kind") in tenanted and isinstance(metadata, dict):
            given = metadata.setdefault("tenant", tenant)
            if given != tenant:
                raise problem(
                    f"{document.where('metadata.tenant')}: metadata.tenant",
                    f"-t says {tenant}",
                    repr(given),
                    "leave -t out, or the field",
                )
    return sorted(documents, key=lambda document: rank(str(document.resource.get("kind", ""))))


def _named(document: Document) -> Reference:
    """What a document names, for delete, which needs no more of it."""
    metadata = document.resource.get("metadata")
    kind = document.resource.get("kind")
    if not isinstance(kind, str) or not kind:
        raise problem(
            f"{document.where('kind')}: kind",
            "which kind this is must be said",
            repr(kind),
            f"use one of {join(each.name for each in KINDS)}",
        )
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("name"), str):
        raise problem(
            f"{document.where('metadata.name')}: metadata.name",
            "a resource needs a name",
            repr(metadata),
            "add metadata: {name: ...}",
        )
    return reference_of(document.resource)


def _declared(resource: Mapping[str, Any]) -> dict[str, Any]:
    """A resource without what the controller adds, so that the output of `get -o yaml` can be applied."""
    declared = {key: part for key, part in resource.items() if key != "status"}
    metadata = declared.get("metadata")
    if isinstance(metadata, Mapping):
        declared["metadata"] = {key: part for key, part in metadata.items() if key not in _OF_SERVER}
    return declared


def _print_written(written: Written, output: Format, note: str = "") -> None:
    if output is not Format.TABLE:
        dump(
            {"revision": written.revision, "items": list(written.items), "pending": list(written.pending)},
            output,
        )
        return
    out = console()
    for item in written.items:
        path = f"{item['tenant']}/{item['name']}" if item.get("tenant") else item["name"]
        line = plain(f"{str(item['kind']).lower()} {path} ")
        out.print(line, styled(str(item["result"]) + note, _STYLES.get(item["result"], "")), sep="")


def _pending(written: Written, wait_s: float) -> list[Fault]:
    return [
        Fault(
            f"host {host}",
            f"did not acknowledge revision {written.revision} within {wait_s:g} s",
            "",
            "it is stored and will be pushed; see `sluice get hosts`, or give a longer --wait",
        )
        for host in written.pending
    ]


def _print_diff(reference: Reference, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    from difflib import unified_diff

    from cli.output import to_yaml

    old = to_yaml(_declared(before)).splitlines() if before else []
    new = to_yaml(_declared(after)).splitlines()
    out = console()
    for line in unified_diff(old, new, f"{reference} (declared)", f"{reference} (file)", lineterm="", n=3):
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        out.print(styled(line, "bold" if line.startswith(("+++", "---")) else style))
