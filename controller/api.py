"""The REST API, `/v1`: resources, apply and delete in one transaction, watch, tokens, looking inside.

Every refusal is 4xx with `{"error": {code, field, found, message, todo, resource}, "errors": [...]}`; nothing is
stored then. Bodies are read here and checked by `documents`, so that every problem names its field; FastAPI gets
the models for OpenAPI.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import APIRouter, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from controller.client import PLURALS
from controller.documents import path_of, problem_of, shown
from controller.edits import missing
from controller.errors import Invalid, Malformed, NotFound, Problem, Refused
from controller.follow import Follows
from controller.inside import TraceRequest, inside, known, place_of, trace
from controller.ledger import Ledger, Outcome
from controller.listeners import look_again
from controller.nat_api import nat_routes
from controller.pki import Pki
from controller.push import Push
from controller.resources import API_VERSION, DEFAULT_TENANT, RESOURCES
from controller.selecting import MAX_PAGE, page, selector
from controller.state import CLUSTER_KINDS, Ref
from controller.status import Statuses
from controller.store import StoreError
from controller.texts import Model, Name
from controller.watch import Filter, Watches

MAX_BODY_BYTES = 32 << 20
MAX_WAIT_S = 600.0
MAX_SNAPLEN = 9216

_log = structlog.get_logger("controller.api")

M = TypeVar("M", bound=BaseModel)


class ProblemModel(BaseModel):
    """One thing that is wrong with a request; empty text: does not apply."""

    code: str
    message: str
    field: str = ""
    found: str = ""
    todo: str = ""
    resource: str = ""


class ErrorModel(BaseModel):
    """Why a request was refused. `error` is the first of `errors`."""

    error: ProblemModel
    errors: list[ProblemModel]


class WrittenItem(BaseModel):
    """What a write did to one resource."""

    kind: str
    tenant: str
    name: str
    result: str = Field(description="created, configured, unchanged or deleted")
    resource: dict[str, Any]


class WrittenModel(BaseModel):
    """What a write did. `pending`: connected hosts that had not acknowledged `revision` when the wait ended."""

    revision: int
    items: list[WrittenItem]
    pending: list[str]


class TokenRequest(Model):
    """For which host, and for how long."""

    host: Name
    ttl_seconds: int = Field(default=3600, ge=60, le=7 * 86400)


class ReferenceModel(Model):
    """Names a resource to delete."""

    kind: str
    name: str
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Controller:
    """The parts of a running controller that requests use."""

    ledger: Ledger
    push: Push
    statuses: Statuses
    watches: Watches
    pki: Pki
    follows: Follows = dataclasses.field(default_factory=Follows)


Wait = Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="seconds to wait until every connected host that it "
                              "concerns has acknowledged the change")]
DryRun = Annotated[bool, Query(alias="dryRun", description="check and answer, store nothing")]
IfMatch = Annotated[str | None, Header(description="revision that the stored resource must have, else 412")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="at most so many items")]
Continue = Annotated[str, Query(alias="continue", description="token of the previous page")]
Labels = Annotated[str, Query(alias="labelSelector", description="such as app=web,tier!=db,gpu,!old")]
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorModel, "description": "refused; nothing was changed"}}


def create_app(controller: Controller) -> FastAPI:
    """The application over the parts of a controller."""
    app = FastAPI(title="Sluice", version=software_version(), separate_input_output_schemas=False,
                  description=__doc__.partition("\n\n")[2], openapi_url="/v1/openapi.json", docs_url="/v1/docs",
                  redoc_url=None)
    app.include_router(_lookers(controller), prefix="/v1")
    app.include_router(_writers(controller), prefix="/v1")
    for kind in RESOURCES:
        app.include_router(_resources(kind, controller), prefix="/v1", tags=[PLURALS[kind]])
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _bad_parameters)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(StoreError, _store_failed)
    return app


def software_version() -> str:
    """The version of the installed package."""
    try:
        return version("sluice")
    except PackageNotFoundError:
        return "unknown"


def _resources(kind: str, controller: Controller) -> APIRouter:
    """Routes of one kind: list, get, put, delete."""
    router, plural, model = APIRouter(), PLURALS[kind], RESOURCES[kind]
    ledger, statuses = controller.ledger, controller.statuses
    tenanted = kind not in CLUSTER_KINDS
    item_path = f"/tenants/{{tenant}}/{plural}/{{name}}" if tenanted else f"/{plural}/{{name}}"
    body = {"requestBody": {"required": True, "content": {"application/json": {
        "schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}}}
    found: dict[int | str, dict[str, Any]] = {200: {"model": model}, **REFUSALS}

    def listing(tenant: str, labels: str, limit: int, token: str) -> JSONResponse:
        selects = selector(labels)
        objects = (s for s in ledger.state.by_kind.get(kind, {}).values()
                   if (not tenant or s.ref.tenant == tenant) and selects(s.labels))
        part = page(objects, limit, token)
        answer: dict[str, Any] = {"apiVersion": API_VERSION, "kind": f"{kind}List",
                                  "revision": ledger.state.revision,
                                  "items": [statuses.document(s) for s in part.items]}
        return JSONResponse(answer | ({"continue": part.token} if part.token else {}))

    @router.get(f"/{plural}", summary=f"List {plural}", responses=REFUSALS)
    async def list_all(tenant: str = "", labels: Labels = "", limit: Limit = 500,
                       token: Continue = "") -> JSONResponse:
        return listing(tenant if tenanted else "", labels, limit, token)

    if tenanted:
        @router.get(f"/tenants/{{tenant}}/{plural}", summary=f"List {plural} of a tenant", responses=REFUSALS)
        async def list_tenant(tenant: str, labels: Labels = "", limit: Limit = 500,
                              token: Continue = "") -> JSONResponse:
            _existing(ledger, Ref("Tenant", "", tenant))
            return listing(tenant, labels, limit, token)

    @router.get(item_path, summary=f"Get a {kind}", responses=found)
    async def get(name: str, tenant: str = "") -> JSONResponse:
        stored = _existing(ledger, _ref(kind, tenant, name))
        return JSONResponse(statuses.document(stored), headers={"ETag": f'"{stored.revision}"'})

    @router.put(item_path, summary=f"Create or change a {kind}", openapi_extra=body,
                responses={200: {"model": WrittenModel}, 201: {"model": WrittenModel}, **REFUSALS})
    async def put(request: Request, name: str, tenant: str = "", wait: Wait = 0, dry_run: DryRun = False,
                  if_match: IfMatch = None) -> JSONResponse:
        document = _addressed(await _json(request), _ref(kind, tenant, name))
        await look_again(controller.push, ledger, [document])
        outcome = await ledger.apply([document], dry_run=dry_run, if_match=_revision(if_match))
        status = 201 if outcome.items[0].result == "created" and not dry_run else 200
        return await _written(controller, outcome, wait, status)

    @router.delete(item_path, summary=f"Delete a {kind}", responses={200: {"model": WrittenModel}, **REFUSALS})
    async def delete(name: str, tenant: str = "", wait: Wait = 0, if_match: IfMatch = None) -> JSONResponse:
        outcome = await ledger.delete([_ref(kind, tenant, name)], if_match=_revision(if_match))
        return await _written(controller, outcome, wait)

    return router


def _writers(controller: Controller) -> APIRouter:
    """Routes that write several resources, and tokens."""
    router, ledger = APIRouter(), controller.ledger
    schema = {"anyOf": [{"$ref": f"#/components/schemas/{m.__name__}"} for m in RESOURCES.values()]}
    documents = {"requestBody": {"required": True, "content": {"application/json": {
        "schema": {"type": "array", "items": schema}}}}}

    @router.post("/apply", summary="Create or change resources, all or none", tags=["apply"],
                 openapi_extra=documents, responses={200: {"model": WrittenModel}, **REFUSALS})
    async def apply(request: Request, wait: Wait = 0, dry_run: DryRun = False) -> JSONResponse:
        """The order does not matter: what others depend on is stored first."""
        listed = _listed(await _json(request))
        await look_again(controller.push, ledger, listed)
        outcome = await ledger.apply(listed, dry_run=dry_run)
        return await _written(controller, outcome, wait)

    @router.post("/delete", summary="Delete resources, all or none", tags=["apply"],
                 openapi_extra=_body_of(list[ReferenceModel]), responses={200: {"model": WrittenModel}, **REFUSALS})
    async def delete(request: Request, wait: Wait = 0, dry_run: DryRun = False,
                     missing_ok: Annotated[bool, Query(alias="missingOk")] = False) -> JSONResponse:
        """The order does not matter: what depends on others goes first."""
        refs = [_reference(each, n) for n, each in enumerate(_listed(await _json(request)))]
        outcome = await ledger.delete(refs, missing_ok=missing_ok, dry_run=dry_run)
        return await _written(controller, outcome, wait)

    @router.post("/tokens", summary="Make a token with which a host may join", tags=["hosts"], status_code=201,
                 openapi_extra=_body_of(TokenRequest), responses=REFUSALS)
    async def create_token(request: Request) -> JSONResponse:
        """The token is good for one host, once, and is shown only in this answer."""
        asked = _model(TokenRequest, await _json(request))
        text, secret_hash = controller.pki.make_token()
        expires_at = await ledger.add_token(secret_hash, asked.host, asked.ttl_seconds)
        expiry = datetime.fromtimestamp(expires_at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return JSONResponse({"apiVersion": API_VERSION, "kind": "Token", "host": asked.host, "token": text,
                             "expiresAt": expiry}, 201, headers={"Cache-Control": "no-store"})

    return router


def _lookers(controller: Controller) -> APIRouter:
    """Routes that show what goes on."""
    router, ledger, push = APIRouter(), controller.ledger, controller.push

    @router.get("/healthz", summary="Whether the controller works", tags=["controller"])
    async def healthz() -> JSONResponse:
        names = [h.ref.name for h in ledger.state.hosts()]
        return JSONResponse({"status": "ok", "revision": ledger.state.revision, "hosts": {
            "declared": len(names), "connected": sum(push.link(n).connected for n in names)}})

    @router.get("/version", summary="Versions of software, API and store", tags=["controller"])
    async def show_version() -> JSONResponse:
        return JSONResponse({"version": software_version(), "api": API_VERSION, "store": ledger.identity,
                             "revision": ledger.state.revision})

    @router.get("/watch", summary="Follow changes as server-sent events", tags=["watch"],
                responses={200: {"content": {"text/event-stream": {}}}, **REFUSALS})
    async def watch(kind: str = "", tenant: str = "", since: Annotated[int | None, Query(ge=0)] = None,
                    last_event_id: Annotated[str | None, Header()] = None) -> StreamingResponse:
        """`data` is {type: put|delete|status|bookmark, revision, kind, tenant, name, resource}.

        With `since` (or Last-Event-ID) first every later change; 410 when that is too long ago.
        """
        if kind and kind not in RESOURCES:
            raise Invalid(Problem("unknown_kind", "no such kind of resource", "kind", kind,
                                  f"use one of: {', '.join(RESOURCES)}"))
        if since is None and last_event_id and last_event_id.isdecimal():
            since = int(last_event_id)
        events = controller.watches.stream(Filter(kind, tenant), since)
        first = await anext(events)         # a refusal comes here, while the answer can still be one
        return StreamingResponse(_after(first, events), media_type="text/event-stream",
                                 headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    @router.post("/trace", summary="What would happen to a packet", tags=["inside"],
                 openapi_extra=_body_of(TraceRequest), responses=REFUSALS)
    async def trace_packet(request: Request) -> JSONResponse:
        asked = _model(TraceRequest, await _json(request))
        return JSONResponse(await trace(push, ledger.state, asked))

    @router.get("/drops/watch", summary="Follow drops as server-sent events", tags=["inside"],
                responses={200: {"content": {"text/event-stream": {}}}, **REFUSALS})
    async def watch_drops(host: str = "", endpoint: str = "") -> StreamingResponse:
        """`data` is {type: records, host, records, lost} or {type: error, host, message}.

        `lost`: drops that were not told since the stream began, because the reader or the host was too slow.
        """
        state = ledger.state
        name, uid = place_of(state, host, endpoint)
        names = [name] if name else sorted(h.ref.name for h in state.hosts())
        args = {"kind": "drops"} | ({"port": uid} if uid else {})
        return await _follow(controller, names, args, patient=not name)

    @router.get("/capture", summary="Packets of an endpoint as server-sent events", tags=["inside"],
                responses={200: {"content": {"text/event-stream": {}}}, **REFUSALS})
    async def capture(endpoint: str, stage: Annotated[str, Query(pattern="^(before|after|)$")] = "",
                      snaplen: Annotated[int, Query(ge=14, le=MAX_SNAPLEN)] = MAX_SNAPLEN,
                      seconds: Annotated[float | None, Query(gt=0)] = None) -> StreamingResponse:
        """`data` is {type: records, host, records, lost} or {type: error, host, message}, which is the last.

        A record is {time_ns, stage: before|after, direction: out|in, reason, length, data}; `data` is base64, `reason`
        says why the packet was dropped. The capture ends with the connection, or after `seconds`.
        """
        host, uid = place_of(ledger.state, "", endpoint)
        args = {"kind": "capture", "port": uid, "bytes": snaplen, "stage": stage}
        return await _follow(controller, [host], args, patient=False, seconds=seconds)

    router.include_router(nat_routes(controller, partial(_follow, controller), REFUSALS))
    for what, summary in (("flows", "Live flows"), ("drops", "Drops by reason and rule"),
                          ("logs", "Packets that rules have logged"),
                          ("meters", "What metered endpoints sent and got, by rule,"),
                          ("rules", "Programmed rules with their counters")):
        router.add_api_route(f"/{what}", _ask(controller, what), methods=["GET"], responses=REFUSALS,
                             tags=["inside"], summary=f"{summary} of one host, one endpoint, or all hosts")
        router.add_api_route(f"/hosts/{{host}}/{what}", _ask_host(controller, what), methods=["GET"],
                             tags=["inside"], summary=f"{summary} of a host", responses=REFUSALS)
    return router


async def _follow(controller: Controller, hosts: list[str], args: dict[str, Any], *, patient: bool,
                  seconds: float | None = None) -> StreamingResponse:
    events = controller.follows.stream(controller.push, hosts, args, patient=patient, seconds=seconds)
    first = await anext(events)             # a refusal comes here, while the answer can still be one
    return StreamingResponse(_after(first, events), media_type="text/event-stream",
                             headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


def _ask(controller: Controller, what: str) -> Callable[..., Awaitable[JSONResponse]]:
    async def ask(request: Request, host: str = "", endpoint: str = "") -> JSONResponse:
        args = {k: v for k, v in request.query_params.items() if k not in ("host", "endpoint")}
        return JSONResponse(await inside(controller.push, controller.ledger.state, what, host, endpoint, args))

    return ask


def _ask_host(controller: Controller, what: str) -> Callable[..., Awaitable[JSONResponse]]:
    async def ask(request: Request, host: str, endpoint: str = "") -> JSONResponse:
        args = {k: v for k, v in request.query_params.items() if k != "endpoint"}
        known(controller.ledger.state, host)
        answer = await inside(controller.push, controller.ledger.state, what, host, endpoint, args)
        return JSONResponse(answer["hosts"][0])

    return ask


async def _written(controller: Controller, outcome: Outcome, wait_s: float, status: int = 200) -> JSONResponse:
    """The answer to a write, after the wait; status of resources as it is then."""
    pending: list[str] = []
    if wait_s:
        hosts = controller.push.concerned(outcome)
        pending = await controller.push.wait_applied(hosts, outcome.revision, wait_s)
    items = [{"kind": i.ref.kind, "tenant": i.ref.tenant, "name": i.ref.name, "result": i.result,
              "resource": controller.statuses.document(i.stored)} for i in outcome.items]
    return JSONResponse({"revision": outcome.revision, "items": items, "pending": pending},
                        202 if pending else status)


async def _json(request: Request) -> Any:
    """The body as plain data. Raises `Malformed`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Malformed(Problem("too_large", f"the body is longer than {MAX_BODY_BYTES} bytes", "body",
                                    f"{len(body)} bytes or more", "send it in parts"))
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise Malformed(Problem("malformed", f"the body is not JSON: {error}", "body",
                                shown(bytes(body[:200]).decode(errors="replace")), "send JSON")) from None


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Malformed(Problem("malformed", "the body must be a list", "body", shown(value), "put it in [ ]"))
    return value


