"""Client of the controller's REST API, for the CLI, the labs and runtimes.

    with Client() as client:                       # $SLUICE_API, else the default unix socket
        client.apply(documents, wait_s=10)

A document is one resource as a plain mapping, as YAML gives it. Every refusal of the controller comes as
`ApiError` with its problems: field, what was found, what to do.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

# httpx imports a command line of its own if it can: a third of the time that this module takes.
sys.modules.setdefault("httpx._main", None)     # type: ignore[arg-type]
import httpx  # noqa: E402

from controller.errors import Problem  # noqa: E402

DEFAULT_API = "unix:/run/sluice/api.sock"
DEFAULT_TENANT = "default"

Document = Mapping[str, Any]

PLURALS = {
    "Tenant": "tenants",
    "Host": "hosts",
    "Network": "networks",
    "Endpoint": "endpoints",
    "Policy": "policies",
    "StaticMapping": "staticmappings",
}
"""Kind to path segment. `kind_of` reads them back, in any case, singular or plural."""

CLUSTER_KINDS = ("Tenant", "Host")
"""Kinds whose names stand alone; all others live in a tenant."""

PAGE = 500
SILENCE_S = 30.0                            # of a stream, which gives a sign of life every few seconds


class ClientError(Exception):
    """The controller could not be asked, or refused."""


class Unreachable(ClientError):
    """No controller answers at the target; the message names the target and what to do."""


class ApiError(ClientError):
    """The controller refused: `status` is the HTTP status, `problems` says why (at least one)."""

    def __init__(self, status: int, problems: Sequence[Problem]) -> None:
        self.status = status
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    @property
    def code(self) -> str:
        """Code of the first problem, such as `not_found` or `conflict`."""
        return self.problems[0].code


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did. `items` are {kind, tenant, name, result, resource} in the order asked.

    `result` is created, configured, unchanged or deleted; `pending` names the connected hosts that had not
    acknowledged `revision` when the wait ended (empty: it is in their kernels).
    """

    revision: int
    items: tuple[dict[str, Any], ...]
    pending: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """Names one stored resource. `tenant` is empty for Tenant and Host."""

    kind: str
    name: str
    tenant: str = ""


def kind_of(text: str) -> str:
    """Kind for a user's word: `network`, `networks`, `Network`, `net`, ... by unambiguous prefix.

    Raises:
        ClientError: no kind, or several, fit.
    """
    word = text.lower()
    exact = [k for k, plural in PLURALS.items() if word in (k.lower(), plural)]
    fitting = exact or [k for k in PLURALS if word and k.lower().startswith(word)]
    if len(fitting) != 1:
        raise ClientError(f"unknown kind {text!r}; use one of {', '.join(sorted(PLURALS.values()))}")
    return fitting[0]


def reference_of(document: Document) -> Reference:
    """What a document names; a tenanted kind without a tenant is in `default`.

    Raises:
        ClientError: kind or metadata.name is missing.
    """
    kind, metadata = document.get("kind"), document.get("metadata")
    if kind not in PLURALS or not isinstance(metadata, Mapping) or not metadata.get("name"):
        raise ClientError(f"document names no resource: kind is {kind!r}, metadata is {metadata!r}")
    tenant = "" if kind in CLUSTER_KINDS else str(metadata.get("tenant", DEFAULT_TENANT))
    return Reference(kind, str(metadata["name"]), tenant)


