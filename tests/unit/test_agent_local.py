"""The agent's local operations: what is made is declared and programmed, what is refused leaves nothing, and a process
that is killed between any two steps leaves what the next one puts right."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_kit import FakeSwitch
from attach_kit import FakeController, Killed, Process, files_in, life, until

MAPPING = {"protocol": "tcp", "externalPort": 8080, "internalPort": 80}


def world() -> tuple[FakeController, FakeSwitch]:
    controller = FakeController()
    controller.network("web", "192.168.1.0/24")
    return controller, FakeSwitch()


def play(directory: Path, script: Callable[[Process], Awaitable[None]], connected: bool = True) -> FakeController:
    controller, switch = world()

    async def whole() -> None:
        async with life(directory, controller, switch, connected=connected) as process:
            await script(process)

    asyncio.run(whole())
    return controller


def agree(process: Process, *names: str) -> None:
    """What is declared, what is on disk and what is programmed is the same."""
    declared = process.controller.of("Endpoint")
    kept = {each.name: each.uid for each in process.runtimes.attachments._files.attachments.all()}
    assert set(declared) == set(names), declared
    assert kept == declared
    assert process.ports() == set(declared.values())


def test_a_port_is_declared_and_programmed_when_attach_answers(tmp_path: Path) -> None:
    async def script(agent: Process) -> None:
        made = await agent.ask("attach", runtime="cni", id="c1/eth0", netns="ns-a", network="web", name="a",
                               mappings=[MAPPING])
        assert made["addresses"] == ["192.168.1.3/24"]
        assert made["gateways"] == ["192.168.1.1"]
        assert (made["mode"], made["netns"], made["interface"], made["existing"]) == ("nat", "ns-a", "eth0", False)
        assert [one["externalPort"] for one in made["mappings"]] == [8080]
        agree(agent, "a")
        again = await agent.ask("attach", runtime="cni", id="c1/eth0", netns="ns-a", network="web", name="a",
                                mappings=[MAPPING])
        assert again == made | {"existing": True}
        assert (await agent.ask("check", runtime="cni", id="c1/eth0"))["ready"] is True
        assert await agent.ask("detach", runtime="cni", id="c1/eth0") == {"existed": True}
        assert await agent.ask("detach", runtime="cni", id="c1/eth0") == {"existed": False}
        agree(agent)
        assert agent.controller.of("StaticMapping") == {}

    play(tmp_path, script)


def test_what_is_attached_without_a_name_has_one_by_its_id(tmp_path: Path) -> None:
    async def script(agent: Process) -> None:
        made = await agent.ask("attach", runtime="docker", id="x", veth=True, network="web")
        assert made["name"] == "docker-2d711642b726"        # sha256 of x
        assert made["farInterface"] == f"slc{made['uid'][:8]}"
        assert agent.controller.objects["Endpoint", "default", made["name"]]["labels"] == {
            "sluice.io/runtime": "docker"}

    play(tmp_path, script)


@pytest.mark.parametrize(("arguments", "code", "field"), [
    ({"runtime": "lxd"}, "invalid", "runtime"),
    ({"id": None}, "invalid", "id"),
    ({"id": 7}, "invalid", "id"),
    ({"netns": None}, "invalid", "netns"),
    ({"tap": "tap0"}, "invalid", "tap"),
    ({"colour": "red"}, "invalid", "colour"),
    ({"network": "nope"}, "not_found", "spec.network"),
    ({"addresses": "10.0.0.1"}, "invalid", "addresses"),
    ({"addresses": ["x"]}, "invalid", "addresses[0]"),
    ({"addresses": ["10.0.0.1", "10.0.0.2"]}, "invalid", "addresses[1]"),
    ({"ranges": ["10.0.0.9-10.0.0.1"]}, "invalid", "ranges[0]"),
    ({"labels": {"a": 1}}, "invalid", "labels"),
    ({"mappings": [{"externalPort": 80}]}, "invalid", "mappings[0]"),
    ({"mappings": [{"protocol": "tcp", "port": 80}]}, "invalid", "mappings[0].port"),
    ({"queues": 0}, "invalid", "queues"),
    ({"netns": "gone"}, "gone", "netns"),
])
def test_what_is_wrong_is_told_by_its_field_and_leaves_nothing(
    tmp_path: Path, arguments: dict[str, Any], code: str, field: str
) -> None:
    async def script(agent: Process) -> None:
        agent.switch.missing.add("gone")
        asked = {"runtime": "attach", "id": "a", "netns": "ns-a", "network": "web"} | arguments
        refused = await agent.ask("attach", **{name: value for name, value in asked.items() if value is not None})
        assert (refused["code"], refused["field"]) == (code, field), refused
        assert refused["message"]
        await agent.settled()
        agree(agent)
        assert not files_in(tmp_path, "attachments", "forgotten")

    play(tmp_path, script)


@pytest.mark.parametrize("line", [b"", b"x", b"[]", b"7", b'{"op": 7}', b'{"op": "nope"}', b'{"op": "attach"', b"\xff",
                                  b'{"op": "detach", "runtime": "cni"}', b'{"op": "hello", "more": 1}', b"[" * 5000])
def test_any_line_has_an_answer(tmp_path: Path, line: bytes) -> None:
    async def script(agent: Process) -> None:
        answer = await agent.server.answer(line)
        assert answer["error"]["code"] == "invalid"
        assert set(answer["error"]) == {"code", "message", "field", "found", "todo"}

    play(tmp_path, script)


def test_a_port_that_cannot_be_made_is_undone(tmp_path: Path) -> None:
    async def script(agent: Process) -> None:
        agent.switch.identify = lambda netns: "boot/1"      # type: ignore[method-assign]
        agent.switch.missing.add("ns-a")                    # it goes while the port is made
        refused = await agent.ask("attach", runtime="attach", id="a", netns="ns-a", network="web")
        assert refused["code"] in ("failed", "gone")
        await agent.settled()
        agree(agent)

    play(tmp_path, script)


def test_another_with_the_same_id_or_name_is_refused(tmp_path: Path) -> None:
    async def script(agent: Process) -> None:
        await agent.ask("attach", runtime="cni", id="a", netns="ns-a", network="web", name="a")
        other = await agent.ask("attach", runtime="cni", id="a", netns="ns-a", network="web", name="b")
        assert (other["code"], other["field"]) == ("exists", "name")
        other = await agent.ask("attach", runtime="docker", id="b", veth=True, network="web", name="a")
        assert (other["code"], other["field"]) == ("exists", "name")
        agree(agent, "a")

    play(tmp_path, script)


def test_mappings_are_changed_as_a_whole_and_a_refused_change_leaves_the_old_ones(tmp_path: Path) -> None:
    async def script(agent: Process) -> None:
        await agent.ask("attach", runtime="docker", id="a", veth=True, network="web", name="a", mappings=[MAPPING])
        both = [MAPPING, {"protocol": "udp", "externalPort": 53, "internalPort": 53}]
        mapped = await agent.ask("map", runtime="docker", id="a", mappings=both)
        assert [one["name"] for one in mapped["mappings"]] == ["a-1", "a-2"]
        mapped = await agent.ask("map", runtime="docker", id="a", mappings=both[1:])
        assert list(agent.controller.of("StaticMapping")) == ["a-2"]
        agent.controller.refuse["apply"] = {"code": "in_use", "message": "port taken", "field": "spec.externalPort"}
        refused = await agent.ask("map", runtime="docker", id="a", mappings=[*both[1:], {**MAPPING, "externalPort": 9}])
        assert refused["code"] == "in_use"
        del agent.controller.refuse["apply"]
        shown = (await agent.ask("check", runtime="docker", id="a"))["mappings"]
        assert [one["name"] for one in shown] == ["a-2"]
        assert (await agent.ask("map", runtime="docker", id="a", mappings=[]))["mappings"] == []
        assert agent.controller.of("StaticMapping") == {}

    play(tmp_path, script)


def test_what_listens_here_goes_with_a_request_for_a_mapping_and_with_no_other(tmp_path: Path) -> None:
    async def script(agent: Process) -> None:
        agent.switch.listening = [("tcp", "0.0.0.0", 22)]
        await agent.ask("attach", runtime="docker", id="a", veth=True, network="web", name="a")
        assert agent.controller.heard == []
        await agent.ask("map", runtime="docker", id="a", mappings=[MAPPING])
        agent.switch.listening = []
        await agent.ask("attach", runtime="docker", id="b", veth=True, network="web", name="b",
                        mappings=[{**MAPPING, "externalPort": 81}])
        assert agent.controller.heard == [[["tcp", "0.0.0.0", 22]], []]

    play(tmp_path, script)


def test_gc_releases_what_is_not_valid_in_its_scope(tmp_path: Path) -> None:
    async def script(agent: Process) -> None:
        for name, scope in (("a", "s"), ("b", "s"), ("c", "t")):
            await agent.ask("attach", runtime="cni", id=name, name=name, scope=scope, netns=f"ns-{name}", network="web")
        assert await agent.ask("gc", runtime="cni", scope="s", valid=["a"]) == {"released": ["b"]}
        agree(agent, "a", "c")
        assert [one["id"] for one in (await agent.ask("list", runtime="cni"))["attachments"]] == ["a", "c"]

    play(tmp_path, script)


def test_networks_are_made_joined_and_go_with_the_last_one_in_them(tmp_path: Path) -> None:
    async def script(agent: Process) -> None:
        spec = {"mode": "nat", "subnets": [{"prefix": "10.9.0.0/24"}]}
        made = await agent.ask("network-create", runtime="docker", id="n", network="mine", spec=spec)
        assert (made["created"], made["mode"], made["subnets"][0]["prefix"]) == (True, "nat", "10.9.0.0/24")
        again = await agent.ask("network-create", runtime="docker", id="n", network="mine", spec=spec)
        assert again == made | {"created": False}
        assert (await agent.ask("network-create", runtime="docker", id="m", network="nope"))["code"] == "not_found"
        await agent.ask("attach", runtime="docker", id="a", veth=True, network="mine", name="a")
        assert await agent.ask("network-delete", runtime="docker", id="n") == {"existed": True, "deleted": False}
        await agent.ask("detach", runtime="docker", id="a")
        await agent.settled()
        assert set(agent.controller.of("Network")) == {"web"}
        assert await agent.ask("network-delete", runtime="docker", id="n") == {"existed": False, "deleted": False}

    play(tmp_path, script)


def test_an_address_that_is_kept_is_nobody_elses_and_goes_with_its_endpoint(tmp_path: Path) -> None:
    async def script(agent: Process) -> None:
        first = (await agent.ask("reserve", network="web", owner="x", version=4))["address"]
        second = (await agent.ask("reserve", network="web", owner="x", version=4))["address"]
        assert (first, second) == ("192.168.1.200/24", "192.168.1.201/24")
        by_hand = await agent.ask("reserve", network="web", owner="x", version=4, address="192.168.1.77")
        assert by_hand == {"address": "192.168.1.77/24"}
        assert (await agent.ask("reserve", network="web", owner="y", address="192.168.1.77"))["code"] == "taken"
        assert (await agent.ask("reserve", network="web", owner="y", address="192.168.1.1"))["code"] == "taken"
        assert (await agent.ask("reserve", network="web", owner="y", address="10.0.0.1"))["code"] == "outside"
        await agent.ask("attach", runtime="docker", id="a", veth=True, network="web", addresses=["192.168.1.77"])
        await agent.ask("detach", runtime="docker", id="a")
        assert "192.168.1.77" not in agent.controller.leases["web"]
        assert await agent.ask("unreserve", network="web", address="192.168.1.77") == {"existed": False}
        assert await agent.ask("unreserve", network="web", owner="x") == {"existed": True}
        assert not files_in(tmp_path, "reserved")

    play(tmp_path, script)


def test_while_the_controller_is_away_a_lease_helps_and_it_is_told_later(tmp_path: Path) -> None:
    async def script(agent: Process) -> None:
        await agent.ask("attach", runtime="cni", id="old", name="old", netns="ns-old", network="web")
        await asyncio.sleep(0.05)                           # the lease comes by itself
        assert agent.controller.leases
        agent.disconnect()
        assert (await agent.ask("hello"))["controller"] == "away"
        assert await agent.ask("detach", runtime="cni", id="old") == {"existed": True}
        assert agent.ports() == set()
        made = await agent.ask("attach", runtime="cni", id="new", name="new", netns="ns-new", network="web",
                               mappings=[{**MAPPING, "externalPort": "auto"}])
        assert (made["leased"], made["addresses"]) == (True, ["192.168.1.200/24"])
        assert made["mappings"][0]["externalPort"] == 10000
        assert agent.ports() == {made["uid"]}
        labelled = await agent.ask("attach", runtime="cni", id="x", netns="ns-x", network="web", labels={"a": "b"})
        assert (labelled["code"], labelled["field"]) == ("unavailable", "labels")
        agent.connect()
        await agent.settled()
        agree(agent, "new")
        assert agent.controller.objects["Endpoint", "default", "new"]["address"] == "192.168.1.200"
        assert (await agent.ask("check", runtime="cni", id="new"))["leased"] is False

    play(tmp_path, script)


def test_what_the_controller_refuses_afterwards_goes(tmp_path: Path) -> None:
    async def script(agent: Process) -> None:
        await agent.ask("network-create", runtime="cni", id="n", network="web")
        await asyncio.sleep(0.05)
        agent.disconnect()
        made = await agent.ask("attach", runtime="cni", id="a", netns="ns-a", network="web")
        assert made["leased"] is True
        agent.controller.refuse["apply"] = {"code": "forbidden", "message": "no more", "field": "x"}
        agent.connect()
        await agent.settled()
        agree(agent)

    play(tmp_path, script)


def test_a_controller_that_does_not_answer_is_as_one_that_is_away(tmp_path: Path) -> None:
    async def script(agent: Process) -> None:
        await agent.ask("network-create", runtime="cni", id="n", network="web")
        await asyncio.sleep(0.05)
        agent.controller.silent = True                      # it does what it is asked, and the answer is lost
        made = await agent.ask("attach", runtime="cni", id="a", name="a", netns="ns-a", network="web")
        assert made["leased"] is True
        agent.controller.silent = False
        agent.connect()
        await agent.settled()
        agree(agent, "a")

    play(tmp_path, script)


def test_what_is_gone_is_released_after_a_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.lost.GRACE_S", 0.05)

    async def script(agent: Process) -> None:
        for name in ("a", "b"):
            made = await agent.ask("attach", runtime="docker", id=name, name=name, veth=True, network="web")
        await agent.ask("taken", runtime="docker", id="b")
        agent.switch.links.pop(made["hostInterface"])       # its container ended
        await agent.host.again()
        await until(lambda: "b" not in agent.controller.of("Endpoint"))
        monkeypatch.setattr("agent.lost.TAKE_S", 0.1)    # nobody takes the other
        agent.runtimes.attachments.changed.set()
        await until(lambda: not agent.controller.of("Endpoint"))
        await agent.settled()
        agree(agent)

    play(tmp_path, script)


def test_what_a_runtime_lost_is_in_nobodys_way(tmp_path: Path) -> None:
    """A killed daemon forgets an endpoint, and gives its address, and its port, to the next container at once."""
    async def script(agent: Process) -> None:
        old = await agent.ask("attach", runtime="docker", id="old", veth=True, network="web",
                              addresses=["192.168.1.9"], mappings=[MAPPING])
        await agent.ask("taken", runtime="docker", id="old")
        agent.switch.links.pop(old["hostInterface"])
        await agent.host.again()
        made = await agent.ask("attach", runtime="docker", id="new", veth=True, network="web",
                               addresses=["192.168.1.9"])
        assert made["addresses"] == ["192.168.1.9/24"]
        assert set(agent.controller.of("Endpoint")) == {made["name"]}
        await agent.ask("taken", runtime="docker", id="new")
        await agent.ask("map", runtime="docker", id="new", mappings=[MAPPING])
        agent.switch.links.pop(made["hostInterface"])
        await agent.host.again()
        third = await agent.ask("attach", runtime="docker", id="third", veth=True, network="web")
        assert len(agent.controller.of("Endpoint")) == 2
        await agent.ask("map", runtime="docker", id="third", mappings=[MAPPING])
        agree(agent, third["name"])

    play(tmp_path, script)


def test_what_was_never_taken_gives_its_address_to_the_next(tmp_path: Path) -> None:
    """The agent was killed before it could answer: Docker gave up the endpoint, and its address is free to Docker."""
    async def script(agent: Process) -> None:
        for name in ("old", "new"):
            made = await agent.ask("attach", runtime="docker", id=name, veth=True, network="web",
                                   addresses=["192.168.1.9"])
        assert set(agent.controller.of("Endpoint")) == {made["name"]}
        agree(agent, made["name"])

    play(tmp_path, script)


def test_a_far_end_that_its_runtime_put_back_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As libnetwork does when it was told nothing: the container is gone, and the link is in the host's namespace."""
    monkeypatch.setattr("agent.lost.BACK_S", 0.05)

    async def script(agent: Process) -> None:
        made = await agent.ask("attach", runtime="docker", id="a", veth=True, network="web")
        name = made["hostInterface"]
        await agent.ask("taken", runtime="docker", id="a")
        agent.switch.links[name] = replace(agent.switch.links[name], far_here=False)
        await agent.host.again()
        await asyncio.sleep(0.15)
        assert agent.controller.of("Endpoint")
        agent.switch.links[name] = replace(agent.switch.links[name], far_here=True)
        await agent.host.again()
        await until(lambda: not agent.controller.of("Endpoint"))
        await agent.settled()
        agree(agent)

    play(tmp_path, script)


