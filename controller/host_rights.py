"""What a host may say for the runtimes on it, and what not. Pure.

A host is trusted with its own endpoints only. In the tenants that its Host document names it declares endpoints of its
own, mappings to them, and networks; it changes and deletes only what runtimes of it made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from controller.documents import Declared, shown
from controller.errors import Problem
from controller.host_specs import RuntimesSpec
from controller.leases import HOST_LABEL
from controller.resources import EndpointSpec, NetworkSpec, Spec, StaticMappingSpec
from controller.state import AnyStored, Ref, State, Stored
from controller.subnets import subnets_of

RUNTIME_LABEL = "sluice.io/runtime"         # of what a runtime made: which
KINDS = ("Network", "Endpoint", "StaticMapping")
API = "use the controller's API, as who runs it"


def may_use(host: str, ref: Ref, state: State) -> Iterator[Problem]:
    """Problems of a tenant."""
    stored = state.host(host)
    tenants = (stored.spec.runtimes if stored is not None else RuntimesSpec(tenants=())).tenants
    if ref.tenant not in tenants:
        yield Problem("forbidden", f"runtimes of host {host} are for {_tenants(tenants)}", "metadata.tenant",
                      ref.tenant, f"use what they are for, or add it to spec.runtimes.tenants of Host {host}", str(ref))


def may_put(host: str, document: Declared, state: State) -> Iterator[Problem]:
    """Problems of a document as this host's."""
    ref, spec, old = document.ref, document.spec, state.get(document.ref)
    if ref.kind not in KINDS:
        yield Problem("forbidden", f"a host cannot declare a {ref.kind}", "kind", ref.kind, API, str(ref))
        return
    found = [*may_use(host, ref, state), *_said(host, ref, spec, state)]
    if not isinstance(spec, NetworkSpec) and not document.labels.get(RUNTIME_LABEL):
        found.append(Problem("missing", "what a runtime declares says which it is", f"metadata.labels.{RUNTIME_LABEL}",
                             "nothing", "add it, such as docker", str(ref)))
    yield from found
    if old is None:
        if isinstance(spec, NetworkSpec) and not _may_make(host, state):
            yield Problem("forbidden", f"there is no {ref}, and runtimes of host {host} may not make networks",
                          "metadata.name", ref.name, f"use one that is declared, or set spec.runtimes.networks of Host "
                          f"{host}", str(ref))
    elif not found:
        yield from may_change(host, old, state)


def may_change(host: str, stored: AnyStored, state: State) -> Iterator[Problem]:
    """Problems of changing or deleting what is there."""
    ref, spec, labels = stored.ref, stored.spec, stored.labels
    yield from may_use(host, ref, state)
    if isinstance(spec, NetworkSpec):
        maker = labels.get(HOST_LABEL)
        if maker != host:
            whose = f"was made by runtimes of host {maker}" if maker else "was declared by somebody else"
            yield Problem("forbidden", f"{ref} {whose}", "metadata.name", ref.name, f"leave it, or {API}", str(ref))
        return
    owner = _owner(stored, state)
    if owner != host:
        yield Problem("in_use", f"{ref} is on host {owner}", "metadata.name", ref.name, "choose another name", str(ref))
    elif not labels.get(RUNTIME_LABEL):
        yield Problem("in_use", f"{ref} was declared by somebody else", "metadata.name", ref.name,
                      f"choose another name, or {API}", str(ref))


def may_delete(host: str, stored: AnyStored, state: State) -> Iterator[Problem]:
    """Problems of deleting it."""
    yield from may_change(host, stored, state)
    others = sorted(stored.assigned.leases.keys() - {host})
    if others:
        yield Problem("in_use", f"{stored.ref} is in use by runtimes of host {', '.join(others[:3])}", "metadata.name",
                      stored.ref.name, "release it; it goes with the last one", str(stored.ref))


def may_see(host: str, stored: AnyStored, state: State) -> Iterator[Problem]:
    """Problems of looking at it: at networks, and at what is on this host."""
    yield from may_use(host, stored.ref, state)
    if not isinstance(stored.spec, NetworkSpec) and (owner := _owner(stored, state)) != host:
        yield Problem("forbidden", f"{stored.ref} is on host {owner}", "metadata.name", stored.ref.name,
                      f"ask on {owner}", str(stored.ref))


