"""Subnets of both families: what is given out, what may be changed, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from controller_kit import FACTS, Parts, endpoint, host, mapping, nat, overlay, with_parts

from controller.store import Report


def office(*subnets: dict[str, Any], **spec: Any) -> Any:
    return nat("office", "", subnets=list(subnets), **spec)


async def applied(parts: Parts, *documents: Any) -> list[dict[str, Any]]:
    answer = await parts.apply(*documents)
    assert answer.status_code == 200, answer.text
    return [item["resource"]["status"] for item in answer.json()["items"]]


def addresses(found: list[dict[str, Any]]) -> list[tuple[str | None, str | None]]:
    return [(status.get("address"), status.get("address6")) for status in found if "mac" in status]


def test_endpoints_get_an_address_of_each_family_from_where_it_may_be_taken(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        found = await applied(
            parts, host("h1"),
            office({"prefix": "192.168.250.0/24", "allocate": ["192.168.250.128/29"],
                    "exclude": ["192.168.250.128-192.168.250.129", "192.168.250.132"]},
                   {"prefix": "192.168.251.0/30"}, {"prefix": "FD00:250::/64", "gateway": "fd00:250::FE"}),
            *(endpoint(f"e{n}", "office") for n in range(6)),
            endpoint("vm", "office", netns=None, tap="tap1", address="192.168.250.11", address6="fd00:250:0:0::5",
                     mac="02-00-00-00-00-11"))
        assert found[1]["subnets"] == [
            {"prefix": "192.168.250.0/24", "gateway": "192.168.250.1"},
            {"prefix": "192.168.251.0/30", "gateway": "192.168.251.1"},
            {"prefix": "fd00:250::/64", "gateway": "fd00:250::fe"}]
        automatic = [f"192.168.250.{n}" for n in (130, 131, 133, 134, 135)] + ["192.168.251.2"]
        assert addresses(found) == [*zip(automatic, (f"fd00:250::{n}" for n in (1, 2, 3, 4, 6, 7)), strict=True),
                                    ("192.168.250.11", "fd00:250::5")]
        full = await parts.apply(endpoint("more", "office"))
        assert (full.status_code, full.json()["error"]["field"]) == (422, "spec.address")
        assert "all 6 addresses" in full.json()["error"]["message"]
        # One that goes is not given again while another is free.
        await parts.http.delete("/v1/tenants/default/endpoints/e1")
        assert addresses(await applied(parts, endpoint("more", "office"))) == [("192.168.250.131", "fd00:250::8")]

    with_parts(tmp_path, body)


def test_what_is_asked_for_by_hand_in_a_request_is_given_to_nobody_else(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        four, six = {"prefix": "10.5.0.0/24"}, {"prefix": "fd00:5::/64"}
        by_hand = [endpoint("v6", "office", address6="fd00:5::2"), endpoint("v4", "office", address="10.5.0.2"),
                   endpoint("both", "office", address="10.5.0.4", address6="fd00:5::4")]
        for turn, documents in enumerate((by_hand, by_hand[::-1], [by_hand[1], by_hand[0], by_hand[2]])):
            await applied(parts, host("h1"), office(four, six))
            found = dict(zip(("auto", *(one["metadata"]["name"] for one in documents)),
                             addresses(await applied(parts, endpoint("auto", "office"), *documents)), strict=True))
            assert (found["v6"][1], found["v4"][0]) == ("fd00:5::2", "10.5.0.2")
            assert found["both"] == ("10.5.0.4", "fd00:5::4")
            assert {one[0] for one in found.values()} == {f"10.5.0.{n}" for n in (2, 3, 4, 5)}, turn
            assert {one[1] for one in found.values()} == {f"fd00:5::{n:x}" for n in (2, 3, 4, 5)}, turn
            for name in found:
                await parts.http.delete(f"/v1/tenants/default/endpoints/{name}")
            await parts.http.delete("/v1/tenants/default/networks/office")
        # A family that is new to the network: those that are there get theirs beside the one that is asked for.
        await applied(parts, office(four), endpoint("old", "office"), endpoint("older", "office"))
        await applied(parts, office(four, six), endpoint("new", "office", address6="fd00:5::2"))
        assert addresses(await applied(parts, endpoint("old", "office"), endpoint("older", "office"))) == [
            ("10.5.0.2", "fd00:5::3"), ("10.5.0.3", "fd00:5::4")]
        full = await parts.apply(nat("small", "10.7.0.0/30"), endpoint("a", "small"),
                                 endpoint("b", "small", address="10.7.0.2"))
        assert full.status_code == 422
        assert "in use or asked for" in full.json()["error"]["message"]

    with_parts(tmp_path, body)


def test_automatic_prefixes_keep_off_everything_and_stay(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.ledger.save_report("h1", Report("test", FACTS))      # 192.168.7.0/24, 192.168.8.0/24, 10.8.0.0/16
        automatic = [nat(name, "auto") for name in ("a", "b")]
        large = nat("large", "", subnets=[{"prefix": "auto", "prefixLength": 20}, {"prefix": "auto"}])
        await applied(parts, host("h1", "172.31.0.1", autoPrefixes=["192.168.6.0/23", "10.8.0.0/14", "172.31.0.0/24"],
                                  avoidPrefixes=["10.9.0.0/18"]), overlay("red", "10.9.64.0/20"), endpoint("e", "red"))
        found = await applied(parts, *automatic, large, nat("by-hand", "192.168.6.0/25"))
        by_name = dict(zip(("a", "b", "large"), found, strict=False))
        assert {name: [s["prefix"] for s in status["subnets"]] for name, status in by_name.items()} == {
            "a": ["10.9.80.0/24"], "b": ["10.9.81.0/24"], "large": ["10.9.96.0/20", "10.9.82.0/24"]}
        again = await parts.apply(*automatic, large)
        assert {item["result"] for item in again.json()["items"]} == {"unchanged"}
        changed = await applied(parts, nat("a", "auto", nat={"log": True}))
        assert changed[0]["subnets"][0]["prefix"] == "10.9.80.0/24"

    with_parts(tmp_path, body)


def test_a_subnet_comes_and_goes_and_endpoints_get_the_new_family(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        four, more, six = {"prefix": "10.5.0.0/24"}, {"prefix": "10.6.0.0/24"}, {"prefix": "fd00:5::/64"}
        await applied(parts, host("h1"), office(four), endpoint("a", "office"), endpoint("b", "office"),
                      mapping("www", "office", "b", 80))
        revision = parts.ledger.state.revision
        await applied(parts, office(more, six, four))
        assert parts.ledger.state.revision == revision + 1
        ends = [(await parts.http.get(f"/v1/tenants/default/endpoints/{name}")).json() for name in "ab"]
        assert addresses([end["status"] for end in ends]) == [("10.5.0.2", "fd00:5::2"), ("10.5.0.3", "fd00:5::3")]
        assert {end["metadata"]["revision"] for end in ends} == {revision + 1}
        events = await parts.ledger.events_after(revision)
        assert [e.ref.name for e in events or ()] == ["office", "a", "b"]
        assert addresses(await applied(parts, endpoint("c", "office", address="10.6.0.7"))) == [
            ("10.6.0.7", "fd00:5::4")]
        held = await parts.apply(office(four, six))
        assert (held.status_code, held.json()["error"]["code"]) == (409, "in_use")
        assert "Endpoint default/c" in held.json()["error"]["message"]
        await parts.http.delete("/v1/tenants/default/endpoints/c")
        found = await applied(parts, office(four, six))
        assert [subnet["prefix"] for subnet in found[0]["subnets"]] == ["10.5.0.0/24", "fd00:5::/64"]
        # In one request with an endpoint that asks for its own new address: both hold, told once.
        await parts.http.delete("/v1/tenants/default/endpoints/a")
        await parts.http.delete("/v1/tenants/default/staticmappings/www")
        await parts.http.delete("/v1/tenants/default/endpoints/b")
        await applied(parts, office(four), endpoint("d", "office"))
        revision = parts.ledger.state.revision
        found = await applied(parts, office(four, six), endpoint("d", "office", address6="fd00:5::d"))
        assert found[1]["address6"] == "fd00:5::d"
        assert [e.ref.name for e in await parts.ledger.events_after(revision) or ()] == ["office", "d"]

    with_parts(tmp_path, body)


def test_translation_and_what_is_given_out_can_be_changed(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await applied(parts, host("h1"), office({"prefix": "10.5.0.0/24"}), endpoint("a", "office"))
        found = await applied(
            parts, office({"prefix": "10.5.0.0/24", "allocate": ["10.5.0.128/25"], "exclude": ["10.5.0.128/30"]},
                          onOverlap="renumber", nat={"log": True, "portBlock": 64, "timeouts": {"udp": 30}}))
        assert found[0]["subnets"] == [{"prefix": "10.5.0.0/24", "gateway": "10.5.0.1"}]
        assert addresses(await applied(parts, endpoint("b", "office"), endpoint("a", "office"))) == [
            ("10.5.0.132", None), ("10.5.0.2", None)]
        (network,) = [g for g in parts.push.plan.goals("h1").values() if g.kind == "network"]
        assert (network.nat.log, network.nat.block, network.nat.timeouts) == (True, 64, (("udp", 30.0),))
        small = await parts.apply(host("h1", natPorts=[2000, 2031]))
        assert (small.status_code, small.json()["error"]["field"]) == (409, "spec.natPorts")

    with_parts(tmp_path, body)


def test_automatic_ranges_of_ports_are_in_a_row_and_avoid_what_is_held(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.ledger.save_report("h1", Report("test", FACTS))
        await applied(parts, host("h1", mappingPorts=[9430, 9449]), office({"prefix": "10.5.0.0/24"}),
                      endpoint("a", "office"), mapping("one", "office", "a", 9434))
        found = await applied(parts, mapping("four", "office", "a", "auto", "80-83"),
                              mapping("five", "office", "a", "auto", "80-84"),
                              mapping("udp", "office", "a", "auto", "80-89", protocol="udp"))
        # 9434 is mapped, 9443 is listened on.
        assert [status["externalPort"] for status in found] == ["9430-9433", "9435-9439", "9440-9449"]
        none = await parts.apply(mapping("no", "office", "a", "auto", "80-86"))
        assert (none.status_code, none.json()["error"]["field"]) == (422, "spec.externalPort")
        assert "no 7 external ports in a row" in none.json()["error"]["message"]
        same = await applied(parts, mapping("five", "office", "a", "auto", "90-94"))
        assert same[0]["externalPort"] == "9435-9439"
        await parts.http.delete("/v1/tenants/default/staticmappings/five")
        assert (await applied(parts, mapping("six", "office", "a", "auto")))[0]["externalPort"] == 9440

    with_parts(tmp_path, body)
