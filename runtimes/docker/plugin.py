"""Docker's calls, each answered within a time: one that hangs would hold the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from runtimes.docker.agent import Agent
from runtimes.docker.endpoints import Endpoints
from runtimes.docker.fields import text
from runtimes.docker.networks import ADDRESS_SPACES, Networks
from runtimes.docker.pools import Pools
from runtimes.docker.state import State
from runtimes.local import LocalError

_log = structlog.get_logger("docker")

CALL_S = 20.0                               # some calls ask the agent more than once; each of those has less
# Docker's client sends a body once: what it repeats, because the agent went away while it answered, has none.
AWAY = "the agent was away while Docker asked, and Docker asked again without saying what"
Call = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]


# What is answered whoever asks, whatever is said.
_CONSTANT: dict[str, dict[str, Any]] = {
    "/Plugin.Activate": {"Implements": ["NetworkDriver", "IpamDriver"]},
    # What Docker keeps of a network is its own; that several daemons share one of ours is not its business.
    "/NetworkDriver.GetCapabilities": {"Scope": "local", "ConnectivityScope": "local", "GwAllocChecker": True},
    "/NetworkDriver.GwAllocCheck": {"SkipIPv4": False, "SkipIPv6": False},
    "/NetworkDriver.AllocateNetwork": {"Options": {}},      # Swarm; scope local is never asked
    "/NetworkDriver.FreeNetwork": {},
    "/NetworkDriver.DiscoverNew": {},
    "/NetworkDriver.DiscoverDelete": {},
    # Pools and addresses outlive the daemon: nothing needs to be told again.
    "/IpamDriver.GetCapabilities": {"RequiresMACAddress": False, "RequiresRequestReplay": False},
    "/IpamDriver.GetDefaultAddressSpaces": {
        "LocalDefaultAddressSpace": ADDRESS_SPACES[0], "GlobalDefaultAddressSpace": ADDRESS_SPACES[1]},
    "/IpamDriver.ReleasePool": {},
}


class Plugin:
    """All methods of the protocol, by their paths."""

    def __init__(self, agent: Agent, state: State, call_s: float = CALL_S) -> None:
        self._networks = Networks(agent, state)
        self._endpoints = Endpoints(agent, self._networks)
        self._pools = Pools(agent, state)
        self._call_s = call_s
        self._calls: dict[str, Call] = {
            "/NetworkDriver.CreateNetwork": self._create_network,
            "/NetworkDriver.DeleteNetwork": self._delete_network,
            "/NetworkDriver.CreateEndpoint": self._create_endpoint,
            "/NetworkDriver.EndpointOperInfo": self._endpoint_info,
            "/NetworkDriver.DeleteEndpoint": self._delete_endpoint,
            "/NetworkDriver.Join": self._join,
            "/NetworkDriver.Leave": self._leave,
            "/NetworkDriver.ProgramExternalConnectivity": self._publish,
            "/NetworkDriver.RevokeExternalConnectivity": self._revoke,
            "/IpamDriver.RequestPool": self._request_pool,
            "/IpamDriver.RequestAddress": self._request_address,
            "/IpamDriver.ReleaseAddress": self._release_address,
        }

    async def start(self) -> None:
        """Tidy up after another process, before Docker is answered."""
        await self._networks.undo()

    async def answer(self, driver: str, path: str, request: Mapping[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """HTTP status and body. `driver`: the name of the socket, by which Docker knows the plug-in."""
        if path in _CONSTANT:
            return 200, _CONSTANT[path]
        call = self._calls.get(path)
        if call is None:
            methods = ", ".join(sorted((*_CONSTANT, *self._calls)))
            return 404, {"Err": f"path: no such method (found: {path}); there are {methods}"}
        try:
            if request is None:
                raise LocalError("lost", AWAY, todo="repeat the command")
            async with asyncio.timeout(self._call_s):
                return 200, await call(driver, request)
        except LocalError as error:
            why = error.text
        except TimeoutError:
            why = f"{path[1:]} took more than {self._call_s:g} s; see the agent's log, and try again"
        except Exception as error:
            _log.exception("a call of Docker's failed", path=path)
            why = f"{path[1:]}: {type(error).__name__}: {error}; this is a bug, see the agent's log"
        # Docker reads `Err` of a NetworkDriver, and `Error` of an IpamDriver.
        return 200, {"Err": why, "Error": why}

    async def _create_network(self, driver: str, request: Mapping[str, Any]) -> dict[str, Any]:
        await self._networks.create(driver, request)
        return {}

    async def _delete_network(self, driver: str, request: Mapping[str, Any]) -> dict[str, Any]:
        await self._networks.delete(text(request, "NetworkID"))
        return {}

    async def _create_endpoint(self, driver: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"Interface": await self._endpoints.create(request)}

    async def _endpoint_info(self, driver: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"Value": await self._endpoints.info(request)}

    async def _delete_endpoint(self, driver: str, request: Mapping[str, Any]) -> dict[str, Any]:
        await self._endpoints.delete(request)
        return {}

    async def _join(self, driver: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return await self._endpoints.join(request)

    async def _leave(self, driver: str, request: Mapping[str, Any]) -> dict[str, Any]:
        await self._endpoints.leave(request)
        return {}

    async def _publish(self, driver: str, request: Mapping[str, Any]) -> dict[str, Any]:
        await self._endpoints.publish(request)
        return {}

    async def _revoke(self, driver: str, request: Mapping[str, Any]) -> dict[str, Any]:
        await self._endpoints.revoke(request)
        return {}

    async def _request_pool(self, driver: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return await self._pools.request(request)

    async def _request_address(self, driver: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return await self._pools.address(request)

    async def _release_address(self, driver: str, request: Mapping[str, Any]) -> dict[str, Any]:
        await self._pools.release(request)
        return {}
