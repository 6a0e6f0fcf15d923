"""Documents and parts of a controller for its tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

from controller.api import Controller, create_app
from controller.follow import Follows
from controller.ledger import Ledger
from controller.pki import Pki
from controller.push import Push
from controller.roaming import Roaming
from controller.status import Statuses
from controller.store import Report, SqliteStore
from controller.watch import Watches
from southbound.messages import HostFacts

T = TypeVar("T")
Document = dict[str, Any]


def document(kind: str, name: str, spec: Document, tenant: str = "", labels: dict[str, str] | None = None) -> Document:
    metadata: Document = {"name": name}
    if tenant:
        metadata["tenant"] = tenant
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": "sluice/v1", "kind": kind, "metadata": metadata, "spec": spec}


def tenant(name: str) -> Document:
    return document("Tenant", name, {})


def host(name: str, underlay: str = "", **spec: Any) -> Document:
    return document("Host", name, spec | ({"underlay": underlay} if underlay else {}))


def overlay(name: str, prefix: str = "10.1.0.0/24", in_tenant: str = "", **spec: Any) -> Document:
    return document("Network", name, {"mode": "overlay", "subnets": [{"prefix": prefix}], **spec}, in_tenant)


def nat(name: str, prefix: str, on: str = "h1", **spec: Any) -> Document:
    return document("Network", name, {"mode": "nat", "host": on, "subnets": [{"prefix": prefix}], **spec})


def endpoint(name: str, network: str, on: str = "h1", in_tenant: str = "", labels: dict[str, str] | None = None,
             **spec: Any) -> Document:
    spec = {"network": network, "host": on, "netns": f"ns-{in_tenant}{name}"} | spec
    return document("Endpoint", name, spec, in_tenant, labels)


def mapping(name: str, network: str, target: str, external: int | str, internal: int | str = 80,
            **spec: Any) -> Document:
    return document("StaticMapping", name, {"network": network, "endpoint": target, "protocol": "tcp",
                                            "externalPort": external, "internalPort": internal, **spec})


def policy(name: str, network: str, *rules: Document, **spec: Any) -> Document:
    return document("Policy", name, {"network": network, "rules": list(rules), **spec})


WORLD = [
    host("h1", "172.31.0.1"), host("h2", "172.31.0.2"), host("h3"),
    overlay("red"), overlay("blue"), nat("office", "192.168.250.0/24"),
    endpoint("a", "red", address="10.1.0.5"), endpoint("b", "red", "h2"),
    endpoint("web", "office", labels={"app": "web"}),
    mapping("www", "office", "web", 8080),
]
"""Two overlays with the same prefix, one nat network with a mapping; h3 has no underlay."""

FACTS = HostFacts(
    addresses=(("lo", "127.0.0.1/8"), ("lan0", "192.168.7.10/24"), ("wlan0", "192.168.8.3/24")),
    routes=(("lan0", "0.0.0.0/0"), ("lan0", "192.168.7.0/24"), ("tun0", "10.8.0.0/16"), ("lan0", "fe80::/64")),
    listeners=(("tcp", "0.0.0.0", 22), ("tcp", "127.0.0.1", 9000), ("tcp", "192.168.7.10", 9443),
               ("udp", "::", 5353)))


class Late:
    """A part of whichever controller was made last."""

    part: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)


LATE = {name: Late() for name in ("ledger", "push", "statuses", "watches", "pki", "follows")}
APP = create_app(Controller(**LATE))        # type: ignore[arg-type]
"""One for all: FastAPI needs longer to make it than most tests to run."""


class Parts:
    """A controller without sockets, and a client of its API. One at a time."""

    def __init__(self, folder: Path) -> None:
        self.store = SqliteStore(folder / "sluice.db")
        self.ledger = Ledger(self.store)
        self.pki = Pki.open(folder / "pki")
        self.roaming = Roaming(self.ledger, settle_s=0.01, pause_s=0.2)
        self.push = Push(self.ledger, self.pki)
        self.statuses = Statuses(self.ledger, self.push)
        self.watches = Watches(self.ledger, self.statuses)
        self.push.on_status.append(self.watches.status_moved)
        self.follows = Follows()
        for name, late in LATE.items():
            late.part = getattr(self, name)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://sluice")

    async def apply(self, *documents: Document, **params: Any) -> httpx.Response:
        return await self.http.post("/v1/apply", json=list(documents), params=params)

    async def world(self, facts: HostFacts = FACTS) -> None:
        await self.ledger.save_report("h1", Report("test", facts))
        answer = await self.apply(*WORLD)
        assert answer.status_code == 200, answer.text

    async def everything(self) -> list[Any]:
        """All that is stored, as the API lists it; with the revision."""
        kinds = ("tenants", "hosts", "networks", "endpoints", "policies", "staticmappings")
        return [(await self.http.get(f"/v1/{kind}")).json() for kind in kinds]

    async def close(self) -> None:
        self.watches.close()
        await self.http.aclose()
        await self.roaming.close()
        await self.ledger.close()


Refusal = tuple[Any, int, str, str, str, str]
"""document, status, field, found, words of the message, words of what to do"""


async def refuses(parts: Parts, refusal: Refusal) -> None:
    """The document is refused as told, with all that came with it, and nothing is stored."""
    bad, status, field, found, message, todo = refusal
    before = await parts.everything()
    answer = await parts.apply(tenant("fine"), bad, host("also-fine"))
    assert answer.status_code == status, answer.text
    errors = answer.json()["errors"]
    assert answer.json()["error"] == errors[0]
    error = next((e for e in errors if e["field"] == field), None)
    assert error is not None, errors
    if found:
        assert found in error["found"]
    assert message in error["message"], error
    assert todo in error["todo"], error
    assert await parts.everything() == before


def with_parts(folder: Path, test: Callable[[Parts], Awaitable[T]]) -> T:
    """Run an asynchronous test on a fresh controller."""
    async def body() -> T:
        parts = Parts(folder)
        try:
            return await asyncio.wait_for(test(parts), 30)
        finally:
            await parts.close()

    return asyncio.run(body())