Operation = tuple[str, dict[str, Any]]
ATTACH: Operation = ("attach", {"runtime": "cni", "id": "a", "name": "a", "netns": "ns-a", "network": "web",
                                "mappings": [MAPPING]})
MAP: Operation = ("map", {"runtime": "cni", "id": "a", "mappings": [{**MAPPING, "externalPort": 81}]})
DETACH: Operation = ("detach", {"runtime": "cni", "id": "a"})
AWAY: Operation = ("away", {})              # from here on
CREATE: Operation = ("network-create", {"runtime": "cni", "id": "n", "network": "web"})
RESERVE: Operation = ("reserve", {"network": "web", "owner": "o", "address": "192.168.1.77"})


@pytest.mark.parametrize(("before", "killed"), [
    ([], ATTACH), ([ATTACH], MAP), ([ATTACH], DETACH), ([CREATE, AWAY], ATTACH), ([CREATE, AWAY, ATTACH], MAP),
    ([CREATE, AWAY, ATTACH], DETACH), ([ATTACH, AWAY], DETACH), ([], CREATE), ([], RESERVE),
], ids=lambda value: "-".join(each[0] for each in (value if isinstance(value, list) else [value])))
def test_a_process_killed_between_any_two_steps_leaves_what_the_next_one_puts_right(
    tmp_path: Path, before: list[Operation], killed: Operation
) -> None:
    """Afterwards an operation that was answered holds, one that was not can be repeated, and all of it can go."""
    async def attempt(directory: Path, kill_at: int) -> bool:
        """Whether it was killed."""
        controller, switch = world()
        async with life(directory, controller, switch) as first:
            for op, arguments in before:
                if op == "away":
                    await asyncio.sleep(0.03)
                    first.disconnect()
                else:
                    assert "code" not in await first.ask(op, **arguments)
            await asyncio.sleep(0.03)
            first.kill_at = 2 * first.steps + kill_at
            died = False
            try:
                assert "code" not in await first.ask(killed[0], **killed[1])
            except Killed:
                died = True
        async with life(directory, controller, switch) as second:
            await second.settled()
            agree(second, *controller.of("Endpoint"))
            kept = {each.name for each in second.runtimes.attachments._files.attachments.all()}
            assert set(controller.of("StaticMapping").values()) == {
                mapped.uid for each in second.runtimes.attachments._files.attachments.all() for mapped in each.mappings}
            if not died:
                assert kept == (set() if killed is DETACH else {"a"} if killed in (ATTACH, MAP) else set())
            if killed is DETACH or died:
                repeated = await second.ask(killed[0], **killed[1])
                assert repeated.get("code") in (None, "not_found"), repeated
            await second.ask(*DETACH[:1], **DETACH[1])
            await second.ask("network-delete", runtime="cni", id="n")
            await second.ask("unreserve", network="web", owner="o")
            await second.settled()
            agree(second)
            assert controller.of("StaticMapping") == {}
            assert not files_in(directory)
        return died

    for kill_at in range(1, 60):
        directory = tmp_path / str(kill_at)
        directory.mkdir()
        if not asyncio.run(attempt(directory, kill_at)):
            assert kill_at > 2
            return
    raise AssertionError("it never came to its end")
