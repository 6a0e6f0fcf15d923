"""What `sluice get` shows of each kind in a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cli.output import Column, join, plain, styled

if TYPE_CHECKING:
    from rich.console import RenderableType

Resource = Mapping[str, Any]

_PHASES = {"Ready": "green", "Pending": "yellow", "Failed": "bold red"}


def columns_of(kind_name: str) -> list[Column]:
    """The table of a kind; the tenant stands first where there is one."""
    head: list[Column] = [("NAME", _text("metadata", "name"))]
    if kind_name not in ("Tenant", "Host"):
        head.insert(0, ("TENANT", _text("metadata", "tenant")))
    return head + _COLUMNS[kind_name]


def value(resource: Resource, *path: str) -> Any:
    """The value at a path, or None."""
    found: Any = resource
    for step in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(step)
    return found


def _text(*path: str) -> Any:
    def cell(resource: Resource) -> RenderableType:
        found = value(resource, *path)
        return plain("-" if found is None or found == "" else found)

    return cell


def _first(*paths: tuple[str, ...]) -> Any:
    """The first of several places that has something: what was found out before what was asked for."""

    def cell(resource: Resource) -> RenderableType:
        for path in paths:
            found = value(resource, *path)
            if found not in (None, ""):
                return plain(found)
        return plain("-")

    return cell


def _labels(resource: Resource) -> RenderableType:
    labels = value(resource, "metadata", "labels") or {}
    return plain(join(f"{key}={text}" for key, text in labels.items()) or "-")


def _connected(host: Resource) -> RenderableType:
    return styled("yes", "green") if value(host, "status", "connected") else styled("no", "bold red")


def _applied(host: Resource) -> RenderableType:
    declared, applied = value(host, "status", "declaredRevision"), value(host, "status", "appliedRevision")
    behind = declared is not None and (applied or 0) < declared
    return styled(applied if applied is not None else "-", "yellow" if behind else "green")


def _prefixes(network: Resource) -> RenderableType:
    return plain(join(subnet.get("prefix", "") for subnet in value(network, "spec", "subnets") or []))


def _phase(resource: Resource) -> RenderableType:
    phase = str(value(resource, "status", "phase") or "-")
    return styled(phase, _PHASES.get(phase, ""))


def _rules(policy: Resource) -> RenderableType:
    return plain(len(value(policy, "spec", "rules") or []))


def _applies_to(policy: Resource) -> RenderableType:
    to = value(policy, "spec", "appliesTo") or {}
    names = [
        *(to.get("endpoints") or []),
        *(f"{key}={text}" for key, text in (to.get("labels") or {}).items()),
    ]
    return plain(join(names) or "all")


def _default(direction: str) -> Any:
    def cell(policy: Resource) -> RenderableType:
        return plain(value(policy, "spec", f"default{direction}") or "allow")

    return cell


def _external(mapping: Resource) -> RenderableType:
    address = (
        value(mapping, "status", "externalAddress") or value(mapping, "spec", "externalAddress") or "0.0.0.0"
    )
    port = value(mapping, "status", "externalPort") or value(mapping, "spec", "externalPort")
    return plain(f"{value(mapping, 'spec', 'protocol')} {address}:{port}")


def _internal(mapping: Resource) -> RenderableType:
    return plain(f"{value(mapping, 'spec', 'endpoint')}:{value(mapping, 'spec', 'internalPort')}")


_MESSAGE: Column = ("MESSAGE", _text("status", "message"))
_COLUMNS: dict[str, list[Column]] = {
    "Tenant": [("LABELS", _labels)],
    "Host": [
        ("CONNECTED", _connected),
        ("DECLARED", _text("status", "declaredRevision")),
        ("APPLIED", _applied),
        ("UNDERLAY", _text("spec", "underlay")),
        ("AGENT", _text("status", "agent")),
        _MESSAGE,
    ],
    "Network": [
        ("MODE", _text("spec", "mode")),
        ("PREFIXES", _prefixes),
        ("VNI", _text("status", "vni")),
        ("HOST", _text("spec", "host")),
        _MESSAGE,
    ],
    "Endpoint": [
        ("NETWORK", _text("spec", "network")),
        ("HOST", _text("spec", "host")),
        ("ADDRESS", _first(("status", "address"), ("spec", "address"))),
        ("MAC", _first(("status", "mac"), ("spec", "mac"))),
        ("NETNS", _text("spec", "netns")),
        ("PHASE", _phase),
        _MESSAGE,
    ],
    "Policy": [
        ("NETWORK", _text("spec", "network")),
        ("PRIORITY", _first(("spec", "priority"))),
        ("APPLIES TO", _applies_to),
        ("RULES", _rules),
        ("DEFAULT IN", _default("In")),
        ("DEFAULT OUT", _default("Out")),
    ],
    "StaticMapping": [
        ("NETWORK", _text("spec", "network")),
        ("EXTERNAL", _external),
        ("TO", _internal),
        ("PHASE", _phase),
        _MESSAGE,
    ],
}
