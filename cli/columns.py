"""What `sluice get` shows of each kind in a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cli.output import Column, join, plain, styled

if TYPE_CHECKING:
    from rich.console import RenderableType

Resource = Mapping[str, Any]

_PHASES = {"Ready": "green", "Pending": "yellow", "Degraded": "bold yellow", "Failed": "bold red"}


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
    if value(host, "spec", "external"):
        return plain("external")
    return styled("yes", "green") if value(host, "status", "connected") else styled("no", "bold red")


def _underlay(host: Resource) -> RenderableType:
    found = value(host, "spec", "underlay")
    return plain(join(found) if isinstance(found, list) else found or "-")


def _place(endpoint: Resource) -> RenderableType:
    behind = value(endpoint, "spec", "behind")
    if value(endpoint, "spec", "veth"):
        return plain(f"taken by {value(endpoint, 'metadata', 'labels', 'sluice.io/runtime') or 'a runtime'}")
    found = value(endpoint, "spec", "netns") or value(endpoint, "spec", "tap")
    return plain(f"behind {behind}" if behind else found or "-")


def _applied(host: Resource) -> RenderableType:
    if value(host, "spec", "external"):
        return plain("-")
    declared, applied = value(host, "status", "declaredRevision"), value(host, "status", "appliedRevision")
    behind = declared is not None and (applied or 0) < declared
    return styled(applied if applied is not None else "-", "yellow" if behind else "green")


def _prefixes(network: Resource) -> RenderableType:
    """Those in use, with what was declared where that is another."""
    declared = [subnet.get("prefix", "") for subnet in value(network, "spec", "subnets") or []]
    used = [subnet.get("prefix", "") for subnet in value(network, "status", "subnets") or []] or declared
    if len(used) != len(declared):
        return plain(join(used))
    return plain(join(
        one if one == other else f"{one} ({other})" for one, other in zip(used, declared, strict=True)))


def _addresses(endpoint: Resource) -> RenderableType:
    found = [
        value(endpoint, "status", field) or value(endpoint, "spec", field) for field in ("address", "address6")
    ]
    return plain(join(one for one in found if one) or "-")


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
    address = str(
        value(mapping, "status", "externalAddress") or value(mapping, "spec", "externalAddress") or "0.0.0.0"
    )
    port = value(mapping, "status", "externalPort") or value(mapping, "spec", "externalPort")
    return plain(f"[{address}]:{port}" if ":" in address and port else f"{address}:{port}" if port else address)


def _internal(mapping: Resource) -> RenderableType:
    port = value(mapping, "spec", "internalPort") or value(mapping, "spec", "externalPort")
    endpoint = value(mapping, "spec", "endpoint")
    return plain(f"{endpoint}:{port}" if port else endpoint)


_MESSAGE: Column = ("MESSAGE", _text("status", "message"))
_COLUMNS: dict[str, list[Column]] = {
    "Tenant": [("LABELS", _labels)],
    "Host": [
        ("CONNECTED", _connected),
        ("DECLARED", _text("status", "declaredRevision")),
        ("APPLIED", _applied),
        ("UNDERLAY", _underlay),
        ("AGENT", _text("status", "agent")),
        _MESSAGE,
    ],
    "Network": [
        ("MODE", _text("spec", "mode")),
        ("PREFIXES", _prefixes),
        ("VNI", _text("status", "vni")),
        ("HOST", _text("spec", "host")),
        ("PHASE", _phase),
        _MESSAGE,
    ],
    "Endpoint": [
        ("NETWORK", _text("spec", "network")),
        ("HOST", _text("spec", "host")),
        ("ADDRESS", _addresses),
        ("MAC", _first(("status", "mac"), ("spec", "mac"))),
        ("NETNS", _place),
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
        ("PROTOCOL", _text("spec", "protocol")),
        ("EXTERNAL", _external),
        ("TO", _internal),
        ("PHASE", _phase),
        _MESSAGE,
    ],
}
