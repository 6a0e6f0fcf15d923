"""Push over the real southbound: who is told what, waits, coalescing, reconnects, errors in status, joins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from controller_kit import WORLD, Parts, endpoint, host, overlay, policy, with_parts

from southbound.client import AgentSession, connect, join
from southbound.errors import JoinFailed, SessionRefused, SouthboundError
from southbound.identity import load_identity
from southbound.messages import (
    PROTOCOL_VERSION,
    Ack,
    Delta,
    Facts,
    FullSync,
    Goal,
    Hello,
    HostFacts,
    ObjectStatus,
    Resync,
    key_of,
)
from southbound.server import SouthboundServer


def named(goal: Goal) -> str:
    """The name of a goal; empty: it has none."""
    return str(getattr(goal, "name", ""))


class FakeAgent:
    """Takes goal states and acknowledges them, unless `silent`; `failing` maps object names to errors."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.revision = 0
        self.goals: dict[Any, Any] = {}
        self.messages: list[FullSync | Delta] = []
        self.failing: dict[str, str] = {}
        self.silent = False
        self.facts = HostFacts()
        self.queries: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {}
        self.streams: list[list[str]] = []
        self.session: AgentSession | None = None

    async def query(self, what: str, args: dict[str, Any]) -> Any:
        self.queries.append((what, args))
        if what == "follow":
            return await self._follow(args)
        return {} if what == "unfollow" else self.answers[what]

    async def _follow(self, args: dict[str, Any]) -> Any:
        """Batches of `streams`, one an answer; then nothing more."""
        after = args["after"] or 0
        told = 0
        for batch in self.streams:
            told += len(batch)
            if told > after:
                return {"records": batch, "last": told, "lost": 0}
        await asyncio.sleep(0.1)
        return {"records": [], "last": told, "lost": 0}

    def ack(self) -> Ack:
        return Ack(self.revision, tuple(
            ObjectStatus(*key, error=self.failing.get(getattr(goal, "name", ""), ""),
                         details={"host_interface": "slp1"} if key[0] == "port" else {})
            for key, goal in self.goals.items()))

    async def take(self, message: FullSync | Delta) -> None:
        self.messages.append(message)
        if isinstance(message, FullSync):
            self.goals = {key_of(goal): goal for goal in message.goals}
        else:
            assert message.base == self.revision, "a delta for another base"
            for key in message.remove:
                self.goals.pop(key, None)   # it may have come and gone between two messages
            self.goals |= {key_of(goal): goal for goal in message.put}
        self.revision = message.revision

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[FakeAgent]:
        hello = Hello(PROTOCOL_VERSION, self.name, "fake-1", "boot", self.revision, self.facts)
        async with connect(self.folder / self.name / "identity", hello, self.query) as session:
            self.session = session
            task = asyncio.create_task(self._serve(session))
            try:
                yield self
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                self.session = None

    async def _serve(self, session: AgentSession) -> None:
        async for message in session:
            await self.take(message)
            if not self.silent:
                await session.send(self.ack())


class Fabric:
    def __init__(self, parts: Parts, server: SouthboundServer, folder: Path) -> None:
        self.parts, self.server, self.folder = parts, server, folder

    async def agent(self, name: str) -> FakeAgent:
        answer = await self.parts.http.post("/v1/tokens", json={"host": name})
        (self.folder / name).mkdir(exist_ok=True)
        await join(f"127.0.0.1:{self.server.port}", answer.json()["token"], name, self.folder / name)
        return FakeAgent(name, self.folder)

    async def get(self, path: str) -> Any:
        return (await self.parts.http.get(f"/v1/{path}")).json()

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(5):
            while not await condition():                # noqa: ASYNC110 - it asks over HTTP
                await asyncio.sleep(0.01)

    async def settled(self, *names: str) -> None:
        left = await self.parts.push.wait_applied(names, self.parts.ledger.state.revision, 5)
        assert not left


