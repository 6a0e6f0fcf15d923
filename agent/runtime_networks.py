"""Networks as runtimes of this host call them, and addresses that are kept for somebody."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import structlog

from agent.asking import Asker
from agent.attach_words import Arguments
from agent.attachment import API_VERSION, RUNTIME_LABEL
from agent.attachment_files import Files, Forgotten, RuntimeNetwork
from agent.host import Host
from agent.leased import network_named
from agent.local_errors import Away, Refusal
from agent.views import network_view, stored_network_view
from southbound.messages import NetworkGoal

__all__ = ["RuntimeNetworks"]

_log = structlog.get_logger("agent")

ASK_S = 4.0
DEFAULT_TENANT = "default"


class RuntimeNetworks:
    """Those of one host. `name`: the host's."""

    def __init__(self, name: str, host: Host, asker: Asker, files: Files, left: asyncio.Event) -> None:
        self._name = name
        self._host = host
        self._asker = asker
        self._files = files
        self.left = left                    # set: something is to be told
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """What was not answered is undone when the controller can be told."""
        for each in self._files.networks.all():
            if not each.done:
                await self._forget(each)

    async def network(self, arguments: Arguments) -> dict[str, Any]:
        """A network as it is."""
        arguments.only("network", "tenant")
        return await self.look_up(arguments.text("tenant", "") or DEFAULT_TENANT, arguments.text("network"))

    async def look_up(self, tenant: str, name: str) -> dict[str, Any]:
        """A network as the controller has it; when that is away, as this host was told of it.

        Raises:
            Refusal: not_found, unavailable.
        """
        try:
            refs = [("Network", tenant, name)]
            reply = await self._asker.request("get", {"refs": refs}, self._patience(tenant, name))
        except Refusal as error:
            if error.code == "not_found":   # plug-ins that may make it go by the field
                raise Refusal(error.code, f"there is no network {tenant}/{name}", "network", name, error.todo) from None
            raise
        except Away as error:
            known = network_named(self._host.effective, tenant, name)
            if known is None:
                raise Refusal("unavailable", f"{error}, and this host was not told of network {tenant}/{name}",
                              "network", name, "start the controller, or try again later") from None
            return network_view(known, self._host)
        return stored_network_view(reply["items"][0], self._host)

    def _patience(self, tenant: str, name: str) -> float:
        """Seconds that the controller is waited for: none if it is away and we know enough."""
        known = network_named(self._host.effective, tenant, name)
        return 0.01 if known is not None and not self._asker.connected else ASK_S

    async def create(self, arguments: Arguments) -> dict[str, Any]:
        """Make a network, or join it if there is one that fits."""
        arguments.only("runtime", "id", "network", "tenant", "spec", "labels")
        runtime, identity = arguments.runtime(), arguments.text("id")
        tenant, name = arguments.text("tenant", "") or DEFAULT_TENANT, arguments.text("network")
        spec, labels = arguments.mapping("spec"), arguments.mapping("labels") or {}
        async with self._lock:
            known = self._files.networks.get(runtime, identity)
            if known is not None and (known.tenant, known.name) != (tenant, name):
                raise Refusal("exists", f"{identity} is network {known.tenant}/{known.name} already", "id", identity,
                              "delete it first")
            if known is not None:
                found = await self.look_up(tenant, name)
                if spec is not None:
                    _must_fit(spec, found, name)
                return found | {"created": False}
            wanted = RuntimeNetwork(runtime, identity, str(uuid.uuid4()), name, tenant, False)
            return await self._create(wanted, spec, labels)

    async def _create(self, wanted: RuntimeNetwork, spec: dict[str, Any] | None, labels: Mapping[str, str]
                      ) -> dict[str, Any]:
        if spec is None:                    # before anything is on disk: most mistakes are told here
            await self.look_up(wanted.tenant, wanted.name)
        await self._files.networks.put(wanted)
        try:
            found = await self._ask_for(wanted, spec, labels)
            await self._files.networks.put(replace(wanted, done=True, uid=found["uid"]))
        except BaseException:
            await self._forget(wanted)
            self.left.set()
            raise
        return found

    async def _ask_for(self, wanted: RuntimeNetwork, spec: dict[str, Any] | None, labels: Mapping[str, str]
                       ) -> dict[str, Any]:
        """Have the controller make it, or let us join; either way this host has a lease of it then."""
        try:
            if spec is None:
                await self._asker.request("lease", {"tenant": wanted.tenant, "network": wanted.name}, ASK_S)
                return await self.look_up(wanted.tenant, wanted.name) | {"created": False}
            if spec.get("mode") != "overlay":
                spec = {"host": self._name, **spec}
            document = {"apiVersion": API_VERSION, "kind": "Network", "spec": spec,
                        "metadata": {"name": wanted.name, "tenant": wanted.tenant,
                                     "labels": {RUNTIME_LABEL: wanted.runtime, **labels}}}
            key = f"Network/{wanted.tenant}/{wanted.name}"
            reply = await self._asker.apply([document], {key: wanted.uid}, ASK_S)
        except Away as error:
            raise Refusal("unavailable", f"{error}; a network is made by the controller", "network", wanted.name,
                          "start the controller, or try again later") from None
        item = reply["items"][0]
        return stored_network_view(item, self._host) | {"created": item["result"] == "created"}

    async def delete(self, arguments: Arguments) -> dict[str, Any]:
        """Let a network go; it is deleted if a host made it and nobody uses it any more."""
        arguments.only("runtime", "id")
        async with self._lock:
            known = self._files.networks.get(arguments.runtime(), arguments.text("id"))
            if known is None:
                return {"existed": False, "deleted": False}
            gone = await self._forget(known)
            deleted = False
            if gone is not None and self._asker.connected:
                with suppress(Away):
                    deleted = await self.tell(gone)
            self.left.set()
            return {"existed": True, "deleted": deleted}

    async def _forget(self, known: RuntimeNetwork) -> Forgotten | None:
        """The lease goes when the controller can be told, unless another id of a runtime here is the same network."""
        gone = None
        if not self._named(known.tenant, known.name, known.key):
            ref = ("Network", known.tenant, known.name)
            gone = Forgotten("/".join(ref), (ref,), {})
            await self._files.forgotten.put(gone)
        await self._files.networks.remove(known)
        return gone

    def _named(self, tenant: str, name: str, but: tuple[str, str] = ("", "")) -> list[RuntimeNetwork]:
        return [each for each in self._files.networks.all() if (each.tenant, each.name) == (tenant, name)
                and each.key != but]

    async def tell(self, gone: Forgotten) -> bool:
        """Give a lease back, once nothing here is in the network; whether the network went with it.

        Raises:
            Away
        """
        _, tenant, name = gone.refs[0]
        if any((each.tenant, each.network) == (tenant, name) for each in self._files.attachments.all()):
            return False                    # it is looked at again when the last of them is gone
        deleted = False
        if not self._named(tenant, name):   # else somebody came back to it
            try:
                reply = await self._asker.request("release", {"tenant": tenant, "network": name}, ASK_S)
                deleted = bool(reply["deleted"])
            except Refusal as error:
                _log.warning("lease not given back", network=f"{tenant}/{name}", why=str(error))
            for kept in self._files.reserved.all():
                if (kept.tenant, kept.network) == (tenant, name):
                    await self._files.reserved.remove(kept)
        await self._files.forgotten.remove(gone)
        return deleted

    async def list(self, arguments: Arguments) -> dict[str, Any]:
        """Networks of a runtime, by its ids."""
        arguments.only("runtime")
        runtime = arguments.runtime() if arguments.given.get("runtime") else ""
        rows = []
        for each in self._files.networks.all():
            if runtime in ("", each.runtime) and each.done:
                known = self._host.effective.objects.get((NetworkGoal.kind, each.uid))
                row: dict[str, Any] = {"uid": each.uid, "name": each.name, "tenant": each.tenant, "mode": "", "mtu": 0,
                                       "subnets": [], "host": "", "leased": 0}      # not told of it yet
                if isinstance(known, NetworkGoal):
                    row = network_view(known, self._host)
                rows.append({"runtime": each.runtime, "id": each.id, **row})
        return {"networks": rows}


def _must_fit(spec: Mapping[str, Any], found: Mapping[str, Any], name: str) -> None:
    """Raises Refusal: what is asked for is another network than what there is."""
    mode, there_is = spec.get("mode"), f"network {found['tenant']}/{name} is there"
    if mode is not None and mode != found["mode"]:
        raise Refusal("exists", f"{there_is}, of mode {found['mode']}", "mode", str(mode),
                      f"use mode {found['mode']}, or another name")
    wanted = {str(ip_network(each["prefix"])) for each in spec.get("subnets") or () if each.get("prefix") != "auto"}
    there = {each["prefix"] for each in found["subnets"]}
    if wanted - there:
        raise Refusal("exists", f"{there_is}, with {', '.join(sorted(there))}", "subnets",
                      ", ".join(sorted(wanted - there)), "ask for these, for none, or use another name")
