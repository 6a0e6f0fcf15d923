"""From a document (a plain mapping, as JSON or YAML gives it) to a declared resource, and back.

Here pydantic's complaints become `Problem`s with the field's path and advice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from controller.errors import Problem, suggestion
from controller.resources import API_VERSION, DEFAULT_TENANT, RESOURCES, Spec
from controller.state import CLUSTER_KINDS, AnyStored, Ref

MAX_FOUND = 120                             # characters of a found value that an error repeats
SERVER_METADATA = ("uid", "revision", "createdAt")


@dataclass(frozen=True, slots=True)
class Declared:
    """A document that is right by itself."""

    ref: Ref
    labels: Mapping[str, str]
    spec: Spec


def parse(document: Any, title: str) -> Declared | list[Problem]:
    """Check the form of a document. `title` names it in problems until its own name is known."""
    if not isinstance(document, Mapping):
        return [Problem("invalid", "a resource is an object with apiVersion, kind, metadata and spec",
                        found=shown(document), resource=title)]
    title = _title(document) or title
    kind = document.get("kind")
    if kind == "Token":
        return [Problem("invalid", "a Token is not declared", "kind", "Token",
                        "use `sluice token create HOST` (POST /v1/tokens)", title)]
    if not isinstance(kind, str) or kind not in RESOURCES:
        known = suggestion(str(kind), RESOURCES)
        return [Problem("unknown_kind", "no such kind of resource", "kind", shown(kind), known, title)]
    version = document.get("apiVersion")
    if version != API_VERSION:
        return [Problem("invalid", "not a version of this API", "apiVersion", shown(version),
                        f"write apiVersion: {API_VERSION}", title)]
    body = {k: v for k, v in document.items() if k != "status"}
    metadata = body.get("metadata")
    if isinstance(metadata, Mapping):
        body["metadata"] = {k: v for k, v in metadata.items() if k not in SERVER_METADATA}
    model = RESOURCES[kind]
    try:
        # JSON mode: strict about types, and lists are taken for tuples.
        resource = model.model_validate_json(json.dumps(body))
    except (TypeError, ValueError) as error:
        if isinstance(error, ValidationError):
            return [problem_of(e, model, title) for e in error.errors(include_url=False)]
        return [Problem("invalid", f"not plain data: {error}", resource=title)]
    tenant = resource.metadata.tenant
    if kind in CLUSTER_KINDS and tenant is not None:
        return [Problem("invalid", f"a {kind} is not in a tenant", "metadata.tenant", tenant, "leave it out", title)]
    ref = Ref(kind, "" if kind in CLUSTER_KINDS else tenant or DEFAULT_TENANT, resource.metadata.name)
    return Declared(ref, resource.metadata.labels, resource.spec)


def render(stored: AnyStored, status: BaseModel | None = None) -> dict[str, Any]:
    """The document of a stored object, as the API gives it out."""
    ref = stored.ref
    metadata: dict[str, Any] = {"name": ref.name}
    if ref.tenant:
        metadata["tenant"] = ref.tenant
    if stored.labels:
        metadata["labels"] = dict(stored.labels)
    metadata |= {"uid": stored.uid, "revision": stored.revision, "createdAt": stored.created_at}
    document = {"apiVersion": API_VERSION, "kind": ref.kind, "metadata": metadata, "spec": spec_json(stored.spec)}
    if status is not None:
        document["status"] = status.model_dump(mode="json", exclude_none=True)
    return document


def spec_json(spec: Spec) -> dict[str, Any]:
    """A spec as stored and shown: defaults filled in, what was left out left out."""
    return spec.model_dump(mode="json", exclude_none=True)


def shown(value: Any) -> str:
    """A found value for an error message: JSON, shortened."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= MAX_FOUND else text[:MAX_FOUND - 1] + "…"


def path_of(location: Sequence[int | str]) -> str:
    """`('spec', 'subnets', 0, 'prefix')` as `spec.subnets[0].prefix`."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _title(document: Mapping[str, Any]) -> str:
    kind, metadata = document.get("kind"), document.get("metadata")
    if not isinstance(kind, str) or not isinstance(metadata, Mapping) or not isinstance(metadata.get("name"), str):
        return ""
    tenant = "" if kind in CLUSTER_KINDS else str(metadata.get("tenant") or DEFAULT_TENANT)
    return shown(str(Ref(kind, tenant, metadata["name"])))


def problem_of(error: ErrorDetails, model: type[BaseModel], title: str) -> Problem:
    """A pydantic error in our words."""
    location, found, context = error["loc"], error["input"], error.get("ctx", {})
    where = path_of(location)
    match error["type"]:
        case "sluice":
            where = path_of((*location, context["field"]) if context["field"] else location)
            found = found if context["value"] is None else context["value"]
            return Problem(context["code"], context["text"], where, shown(found), context["todo"], title)
        case "extra_forbidden":
            fields = _fields(model, location[:-1])
            todo = suggestion(str(location[-1]), fields) or "leave it out"
            return Problem("unknown_field", "unknown field", where, str(location[-1]), todo, title)
        case "missing":
            return Problem("missing", "is required and missing", where, "nothing", f"add {location[-1]}", title)
        case "literal_error":
            words = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            todo = suggestion(str(found), words)
            return Problem("invalid", "not one of the possible values", where, shown(found), todo, title)
        case "int_type" | "int_from_float":
            return Problem("invalid", "must be a whole number", where, shown(found), "write it without quotes", title)
        case "greater_than_equal" | "less_than_equal" | "greater_than" | "less_than":
            return Problem("out_of_range", _lower(error["msg"]), where, shown(found), "use a number in range", title)
        case "string_type":
            return Problem("invalid", "must be text", where, shown(found), "put it in quotes", title)
    return Problem("invalid", _lower(error["msg"]), where, shown(found), resource=title)


def _lower(message: str) -> str:
    return message.replace("Input should", "must").replace("Tuple should have", "must have")


def _fields(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """JSON names of the fields that the object at `location` may have; empty: not known."""
    current: Any = model
    for step in location:
        if isinstance(step, int):
            continue
        field = next((f for n, f in _model_fields(current) if (f.alias or n) == step), None)
        current = _inner_model(field.annotation) if field is not None else None
    return [f.alias or n for n, f in _model_fields(current)]


def _model_fields(model: Any) -> list[tuple[str, Any]]:
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return []
    hidden = {"uid", "revision", "created_at", "status"}
    return [(n, f) for n, f in model.model_fields.items() if n not in hidden]


def _inner_model(annotation: Any) -> Any:
    """The model in `Model`, `Model | None`, `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _inner_model(arg)) is not None), None)


__all__ = ["Declared", "parse", "path_of", "problem_of", "render", "shown", "spec_json"]
