"""The kinds of resources as users type them, and references like `tenant/name`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from cli.problems import USAGE, problem

DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of resource. Kinds are listed in the order in which they depend on each other."""

    name: str
    plural: str
    tenanted: bool
    aliases: tuple[str, ...] = ()


KINDS = (
    Kind("Tenant", "tenants", False, ("tn",)),
    Kind("Host", "hosts", False, ("ho",)),
    Kind("Network", "networks", True, ("net", "nets")),
    Kind("Endpoint", "endpoints", True, ("ep", "eps")),
    Kind("Policy", "policies", True, ("pol",)),
    Kind("StaticMapping", "staticmappings", True, ("sm", "mapping", "mappings", "static-mapping")),
)
_BY_WORD = {word: kind for kind in KINDS for word in (kind.name.lower(), kind.plural, *kind.aliases)}
_RANK = {kind.name: rank for rank, kind in enumerate(KINDS)}


@dataclass(frozen=True, slots=True)
class Reference:
    """Names one resource. `tenant` is empty for kinds outside tenants."""

    kind: Kind
    name: str
    tenant: str = ""

    def __str__(self) -> str:
        path = f"{self.tenant}/{self.name}" if self.tenant else self.name
        return f"{self.kind.name.lower()} {path}"


def kind_named(word: str) -> Kind:
    """The kind a user means by `word`: singular, plural or short, in any case.

    Raises:
        Problem: there is no such kind.
    """
    kind = _BY_WORD.get(word.lower())
    if kind is None:
        near = get_close_matches(word.lower(), _BY_WORD, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        known = ", ".join(each.plural for each in KINDS)
        raise problem("KIND", "no such kind of resource", repr(word), f"{hint}use one of: {known}", USAGE)
    return kind


def parse_reference(kind: Kind, text: str, tenant: str | None) -> Reference:
    """`name` or `tenant/name`, with `-t TENANT` for the former.

    Raises:
        Problem: the text has no name, too many parts, or another tenant than `-t`.
    """
    prefix, slash, name = text.rpartition("/")
    if not name or "/" in prefix or (slash and not prefix):
        raise problem("NAME", "not a reference", repr(text), "write name or tenant/name", USAGE)
    if not kind.tenanted:
        if prefix:
            raise problem(
                "NAME", f"a {kind.name} is not in a tenant", repr(text), f"write just {name}", USAGE
            )
        return Reference(kind, name)
    if prefix and tenant and prefix != tenant:
        raise problem(
            "NAME", f"names tenant {prefix}, but -t says {tenant}", repr(text), "give one of the two", USAGE
        )
    return Reference(kind, name, prefix or tenant or DEFAULT_TENANT)


def reference_of(resource: Mapping[str, Any]) -> Reference:
    """The reference of a resource as the controller gives it out."""
    kind = kind_named(str(resource.get("kind", "")))
    metadata = resource.get("metadata") or {}
    tenant = str(metadata.get("tenant") or DEFAULT_TENANT) if kind.tenanted else ""
    return Reference(kind, str(metadata.get("name", "")), tenant)


def rank(kind_name: str) -> int:
    """Where a kind stands in the order of dependence; an unknown one (the controller refuses it) is last."""
    return _RANK.get(kind_name, len(KINDS))