def _model(model: type[M], value: Any, prefix: str = "") -> M:
    """A request body by its model. Raises `Invalid`."""
    try:
        return model.model_validate_json(json.dumps(value))
    except ValidationError as error:
        raise Invalid([problem_of(e, model, prefix) for e in error.errors(include_url=False)]) from None


def _reference(value: Any, position: int) -> Ref:
    asked = _model(ReferenceModel, value, f"reference {position + 1}")
    if asked.kind not in RESOURCES:
        raise Invalid(Problem("unknown_kind", "no such kind of resource", f"[{position}].kind", asked.kind,
                              f"use one of: {', '.join(RESOURCES)}"))
    return _ref(asked.kind, asked.tenant or DEFAULT_TENANT, asked.name)


def _ref(kind: str, tenant: str, name: str) -> Ref:
    return Ref(kind, "" if kind in CLUSTER_KINDS else tenant, name)


def _existing(ledger: Ledger, ref: Ref) -> Any:
    stored = ledger.state.get(ref)
    if stored is None:
        raise NotFound(missing(ref, ledger.state))
    return stored


def _addressed(document: Any, ref: Ref) -> Any:
    """The document, if it is that of the path; it may leave out the tenant, which the path has."""
    if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
        return document                     # its form is refused where all forms are
    metadata = document["metadata"]
    if ref.tenant and "tenant" not in metadata:
        document = {**document, "metadata": metadata | {"tenant": ref.tenant}}
    for field, said, meant in (("kind", document.get("kind"), ref.kind),
                               ("metadata.name", metadata.get("name"), ref.name),
                               ("metadata.tenant", metadata.get("tenant", ref.tenant), ref.tenant)):
        if said is not None and said != meant and not (field == "kind" and said not in RESOURCES):
            raise Invalid(Problem("invalid", f"is not that of the path, {meant!r}", field, shown(said),
                                  "let both name the same resource", str(ref)))
    return document


