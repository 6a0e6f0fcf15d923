"""What the checks of all kinds share: where they look, references, and words for what is found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from controller.errors import Problem, suggestion
from controller.state import Ref, State
from southbound.messages import HostFacts


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a check may look at besides the document."""

    state: State
    facts: Mapping[str, HostFacts] = field(default_factory=dict)     # by host name
    refused: AbstractSet[Ref] = frozenset()   # of the same request: a reference to one is not reported again


def exists(ref: Ref, where: str, around: Surroundings) -> Iterator[Problem]:
    """A problem unless the reference leads somewhere (or to a document that is refused itself)."""
    if ref in around.state.objects or ref in around.refused:
        return
    known = [r.name for r in around.state.by_kind.get(ref.kind, ()) if r.tenant == ref.tenant]
    place = f" in tenant {ref.tenant}" if ref.tenant else ""
    hint = suggestion(ref.name, known)
    todo = f"{hint.rstrip('?')}? else apply it first" if hint.startswith("did") else \
        f"apply it first, or {hint}" if hint and len(known) <= 10 else "apply it first, or with this one"
    yield Problem(f"unknown_{ref.kind.lower()}", f"there is no {ref.kind} {ref.name!r}{place}", where, ref.name, todo)


def endpoint_of(name: str, where: str, network: Ref, around: Surroundings) -> Iterator[Problem]:
    """A problem unless there is such an endpoint in the network."""
    ref = Ref("Endpoint", network.tenant, name)
    yield from exists(ref, where, around)
    endpoint = around.state.endpoint(ref)
    if endpoint is not None and endpoint.spec.network != network.name:
        yield Problem("invalid", f"{ref} is in network {endpoint.spec.network}, not in {network.name}", where, name,
                      f"name an endpoint of {network.name}")


def listing(refs: Sequence[Ref]) -> str:
    """The first of them by name, and how many more."""
    shown = ", ".join(map(str, refs[:3]))
    return f"{shown} and {len(refs) - 3} more" if len(refs) > 3 else shown


def own_addresses(facts: HostFacts) -> list[str]:
    """The addresses of a host."""
    return [a.partition("/")[0] for _, a in facts.addresses]


__all__ = ["Surroundings", "endpoint_of", "exists", "listing", "own_addresses"]