def on_fabric(folder: Path, test: Callable[[Fabric], Awaitable[None]]) -> None:
    async def body(parts: Parts) -> None:
        async with SouthboundServer("127.0.0.1", 0, parts.pki.server_context(), parts.push,
                                    keepalive_s=2.0) as server:
            await test(Fabric(parts, server, folder))

    with_parts(folder, body)


def test_apply_with_wait_returns_when_it_is_applied_and_only_concerned_hosts_hear_of_it(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1, h2, h3 = [await fabric.agent(n) for n in ("h1", "h2", "h3")]
        async with h1.connected(), h2.connected(), h3.connected():
            answer = (await fabric.parts.apply(*WORLD, wait=5)).json()
            assert answer["pending"] == []
            assert {named(g) for g in h1.goals.values() if g.kind == "port"} == {"a", "web"}
            assert {n for g in h2.goals.values() if g.kind == "remotes" for n in g.names} == {"a"}
            assert h3.goals == {}
            statuses = {i["name"]: i["resource"].get("status") for i in answer["items"]}
            assert statuses["a"]["phase"] == "Ready"
            assert statuses["a"]["details"] == {"host_interface": "slp1"}
            assert statuses["www"]["phase"] == "Ready"
            before = {a.name: len(a.messages) for a in (h1, h2, h3)}
            answer = (await fabric.parts.apply(endpoint("c", "blue", "h1"), wait=5)).json()
            assert len(h1.messages) == before["h1"] + 1
            (last,) = h1.messages[-1:]
            assert isinstance(last, Delta)
            assert {(g.kind, named(g)) for g in last.put if g.kind != "host"} == {("network", "blue"), ("port", "c")}
            assert (len(h2.messages), len(h3.messages)) == (before["h2"], before["h3"])
            # Nobody else was told, and still everybody shows the revision.
            hosts = (await fabric.get("hosts"))["items"]
            assert {h["status"]["appliedRevision"] for h in hosts} == {answer["revision"]}
            # A removal that leaves a host without part in the network is waited for as well.
            gone = (await fabric.parts.http.delete("/v1/tenants/default/endpoints/c", params={"wait": 5})).json()
            assert gone["pending"] == []
            assert not any(named(g) in ("blue", "c") for g in h1.goals.values())

    on_fabric(tmp_path, body)


def test_a_silent_host_is_pending_and_changes_meanwhile_go_out_together(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1 = await fabric.agent("h1")
        async with h1.connected():
            await fabric.parts.apply(*WORLD, wait=5)
            h1.silent = True
            answer = await fabric.parts.apply(endpoint("c", "red"), wait=0.1)
            assert (answer.status_code, answer.json()["pending"]) == (202, ["h1"])
            assert answer.json()["items"][0]["resource"]["status"]["phase"] == "Pending"
            count = len(h1.messages)
            for name in ("d", "e", "f"):
                await fabric.parts.apply(endpoint(name, "red"))
            await fabric.parts.http.delete("/v1/tenants/default/endpoints/d")
            await asyncio.sleep(0.05)
            assert len(h1.messages) == count        # one is in flight, the rest gathers
            h1.silent = False
            assert h1.session is not None
            await h1.session.send(h1.ack())
            await fabric.settled("h1")
            assert len(h1.messages) == count + 1
            (last,) = h1.messages[-1:]
            assert isinstance(last, Delta)
            assert {named(g) for g in last.put if g.kind == "port"} == {"e", "f"}

    on_fabric(tmp_path, body)


def test_a_host_that_comes_back_goes_on_by_delta_and_one_that_lost_its_state_gets_everything(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1 = await fabric.agent("h1")
        async with h1.connected():
            await fabric.parts.apply(*WORLD, wait=5)
        away = await fabric.parts.apply(endpoint("c", "red"), wait=5)
        assert away.json()["pending"] == []         # nobody is connected, so nobody is waited for
        status = away.json()["items"][0]["resource"]["status"]
        assert (status["phase"], status["message"]) == ("Pending", "host h1 is not connected")
        a = (await fabric.get("tenants/default/endpoints/a"))["status"]
        assert (a["phase"], a["message"]) == ("Ready", "host h1 is not connected")
        h1.messages.clear()
        async with h1.connected():
            await fabric.settled("h1")
            assert [type(m) for m in h1.messages] == [Delta]
            assert [named(g) for g in h1.messages[0].put] == ["c"]        # type: ignore[union-attr]
        h1.revision, h1.goals = 0, {}
        h1.messages.clear()
        async with h1.connected():
            await fabric.settled("h1")
            assert [type(m) for m in h1.messages] == [FullSync]
            assert {named(g) for g in h1.goals.values() if g.kind == "port"} == {"a", "web", "c"}

    on_fabric(tmp_path, body)


def test_an_acknowledgement_that_was_lost_is_made_up_for(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1 = await fabric.agent("h1")
        async with h1.connected():
            await fabric.parts.apply(*WORLD, wait=5)
            h1.silent = True
            count = len(h1.messages)
            await fabric.parts.apply(endpoint("c", "red"))

            async def told() -> bool:
                return len(h1.messages) > count

            await fabric.until(told)
        h1.silent = False
        h1.messages.clear()
        async with h1.connected():
            await fabric.settled("h1")
            assert [type(m) for m in h1.messages] == [Delta]
            assert h1.messages[0].put == ()                              # type: ignore[union-attr]
            ready = (await fabric.get("tenants/default/endpoints/c"))["status"]
            assert ready["phase"] == "Ready"

    on_fabric(tmp_path, body)


def test_a_resync_is_answered_with_everything(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1 = await fabric.agent("h1")
        async with h1.connected():
            await fabric.parts.apply(*WORLD, wait=5)
            h1.messages.clear()
            assert h1.session is not None
            await h1.session.send(Resync("test"))

            async def told() -> bool:
                return bool(h1.messages)

            await fabric.until(told)
            assert isinstance(h1.messages[0], FullSync)
            await fabric.settled("h1")

    on_fabric(tmp_path, body)


def test_errors_of_objects_show_in_status_and_go_when_mended(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1 = await fabric.agent("h1")
        h1.failing = {"a": "namespace ns-a is missing"}
        async with h1.connected():
            answer = (await fabric.parts.apply(*WORLD, wait=5)).json()
            status = {i["name"]: i["resource"].get("status") for i in answer["items"]}
            assert (status["a"]["phase"], status["a"]["message"]) == ("Failed", "namespace ns-a is missing")
            assert status["web"]["phase"] == "Ready"
            h1.failing = {}
            assert h1.session is not None
            await h1.session.send(h1.ack())         # the same revision again: the namespace is there now

            async def mended() -> bool:
                return bool((await fabric.get("tenants/default/endpoints/a"))["status"]["phase"] == "Ready")

            await fabric.until(mended)
            await h1.session.send(Facts(HostFacts(routes=(("tun0", "192.168.250.0/24"),))))

            async def noticed() -> bool:
                return "tun0" in (await fabric.get("tenants/default/networks/office"))["status"]["message"]

            await fabric.until(noticed)

    on_fabric(tmp_path, body)


def test_watchers_hear_of_status(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        from controller.watch import Filter

        h1 = await fabric.agent("h1")
        await fabric.parts.apply(*WORLD)
        seen: list[str] = []

        async def follow() -> None:
            async for text in fabric.parts.watches.stream(Filter("Endpoint"), None):
                seen.append(text)

        task = asyncio.create_task(follow())
        await asyncio.sleep(0.02)
        async with h1.connected():
            await fabric.settled("h1")

            async def told() -> bool:
                return sum('"phase": "Ready"' in text for text in seen) == 2

            await fabric.until(told)
        assert not any("id:" in text for text in seen if "event: status" in text)
        fabric.parts.watches.close()
        await task

    on_fabric(tmp_path, body)


def test_a_policy_change_reaches_the_hosts_it_concerns(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1, h2 = await fabric.agent("h1"), await fabric.agent("h2")
        async with h1.connected(), h2.connected():
            await fabric.parts.apply(*WORLD, wait=5)
            deny = {"direction": "in", "action": "deny", "protocol": "tcp", "ports": [80],
                    "from": {"endpoints": ["a"]}}
            count = len(h1.messages)
            await fabric.parts.apply(policy("p", "red", deny, appliesTo={"endpoints": ["b"]}), wait=5)
            (port,) = [g for g in h2.goals.values() if g.kind == "port" and named(g) == "b"]
            assert [t.policy for t in port.tiers] == ["default/p"]
            assert len(h1.messages) == count
            await fabric.parts.http.delete("/v1/tenants/default/policies/p", params={"wait": 5})
            (port,) = [g for g in h2.goals.values() if g.kind == "port" and named(g) == "b"]
            assert port.tiers == ()

    on_fabric(tmp_path, body)


def test_a_restarted_controller_brings_everybody_to_its_revision(tmp_path: Path) -> None:
    agents: list[FakeAgent] = []

    async def first(fabric: Fabric) -> None:
        agents.append(await fabric.agent("h1"))
        async with agents[0].connected():
            await fabric.parts.apply(*WORLD, wait=5)
            await fabric.parts.apply(host("h4"), wait=5)        # does not concern h1

    async def second(fabric: Fabric) -> None:
        h1 = agents[0]
        # The identity knows the old port; the certificate and the CA are the same.
        address = f"127.0.0.1:{fabric.server.port}"
        (tmp_path / "h1" / "identity" / "controller").write_text(address + "\n")
        assert load_identity(tmp_path / "h1" / "identity").controller == address
        goals = dict(h1.goals)
        async with h1.connected():
            await fabric.settled("h1")
            assert h1.revision == fabric.parts.ledger.state.revision
            assert h1.goals == goals
            status = (await fabric.get("hosts/h1"))["status"]
            assert (status["connected"], status["appliedRevision"]) == (True, h1.revision)

    on_fabric(tmp_path, first)
    on_fabric(tmp_path, second)


def test_joining_declares_the_host_and_deleting_it_ends_its_session(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h7 = await fabric.agent("h7")
        assert (await fabric.get("hosts/h7"))["spec"]["natPorts"] == [20000, 32767]
        async with h7.connected():
            await fabric.settled("h7")
            assert (await fabric.parts.http.delete("/v1/hosts/h7")).status_code == 200

            async def ended() -> bool:
                return "h7" not in fabric.server.sessions

            await fabric.until(ended)
        with pytest.raises(SessionRefused, match="not declared"):
            async with h7.connected():
                pass
        assert fabric.parts.push.links == {}

    on_fabric(tmp_path, body)


def test_a_used_token_and_a_token_for_another_host_do_not_join(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        address = f"127.0.0.1:{fabric.server.port}"
        token = (await fabric.parts.http.post("/v1/tokens", json={"host": "h1"})).json()["token"]
        with pytest.raises(JoinFailed, match="another host"):
            await join(address, token, "h2", tmp_path / "x")
        await join(address, token, "h1", tmp_path / "y")
        with pytest.raises(JoinFailed, match="used already"):
            await join(address, token, "h1", tmp_path / "z")
        assert [h["metadata"]["name"] for h in (await fabric.get("hosts"))["items"]] == ["h1"]

    on_fabric(tmp_path, body)


def test_a_trace_goes_on_at_the_host_of_the_vtep(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1, h2 = await fabric.agent("h1"), await fabric.agent("h2")
        h1.answers = {"trace": {"verdict": "forward", "reason": "", "denied_by": None,
                                "leaves": {"to": "vtep", "vtep": "172.31.0.2", "vni": 4096}},
                      "flows": {"flows": [1]}}
        denied = {"port": "b", "layer": "acl", "group": "default/p", "rule": "no-web"}
        h2.answers = {"trace": {"verdict": "drop", "reason": "DENIED", "denied_by": denied, "leaves": {"to": ""}},
                      "flows": {"flows": [2, 3]}}
        async with h1.connected(), h2.connected():
            await fabric.parts.apply(*WORLD, wait=5)
            ask = {"from": "a", "to": "b", "protocol": "tcp", "destinationPort": 80}
            answer = (await fabric.parts.http.post("/v1/trace", json=ask)).json()
            assert (answer["verdict"], answer["reason"], answer["denied_by"]) == ("drop", "DENIED", denied)
            assert [hop["host"] for hop in answer["hops"]] == ["h1", "h2"]
            uid = (await fabric.get("tenants/default/endpoints/b"))["metadata"]["uid"]
            assert h2.queries == [("trace", {
                "port": uid, "direction": "in", "vni": 4096, "source": "10.1.0.5", "destination": "10.1.0.2",
                "protocol": 6, "source_port": 49152, "destination_port": 80})]
            one = await fabric.get("flows?endpoint=default/b&limit=9")
            assert one == {"hosts": [{"host": "h2", "error": "", "flows": [2, 3]}]}
            assert h2.queries[-1] == ("flows", {"port": uid, "limit": "9"})
            assert (await fabric.get("hosts/h1/flows")) == {"host": "h1", "error": "", "flows": [1]}
            every = (await fabric.get("flows"))["hosts"]
            assert [(h["host"], h["error"]) for h in every] == [
                ("h1", ""), ("h2", ""), ("h3", "host h3 is not connected")]

    on_fabric(tmp_path, body)


def test_nat_is_asked_of_the_host_of_the_network(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1, h2 = await fabric.agent("h1"), await fabric.agent("h2")
        h1.answers = {"nat": {"pools": [1]}}
        h2.answers = {"nat": {"pools": []}}
        async with h1.connected(), h2.connected():
            await fabric.parts.apply(*WORLD, wait=5)
            assert await fabric.get("nat?network=office&section=pools&limit=9") == {
                "hosts": [{"host": "h1", "error": "", "pools": [1]}]}
            assert h1.queries[-1] == ("nat", {"section": "pools", "limit": "9", "network": "default/office"})
            assert await fabric.get("hosts/h2/nat") == {"host": "h2", "error": "", "pools": []}
            every = (await fabric.get("nat"))["hosts"]
            assert [(h["host"], h["error"]) for h in every] == [
                ("h1", ""), ("h2", ""), ("h3", "host h3 is not connected")]
            for path, status, field in (("nat?network=nowhere", 404, "network"), ("nat?network=red", 422, "network"),
                                        ("hosts/h2/nat?network=office", 422, "host"),
                                        ("nat?host=h9", 404, "metadata.name"),
                                        ("nat/log?network=nowhere", 404, "network")):
                refused = await fabric.parts.http.get(f"/v1/{path}")
                assert (refused.status_code, refused.json()["error"]["field"]) == (status, field), path

    on_fabric(tmp_path, body)


def test_a_stranger_on_the_port_disturbs_nobody(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1 = await fabric.agent("h1")
        async with h1.connected():
            reader, writer = await asyncio.open_connection("127.0.0.1", fabric.server.port)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            assert await reader.read() is not None
            writer.close()
            answer = await fabric.parts.apply(*WORLD, wait=5)
            assert answer.json()["pending"] == []

    on_fabric(tmp_path, body)


def test_a_host_nobody_declared_cannot_be_waited_for(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        assert await fabric.parts.push.wait_applied(["h1"], 99, 0.01) == []
        await fabric.parts.apply(host("h1", "172.31.0.1"), overlay("red"))
        with pytest.raises(SouthboundError):
            await join(f"127.0.0.1:{fabric.server.port}", "no token", "h1", tmp_path / "x")

    on_fabric(tmp_path, body)


def events(chunks: list[str]) -> list[dict[str, Any]]:
    return [json.loads(chunk[5:]) for chunk in chunks if chunk.startswith("data:")]


def test_what_goes_on_at_hosts_is_followed_until_the_reader_goes(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1, h2 = await fabric.agent("h1"), await fabric.agent("h2")
        h1.streams, h2.streams = [["one", "two"], ["three"]], [["far"]]
        async with h1.connected(), h2.connected():
            await fabric.parts.apply(*WORLD, wait=5)
            follows = fabric.parts.follows
            stream = follows.stream(fabric.parts.push, ["h1", "h2", "h3"], {"kind": "drops"}, patient=True)
            told: list[dict[str, Any]] = []
            while len([r for each in told for r in each.get("records", [])]) < 4:
                told += events([await anext(stream)])
            assert {r for each in told for r in each.get("records", [])} == {"one", "two", "three", "far"}
            assert [each["message"] for each in told if each["type"] == "error"] == ["host h3 is not connected"]
            asked = [args["after"] for what, args in h1.queries if what == "follow"]
            assert asked[:2] == [None, 2]
            await stream.aclose()

            async def left() -> bool:
                return "unfollow" in [what for what, _ in h1.queries] and "unfollow" in [w for w, _ in h2.queries]

            await fabric.until(left)

    on_fabric(tmp_path, body)


def test_a_capture_is_refused_before_it_begins_and_ends_with_its_host(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h2 = await fabric.agent("h2")
        async with h2.connected():
            await fabric.parts.apply(*WORLD, wait=5)
            unknown = await fabric.parts.http.get("/v1/capture", params={"endpoint": "default/nobody"})
            assert unknown.status_code == 404
            away = await fabric.parts.http.get("/v1/capture", params={"endpoint": "default/a"})
            assert (away.status_code, "not connected" in away.text) == (503, True)
            h2.streams = [["packet"]]
            stream = fabric.parts.follows.stream(fabric.parts.push, ["h2"], {"kind": "capture"}, patient=False)
            told: list[str] = []
            while not events(told):
                told.append(await anext(stream))
        told = [each async for each in stream]
        assert [each["type"] for each in events(told)][-1:] == ["error"]

    on_fabric(tmp_path, body)


def test_a_capture_ends_in_time(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h2 = await fabric.agent("h2")
        async with h2.connected():
            await fabric.parts.apply(*WORLD, wait=5)
            answer = await fabric.parts.http.get("/v1/capture", params={"endpoint": "default/b", "seconds": "0.2"})
            assert answer.status_code == 200
            (_, args) = next(query for query in h2.queries if query[0] == "follow")
            assert (args["kind"], args["bytes"], args["stage"], args["after"]) == ("capture", 9216, "", None)
            assert (await fabric.parts.http.get("/v1/capture", params={"endpoint": "b", "stage": "x"})).is_error

    on_fabric(tmp_path, body)


def test_a_trace_of_a_frame_is_carried_from_host_to_host(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1, h2 = await fabric.agent("h1"), await fabric.agent("h2")
        h1.answers = {"trace": {"verdict": "forward", "leaves": {"to": "vtep", "vtep": "172.31.0.2", "vni": 4096},
                                "frame": "b3V0", "packet": {"destination": "10.1.0.2"}, "live": {"agrees": True}}}
        h2.answers = {"trace": {"verdict": "forward", "leaves": {"to": "port"}, "live": {"agrees": False}}}
        async with h1.connected(), h2.connected():
            await fabric.parts.apply(*WORLD, wait=5)
            ask = {"from": "a", "frame": "aW4=", "live": True}
            answer = (await fabric.parts.http.post("/v1/trace", json=ask)).json()
            assert (answer["agrees"], [hop["host"] for hop in answer["hops"]]) == (False, ["h1", "h2"])
            assert h1.queries[-1][1]["frame"] == "aW4="
            assert (h2.queries[-1][1]["frame"], h2.queries[-1][1]["live"]) == ("b3V0", True)
            assert (await fabric.parts.http.post("/v1/trace", json=ask | {"to": "b"})).status_code == 422
            assert (await fabric.parts.http.post("/v1/trace", json={"from": "a"})).status_code == 422

    on_fabric(tmp_path, body)
