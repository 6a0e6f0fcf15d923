"""CreateEndpoint to DeleteEndpoint: an endpoint of Docker's is an attachment whose far end waits for Docker.

The port is up before CreateEndpoint answers, and forwards when Docker has put the link into the container. Published
ports are those of the endpoint by which the container reaches the world: ProgramExternalConnectivity says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from runtimes.docker.agent import Agent
from runtimes.docker.fields import interface, mapping, text
from runtimes.docker.networks import ID_LENGTH, RUNTIME, Networks
from runtimes.docker.portmaps import Published, published
from runtimes.docker.state import DockerNetwork
from runtimes.local import LocalError
from runtimes.options import endpoint_options

INTERFACE_PREFIX = "eth"
_BUSY = ("taken", "in_use", "exists")       # of a port: somebody has it, another may be free
_TRANSLATING = ("nat", "overlay")
_NEXT_HOP = 0                               # RouteType of libnetwork's


@dataclass(slots=True)
class _Known:
    """What this process was told of an endpoint; another one asks the agent."""

    attachment: dict[str, Any]
    published: tuple[Published, ...] = ()


class Endpoints:
    """Docker's endpoints."""

    def __init__(self, agent: Agent, networks: Networks) -> None:
        self._agent, self._networks = agent, networks
        self._known: dict[str, _Known] = {}

    async def create(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Make the port. Returns what of addresses and MAC Docker left open.

        Raises:
            LocalError: there is no port.
        """
        endpoint_id = text(request, "EndpointID")
        network = await self._networks.get(text(request, "NetworkID"))
        asked, options = mapping(request, "Interface"), mapping(request, "Options")
        own = endpoint_options(options)
        wanted = [interface(asked[name], name) for name in ("Address", "AddressIPv6") if asked.get(name)]
        mac = asked.get("MacAddress") or None
        try:
            attachment = await self._agent.ask(
                "attach", runtime=RUNTIME, id=endpoint_id, scope=network.id, network=network.network,
                tenant=network.tenant, veth=True, name=own.name, mac=mac,
                addresses=[str(each.ip) for each in wanted] or None, labels=own.labels or None, qos=own.qos or None)
        except LocalError as error:
            raise _advised(error, network) from None
        self._known[endpoint_id] = _Known(attachment, published(options) or ())
        given = {} if mac else {"MacAddress": str(attachment["mac"])}
        # A family that Docker gave no address of: its IPAM driver is `null`, or it does not know of the prefix.
        had = {each.version for each in wanted}
        for address in attachment["addresses"]:
            if ip_interface(address).version not in had:
                given["AddressIPv6" if ":" in address else "Address"] = address
        return given

    async def join(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Hand the far end to Docker.

        Raises:
            LocalError
        """
        endpoint_id = text(request, "EndpointID")
        network = await self._networks.get(text(request, "NetworkID"))
        known = await self._get(endpoint_id)
        known.published = published(mapping(request, "Options")) or known.published
        await self._agent.ask("taken", runtime=RUNTIME, id=endpoint_id)
        attachment = known.attachment
        answer: dict[str, Any] = {
            "InterfaceName": {"SrcName": attachment["farInterface"], "DstPrefix": INTERFACE_PREFIX},
            "StaticRoutes": []}
        families = {ip_interface(each).version for each in attachment["addresses"]}
        gateways: dict[int, str] = {ip_address(each).version: each for each in attachment["gateways"]
                    if ip_address(each).version in families}
        if attachment["exit"] if network.exit is None else network.exit:
            if 4 in gateways:
                answer["Gateway"] = gateways[4]
            if 6 in gateways:
                answer["GatewayIPv6"] = gateways[6]
        else:
            answer["StaticRoutes"] = _inner_routes(network, attachment, gateways)
        # Without a gateway Docker would join the container to a bridge of its own besides.
        answer["DisableGatewayService"] = "Gateway" not in answer
        return answer

    async def leave(self, request: Mapping[str, Any]) -> None:
        """Docker takes the link out of the container; DeleteEndpoint follows, and frees all."""
        text(request, "EndpointID")

    async def delete(self, request: Mapping[str, Any]) -> None:
        """Remove the port with its mappings, whether they were revoked or not. Repeating it is no error.

        Raises:
            LocalError
        """
        endpoint_id = text(request, "EndpointID")
        await self._agent.ask("detach", runtime=RUNTIME, id=endpoint_id)
        self._known.pop(endpoint_id, None)

    async def info(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What Docker may keep of the endpoint.

        Raises:
            LocalError: not_found.
        """
        attachment = (await self._get(text(request, "EndpointID"))).attachment
        return {f"sluice.{name}": attachment[name] for name in ("name", "tenant", "network", "mac", "hostInterface")}

    async def publish(self, request: Mapping[str, Any]) -> None:
        """Publish the container's ports at this endpoint: the world is reached by it from now on.

        Raises:
            LocalError: no port is published.
        """
        endpoint_id = text(request, "EndpointID")
        network = await self._networks.get(text(request, "NetworkID"))
        known = await self._get(endpoint_id)
        told = published(mapping(request, "Options"))
        ports = told if told is not None else known.published
        if not ports:
            await self._revoke(endpoint_id, known)
            return
        if network.mode not in _TRANSLATING:
            raise LocalError("invalid", f"ports of a network of mode {network.mode} cannot be published", "-p",
                             ", ".join(f"{each.internal}/{each.protocol}" for each in ports),
                             "leave -p out: the container is reached at its own address")
        try:
            await self._map(endpoint_id, known, ports)
        except LocalError:
            await self._revoke(endpoint_id, known)      # of those that were mapped before the one that failed
            raise

    async def revoke(self, request: Mapping[str, Any]) -> None:
        """Publish nothing at this endpoint any more.

        Raises:
            LocalError
        """
        endpoint_id = text(request, "EndpointID")
        try:
            known = await self._get(endpoint_id)
        except LocalError as error:
            if error.code == "not_found":
                return
            raise
        await self._revoke(endpoint_id, known)

    async def _revoke(self, endpoint_id: str, known: _Known) -> None:
        if known.attachment["mappings"]:
            await self._ask_map(endpoint_id, known, [])

    async def _map(self, endpoint_id: str, known: _Known, ports: Sequence[Published]) -> None:
        """Map them all: those with one external port at once, then, one by one, those that leave a choice."""
        mappings = [each.mapping(each.choices[0]) for each in ports if len(each.choices) == 1]
        if mappings:
            await self._ask_map(endpoint_id, known, mappings)
        for each in ports:
            if len(each.choices) > 1:
                mappings.append(await self._choose(endpoint_id, known, mappings, each))
        await self._map_other_family(endpoint_id, known, mappings)

    async def _ask_map(self, endpoint_id: str, known: _Known, mappings: Sequence[Mapping[str, Any]]) -> None:
        known.attachment = await self._agent.ask("map", runtime=RUNTIME, id=endpoint_id, mappings=list(mappings))

    async def _choose(self, endpoint_id: str, known: _Known, mappings: Sequence[dict[str, Any]],
                      port: Published) -> dict[str, Any]:
        """The first port of the range that nobody has."""
        for number in port.choices:
            mapping = port.mapping(number)
            try:
                await self._ask_map(endpoint_id, known, [*mappings, mapping])
                return mapping
            except LocalError as error:
                if error.code not in _BUSY:
                    raise
        raise LocalError("in_use", f"no port from {port.first} to {port.last} is free", "-p",
                         f"{port.first}-{port.last}:{port.internal}/{port.protocol}", "give another range, or no port")

    async def _map_other_family(self, endpoint_id: str, known: _Known, mappings: Sequence[dict[str, Any]]) -> None:
        """The same ports of the host's IPv6 addresses, if no address is named and the container has IPv6."""
        attachment = known.attachment
        open_ = [each for each in mappings if "externalAddress" not in each]
        if open_ and 6 in {ip_interface(each).version for each in attachment["addresses"]}:
            chosen = {(each["protocol"], each["internalPort"]): each["externalPort"]
                      for each in attachment["mappings"]}
            six = [{**each, "externalPort": _chosen(each, chosen), "externalAddress": "::"} for each in open_]
            await self._ask_map(endpoint_id, known, [*mappings, *six])

    async def _get(self, endpoint_id: str) -> _Known:
        known = self._known.get(endpoint_id)
        if known is None:
            try:
                attachment = await self._agent.ask("check", runtime=RUNTIME, id=endpoint_id)
            except LocalError as error:
                if error.code == "not_found":
                    raise LocalError("not_found", "there is no such endpoint", "EndpointID",
                                     endpoint_id[:ID_LENGTH], "start the container again") from None
                raise
            known = self._known[endpoint_id] = _Known(attachment)
        return known


def _inner_routes(network: DockerNetwork, attachment: Mapping[str, Any],
                  gateways: Mapping[int, str]) -> list[dict[str, Any]]:
    """To the other subnets of a network that the default route does not go through."""
    own = {ip_interface(each).network for each in attachment["addresses"]}
    others = [prefix for prefix in map(ip_network, network.pools) if prefix not in own and prefix.version in gateways]
    return [{"Destination": str(each), "RouteType": _NEXT_HOP, "NextHop": gateways[each.version]} for each in others]


def _chosen(mapping: Mapping[str, Any], chosen: Mapping[tuple[str, int], Any]) -> Any:
    if mapping["externalPort"] != "auto":
        return mapping["externalPort"]
    return chosen[mapping["protocol"], mapping["internalPort"]]


def _advised(error: LocalError, network: DockerNetwork) -> LocalError:
    """An address that Docker chose, and that another host's container has: Docker cannot know."""
    if error.code not in ("taken", "outside") or network.own_ipam:
        return error
    hint = ("let the network choose addresses: docker network create --ipam-driver sluice --ipam-opt network="
            f"{network.network}")
    todo = f"{error.todo}; {hint}" if error.todo else hint
    return LocalError(error.code, error.message, error.field, error.found, todo)