def _revision(if_match: str | None) -> int | None:
    """`"12"`, `12` or nothing. Raises `Malformed`."""
    if if_match is None:
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not text.isdecimal():
        raise Malformed(Problem("malformed", "not a revision", "If-Match", if_match,
                                "send metadata.revision of the resource, such as \"12\""))
    return int(text)


def _body_of(model: Any) -> dict[str, Any]:
    """OpenAPI of a request body that is read by `_json`."""
    inner = {"type": "array", "items": ReferenceModel.model_json_schema()} if model == list[ReferenceModel] \
        else model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inner}}}}


async def _after(first: str, rest: AsyncGenerator[str]) -> AsyncIterator[str]:
    async with aclosing(rest):
        yield first
        async for each in rest:
            yield each


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return JSONResponse(error.body(), error.status)


async def _bad_parameters(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [Problem("invalid", str(e["msg"]), path_of(e["loc"][1:]), shown(e.get("input")))
                for e in error.errors()]
    return JSONResponse(Invalid(problems).body(), 422)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    todo = "see /v1/openapi.json for what there is" if error.status_code in (404, 405) else ""
    problem = Problem("http", str(error.detail), "path", request.url.path, todo)
    return JSONResponse(Refused(problem).body(), error.status_code, headers=error.headers)


async def _store_failed(request: Request, error: Exception) -> JSONResponse:
    _log.error("store failed", error=str(error))
    return JSONResponse(Refused(Problem("store", str(error), todo="see the controller's log")).body(), 503)


__all__ = ["Controller", "create_app", "software_version"]
