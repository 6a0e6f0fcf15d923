"""Conversations recorded from three Docker versions, word for word, over a real socket: each call is answered as Docker
needs it, and at the end nothing is left.

Recorded was a plug-in whose networks, endpoints and pools know the options `foo`, `kk` and `a`: ours refuses them, so
ours are put in their place. What ours answered before stands in later requests where the recorded plug-in's did.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtimes.docker import serve
from tests.unit.docker_kit_agent import FakeAgent

RECORDED = Path(__file__).parents[3] / "shared/data/docker-plugin"
if not RECORDED.is_dir():
    RECORDED = Path("/work/shared/data/docker-plugin")
VERSIONS = ("20.10.24", "28.5.2", "29.7.2")
OURS = {'"foo": "bar"': '"mode": "nat"', '"kk": "vv"': '"label.kk": "vv"', '"Options": {"a": "b"}': '"Options": {}'}
PLUGIN_S = 5


def conversation(version: str) -> list[dict[str, Any]]:
    path = RECORDED / f"plugin_log_{version}.jsonl"
    assert path.exists(), f"{path} is missing: the project's shared data belong beside its folder"
    text = path.read_text(encoding="utf-8")
    for recorded, ours in OURS.items():
        text = text.replace(recorded, ours)
    return [json.loads(line) for line in text.splitlines()]


class Replay:
    def __init__(self, agent: FakeAgent, client: httpx.AsyncClient) -> None:
        self.agent, self.client = agent, client
        self.ours: dict[str, str] = {}      # what was answered by the recorded plug-in: what by ours
        self.endpoints: dict[str, str] = {}     # that are there: EndpointID and address
        self.made = 0

    async def say(self, call: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(call["req"]) if call["req"] is not None else ""
        for theirs, ours in self.ours.items():
            body = body.replace(f'"{theirs}"', f'"{ours}"').replace(f'"{theirs}/', f'"{ours}/')
        headers = {name: value for name, value in call["hdr"].items() if name != "Content-Length"}
        answer = await self.client.post(call["path"], content=body, headers=headers)
        assert answer.status_code == 200, (call["path"], answer.text)
        found: dict[str, Any] = answer.json()
        assert "Err" not in found, (call["path"], body, found)
        self.compare(call, json.loads(body) if body else {}, found)
        return found

    def compare(self, call: dict[str, Any], request: dict[str, Any], ours: dict[str, Any]) -> None:
        theirs, path = call["resp"], call["path"]
        assert theirs.keys() == ours.keys() or path.endswith(("Join", "GetCapabilities")), (path, theirs, ours)
        match path.rpartition(".")[2]:
            case "GetCapabilities" if "Scope" in ours:
                assert ours["Scope"] == ours["ConnectivityScope"] == "local"
            case "GetDefaultAddressSpaces":
                self.ours.update((theirs[name], ours[name]) for name in theirs)
            case "RequestPool":
                assert ours["Pool"] == theirs["Pool"]
                self.ours[theirs["PoolID"]] = ours["PoolID"]
            case "RequestAddress":
                self.address(request, theirs["Address"].partition("/")[0], ours["Address"])
            case "CreateEndpoint":
                interface = request["Interface"]
                assert not any(ours["Interface"].get(name) for name, value in interface.items() if value)
                self.endpoints[request["EndpointID"]] = interface["Address"]
                self.made += 1
                row = self.agent.attachments["docker", request["EndpointID"]]
                assert row["addresses"] == [interface["Address"]]
                assert row["mac"] == interface["MacAddress"]
            case "Join":
                row = self.agent.attachments["docker", request["EndpointID"]]
                assert ours["InterfaceName"] == {"SrcName": row["farInterface"], "DstPrefix": "eth"}
                assert ours["Gateway"] == theirs["Gateway"] == "10.77.0.1"
                assert ours["DisableGatewayService"] is False
                assert row["taken"]
            case "ProgramExternalConnectivity":
                row = self.agent.attachments["docker", request["EndpointID"]]
                published = request["Options"]["com.docker.network.portmap"]
                assert {(each["externalPort"], each["internalPort"]) for each in row["mappings"]} == \
                    {(each["HostPort"], each["Port"]) for each in published}
            case "RevokeExternalConnectivity":
                assert not self.agent.attachments["docker", request["EndpointID"]]["mappings"]
            case "DeleteEndpoint":
                assert ("docker", request["EndpointID"]) not in self.agent.attachments
                del self.endpoints[request["EndpointID"]]

    def address(self, request: dict[str, Any], theirs: str, ours: str) -> None:
        address, _, length = ours.partition("/")
        assert length == "24"
        if request["Address"]:
            assert address == request["Address"]
        else:
            assert address not in {each.partition("/")[0] for each in self.endpoints.values()}
        self.ours[theirs] = address


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("restarts", [False, True], ids=["one agent", "a new agent at each daemon"])
def test_the_conversation_of_a_docker_version(version: str, restarts: bool, tmp_path: Path) -> None:
    async def replay() -> FakeAgent:
        agent = FakeAgent(tmp_path / "agent.sock")
        await agent.start()
        calls = conversation(version)
        plugin = await started(tmp_path)
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "plugins/sluice.sock"))
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://plugin.moby.localhost") as client:
                said = Replay(agent, client)
                for call in calls:
                    if call["path"] == "/Plugin.Activate" and restarts and said.made:
                        plugin.cancel()
                        await asyncio.gather(plugin, return_exceptions=True)
                        plugin = await started(tmp_path)
                    await said.say(call)
        finally:
            plugin.cancel()
            await asyncio.gather(plugin, return_exceptions=True)
            await agent.stop()
        assert said.made >= 3
        return agent

    agent = asyncio.run(replay())
    assert not agent.networks
    assert not agent.attachments
    assert not agent.reserved
    assert not list((tmp_path / "plugins").iterdir())


async def started(folder: Path) -> asyncio.Task[None]:
    """A plug-in that answers."""
    task = asyncio.create_task(serve(folder / "plugins", str(folder / "agent.sock"), folder))
    async with asyncio.timeout(PLUGIN_S):
        while not (folder / "plugins/sluice.sock").exists():
            assert not task.done(), task.result()
            await asyncio.sleep(0.01)
    return task