def unlike(spec: NetworkSpec, stored: Stored[NetworkSpec]) -> Iterator[Problem]:
    """Problems if a network is not as somebody who wants to join it says; what he leaves open is as it is."""
    there, subnets = stored.spec, subnets_of(stored)
    for name in sorted(spec.model_fields_set - {"subnets"}):
        wanted, is_ = getattr(spec, name), getattr(there, name)
        if name == "host" and there.host is None and there.mode != "overlay":
            continue                        # it is on all hosts, and so on this one
        if name == "vni" and there.mode == "overlay":
            is_ = stored.assigned.space if wanted != "auto" else wanted
        if wanted not in (is_, "auto"):
            field = type(spec).model_fields[name].alias or name
            yield _unlike(stored.ref, f"spec.{field}", wanted, is_)
    for i, subnet in enumerate(spec.subnets):
        like = [each for each in subnets if subnet.prefix in (each.spec.prefix, str(each.prefix))]
        if not like:
            yield _unlike(stored.ref, f"spec.subnets[{i}].prefix", subnet.prefix,
                          ", ".join(str(each.prefix) for each in subnets))
        elif subnet.gateway and subnet.gateway not in (like[0].spec.gateway, like[0].gateway):
            yield _unlike(stored.ref, f"spec.subnets[{i}].gateway", subnet.gateway, like[0].gateway)


def _unlike(ref: Ref, field: str, wanted: object, is_: object) -> Problem:
    return Problem("exists", f"{ref} is there, with {_text(is_)} in place of {_text(wanted)}", field, _text(wanted),
                   "leave it out to join that network as it is, or choose another name", str(ref))


def _text(value: Any) -> str:
    plain = value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else value
    return shown("nothing" if plain is None or plain == () else plain)


def _said(host: str, ref: Ref, spec: Spec, state: State) -> Iterator[Problem]:
    """Problems of what a document speaks of."""
    if isinstance(spec, EndpointSpec) and spec.host != host:
        yield Problem("forbidden", f"host {host} asked for an endpoint of host {spec.host}", "spec.host", spec.host,
                      f"use host {host}, or {API}", str(ref))
    elif isinstance(spec, StaticMappingSpec):
        target = state.endpoint(Ref("Endpoint", ref.tenant, spec.endpoint))
        if target is not None and (target.spec.host != host or not target.labels.get(RUNTIME_LABEL)):
            yield Problem("forbidden", f"{target.ref} is not an endpoint of a runtime of host {host}", "spec.endpoint",
                          spec.endpoint, API, str(ref))
    elif isinstance(spec, NetworkSpec):
        if spec.host not in (None, host):
            yield Problem("forbidden", f"host {host} asked for a network of host {spec.host}", "spec.host", spec.host,
                          f"use host {host}, or {API}", str(ref))
        for i, (tenant, name) in enumerate(spec.peer_paths(ref.tenant)):
            for problem in may_use(host, Ref("Network", tenant, name), state):
                yield Problem("forbidden", problem.message, f"spec.peers[{i}]", spec.peers[i], API, str(ref))
        for exit_ in spec.exits:
            if exit_ != host:
                yield Problem("forbidden", f"host {host} cannot have packets leave by host {exit_}", "spec.egress",
                              exit_, f"use host {host}, or {API}", str(ref))


def _owner(stored: AnyStored, state: State) -> str:
    """The host that an endpoint is on, or that of the endpoint which a mapping leads to."""
    spec = stored.spec
    if isinstance(spec, StaticMappingSpec):
        target = state.endpoint(Ref("Endpoint", stored.ref.tenant, spec.endpoint))
        return target.spec.host if target is not None else ""
    return spec.host if isinstance(spec, EndpointSpec) else ""


def _may_make(host: str, state: State) -> bool:
    stored = state.host(host)
    return stored is not None and stored.spec.runtimes.networks


def _tenants(names: tuple[str, ...]) -> str:
    if not names:
        return "no tenant"
    return f"tenant{'s' if len(names) > 1 else ''} {', '.join(names)}"


def row(host: str, stored: AnyStored) -> Mapping[str, Any]:
    """What the controller chose, as this host sees it: its own lease only."""
    assigned = stored.assigned.to_json()
    if "leases" in assigned:
        assigned["leases"] = {name: its for name, its in assigned["leases"].items() if name == host}
    return assigned


__all__ = ["KINDS", "RUNTIME_LABEL", "may_change", "may_delete", "may_put", "may_see", "may_use", "row", "unlike"]
