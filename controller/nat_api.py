"""The part of the API that shows NAT: what hosts have, and records of bindings as they come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from controller.inside import nat, nat_place

if TYPE_CHECKING:
    from controller.api import Controller

Follow = Callable[..., Awaitable[StreamingResponse]]


def nat_routes(controller: Controller, follow: Follow, refusals: dict[int | str, dict[str, Any]]) -> APIRouter:
    """`/nat`, `/nat/log`, `/hosts/{host}/nat`.

    Args:
        controller: whose state and sessions.
        follow: makes the answer of server-sent events for hosts and arguments.
        refusals: what they may answer besides, for the description of the API.
    """
    router = APIRouter(tags=["inside"])
    push, ledger = controller.push, controller.ledger

    @router.get("/nat/log", summary="Follow bindings as server-sent events",
                responses={200: {"content": {"text/event-stream": {}}}, **refusals})
    async def follow_bindings(host: str = "", network: str = "") -> StreamingResponse:
        """`data` is {type: records, host, records, lost} or {type: error, host, message}.

        A record is {time, event: bound|released, network, endpoint, protocol, internal, internal_port, external,
        external_port}, or {time, event: block-taken|block-released, network, endpoint, external, external_ports}; of
        networks with `nat.log`. `lost`: records that were not told since the stream began.
        """
        name, wanted = nat_place(ledger.state, host, network)
        names = [name] if name else sorted(h.ref.name for h in ledger.state.hosts())
        args = {"kind": "bindings"} | ({"network": wanted} if wanted else {})
        return await follow(names, args, patient=not name)

    @router.get("/nat", summary="Prefixes, pools, mappings and bindings of one host, one network, or all hosts",
                responses=refusals)
    async def show_nat(request: Request, host: str = "", network: str = "") -> JSONResponse:
        return JSONResponse(await nat(push, ledger.state, host, network, _besides(request, "host", "network")))

    @router.get("/hosts/{host}/nat", summary="Prefixes, pools, mappings and bindings of a host", responses=refusals)
    async def show_nat_of_host(request: Request, host: str, network: str = "") -> JSONResponse:
        answer = await nat(push, ledger.state, host, network, _besides(request, "network"))
        return JSONResponse(answer["hosts"][0])

    return router


def _besides(request: Request, *names: str) -> dict[str, str]:
    """The parameters that are the agent's to judge."""
    return {name: value for name, value in request.query_params.items() if name not in names}


__all__ = ["nat_routes"]
