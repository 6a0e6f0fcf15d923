"""A host that comes to overlap a network: told, and with `onOverlap: renumber` the network moves, once and whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from controller_kit import FACTS, Parts, endpoint, host, mapping, nat, with_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from test_controller_planner import BASE, HOSTS, built
from test_controller_push import Fabric, on_fabric

from controller.ipam import range_of
from controller.overlaps import overlaps
from controller.planner import plan, replan
from controller.renumber import due, renumber
from controller.roaming import Roaming
from controller.state import Ref, State
from controller.store import Report
from controller.subnets import subnets_of
from controller.watch import Filter
from southbound.messages import Delta, Facts, HostFacts, MappingGoal, PortGoal

OFFICE = nat("office", "", onOverlap="renumber", subnets=[
    {"prefix": "172.17.0.0/24", "gateway": "172.17.0.254", "exclude": ["172.17.0.3"], "allocate": ["172.17.0.0/28"]},
    {"prefix": "172.18.0.0/24"}, {"prefix": "fd00:5::/64"}])
WORLD = [host("h1"), OFFICE, endpoint("web", "office"), endpoint("vm", "office", address="172.17.0.77"),
         endpoint("far", "office", address="172.18.0.9", address6="fd00:5::77"), mapping("www", "office", "vm", 8080)]
WLAN = ("wlan0", "172.17.3.4/16")


def roamed(*addresses: tuple[str, str], **more: Any) -> HostFacts:
    return replace(FACTS, addresses=(*FACTS.addresses, *addresses), **more)


async def say(parts: Parts, facts: HostFacts) -> None:
    await parts.ledger.save_report("h1", Report("test", facts))


async def status(parts: Parts, path: str) -> dict[str, Any]:
    found: dict[str, Any] = (await parts.http.get(f"/v1/tenants/default/{path}")).json()["status"]
    return found


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():                # noqa: ASYNC110 - it asks over HTTP
            await asyncio.sleep(0.01)


def prefixes(found: dict[str, Any]) -> list[str]:
    return [subnet["prefix"] for subnet in found["subnets"]]


def test_an_overlap_is_told_with_interface_and_prefix_until_it_goes(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await say(parts, FACTS)
        await parts.apply(host("h1"), nat("office", "172.17.5.0/24"), endpoint("web", "office"))
        before = await parts.everything()
        goals = parts.push.plan.goals("h1")
        await say(parts, roamed(WLAN))
        found = await status(parts, "networks/office")
        assert (found["phase"], found["message"]) == ("Degraded", "overlap with wlan0 172.17.0.0/16")
        await asyncio.sleep(0.1)
        assert parts.push.plan.goals("h1") == goals, "traffic inside is left alone"
        await say(parts, roamed(routes=(*FACTS.routes, ("tun0", "172.17.0.0/17"), ("", "172.17.5.0/25"))))
        assert (await status(parts, "networks/office"))["message"] == (
            "overlap with tun0 172.17.0.0/17; overlap with a route to nowhere 172.17.5.0/25")
        await say(parts, FACTS)
        assert (await status(parts, "networks/office"))["message"] == "host h1 is not connected"
        assert await parts.everything() == before

    with_parts(tmp_path, body)


def test_a_network_moves_whole_in_one_revision_and_stays_there(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await say(parts, FACTS)
        assert (await parts.apply(*WORLD)).status_code == 200
        revision = parts.ledger.state.revision
        assert (await status(parts, "endpoints/web"))["address"] == "172.17.0.1"
        await say(parts, roamed(WLAN))

        async def moved() -> bool:
            return parts.ledger.state.revision > revision

        await until(moved)
        assert parts.ledger.state.revision == revision + 1
        found = await status(parts, "networks/office")
        new = prefixes(found)[0]
        assert prefixes(found) == [new, "172.18.0.0/24", "fd00:5::/64"]
        assert found["message"].endswith("renumbered from 172.17.0.0/24 because of wlan0 172.17.0.0/16")
        assert found["phase"] == "Pending"
        assert found["subnets"][0]["gateway"] == new.replace(".0/24", ".254")
        declared = (await parts.http.get("/v1/tenants/default/networks/office")).json()["spec"]["subnets"]
        assert [subnet["prefix"] for subnet in declared] == ["172.17.0.0/24", "172.18.0.0/24", "fd00:5::/64"]
        base = new.removesuffix(".0/24")
        assert {name: (await status(parts, f"endpoints/{name}"))["address"] for name in ("web", "vm", "far")} == {
            "web": f"{base}.1", "vm": f"{base}.77", "far": "172.18.0.9"}
        www = await status(parts, "staticmappings/www")
        assert (www["internalAddress"], www["externalPort"]) == (f"{base}.77", 8080)
        events = await parts.ledger.events_after(revision)
        assert events is not None
        assert [(e.revision, e.type, e.ref.name) for e in events] == [
            (revision + 1, "put", "office"), (revision + 1, "put", "vm"), (revision + 1, "put", "web")]
        # It does not go back, what was declared is still what it was, and documents go on speaking of that.
        await say(parts, FACTS)
        await asyncio.sleep(0.3)
        assert prefixes(await status(parts, "networks/office"))[0] == new
        again = await parts.apply(*WORLD)
        assert {item["result"] for item in again.json()["items"]} == {"unchanged"}
        more = await parts.apply(endpoint("b", "office", address="172.17.0.80"), endpoint("c", "office"),
                                 endpoint("d", "office", address=f"{base}.81"),
                                 endpoint("vm", "office", address="172.17.0.77", labels={"app": "web"}))
        assert [item["resource"]["status"]["address"] for item in more.json()["items"]] == [
            f"{base}.80", f"{base}.2", f"{base}.81", f"{base}.77"]
        excluded = await parts.apply(endpoint("e", "office", address=f"{base}.3"))
        assert "excluded" in excluded.json()["error"]["message"]

    with_parts(tmp_path, body)


def test_a_storm_of_reports_moves_a_network_once(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.roaming.close()
        calm = Roaming(parts.ledger, settle_s=0.05, pause_s=60)
        await say(parts, FACTS)
        await parts.apply(*WORLD)
        revision = parts.ledger.state.revision
        for turn in range(200):             # always just where the network is now
            used = prefixes(await status(parts, "networks/office"))[0]
            await say(parts, roamed(("wlan0", used.replace(".0/24", f".{turn + 1}/24"))))
            if turn % 10 == 0:
                await asyncio.sleep(0.01)
        assert parts.ledger.state.revision == revision + 1
        found = await status(parts, "networks/office")
        assert found["phase"] == "Degraded"
        await calm.close()

    with_parts(tmp_path, body)


def test_where_no_prefix_is_free_the_status_says_so_until_there_is_one(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await say(parts, FACTS)
        await parts.apply(host("h1", autoPrefixes=["172.17.0.0/23"]), *WORLD[1:], nat("other", "172.17.1.0/24"))
        revision = parts.ledger.state.revision
        await say(parts, roamed(("wlan0", "172.17.0.9/24")))
        words = "overlap with wlan0 172.17.0.0/24; no free prefix to renumber to: add to autoPrefixes of Host h1"
        found = await status(parts, "networks/office")
        assert (found["phase"], found["message"]) == ("Degraded", words)
        await asyncio.sleep(0.1)
        assert parts.ledger.state.revision == revision
        await parts.apply(nat("same", "10.77.0.0/24"))          # one that may stay says no such thing
        await say(parts, roamed(("wlan0", "172.17.0.9/24"), ("wlan1", "10.77.0.9/24")))
        assert (await status(parts, "networks/same"))["message"] == "overlap with wlan1 10.77.0.0/24"
        await parts.apply(host("h1", autoPrefixes=["172.17.0.0/23", "10.88.0.0/24"]))

        async def moved() -> bool:
            return prefixes(await status(parts, "networks/office"))[0] == "10.88.0.0/24"

        await until(moved)
        assert "no free prefix" not in (await status(parts, "networks/office"))["message"]

    with_parts(tmp_path, body)


def test_a_network_that_goes_leaves_its_prefix_to_one_that_must_move(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await say(parts, FACTS)
        await parts.apply(host("h1", autoPrefixes=["172.17.0.0/23"]), *WORLD[1:], nat("other", "172.17.1.0/24"))
        await say(parts, roamed(("wlan0", "172.17.0.9/24")))
        await asyncio.sleep(0.1)
        await parts.http.delete("/v1/tenants/default/networks/other")

        async def moved() -> bool:
            return prefixes(await status(parts, "networks/office"))[0] == "172.17.1.0/24"

        await until(moved)

    with_parts(tmp_path, body)


def test_to_and_fro_between_two_lans_ends_where_neither_is(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await say(parts, FACTS)
        await parts.apply(*WORLD)
        start = parts.ledger.state.revision
        lans = [roamed(WLAN), roamed(("wlan0", "192.168.0.9/17"), ("wlan0", "192.168.128.9/18"))]
        seen = set()
        for turn in range(8):
            await say(parts, lans[turn % 2])
            await asyncio.sleep(0.35)       # longer than the pause of these tests
            seen.add(prefixes(await status(parts, "networks/office"))[0])
        assert parts.ledger.state.revision - start <= 2
        used = ip_network(prefixes(await status(parts, "networks/office"))[0])
        assert not any(overlaps(used, lan) for lan in lans)

    with_parts(tmp_path, body)


def test_a_controller_that_ended_before_the_move_makes_it_when_it_starts(tmp_path: Path) -> None:
    async def first(parts: Parts) -> None:
        await say(parts, FACTS)
        await parts.apply(*WORLD)
        await parts.roaming.close()
        await say(parts, roamed(WLAN))
        await parts.roaming.close()

    async def second(parts: Parts) -> None:
        async def moved() -> bool:
            return prefixes(await status(parts, "networks/office"))[0] != "172.17.0.0/24"

        await until(moved)
        assert parts.ledger.state.revision == 3

    with_parts(tmp_path, first)
    with_parts(tmp_path, second)


def test_asking_for_it_moves_a_network_that_is_overlapped_already(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await say(parts, FACTS)
        stay = {**OFFICE, "spec": {**OFFICE["spec"], "onOverlap": "degrade"}}
        await parts.apply(host("h1"), stay, *WORLD[2:])
        await say(parts, roamed(WLAN))
        await asyncio.sleep(0.1)
        assert (await status(parts, "networks/office"))["phase"] == "Degraded"
        await parts.apply(OFFICE)

        async def moved() -> bool:
            return (await status(parts, "networks/office"))["phase"] != "Degraded"

        await until(moved)

    with_parts(tmp_path, body)


def test_an_automatic_prefix_that_nobody_is_in_moves_and_one_in_use_is_degraded(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(host("h1", autoPrefixes=["10.40.0.0/22"]), nat("empty", "auto"), nat("full", "auto"),
                          endpoint("a", "full"))
        names = ("empty", "full")
        assert [prefixes(await status(parts, f"networks/{n}")) for n in names] == [["10.40.0.0/24"], ["10.40.1.0/24"]]
        await say(parts, roamed(("wlan0", "10.40.0.9/23")))     # the host reports for the first time

        async def moved() -> bool:
            return prefixes(await status(parts, "networks/empty")) == ["10.40.2.0/24"]

        await until(moved)
        found = await status(parts, "networks/full")
        assert (found["phase"], prefixes(found)) == ("Degraded", ["10.40.1.0/24"])

    with_parts(tmp_path, body)


def test_where_no_prefix_is_free_a_network_stays_degraded(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await say(parts, FACTS)
        await parts.apply(host("h1", autoPrefixes=["172.17.0.0/20"]), *WORLD[1:])
        revision = parts.ledger.state.revision
        await say(parts, roamed(WLAN))
        await asyncio.sleep(0.2)
        assert parts.ledger.state.revision == revision
        assert (await status(parts, "networks/office"))["phase"] == "Degraded"
        await parts.apply(host("h1", autoPrefixes=["172.17.0.0/20", "10.40.0.0/16"]))
        await say(parts, roamed(WLAN, ("lan1", "192.0.2.1/24")))

        async def moved() -> bool:
            return prefixes(await status(parts, "networks/office"))[0] == "10.40.0.0/24"

        await until(moved)

    with_parts(tmp_path, body)


LANS = st.lists(st.builds(lambda a, b, length: ("wlan0", f"{a}.{b}.9.9/{length}"), st.sampled_from([172, 10, 192]),
                          st.sampled_from([16, 17, 18, 168, 5]), st.integers(12, 26)), max_size=3)
V6 = st.sampled_from([(), (("wlan0", "fd00:5::9/64"),), (("wlan0", "fd00::9/8"),)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LANS, V6), min_size=1, max_size=6))
def test_properties_of_any_journey(journey: list[tuple[list[tuple[str, str]], tuple[tuple[str, str], ...]]]) -> None:
    state = built(*BASE, OFFICE | {"metadata": {"name": "roam"}}, nat("home", "172.18.4.0/22", onOverlap="renumber"),
                  endpoint("a", "roam"), endpoint("b", "roam"), endpoint("c", "roam", address="172.17.0.77"),
                  endpoint("d", "home"), endpoint("e", "red", "h2"), mapping("m", "roam", "b", "auto"))
    now = plan(state)
    offsets = offsets_of(state)
    for lans, sixes in journey:
        facts = HostFacts(addresses=(*lans, *sixes))
        fork = state.fork()
        fork.revision += 1
        changes = renumber(fork, "h1", facts)
        now, patches = replan(now, fork, changes)
        assert set(patches) <= {"h1"}
        assert all(now.goals(name) == plan(fork).goals(name) for name in HOSTS)
        assert offsets_of(fork) == offsets, "everybody keeps the place in the prefix"
        used = [s.prefix for n in fork.nat_networks_on("h1") for s in subnets_of(n)]
        assert not any(one.version == other.version and one.overlaps(other)
                       for i, one in enumerate(used) for other in used[:i])
        for change in changes:
            if change.ref.kind == "Network":
                assert change.after is not None
                moved = {s.prefix for s in change.after.assigned.subnets} - {
                    s.prefix for s in getattr(change.before, "assigned").subnets}       # noqa: B009
                assert moved
                assert not any(overlaps(ip_network(prefix), facts) for prefix in moved)
        again = fork.fork()
        assert renumber(again, "h1", facts) == [], "once is enough"
        assert State.of(fork.objects.values()).addresses == fork.addresses
        if due(fork, "h1", facts):          # only where nothing was free
            assert any(range_of(ip_network(a, strict=False))[1] for _, a in facts.addresses)
        state = fork


def offsets_of(state: State) -> dict[tuple[Ref, int], tuple[int, int]]:
    """For each endpoint and family the subnet by place, and the offset in it."""
    found = {}
    for endpoint_ref, stored in state.objects.items():
        if endpoint_ref.kind != "Endpoint":
            continue
        network = state.network(State.network_ref(stored))
        assert network is not None
        for text in stored.assigned.addresses:
            address = ip_address(text)
            ((place, subnet),) = [(i, s) for i, s in enumerate(subnets_of(network)) if address in s.prefix]
            found[endpoint_ref, address.version] = (place, int(address) - int(subnet.prefix.network_address))
    return found


def test_its_host_is_told_of_a_move_in_one_message_and_watchers_of_every_phase(tmp_path: Path) -> None:
    async def body(fabric: Fabric) -> None:
        h1 = await fabric.agent("h1")
        parts = fabric.parts
        phases: list[str] = []

        async def follow() -> None:
            async for text in parts.watches.stream(Filter("Network"), None):
                if text.startswith("event"):
                    shown = json.loads(text.partition("data: ")[2]).get("resource", {}).get("status", {})
                    phases.append(shown.get("phase", ""))

        async with h1.connected():
            assert (await parts.apply(*WORLD, wait=5)).json()["pending"] == []
            watching = asyncio.create_task(follow())
            told = len(h1.messages)
            assert (await status(parts, "networks/office"))["phase"] == "Ready"
            assert h1.session is not None
            await h1.session.send(Facts(roamed(WLAN)))

            async def moved() -> bool:
                found = await status(parts, "networks/office")
                return bool(found["phase"] == "Ready" and "renumbered" in found["message"])

            await until(moved)
            (message,) = h1.messages[told:]
            assert isinstance(message, Delta)
            assert sorted((goal.kind, getattr(goal, "name", "")) for goal in message.put) == [
                ("mapping", "www"), ("network", "office"), ("port", "vm"), ("port", "web")]
            assert message.remove == ()
            prefix = ip_network(prefixes(await status(parts, "networks/office"))[0])
            vm = next(g for g in h1.goals.values() if isinstance(g, PortGoal) and g.name == "vm")
            (www,) = [g for g in h1.goals.values() if isinstance(g, MappingGoal)]
            assert ip_interface(vm.address).network == prefix
            assert www.internal_address == vm.address.partition("/")[0]

            async def heard() -> bool:
                return "Degraded" in phases and phases[-1] == "Ready"

            await until(heard)
            parts.watches.close()
            await watching

    on_fabric(tmp_path, body)
