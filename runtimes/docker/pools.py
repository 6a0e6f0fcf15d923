"""The IPAM driver: pools are subnets of our networks, and addresses are reserved with the controller.

Docker asks for a pool before it makes the network that is to use it. So a pool is nothing but what was asked: its id
says prefix, range, and perhaps network. Which network it is of is looked up when an address is wanted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from runtimes.docker.agent import Agent
from runtimes.docker.fields import mapping, text
from runtimes.docker.fields import prefix as prefix_of
from runtimes.docker.networks import RUNTIME
from runtimes.docker.state import State
from runtimes.free import free_prefix, routed
from runtimes.local import LocalError
from runtimes.options import PoolOptions, pool_options

GATEWAY = "com.docker.network.gateway"
ADDRESS_TYPE = "RequestAddressType"
LATELY, LATELY_S, OFFERS = 64, 5.0, 4      # how many offers are remembered; for how long; how often the same is made
_NONE = "-"
_SEPARATOR = "|"


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool, which is what its id says."""

    prefix: IPv4Network | IPv6Network
    range: IPv4Network | IPv6Network | None
    options: PoolOptions

    @property
    def id(self) -> str:
        """PoolID."""
        return _SEPARATOR.join((str(self.prefix), str(self.range or _NONE), self.options.tenant,
                                self.options.network or _NONE))

    @classmethod
    def of(cls, pool_id: str) -> Pool:
        """The pool of a PoolID.

        Raises:
            LocalError: not_found: it is none of ours.
        """
        try:
            prefix, range_, tenant, network = pool_id.split(_SEPARATOR)
            return cls(ip_network(prefix), None if range_ == _NONE else ip_network(range_),
                       PoolOptions("" if network == _NONE else network, tenant))
        except ValueError:
            raise LocalError("not_found", "no such pool", "PoolID", pool_id,
                             "remove the network and create it again") from None


