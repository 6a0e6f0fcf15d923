"""CreateNetwork and DeleteNetwork: a network of Docker's is one of ours, made for it or joined."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import structlog

from runtimes.docker.agent import Agent
from runtimes.docker.fields import interface, mapping, prefix, rows, text
from runtimes.docker.state import DockerNetwork, State
from runtimes.local import LocalError
from runtimes.options import NetworkOptions, network_options

_log = structlog.get_logger("docker")

RUNTIME = "docker"
ADDRESS_SPACES = ("sluice", "sluice-global")
GENERIC = "com.docker.network.generic"
INTERNAL = "com.docker.network.internal"
WITHOUT_PREFIX = ("0.0.0.0/0", "::/0")      # what Docker's IPAM driver `null` says
ANY_MODE = "sluice"                         # the driver's name that says nothing of the mode
UNKNOWN = ("timeout", "lost")               # codes of errors after which it may be made
DEFAULTS = ("auto", "none", "off")          # of fields that a spec leaves out then
ID_LENGTH = 12                              # of Docker's ids, where people see them


class Networks:
    """Docker's networks."""

    def __init__(self, agent: Agent, state: State) -> None:
        self._agent, self._state = agent, state
        self._undoing: set[asyncio.Task[None]] = set()

    async def create(self, driver: str, request: Mapping[str, Any]) -> None:
        """Make or join the network that Docker describes. Repeating it is no error.

        Raises:
            LocalError: nothing was made.
        """
        network_id = text(request, "NetworkID")
        known = self._state.get(network_id)
        if known is not None and known.done:
            return                          # asked again after an answer that did not arrive
        options = mapping(request, "Options")
        asked = network_options(mapping(options, GENERIC))
        internal = bool(options.get(INTERNAL))
        mode = _mode(driver, asked, internal)
        data = [*rows(request, "IPv4Data"), *rows(request, "IPv6Data")]
        subnets = [_subnet(each) for each in data if each.get("Pool") not in WITHOUT_PREFIX]
        there = await self._find(asked) if asked.network else None
        kept = DockerNetwork(
            network_id, asked.tenant, asked.network or f"docker-{network_id[:ID_LENGTH]}",
            there["mode"] if there else mode, tuple(each["prefix"] for each in subnets),
            any(each.get("AddressSpace") in ADDRESS_SPACES for each in data), done=False)
        await self._state.put(kept)               # first: what is made is known, whatever step is the last
        try:
            found = await self._make(kept, asked, mode, subnets, there, internal)
            reserved = () if found["created"] else await self._reserve(kept, subnets)
        except LocalError as error:
            if error.code in UNKNOWN:
                self._undo_later(kept)
            else:
                await self._state.drop(network_id)
            raise
        except BaseException:
            self._undo_later(kept)
            raise
        await self._state.put(replace(kept, network=found["name"], mode=found["mode"], done=True,
                                exit=False if internal else asked.exit, reserved=reserved))

    async def undo(self) -> None:
        """Let go of what another process began to make and did not: Docker was not told of it, and repeats nothing."""
        for kept in self._state:
            if not kept.done:
                await self._undo(kept)

    def _undo_later(self, kept: DockerNetwork) -> None:
        """Whether it was made is not known, and Docker does not wait for it."""
        task = asyncio.create_task(self._undo(kept))
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    async def _undo(self, kept: DockerNetwork) -> None:
        try:
            await self.delete(kept.id)
        except LocalError as error:         # the next process tries again
            _log.error("a network that was cut off in its making is left", network=kept.path, error=error.text)

    async def delete(self, network_id: str) -> None:
        """Let go of it; ours is removed if it was made for Docker and nothing else uses it. Repeating is no error.

        Raises:
            LocalError
        """
        kept = self._state.get(network_id)
        await self._agent.ask("gc", runtime=RUNTIME, scope=network_id, valid=[])
        if kept is not None:
            await self._unreserve(kept, kept.reserved)
        await self._agent.ask("network-delete", runtime=RUNTIME, id=network_id)
        await self._state.drop(network_id)

    async def get(self, network_id: str) -> DockerNetwork:
        """The network with this NetworkID; what the plug-in forgot the agent may know.

        Raises:
            LocalError: not_found.
        """
        kept = self._state.get(network_id)
        if kept is not None:
            return kept
        rows = (await self._agent.ask("networks", runtime=RUNTIME))["networks"]
        row = next((each for each in rows if each.get("id") == network_id), None)
        if row is None:
            raise LocalError("not_found", "this network was not made by the agent of this host", "NetworkID",
                             network_id[:ID_LENGTH], "remove it (docker network rm) and create it again")
        if not row.get("subnets"):          # the agent knows its name only, until it is asked for
            row = await self._agent.ask("network", network=row["name"], tenant=row["tenant"])
        kept = DockerNetwork(network_id, row["tenant"], row["name"], row["mode"],
                             tuple(each["prefix"] for each in row["subnets"]), True)
        await self._state.put(kept)
        return kept

    async def _find(self, asked: NetworkOptions) -> dict[str, Any] | None:
        try:
            return await self._agent.ask("network", network=asked.network, tenant=asked.tenant)
        except LocalError as error:
            if error.code != "not_found":
                raise
            return None

    async def _make(self, kept: DockerNetwork, asked: NetworkOptions, mode: str, subnets: Sequence[dict[str, Any]],
                    there: Mapping[str, Any] | None, internal: bool) -> Mapping[str, Any]:
        """Ours, as the agent describes it."""
        if there is None:
            try:
                return await self._create(kept, asked, await self._spec(asked, mode, subnets, internal))
            except LocalError as error:
                if error.code != "exists" or not asked.network:
                    raise
                there = await self._find(asked)     # another host was faster
                if there is None:
                    raise
        _check_joined(asked, mode, subnets, there)
        return await self._create(kept, asked, None)

    async def _create(self, kept: DockerNetwork, asked: NetworkOptions,
                      spec: Mapping[str, Any] | None) -> Mapping[str, Any]:
        return await self._agent.ask("network-create", runtime=RUNTIME, id=kept.id, network=kept.network,
                                     tenant=kept.tenant, spec=spec, labels=asked.labels if spec else None)

    async def _spec(self, asked: NetworkOptions, mode: str, subnets: Sequence[dict[str, Any]],
                    internal: bool) -> dict[str, Any]:
        if not mode:
            what = f"network {asked.network} is not there, and the driver is {ANY_MODE}" if asked.network \
                else f"the driver {ANY_MODE} needs a mode"
            raise LocalError("not_found", what, "mode", "nothing",
                             "add -o mode=overlay (or another), or -o network=NAME of a network that is there")
        if not subnets:
            raise LocalError("invalid", "Docker says no prefix", "subnet", "nothing", "add --subnet")
        spec = {"mode": mode, "subnets": [dict(each) for each in subnets], **asked.spec}
        if mode != "overlay" and (mode in ("nat", "private") or not asked.network):
            spec["host"] = (await self._agent.ask("hello"))["host"]
        if mode == "nat" and any(":" in each["prefix"] for each in subnets):
            # As Docker's own bridge: what the world sees is the host's address.
            spec["nat"] = {"ipv6": "masquerade", **spec.get("nat", {})}
        if internal and spec.get("egress", "none") != "none":
            raise LocalError("invalid", "--internal with a way out", "egress", str(spec["egress"]), "keep one of them")
        return spec

    async def _reserve(self, kept: DockerNetwork, subnets: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """Keep what --aux-address names in a network that was there; a new one has it in `exclude`."""
        done: list[str] = []
        try:
            for address in (each for subnet in subnets for each in subnet.get("exclude", ())):
                await self._agent.ask("reserve", network=kept.network, tenant=kept.tenant, owner=RUNTIME,
                                      version=ip_address(address).version, address=address)
                done.append(address)
        except BaseException:
            await self._unreserve(kept, done)
            await self._agent.ask("network-delete", runtime=RUNTIME, id=kept.id)
            raise
        return tuple(done)

    async def _unreserve(self, kept: DockerNetwork, addresses: Sequence[str]) -> None:
        for address in addresses:
            await self._agent.ask("unreserve", network=kept.network, tenant=kept.tenant, address=address)


def _mode(driver: str, asked: NetworkOptions, internal: bool) -> str:
    """The mode that is asked for; empty: that of the network which is joined.

    Raises:
        LocalError: invalid.
    """
    if driver != ANY_MODE and asked.mode not in ("", driver):
        raise LocalError("invalid", f"the driver {driver} makes networks of mode {driver}", "mode", asked.mode,
                         f"use -d {asked.mode}, or -d {ANY_MODE} -o mode={asked.mode}")
    mode = asked.mode or ("" if driver == ANY_MODE else driver)
    return "private" if internal and mode not in ("", "overlay") else mode


def _subnet(data: Mapping[str, Any]) -> dict[str, Any]:
    """A subnet as a Network has it, of what Docker, or our IPAM for it, has chosen."""
    subnet: dict[str, Any] = {"prefix": str(prefix(text(data, "Pool"), "Pool"))}
    gateway = _address(data.get("Gateway"))
    if gateway:
        subnet["gateway"] = gateway
    others = [_address(each) for each in mapping(data, "AuxAddresses").values()]
    exclude = sorted({each for each in others if each and each != gateway}, key=ip_address)
    if exclude:
        subnet["exclude"] = exclude
    return subnet


def _check_joined(asked: NetworkOptions, mode: str, subnets: Sequence[Mapping[str, Any]],
                  there: Mapping[str, Any]) -> None:
    """Refuse to join what is other than Docker believes.

    Raises:
        LocalError: invalid, exists.
    """
    name = f"network {asked.network}"
    if mode and mode != there["mode"]:
        raise LocalError("exists", f"{name} is there, with mode {there['mode']}", "mode", mode,
                         f"use -d {ANY_MODE} -o network={asked.network}, or another name")
    gateways = {each["prefix"]: each.get("gateway") for each in there["subnets"]}
    ours = " ".join(f"--subnet {each}" for each in gateways)
    for subnet in subnets:
        if subnet["prefix"] not in gateways:
            raise LocalError(
                "exists", f"{name} has {', '.join(gateways)}", "subnet", subnet["prefix"],
                f"add {ours}, or let ours choose addresses: --ipam-driver sluice --ipam-opt network={asked.network}")
        gateway = gateways[subnet["prefix"]]
        if gateway and subnet.get("gateway") not in (None, gateway):
            raise LocalError("exists", f"{name} has gateway {gateway}", "gateway", subnet["gateway"],
                             f"add --gateway {gateway}, or --ipam-driver sluice --ipam-opt network={asked.network}")
    for field, value, has in _differing(asked.spec, there.get("spec") or asked.spec):
        raise LocalError("exists", f"{name} is there, and has {'nothing' if has is None else has} here", field,
                         str(value), "leave this option out, or say the same")


def _differing(asked: Mapping[str, Any], there: Mapping[str, Any], where: str = "") -> list[tuple[str, Any, Any]]:
    """Fields of a spec that are asked for and are other than they are: name, asked, there."""
    found = []
    for name, value in asked.items():
        has = there.get(name)
        if isinstance(value, Mapping) and isinstance(has, Mapping | None):
            found += _differing(value, has or {}, f"{where}{name}.")
        elif value != has and (value or has) and value not in DEFAULTS:
            found.append((f"{where}{name}", value, has))
    return found


def _address(value: Any) -> str:
    return str(interface(value, "Gateway").ip) if value else ""
