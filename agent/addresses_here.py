"""Addresses that this host has leased of the controller: kept for somebody, given to endpoints while it is away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import structlog

from agent.asking import Asker
from agent.attach_words import Arguments, range_of
from agent.attachment import Attachment, Mapped
from agent.attachment_files import Files, Reserved
from agent.host import Host
from agent.leased import keep_goals, kept_goals, network_named
from agent.leasing import (
    addresses_in_use,
    choose_address,
    lease_of,
    leased_mappings,
    leased_port,
    length_of,
    may_give,
)
from agent.local_errors import Away, Refusal
from southbound.messages import MappingGoal, NetworkGoal, PortGoal

__all__ = ["AddressesHere"]

_log = structlog.get_logger("agent")

ASK_S = 4.0
TOLD_S = 2.0                                # from the controller's answer until this host is told
BLOCK = 16                                  # more addresses at a time
FEW = 4                                     # free ones left: time to ask for more
DEFAULT_TENANT = "default"


class AddressesHere:
    """Those of one host."""

    def __init__(self, host: Host, asker: Asker, files: Files) -> None:
        self._host = host
        self._asker = asker
        self._files = files
        self._choosing = asyncio.Lock()     # from looking what is free until it is on disk who has it
        self._last: dict[tuple[str, int], str] = {}     # by NetworkGoal.id and family: given last
        self._refused: set[tuple[str, str]] = set()     # networks that cannot be leased

    async def reserve(self, arguments: Arguments) -> dict[str, Any]:
        """Keep an address for somebody."""
        arguments.only("network", "tenant", "owner", "version", "address", "range")
        tenant, name = arguments.text("tenant", "") or DEFAULT_TENANT, arguments.text("network")
        owner, version = arguments.text("owner"), arguments.number("version", 4, 6, 4)
        address, within = arguments.text("address", ""), arguments.text("range", "")
        if address:
            address = _address(address)
        if within and range_of(within, "range")[0] != version:
            raise Refusal("invalid", f"is no IPv{version} range", "range", within, "give one of that family")
        network = await self._known(tenant, name)
        async with self._choosing:
            kept = self._files.reserved.get(f"{tenant}/{name}", address) if address else None
            if kept is None or kept.owner != owner:
                found, by_hand = await self._find(network, version, address, within)
                kept = Reserved(tenant, name, found, owner, by_hand)
                await self._files.reserved.put(kept)
        return {"address": f"{kept.address}/{length_of(network, kept.address)}"}

    async def unreserve(self, arguments: Arguments) -> dict[str, Any]:
        """Keep it no longer; without `address` all that an owner keeps."""
        arguments.only("network", "tenant", "address", "owner")
        tenant, name = arguments.text("tenant", "") or DEFAULT_TENANT, arguments.text("network")
        address, owner = arguments.text("address", ""), arguments.text("owner", "")
        if not address and not owner:
            raise Refusal("invalid", "unreserve needs it, or an owner", "address", "nothing", "add address")
        address = _address(address) if address else ""
        going = [each for each in self._files.reserved.all() if (each.tenant, each.network) == (tenant, name)
                 and address in ("", each.address) and owner in ("", each.owner)]
        await self._give_up(going)
        return {"existed": bool(going)}

    async def hold(self, attachment: Attachment) -> None:
        """An endpoint has its addresses now: what was kept for it goes with it."""
        for kept in self._kept_for(attachment):
            if not kept.held:
                await self._files.reserved.put(replace(kept, held=True))

    async def let_go(self, attachment: Attachment) -> None:
        """An endpoint is gone, and what was kept for it."""
        await self._give_up([kept for kept in self._kept_for(attachment) if kept.held])

    async def start(self) -> None:
        """What was held by endpoints that are gone is kept no longer."""
        held = {(each.tenant, each.network, address) for each in self._files.attachments.all()
                for address in each.addresses}
        await self._give_up([kept for kept in self._files.reserved.all()
                             if kept.held and (kept.tenant, kept.network, kept.address) not in held], tell=False)

    async def by_lease(self, wanted: Attachment) -> Attachment | None:
        """An attachment that is made without the controller, kept on disk. None: there is no lease.

        Raises:
            Refusal: there is one, and it does not do.
        """
        async with self._choosing:
            goals = self._host.effective
            found = lease_of(goals, wanted.tenant, wanted.network)
            if found is None:
                return None
            network, lease = found
            used = self._used(network, wanted)
            lease = replace(lease, addresses=(*lease.addresses, *(
                kept.address for kept in self._kept_for(wanted) if kept.address not in lease.addresses)))
            port = leased_port(wanted, network, lease, goals, used)
            mappings = leased_mappings(wanted, port, network, lease, goals, self._host.facts)
            addresses = tuple(text.partition("/")[0] for text in (port.address, port.address6) if text)
            made = replace(
                wanted, addresses=addresses, mac=port.mac, goals=keep_goals([port, *mappings]),
                mappings=tuple(replace(mapped, spec=_with_port(mapped.spec, goal))
                               for mapped, goal in zip(wanted.mappings, mappings, strict=True)))
            await self._files.attachments.put(made)
            return made

    async def map_by_lease(self, known: Attachment, mappings: tuple[Mapped, ...]) -> Attachment:
        """An attachment by a lease with these mappings, kept on disk.

        Raises:
            Refusal
        """
        async with self._choosing:
            goals = self._host.effective
            found = lease_of(goals, known.tenant, known.network)
            port = next((goal for goal in kept_goals(known.goals) if isinstance(goal, PortGoal)), None)
            if found is None or port is None:
                raise Refusal("unavailable", f"the controller is away, and this host has no lease of network "
                              f"{known.tenant}/{known.network} any more", "mappings", "", "start the controller")
            made = known.with_mappings(mappings)
            goals_made = leased_mappings(made, port, *found, goals, self._host.facts)
            made = replace(made, goals=keep_goals([port, *goals_made]), mappings=tuple(
                replace(mapped, spec=_with_port(mapped.spec, goal))
                for mapped, goal in zip(mappings, goals_made, strict=True)))
            await self._files.attachments.put(made)
            return made

    def forgive(self) -> None:
        """A new session: what was refused may be granted now."""
        self._refused.clear()

    async def pick(self, wanted: Attachment, ranges: Iterable[str]) -> Attachment:
        """With an address of each range, of families of which none is asked for.

        Raises:
            Refusal
        """
        addresses = list(wanted.addresses)
        for position, text in enumerate(ranges):
            version = range_of(text, f"ranges[{position}]")[0]
            if any((6 if ":" in each else 4) == version for each in addresses):
                continue
            network = await self._known(wanted.tenant, wanted.network)
            async with self._choosing:
                address, _ = await self._find(network, version, "", text)
                addresses.append(address)
                wanted = replace(wanted, addresses=tuple(addresses))
                await self._files.attachments.put(wanted)
        return wanted

    async def provide(self, tenant: str, name: str) -> None:
        """Have enough addresses leased for the time when the controller is away; it is no matter if that fails."""
        if not self._asker.connected or (tenant, name) in self._refused:
            return
        found = lease_of(self._host.effective, tenant, name)
        arguments: dict[str, Any] = {"tenant": tenant, "network": name}
        if found is not None:
            network, lease = found
            free = set(lease.addresses) - self._used(network)
            if lease.whole or len(free) >= FEW:
                return
            arguments["count"] = BLOCK
        try:
            await self._asker.request("lease", arguments, ASK_S)
        except Away:
            return
        except Refusal as error:
            self._refused.add((tenant, name))
            _log.info("no lease", network=f"{tenant}/{name}", why=str(error))

    async def _known(self, tenant: str, name: str) -> NetworkGoal:
        """A network that this host is told of, because it has a lease.

        Raises:
            Refusal
        """
        found = lease_of(self._host.effective, tenant, name)
        if found is not None:
            return found[0]
        try:
            await self._asker.request("lease", {"tenant": tenant, "network": name}, ASK_S)
        except Away as error:
            raise Refusal("unavailable", f"{error}, and this host has no leased address of network {tenant}/{name}",
                          "network", name, "start the controller, or try again later") from None
        with suppress(TimeoutError):
            async with asyncio.timeout(TOLD_S):
                while (network := network_named(self._host.goals, tenant, name)) is None:
                    await self._host.moved.wait()
                return network
        raise Refusal("timeout", f"this host was not told of network {tenant}/{name} within {TOLD_S:g} s", "network",
                      name, "see the agent's log")

    async def _find(self, network: NetworkGoal, version: int, address: str, within: str) -> tuple[str, bool]:
        """An address that nobody has, and whether it was leased only for this."""
        used = self._used(network)
        if address and length_of(network, address) is None:
            raise Refusal("outside", f"is in no subnet of {network.tenant}/{network.name}", "address", address,
                          f"use one of {', '.join(subnet.prefix for subnet in network.subnets)}")
        if address and address in used:
            raise Refusal("taken", f"is in use in {network.tenant}/{network.name}", "address", address,
                          "choose another, or leave it out")
        found = lease_of(self._host.effective, network.tenant, network.name)
        if found is not None:
            _, lease = found
            if address and may_give(lease, address):
                return address, False
            last = self._last.get((network.id, version), "")
            if not address and (chosen := choose_address(lease, version, used, within, last)):
                self._last[network.id, version] = chosen
                return chosen, False
        more: dict[str, Any] = {"count": 1, "ranges": [within]} if within else {"count": BLOCK}
        if address:
            more = {"addresses": [address]}
        try:
            reply = await self._asker.request(
                "lease", {"tenant": network.tenant, "network": network.name, **more}, ASK_S)
        except Away as error:
            raise Refusal("unavailable", f"{error}, and this host has no such leased address of network "
                          f"{network.tenant}/{network.name}", "address", address or within,
                          "start the controller, or try again later") from None
        given = [address] if address else [each for each in reply["given"] if ip_address(each).version == version]
        free = [each for each in given if each not in used]
        if not free:
            raise Refusal("exhausted", f"no IPv{version} address of {network.tenant}/{network.name} is free", "network",
                          network.name, "free some, or add a subnet")
        self._last[network.id, version] = free[0]
        return free[0], bool(address or within)

    def _used(self, network: NetworkGoal, but: Attachment | None = None) -> set[str]:
        """Addresses of a network that others than this one have, or keep."""
        own = set(but.addresses) if but is not None else set()
        kept = {each.address for each in self._files.reserved.all()
                if (each.tenant, each.network) == (network.tenant, network.name)}
        asked = {address for each in self._files.attachments.all() for address in each.addresses
                 if (each.tenant, each.network) == (network.tenant, network.name)
                 and (but is None or each.key != but.key)}
        had = addresses_in_use(self._host.effective, network, but.uid if but is not None else "")
        return had | (kept - own) | asked

    def _kept_for(self, attachment: Attachment) -> list[Reserved]:
        found = (self._files.reserved.get(f"{attachment.tenant}/{attachment.network}", address)
                 for address in attachment.addresses)
        return [kept for kept in found if kept is not None]

    async def _give_up(self, going: Iterable[Reserved], tell: bool = True) -> None:
        for kept in going:
            await self._files.reserved.remove(kept)
            if kept.by_hand and tell and self._asker.connected:
                with suppress(Away, Refusal):
                    await self._asker.request("release", {"tenant": kept.tenant, "network": kept.network,
                                                          "addresses": [kept.address]}, ASK_S)


def _address(text: str) -> str:
    try:
        return str(ip_address(text.partition("/")[0]))
    except ValueError:
        raise Refusal("invalid", "is not an address", "address", text, "write one like 10.1.0.5") from None


def _with_port(spec: Any, goal: MappingGoal) -> dict[str, Any]:
    """A mapping's spec with the port that was chosen here."""
    if spec.get("externalPort") != "auto":
        return dict(spec)
    first, last = goal.external_ports
    return {**spec, "externalPort": first if first == last else f"{first}-{last}"}