class Pools:
    """Docker's pools."""

    def __init__(self, agent: Agent, state: State) -> None:
        self._agent, self._state = agent, state
        self._offered: deque[tuple[float, IPv4Network | IPv6Network]] = deque(maxlen=LATELY)

    async def request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A pool: the prefix that is asked for, or one of the named network, or a free one.

        Raises:
            LocalError
        """
        options = pool_options(mapping(request, "Options"))
        version = 6 if request.get("V6") else 4
        asked = str(request.get("Pool") or "")
        wanted = prefix_of(asked, "Pool") if asked else None
        subnet = await self._subnet(options, wanted, version) if options.network else None
        if subnet is not None:
            prefix = ip_network(subnet["prefix"])
        elif wanted is not None:
            prefix = wanted
        else:
            prefix = await self._free(version)
        if wanted is None:
            self._must_not_loop(prefix, options)
        sub = str(request.get("SubPool") or "")
        inner = prefix_of(sub, "SubPool") if sub else None
        if inner is not None and not (inner.version == prefix.version and inner.subnet_of(prefix)):  # type: ignore[arg-type]
            raise LocalError("outside", f"the range is not within {prefix}", "--ip-range", sub,
                             f"use a part of {prefix}")
        data = {}
        if subnet is not None and subnet.get("gateway"):
            data[GATEWAY] = f"{subnet['gateway']}/{prefix.prefixlen}"
        return {"PoolID": Pool(prefix, inner, options).id, "Pool": str(prefix), "Data": data}

    async def address(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """An address of a pool, reserved until an endpoint has it. Repeating it for one's own is no error.

        Raises:
            LocalError
        """
        pool = Pool.of(text(request, "PoolID"))
        asked = str(request.get("Address") or "")
        if asked:
            _inside(asked, pool)
        wants_gateway = mapping(request, "Options").get(ADDRESS_TYPE) == GATEWAY
        if wants_gateway:
            found = asked or str(pool.prefix.network_address + 1)
        else:
            found = await self._reserve(pool, asked)
        return {"Address": f"{found}/{pool.prefix.prefixlen}", "Data": {}}

    async def release(self, request: Mapping[str, Any]) -> None:
        """Give an address back. One that an endpoint has stays with it.

        Raises:
            LocalError
        """
        pool = Pool.of(text(request, "PoolID"))
        address = text(request, "Address")
        where = self._networks(pool)
        for tenant, network in where:
            await self._agent.ask("unreserve", network=network, tenant=tenant, address=address.partition("/")[0])

    def _networks(self, pool: Pool) -> list[tuple[str, str]]:
        """Tenant and name of the networks that the pool may be of."""
        if pool.options.network:
            return [(pool.options.tenant, pool.options.network)]
        rows = [each for each in self._state if each.own_ipam and str(pool.prefix) in each.pools
                and each.tenant == pool.options.tenant]
        return sorted({(each.tenant, each.network) for each in rows})

    async def _reserve(self, pool: Pool, asked: str) -> str:
        where = self._networks(pool)
        if not where and asked:
            return asked                    # --aux-address: CreateNetwork brings it, too, and excludes it
        if not where:
            raise LocalError("not_found", f"no network here has the prefix {pool.prefix}", "PoolID", pool.id,
                             "remove the network and create it again")
        if len(where) > 1:
            raise LocalError("invalid", f"{len(where)} networks here have the prefix {pool.prefix}", "PoolID",
                             ", ".join("/".join(each) for each in where),
                             "create them with --ipam-opt network=NAME, or --ipam-opt tenant=NAME")
        tenant, network = where[0]
        if asked and await self._is_ours(tenant, network, asked):
            return asked
        answer = await self._agent.ask(
            "reserve", network=network, tenant=tenant, owner=RUNTIME, version=pool.prefix.version,
            address=asked or None, range=None if asked else str(pool.range or pool.prefix))
        return str(answer["address"]).partition("/")[0]

    async def _is_ours(self, tenant: str, network: str, address: str) -> bool:
        """Whether an endpoint of Docker's has it already: a daemon that starts asks again for what it has."""
        rows = (await self._agent.ask("list", runtime=RUNTIME))["attachments"]
        return any(row["tenant"] == tenant and row["network"] == network
                   and any(each.partition("/")[0] == address for each in row["addresses"]) for row in rows)

    async def _subnet(self, options: PoolOptions, wanted: IPv4Network | IPv6Network | None,
                      version: int) -> Mapping[str, Any] | None:
        """The subnet of the named network; None: it is not there yet, and `wanted` says its prefix."""
        name = f"network {options.network}"
        try:
            there = await self._agent.ask("network", network=options.network, tenant=options.tenant)
        except LocalError as error:
            if error.code != "not_found":
                raise
            if wanted is None:
                raise LocalError("not_found", f"{name} is not there", "--ipam-opt network", options.network,
                                 "declare it, or add --subnet, and -o network and -o mode to make it") from None
            return None
        subnets: Sequence[Mapping[str, Any]] = [
            each for each in there["subnets"] if ip_network(each["prefix"]).version == version]
        if wanted is not None:
            subnets = [each for each in subnets if ip_network(each["prefix"]) == wanted]
        if not subnets:
            raise LocalError("invalid", f"{name} has {', '.join(each['prefix'] for each in there['subnets'])}",
                             "--subnet", str(wanted or f"one of IPv{version}"), "use one of these, or leave it out")
        return subnets[0]

    async def _free(self, version: int) -> IPv4Network | IPv6Network:
        """A prefix that nothing here has. The controller knows more, and refuses one that collides."""
        rows = (await self._agent.ask("networks", runtime=RUNTIME))["networks"]
        taken = [ip_network(each["prefix"]) for row in rows for each in row.get("subnets", ())]
        return free_prefix(version, [*taken, *self._lately()])

    def _lately(self) -> list[IPv4Network | IPv6Network]:
        """What was offered just now: Docker did not like it, or is about to make a network of it."""
        now = time.monotonic()
        return [prefix for offered, prefix in self._offered if now - offered < LATELY_S]

    def _must_not_loop(self, prefix: IPv4Network | IPv6Network, options: PoolOptions) -> None:
        """Refuse what Docker would ask for again and again: a prefix that nobody asked for by name and that the host
        has a route to, as to the bridge of a nat network that is there (libnetwork's requestPoolHelper, to 28).

        Raises:
            LocalError: in_use.
        """
        routes = [each for each in routed() if each.overlaps(prefix)] if prefix.version == 4 else []
        if routes or self._lately().count(prefix) >= OFFERS:
            why = f"this host has a route to {routes[0]}" if routes else "Docker does not take it"
            raise LocalError("in_use", f"{why}, and Docker uses such a prefix only if it is asked for by name",
                             "--subnet", str(prefix), f"add --subnet {prefix}" if options.network else "add --subnet")
        self._offered.append((time.monotonic(), prefix))


def _inside(address: str, pool: Pool) -> None:
    try:
        found = ip_address(address)
    except ValueError:
        raise LocalError("invalid", "not an address", "--ip", address, "write it like 10.1.0.5") from None
    if found not in pool.prefix:
        raise LocalError("outside", f"the address is not of {pool.prefix}", "--ip", address,
                         f"use one of {pool.prefix}, or leave it out")
