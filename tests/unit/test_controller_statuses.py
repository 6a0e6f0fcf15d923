"""What is said of external hosts, leases, nested endpoints, and of what an overlay rests on at its hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from controller_kit import Parts, document, endpoint, host, overlay, with_parts

from controller.link import Link
from southbound.messages import Ack, Key, ObjectStatus

WORLD = [
    host("h1", ["172.31.0.1", "fd00:31::1"]), host("h2", "172.31.0.2"), host("ext", "172.31.0.9", external=True),
    overlay("red"), endpoint("a", "red"), endpoint("b", "red", "h2"), endpoint("in-a", "red", netns=None, behind="a"),
    endpoint("far", "red", "ext", netns=None, mac="02:00:00:00:00:99", address="10.1.0.99"),
    document("Network", "seg", {"mode": "transparent", "subnets": [{"prefix": "192.168.7.0/24"}]}),
    endpoint("leased", "seg", dhcp=True),
]


async def acknowledged(parts: Parts, name: str, **said: ObjectStatus) -> None:
    """The host applies all that it is to be told, and says so of each object; `said` in place of that."""
    link = parts.push.links.setdefault(name, Link(name))
    goals = parts.push.plan.goals(name)
    if not link.connected:
        link.connect(0)
        link.next_message(parts.ledger.state.revision, lambda: goals)
    told = {key: ObjectStatus(*key) for key in goals} | {(s.kind, s.id): s for s in said.values()}
    link.acknowledge(Ack(parts.ledger.state.revision, tuple(told.values())))


async def status(parts: Parts, path: str) -> dict[str, Any]:
    answer = await parts.http.get(f"/v1/{path}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["status"]
    return found


def key_of_port(parts: Parts, name: str) -> Key:
    return next(key for key, goal in parts.push.plan.goals("h1").items() if getattr(goal, "name", "") == name)


def test_nobody_waits_for_an_external_host_and_its_endpoints_are_ready(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        answer = await parts.apply(*WORLD, wait=5)
        assert answer.json()["pending"] == []
        assert "external" in (await status(parts, "hosts/ext"))["message"]
        far = await status(parts, "tenants/default/endpoints/far")
        assert (far["phase"], far["address"], far["mac"]) == ("Ready", "10.1.0.99", "02:00:00:00:00:99")
        assert (await status(parts, "tenants/default/networks/red"))["hosts"] == ["h1", "h2"]
        assert parts.push.plan.goals("ext") == {}

    with_parts(tmp_path, body)


def test_the_address_of_a_lease_is_that_which_the_host_saw(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*WORLD)
        await acknowledged(parts, "h1")
        found = await status(parts, "tenants/default/endpoints/leased")
        assert (found["phase"], found.get("address"), found["message"]) == ("Ready", None, "no lease was seen yet")
        key = key_of_port(parts, "leased")
        await acknowledged(parts, "h1", port=ObjectStatus(*key, details={"address": "192.168.7.77/24"}))
        found = await status(parts, "tenants/default/endpoints/leased")
        assert (found["phase"], found["address"], found["message"]) == ("Ready", "192.168.7.77", "")

    with_parts(tmp_path, body)


def test_a_nested_endpoint_fares_as_its_link_and_has_its_mac(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*WORLD)
        await acknowledged(parts, "h1", link=ObjectStatus(*key_of_port(parts, "a"), error="no such namespace"))
        inner = await status(parts, "tenants/default/endpoints/in-a")
        assert (inner["phase"], inner["message"]) == ("Failed", "no such namespace")
        assert inner["mac"] == (await status(parts, "tenants/default/endpoints/a"))["mac"]

    with_parts(tmp_path, body)


def test_an_overlay_is_not_ready_without_its_tunnel_or_the_endpoints_elsewhere(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*WORLD)
        await acknowledged(parts, "h1")
        await acknowledged(parts, "h2")
        assert (await status(parts, "tenants/default/networks/red"))["phase"] == "Ready"
        block = next(key for key in parts.push.plan.goals("h1") if key[0] == "remotes")
        await acknowledged(parts, "h1", block=ObjectStatus(*block, error="no underlay address of one family"))
        red = await status(parts, "tenants/default/networks/red")
        assert (red["phase"], red["message"]) == ("Failed", "no underlay address of one family")
        lost = ObjectStatus("host", "self", error="no interface has 172.31.0.1")
        await acknowledged(parts, "h1", host=lost)
        assert (await status(parts, "hosts/h1"))["message"] == lost.error
        assert (await status(parts, "tenants/default/endpoints/a"))["message"] == lost.error
        assert (await status(parts, "tenants/default/networks/red"))["phase"] == "Failed"
        assert (await status(parts, "tenants/default/networks/seg"))["phase"] == "Ready"

    with_parts(tmp_path, body)
