"""An agent's local socket in memory (docs/runtimes.md), for the plug-ins' tests: networks, attachments, reservations.

What it keeps it forgets with the object; `restart` keeps it, as the agent's files do.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from runtimes.local import LocalError

AUTO_PORTS = range(10000, 20000)


@dataclass
class FakeNetwork:
    tenant: str
    name: str
    mode: str
    subnets: list[dict[str, Any]]
    spec: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    made_for: str = ""                      # id of the runtime's network
    joined: set[str] = field(default_factory=set)
    elsewhere: dict[str, str] = field(default_factory=dict)     # address: of an endpoint on another host

    def gateways(self) -> list[str]:
        return [each["gateway"] for each in self.subnets]

    def row(self) -> dict[str, Any]:
        return {"uid": f"uid-{self.name}", "name": self.name, "tenant": self.tenant, "mode": self.mode, "mtu": 1450,
                "subnets": [dict(each) for each in self.subnets], "host": self.spec.get("host", ""), "leased": 0,
                "spec": {"mode": self.mode, "mtu": "auto", "isolation": False, **self.spec}}


class FakeAgent:
    """Answers on a Unix socket as the agent does, and keeps what was asked for in `asked`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.networks: dict[tuple[str, str], FakeNetwork] = {}
        self.attachments: dict[tuple[str, str], dict[str, Any]] = {}
        self.reserved: dict[tuple[str, str, str], str] = {}
        self.busy_ports: set[int] = set()   # of others on this host
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.fail: dict[str, LocalError] = {}
        self.hang: set[str] = set()
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    def declare(self, name: str, mode: str, *prefixes: str, tenant: str = "default") -> FakeNetwork:
        """A network that somebody else declared."""
        found = FakeNetwork(tenant, name, mode, [_subnet({"prefix": each}) for each in prefixes])
        self.networks[tenant, name] = found
        return found

    def ops(self) -> list[str]:
        return [op for op, _ in self.asked]

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._converse, str(self.path))

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._conversations):
            task.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)
        with suppress(OSError, asyncio.CancelledError):
            while line := await reader.readline():
                request = json.loads(line)
                op = request.pop("op")
                self.asked.append((op, request))
                if op in self.hang:
                    await asyncio.sleep(3600)
                try:
                    if op in self.fail:
                        raise self.fail[op]
                    answer: dict[str, Any] = {"ok": getattr(self, "op_" + op.replace("-", "_"))(**request)}
                except LocalError as error:
                    answer = {"error": {name: getattr(error, name)
                                        for name in ("code", "message", "field", "found", "todo")}}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        writer.close()

    def op_hello(self) -> dict[str, Any]:
        return {"host": "h1", "controller": "connected", "version": "1"}

    def op_network(self, network: str, tenant: str = "default") -> dict[str, Any]:
        return self._network(tenant, network).row()

    def op_networks(self, runtime: str) -> dict[str, Any]:
        return {"networks": [{**each.row(), "id": each_id} for each in self.networks.values()
                             for each_id in sorted(each.joined)]}

    def op_network_create(self, runtime: str, id: str, network: str, tenant: str = "default",
                          spec: dict[str, Any] | None = None, labels: dict[str, str] | None = None) -> dict[str, Any]:
        found = self.networks.get((tenant, network))
        created = found is None
        if found is None:
            if spec is None:
                raise LocalError("not_found", f"there is no network {network}", "network", network)
            for other in self.networks.values():
                if other.mode == spec["mode"] == "nat" and _overlap(other.subnets, spec["subnets"]):
                    raise LocalError("in_use", f"overlaps network {other.name}", "spec.subnets[0].prefix",
                                     spec["subnets"][0]["prefix"], "use another prefix")
            found = FakeNetwork(tenant, network, spec["mode"], [_subnet(each) for each in spec["subnets"]], spec,
                                labels or {}, id)
            self.networks[tenant, network] = found
        found.joined.add(id)
        return {**found.row(), "created": created}

    def op_network_delete(self, runtime: str, id: str) -> dict[str, Any]:
        found = next((each for each in self.networks.values() if id in each.joined), None)
        if found is None:
            return {"existed": False, "deleted": False}
        found.joined.discard(id)
        used = found.joined or any(row["network"] == found.name for row in self.attachments.values())
        if found.made_for and not used:
            del self.networks[found.tenant, found.name]
        return {"existed": True, "deleted": bool(found.made_for and not used)}

    def op_reserve(self, network: str, owner: str, version: int, tenant: str = "default", address: str | None = None,
                   range: str | None = None) -> dict[str, Any]:
        found = self._network(tenant, network)
        subnet = next(each for each in found.subnets if ip_network(each["prefix"]).version == version)
        if address is None:
            address = next(each for each in self._free(found, range or subnet["prefix"]))
        elif self.reserved.get((tenant, network, address)) != owner:
            self._must_be_free(found, address)
        self.reserved[tenant, network, address] = owner
        return {"address": f"{address}/{ip_network(subnet['prefix']).prefixlen}"}

    def op_unreserve(self, network: str, address: str, tenant: str = "default") -> dict[str, Any]:
        return {"existed": self.reserved.pop((tenant, network, address), None) is not None}

    def op_attach(self, runtime: str, id: str, network: str, tenant: str = "default", name: str | None = None,
                  addresses: list[str] | None = None, mac: str | None = None, scope: str = "", veth: bool = False,
                  labels: dict[str, str] | None = None, qos: dict[str, Any] | None = None) -> dict[str, Any]:
        assert veth
        if (runtime, id) in self.attachments:
            return {**self.attachments[runtime, id], "existing": True}
        found = self._network(tenant, network)
        digest = hashlib.sha256(id.encode()).hexdigest()[:12]
        own = name or f"{runtime}-{digest}"
        if any(row["name"] == own for row in self.attachments.values()):
            raise LocalError("exists", f"endpoint {own} is another's", "name", own, "choose another name")
        chosen = []
        for each in addresses or [next(self._free(found, found.subnets[0]["prefix"]))]:
            if (tenant, network, each) not in self.reserved:
                self._must_be_free(found, each)
            length = next(ip_network(sub["prefix"]).prefixlen for sub in found.subnets
                          if ip_address(each) in ip_network(sub["prefix"]))
            chosen.append(f"{each}/{length}")
        row = {
            "runtime": runtime, "id": id, "scope": scope, "uid": f"uid-{digest}", "name": own, "tenant": tenant,
            "network": network, "mode": found.mode,
            "exit": found.mode != "private" and (found.mode != "overlay" or "egress" in found.spec),
            "addresses": chosen,
            "gateways": [each["gateway"] for each in found.subnets
                         if any(ip_interface(own).ip in ip_network(each["prefix"]) for own in chosen)],
            "mac": mac or f"02:00:00:{digest[:2]}:{digest[2:4]}:{digest[4:6]}", "mtu": 1450, "interface": "eth0",
            "netns": "", "hostInterface": f"slv{digest[:8]}", "farInterface": f"slc{digest[:8]}",
            "labels": labels or {}, "qos": qos, "mappings": [], "taken": False, "existing": False, "leased": False}
        self.attachments[runtime, id] = row
        return row

    def op_check(self, runtime: str, id: str) -> dict[str, Any]:
        return {**self._attachment(runtime, id), "ready": True, "error": ""}

    def op_taken(self, runtime: str, id: str) -> dict[str, Any]:
        self._attachment(runtime, id)["taken"] = True
        return {}

    def op_map(self, runtime: str, id: str, mappings: list[dict[str, Any]]) -> dict[str, Any]:
        row = self._attachment(runtime, id)
        used = {(each["protocol"], each["externalPort"], each.get("externalAddress", "0.0.0.0"))
                for other in self.attachments.values() if other is not row for each in other["mappings"]}
        found = []
        for each in mappings:
            port, address = each["externalPort"], each.get("externalAddress", "0.0.0.0")
            if port == "auto":
                port = next(number for number in AUTO_PORTS if (each["protocol"], number, address) not in used
                            and number not in self.busy_ports)
            elif (each["protocol"], port, address) in used or port in self.busy_ports:
                raise LocalError("in_use", f"port {port} is in use", "externalPort", str(port), "use another")
            used.add((each["protocol"], port, address))
            found.append({**each, "externalPort": port, "externalAddress": address})
        row["mappings"] = found
        return row

    def op_detach(self, runtime: str, id: str) -> dict[str, Any]:
        row = self.attachments.pop((runtime, id), None)
        if row is not None:
            for each in row["addresses"]:
                self.reserved.pop((row["tenant"], row["network"], each.partition("/")[0]), None)
        return {"existed": row is not None}

    def op_list(self, runtime: str = "") -> dict[str, Any]:
        return {"attachments": list(self.attachments.values())}

    def op_gc(self, runtime: str, scope: str, valid: list[str]) -> dict[str, Any]:
        going = [row["id"] for row in self.attachments.values() if row["scope"] == scope and row["id"] not in valid]
        for each in going:
            self.op_detach(runtime, each)
        return {"released": going}

    def _network(self, tenant: str, name: str) -> FakeNetwork:
        if (tenant, name) not in self.networks:
            raise LocalError("not_found", f"there is no network {tenant}/{name}", "network", name, "declare it")
        return self.networks[tenant, name]

    def _attachment(self, runtime: str, id: str) -> dict[str, Any]:
        if (runtime, id) not in self.attachments:
            raise LocalError("not_found", f"{runtime} has no attachment {id}", "id", id)
        return self.attachments[runtime, id]

    def _used(self, network: FakeNetwork) -> set[str]:
        own = {each.partition("/")[0] for row in self.attachments.values()
               if (row["tenant"], row["network"]) == (network.tenant, network.name) for each in row["addresses"]}
        kept = {address for tenant, name, address in self.reserved if (tenant, name) == (network.tenant, network.name)}
        excluded = {each for subnet in network.subnets for each in subnet.get("exclude", ())}
        return own | kept | excluded | set(network.gateways()) | set(network.elsewhere)

    def _free(self, network: FakeNetwork, prefix: str) -> Iterator[str]:
        used = self._used(network)
        return (str(each) for each in ip_network(prefix).hosts() if str(each) not in used)

    def _must_be_free(self, network: FakeNetwork, address: str) -> None:
        if not any(ip_address(address) in ip_network(each["prefix"]) for each in network.subnets):
            raise LocalError("outside", f"network {network.name} has no such address", "addresses", address,
                             "use another")
        if address in self._used(network):
            raise LocalError("taken", f"address {address} is another endpoint's", "addresses", address, "use another")


def _subnet(spec: dict[str, Any]) -> dict[str, Any]:
    prefix = ip_network(spec["prefix"])
    return {**spec, "gateway": spec.get("gateway") or str(prefix.network_address + 1)}


def _overlap(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    return any(one.version == other.version and one.overlaps(other)
               for one in (ip_network(each["prefix"]) for each in some)
               for other in (ip_network(each["prefix"]) for each in others))