class Client:
    """A connection to one controller. A context manager; safe to use from one thread."""

    def __init__(self, api: str = "", token: str = "", timeout_s: float = 30.0) -> None:
        """`api`: `unix:/path` or `http://addr:port`; empty: $SLUICE_API, else the default socket.

        `token`: bearer token for HTTP; empty: $SLUICE_API_TOKEN. `timeout_s` is added to a `wait_s`.
        """
        self.api = api or os.environ.get("SLUICE_API", "") or DEFAULT_API
        token = token or os.environ.get("SLUICE_API_TOKEN", "")
        self._timeout_s = timeout_s
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._path = self.api.removeprefix("unix:") if self.api.startswith("unix:") else ""
        if self._path:
            # No TLS here: else httpx reads all authorities' certificates, which every command would wait for.
            transport = httpx.HTTPTransport(uds=self._path, verify=False)
            self._http = httpx.Client(transport=transport, base_url="http://sluice", headers=headers)
        elif self.api.startswith(("http://", "https://")):
            self._http = httpx.Client(base_url=self.api, headers=headers, verify=self.api.startswith("https://"))
        else:
            raise ClientError(f"API address {self.api!r} is neither unix:/path nor http://address:port")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    # Declared resources

    def apply(self, documents: Sequence[Document], wait_s: float = 0, dry_run: bool = False) -> Written:
        """Store all documents in one transaction, or none of them.

        Raises:
            ApiError: something was refused; nothing is stored.
        """
        params = {"dryRun": "true"} if dry_run else {}
        return _written(self._request("POST", "/v1/apply", wait_s, json=list(documents), params=params))

    def put(self, document: Document, if_match: int | None = None, wait_s: float = 0) -> Written:
        """Store one document; `if_match` is the revision that it must replace (else `ApiError` 412)."""
        headers = {} if if_match is None else {"If-Match": f'"{if_match}"'}
        path = _path(reference_of(document))
        return _written(self._request("PUT", path, wait_s, json=document, headers=headers))

    def get(self, kind: str, name: str, tenant: str = DEFAULT_TENANT) -> dict[str, Any]:
        """One resource with its status. Raises `ApiError` 404."""
        return _mapping(self._request("GET", _path(_reference(kind, name, tenant))))

    def list(self, kind: str, tenant: str | None = None, labels: str = "") -> list[dict[str, Any]]:
        """All resources of a kind, of one tenant or (None) of all; `labels` such as `app=web,tier!=db`."""
        params = {"limit": str(PAGE)} | ({"labelSelector": labels} if labels else {})
        if tenant is not None and kind not in CLUSTER_KINDS:
            params["tenant"] = tenant
        items: list[dict[str, Any]] = []
        while True:
            page = _mapping(self._request("GET", f"/v1/{PLURALS[kind]}", params=params))
            items += page["items"]
            if not page.get("continue"):
                return items
            params["continue"] = page["continue"]

    def delete(self, kind: str, name: str, tenant: str = DEFAULT_TENANT, wait_s: float = 0,
               if_match: int | None = None) -> Written:
        """Remove one resource. Raises `ApiError` 404, or 409 when something still uses it."""
        headers = {} if if_match is None else {"If-Match": f'"{if_match}"'}
        path = _path(_reference(kind, name, tenant))
        return _written(self._request("DELETE", path, wait_s, headers=headers))

    def delete_all(self, references: Iterable[Reference], wait_s: float = 0,
                   missing_ok: bool = False) -> Written:
        """Remove several in one transaction, or none. The order does not matter."""
        body = [{"kind": r.kind, "name": r.name} | ({"tenant": r.tenant} if r.tenant else {})
                for r in references]
        params = {"missingOk": "true"} if missing_ok else {}
        return _written(self._request("POST", "/v1/delete", wait_s, json=body, params=params))

    def watch(self, kind: str = "", tenant: str = "", since: int | None = None,
              timeout_s: float | None = None) -> Iterator[dict[str, Any]]:
        """Changes as they happen: {type: put|delete|status|bookmark, revision, kind, tenant, name, resource}.

        `since`: first every change after that revision; None: only what comes. Ends when `timeout_s` pass
        without any sign of the controller (it sends a comment every few seconds), or on disconnect.
        """
        params = {k: v for k, v in {"kind": kind, "tenant": tenant}.items() if v}
        if since is not None:
            params["since"] = str(since)
        timeout = httpx.Timeout(self._timeout_s, read=timeout_s)
        self._knock()
        try:
            with self._http.stream("GET", "/v1/watch", params=params, timeout=timeout) as answer:
                if answer.is_error:
                    answer.read()
                    raise _refusal(answer)
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        yield json.loads(line[5:])
        except httpx.ReadTimeout:
            return
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    # Enrolment and state of the controller

    def create_token(self, host: str, ttl_s: int = 3600) -> str:
        """A single-use token with which `host` may join within `ttl_s` seconds."""
        body = {"host": host, "ttlSeconds": ttl_s}
        return str(_mapping(self._request("POST", "/v1/tokens", json=body))["token"])

    def health(self) -> dict[str, Any]:
        """{status, revision, hosts: {declared, connected}}."""
        return _mapping(self._request("GET", "/v1/healthz"))

    def version(self) -> dict[str, Any]:
        """{version, api, store, revision}."""
        return _mapping(self._request("GET", "/v1/version"))

    # Look inside

    def trace(self, source: str, destination: str = "", protocol: str | int = "tcp", destination_port: int = 0,
              source_port: int = 0, tenant: str = DEFAULT_TENANT, *, frame: bytes = b"", live: bool = False,
              **more: Any) -> dict[str, Any]:
        """What would happen to a packet: {verdict, reason, denied_by, hops: [...]}.

        `source` is an endpoint of `tenant` (or `tenant/name`), `destination` an endpoint or an address. With `frame`
        that packet is followed. `live`: the kernels are asked too; `agrees` says whether both say the same. `more`:
        other fields of the request (sourceAddress, tcpFlags, ...).
        """
        if frame or live or more:
            body: dict[str, Any] = {"tenant": tenant, "from": source, "live": live, **more}
            body |= {"frame": base64.b64encode(frame).decode()} if frame else {"to": destination, "protocol": protocol}
            body |= {"destinationPort": destination_port} if destination_port else {}
            body |= {"sourcePort": source_port} if source_port else {}
            return _mapping(self._request("POST", "/v1/trace", json=body))
        body = {"tenant": tenant, "from": source, "to": destination, "protocol": protocol}
        if destination_port:
            body["destinationPort"] = destination_port
        if source_port:
            body["sourcePort"] = source_port
        return _mapping(self._request("POST", "/v1/trace", json=body))

    def flows(self, host: str = "", endpoint: str = "", **wanted: str | int) -> dict[str, Any]:
        """Flows of a host, an endpoint `tenant/name`, or of all: {hosts: [{host, error, flows: [...], total}]}.

        `wanted`: address (or prefix), protocol, transportPort, state, limit.
        """
        return self._inside("flows", host, endpoint, wanted)

    def drops(self, host: str = "", endpoint: str = "") -> dict[str, Any]:
        """Drops {hosts: [{host, error, reasons, rules, recent}]}."""
        return self._inside("drops", host, endpoint)

    def logs(self, host: str = "", endpoint: str = "", **wanted: str | int) -> dict[str, Any]:
        """Packets that rules have logged, the latest first: {hosts: [{host, error, logs: [...], total}]}.

        `wanted`: limit.
        """
        return self._inside("logs", host, endpoint, wanted)

    def rules(self, host: str = "", endpoint: str = "", **wanted: str | int) -> dict[str, Any]:
        """Programmed rules with counters {hosts: [{host, error, rules: [...], total}]}.

        `wanted`: layer, sort (order, hits, drops), unused, limit.
        """
        return self._inside("rules", host, endpoint, wanted)

    def meters(self, host: str = "", endpoint: str = "", **wanted: str | int) -> dict[str, Any]:
        """What metered endpoints sent and got {hosts: [{host, error, meters: [...], total}]}.

        `wanted`: network (`tenant/name`), limit.
        """
        return self._inside("meters", host, endpoint, wanted)

    def nat(self, host: str = "", network: str = "", **wanted: str | int) -> dict[str, Any]:
        """NAT of a host, of a network `tenant/name`, or of all.

        Returns {hosts: [{host, error, prefixes, pools, mappings, bindings, total}]}; `total`: bindings.

        `wanted`: section (one of the four), limit (bindings of a host).
        """
        return self._inside("nat", host, "", {"network": network, **wanted})

    def nat_log(self, host: str = "", network: str = "") -> Iterator[dict[str, Any]]:
        """Bindings as they begin and end, of networks with `log`: as `watch_drops`."""
        yield from self._stream("/v1/nat/log", {"host": host, "network": network})

    def watch_drops(self, host: str = "", endpoint: str = "") -> Iterator[dict[str, Any]]:
        """Drops as they happen: {type: records, host, records, lost} or {type: error, host, message}."""
        yield from self._stream("/v1/drops/watch", {"host": host, "endpoint": endpoint})

    def capture(self, endpoint: str, stage: str = "", snaplen: int = 0, seconds: float = 0) -> Iterator[dict[str, Any]]:
        """Packets of an endpoint as they come: {type: records, host, records, lost}; an error is the last.

        A record is {time_ns, stage: before|after, direction: out|in, reason, length, data (base64)}.
        """
        params = {"endpoint": endpoint, "stage": stage, "snaplen": str(snaplen or ""), "seconds": str(seconds or "")}
        yield from self._stream("/v1/capture", params)

    def _stream(self, path: str, params: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Server-sent events; an empty message for each sign of life without news."""
        timeout = httpx.Timeout(self._timeout_s, read=SILENCE_S)
        self._knock()
        try:
            given = {k: v for k, v in params.items() if v}
            with self._http.stream("GET", path, params=given, timeout=timeout) as answer:
                if answer.is_error:
                    answer.read()
                    raise _refusal(answer)
                for line in answer.iter_lines():
                    if line.startswith("data:"):
                        yield json.loads(line[5:])
                    elif line.startswith(":"):
                        yield {}
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _inside(self, what: str, host: str, endpoint: str,
                wanted: Mapping[str, str | int] | None = None) -> dict[str, Any]:
        params = {k: str(v) for k, v in {"host": host, "endpoint": endpoint, **(wanted or {})}.items() if v}
        return _mapping(self._request("GET", f"/v1/{what}", params=params))

    def _request(self, method: str, path: str, wait_s: float = 0, **options: Any) -> Any:
        self._knock()
        if wait_s:
            options["params"] = {**options.get("params", {}), "wait": str(wait_s)}
        try:
            answer = self._http.request(method, path, timeout=self._timeout_s + wait_s, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if answer.is_error:
            raise _refusal(answer)
        return answer.json()

    def _knock(self) -> None:
        """See that somebody listens on the unix socket: httpcore leaks its socket when connecting fails."""
        if self._path:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(self._timeout_s)
                try:
                    probe.connect(self._path)
                except OSError as error:
                    raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"no answer from the controller at {self.api}: {error or type(error).__name__}; "
                           "is `sluice controller run` (or `sluice up`) running, and SLUICE_API right?")


def _reference(kind: str, name: str, tenant: str) -> Reference:
    return Reference(kind, name, "" if kind in CLUSTER_KINDS else tenant)


def _path(reference: Reference) -> str:
    name = quote(reference.name, safe="")
    if not reference.tenant:
        return f"/v1/{PLURALS[reference.kind]}/{name}"
    return f"/v1/tenants/{quote(reference.tenant, safe='')}/{PLURALS[reference.kind]}/{name}"


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ClientError(f"the controller answered {type(value).__name__} where an object was expected")
    return value


def _written(value: Any) -> Written:
    answer = _mapping(value)
    return Written(int(answer["revision"]), tuple(answer["items"]), tuple(answer["pending"]))


def _refusal(answer: httpx.Response) -> ApiError:
    """The problems in an error answer; one made of the status when the body is not the controller's."""
    try:
        found = answer.json()["errors"]
        problems = [Problem(**{k: str(e.get(k, "")) for k in Problem.__slots__}) for e in found]
    except (ValueError, KeyError, TypeError):
        problems = []
    return ApiError(answer.status_code, problems or
                    [Problem("http", f"HTTP {answer.status_code} {answer.reason_phrase} from {answer.url}")])


__all__ = ["CLUSTER_KINDS", "DEFAULT_API", "DEFAULT_TENANT", "PLURALS", "ApiError", "Client", "ClientError",
           "Problem", "Reference", "Unreachable", "Written", "kind_of", "reference_of"]
