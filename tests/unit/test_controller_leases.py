"""What runtimes of a host lease: from a request to the goal state, and what becomes of it."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from controller_kit import (
    FACTS,
    Parts,
    document,
    endpoint,
    host,
    nat,
    overlay,
    policy,
    tenant,
    with_parts,
)

from controller.host_requests import HostRequests
from controller.planner import plan
from controller.state import Ref
from controller.store import Report, StoreError
from southbound.messages import HostGoal, LeaseGoal, NetworkGoal, RemotesGoal
from southbound.messages import Request as SouthboundRequest

RED = {"tenant": "default", "network": "red"}
HOSTS = [host("h1", "172.31.0.1"), host("h2", "172.31.0.2"), host("h3")]


class Asked(Exception):
    """The problems of a refused request."""

    def __init__(self, problems: Any) -> None:
        super().__init__(problems)
        self.first = problems[0]
        self.codes = [each["code"] for each in problems]


async def ask(parts: Parts, on: str, what: str, **args: Any) -> Any:
    """As the agent of a host, by what its session calls; the plan must follow every step."""
    class Session:
        host = on

    reply = await parts.push.on_request(Session(), SouthboundRequest(1, what, args))   # type: ignore[arg-type]
    assert parts.push.plan == plan(parts.ledger.state)
    if reply.problems:
        assert reply.data is None
        raise Asked(reply.problems)
    return reply.data


def lease_of(parts: Parts, on: str) -> LeaseGoal | None:
    found = [goal for goal in parts.push.plan.goals(on).values() if isinstance(goal, LeaseGoal)]
    assert len(found) < 2
    return found[0] if found else None


def leases(parts: Parts, network: str = "red") -> dict[str, tuple[str, ...]]:
    stored = parts.ledger.state.network(Ref("Network", "default", network))
    return dict(stored.assigned.leases) if stored is not None else {}


def container(name: str, network: str = "red", on: str = "h1", **spec: Any) -> dict[str, Any]:
    return endpoint(name, network, on, labels={"sluice.io/runtime": "docker"}, **spec)


def test_a_host_with_a_lease_is_told_the_network_and_gives_out_what_nobody_else_gets(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*HOSTS, overlay("red"), endpoint("far", "red", "h2"))
        assert parts.push.plan.goals("h1") == {}
        first = await ask(parts, "h1", "lease", **RED)
        assert first["given"] == first["addresses"]
        assert len(first["given"]) == 16
        kinds = {type(goal) for goal in parts.push.plan.goals("h1").values()}
        assert kinds == {HostGoal, NetworkGoal, RemotesGoal, LeaseGoal}
        goal = lease_of(parts, "h1")
        assert goal is not None
        assert (list(goal.addresses), goal.whole, goal.ranges) == (first["addresses"], False, ())

        revision = parts.ledger.state.revision
        again = await ask(parts, "h1", "lease", **RED)
        assert (again["addresses"], again["given"], again["revision"]) == (first["addresses"], [], revision)
        more = await ask(parts, "h1", "lease", **RED, count=3)
        assert len(more["given"]) == 3
        assert set(more["addresses"]) == {*first["addresses"], *more["given"]}
        second = await ask(parts, "h2", "lease", **RED)
        assert not {*second["addresses"]} & {*more["addresses"]}

        await parts.apply(*(endpoint(f"e{n}", "red", "h2") for n in range(40)))
        held = [e.assigned.address for e in parts.ledger.state.endpoints_of(Ref("Network", "default", "red"))]
        assert len(set(held)) == 41
        assert not {*held} & {*more["addresses"], *second["addresses"]}
        answer = await parts.apply(endpoint("thief", "red", "h2", address=more["addresses"][0]))
        assert answer.status_code == 409
        assert "leased to host h1" in answer.json()["error"]["message"]
        answer = await parts.apply(endpoint("owner", "red", "h1", address=more["addresses"][0]))
        assert answer.status_code == 200, answer.text
        shown = (await parts.http.get("/v1/tenants/default/networks/red")).json()
        assert shown["status"]["leases"] == {"h1": 19, "h2": 16}

    with_parts(tmp_path, body)


def test_a_network_of_one_host_is_its_own_as_a_whole(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*HOSTS, nat("office", "", subnets=[
            {"prefix": "192.168.250.0/24", "allocate": ["192.168.250.128/25"], "exclude": ["192.168.250.200"]},
            {"prefix": "fd00:250::/64"}]))
        answer = await ask(parts, "h1", "lease", tenant="default", network="office")
        assert answer["addresses"] == []
        goal = lease_of(parts, "h1")
        assert goal is not None
        assert goal.whole
        assert goal.ranges == (("192.168.250.128", "192.168.250.199"), ("192.168.250.201", "192.168.250.254"),
                               ("fd00:250::2", "fd00:250::ffff:ffff:ffff:ffff"))
        by_hand = await ask(parts, "h1", "lease", tenant="default", network="office", addresses=["192.168.250.7"])
        assert by_hand["given"] == ["192.168.250.7"]
        with pytest.raises(Asked) as refused:
            await ask(parts, "h3", "lease", tenant="default", network="office")
        assert "is a nat network of host h1" in refused.value.first["message"]

    with_parts(tmp_path, body)


def test_a_segment_is_never_a_hosts_as_a_whole(tmp_path: Path) -> None:
    """Machines are there that we do not know: only addresses that the controller has chosen are given out."""
    async def body(parts: Parts) -> None:
        await parts.ledger.save_report("h1", Report("test", FACTS))
        await parts.apply(*HOSTS, document("Network", "seg", {"mode": "transparent", "host": "h1", "subnets": [
            {"prefix": "192.168.7.0/24", "allocate": ["192.168.7.0/27"]}]}))
        answer = await ask(parts, "h1", "lease", tenant="default", network="seg")
        assert answer["addresses"] == [f"192.168.7.{n}" for n in range(2, 9)], "a quarter of them"
        more = await ask(parts, "h1", "lease", tenant="default", network="seg", count=3)
        assert more["given"] == ["192.168.7.9", "192.168.7.11", "192.168.7.12"], "10 is h1's own"

    with_parts(tmp_path, body)


def test_small_networks_are_shared(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*HOSTS, overlay("red", "10.1.0.0/28"))
        counts = [len((await ask(parts, on, "lease", **RED))["addresses"]) for on in ("h1", "h2")]
        assert counts == [3, 2]
        for number in range(8):
            answer = await parts.apply(endpoint(f"e{number}", "red", "h2"))
            assert answer.status_code == 200, answer.text
        answer = await parts.apply(endpoint("w", "red", "h2"))
        assert answer.status_code == 422
        assert answer.json()["error"]["message"].endswith("are in use or asked for; leased are 3 to h1, 2 to h2")
        with pytest.raises(Asked) as refused:
            await ask(parts, "h2", "lease", **RED, count=1)
        assert refused.value.codes == ["exhausted"]

    with_parts(tmp_path, body)


def test_addresses_by_hand_and_from_ranges(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*HOSTS, document("Network", "red", {"mode": "overlay", "subnets": [
            {"prefix": "10.1.0.0/24", "exclude": ["10.1.0.99"]}, {"prefix": "fd00:1::/64"}]}),
            endpoint("far", "red", "h2", address="10.1.0.5"))
        given = (await ask(parts, "h1", "lease", **RED, addresses=["10.1.0.77", "fd00:1:0::77"]))["given"]
        assert given == ["10.1.0.77", "fd00:1::77"]
        assert (await ask(parts, "h1", "lease", **RED, addresses=["10.1.0.77"]))["given"] == []
        ranged = await ask(parts, "h1", "lease", **RED, count=2, ranges=["10.1.0.128/25", "fd00:1::100-fd00:1::1ff"])
        fours, sixes = ranged["given"][:2], ranged["given"][2:]
        assert all(ip_address(a) in ip_network("10.1.0.128/25") for a in fours)
        assert all(ip_address(a) in ip_network("fd00:1::100/120") for a in sixes)
        before = parts.ledger.state
        for text, word in (("10.1.0.5", "Endpoint default/far"), ("10.1.0.1", "gateway"), ("10.1.0.99", "excluded"),
                           ("10.2.0.1", "outside of its subnet"), ("fd00:2::1", "outside of its subnet"),
                           ("10.1.0.255", "broadcast"), ("nonsense", "not an address"), (7, "must be text")):
            with pytest.raises(Asked) as refused:
                await ask(parts, "h1", "lease", **RED, addresses=["10.1.0.50", text])
            assert word in refused.value.first["message"], refused.value.first
            assert refused.value.first["field"] == "addresses[1]"
        with pytest.raises(Asked) as refused:
            await ask(parts, "h2", "lease", **RED, addresses=["10.1.0.77"])
        assert "leased to host h1" in refused.value.first["message"]
        for args, field in (({"count": 0}, "count"), ({"count": 10**9}, "count"), ({"count": "3"}, "count"),
                            ({"count": 1, "ranges": ["10.9.0.0/24"]}, "ranges[0]"),
                            ({"ranges": ["10.1.0.0/25"]}, "count"),
                            ({"count": 1, "ranges": ["10.1.0.99"]}, "ranges"),
                            ({"count": 1, "addresses": ["10.1.0.50"]}, "count")):
            with pytest.raises(Asked) as refused:
                await ask(parts, "h1", "lease", **RED, **args)
            assert refused.value.first["field"] == field, refused.value.first
        assert parts.ledger.state is before

    with_parts(tmp_path, body)


def test_what_is_released_goes_back_and_a_hosts_own_network_with_the_last_lease(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*HOSTS)
        made = await ask(parts, "h1", "apply", documents=[overlay("red", mtu=1400)])
        assert made["items"][0]["result"] == "created"
        assert made["items"][0]["labels"] == {"sluice.io/host": "h1"}
        assert len(made["items"][0]["assigned"]["leases"]["h1"]) == 16
        joined = await ask(parts, "h2", "apply", documents=[overlay("red")])
        assert joined["items"][0]["result"] == "unchanged"
        assert list(joined["items"][0]["assigned"]["leases"]) == ["h2"], "another host's lease is not its business"
        assert joined["items"][0]["uid"] == made["items"][0]["uid"]

        one = leases(parts)["h1"][0]
        assert (await ask(parts, "h1", "release", **RED, addresses=[one, "10.1.0.250"]))["released"] == [one]
        assert one not in leases(parts)["h1"]
        await parts.apply(endpoint("e", "red", "h2"))
        got = parts.ledger.state.endpoints_of(Ref("Network", "default", "red"))[0].assigned.address
        assert got != one, "not given again at once"
        answer = await ask(parts, "h1", "release", **RED)
        assert (len(answer["released"]), answer["deleted"]) == (15, False)
        assert (await ask(parts, "h1", "release", **RED))["released"] == [], "repeated"
        assert parts.push.plan.goals("h1") == {}
        assert (await ask(parts, "h2", "release", **RED))["deleted"] is False, "somebody is in it"
        await parts.http.delete("/v1/tenants/default/endpoints/e")
        assert parts.ledger.state.network(Ref("Network", "default", "red")) is None

        await parts.apply(overlay("red"))               # by a person: it stays when runtimes have gone
        await ask(parts, "h1", "lease", **RED)
        assert (await ask(parts, "h1", "release", **RED))["deleted"] is False
        assert leases(parts) == {}
        assert (await ask(parts, "h1", "release", tenant="default", network="none"))["deleted"] is True

    with_parts(tmp_path, body)


def test_the_verdict_is_that_of_an_endpoint_of_which_nothing_is_known(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*HOSTS, overlay("red", qos={"egress": {"rate": "10mbit"}}), endpoint("web", "red", "h2"))
        await ask(parts, "h1", "lease", **RED)
        await parts.apply(
            policy("all", "red", {"direction": "in", "action": "deny", "from": {"endpoints": ["web"]}},
                   defaultIn="deny"),
            policy("some", "red", {"direction": "in", "action": "allow"}, appliesTo={"labels": {"app": "x"}}),
            policy("one", "red", {"direction": "in", "action": "allow"}, appliesTo={"endpoints": ["web"]}))
        await parts.apply(endpoint("like", "red", "h1"))
        goal = lease_of(parts, "h1")
        assert goal is not None
        [port] = [g for g in parts.push.plan.goals("h1").values() if g.kind == "port"]
        assert [t.policy for t in goal.tiers] == ["default/all"]
        assert (goal.tiers, goal.default_in, goal.default_out, goal.strict_tcp, goal.qos) == (
            port.tiers, port.default_in, port.default_out, port.strict_tcp, port.qos)
        assert goal.qos.egress_bps == 10**7
        assert goal.named == ("web",)

    with_parts(tmp_path, body)


def test_a_lease_ends_with_its_host_and_with_the_right_to_it(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*HOSTS, tenant("other"), overlay("red"))
        await ask(parts, "h1", "lease", **RED)
        await ask(parts, "h2", "apply", documents=[overlay("blue", "10.2.0.0/24")])
        await parts.apply(host("h1", "172.31.0.1", runtimes={"tenants": ["other"]}))
        assert lease_of(parts, "h1") is None
        with pytest.raises(Asked) as refused:
            await ask(parts, "h1", "lease", **RED, count=1)
        assert refused.value.codes == ["forbidden"]
        await parts.apply(host("h1", "172.31.0.1"))
        assert lease_of(parts, "h1") is not None
        await parts.apply(host("h1"))                   # without underlay address, so in no overlay
        assert leases(parts) == {}
        await parts.apply(host("h1", "172.31.0.1"))
        await ask(parts, "h1", "lease", **RED)
        await parts.ledger.delete([Ref("Host", "", "h1")])
        assert leases(parts) == {}
        await parts.apply(host("h2", "172.31.0.2", external=True))
        assert parts.ledger.state.network(Ref("Network", "default", "blue")) is None
        assert parts.push.plan == plan(parts.ledger.state)

    with_parts(tmp_path, body)


def test_leases_follow_their_networks_subnets(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        subnets: list[dict[str, Any]] = [{"prefix": "10.1.0.0/24"}]
        await parts.apply(*HOSTS, overlay("red", subnets=subnets))
        await ask(parts, "h1", "lease", **RED)
        subnets.append({"prefix": "fd00:1::/64"})
        await parts.apply(overlay("red", subnets=subnets))
        assert len(leases(parts)["h1"]) == 32, "a block of the family that is new"
        excluded = leases(parts)["h1"][3]
        subnets[0] = {"prefix": "10.1.0.0/24", "exclude": [excluded]}
        answer = await parts.apply(overlay("red", subnets=subnets))
        assert answer.status_code == 200, answer.text
        assert excluded not in leases(parts)["h1"]
        assert len(leases(parts)["h1"]) == 31
        await parts.apply(overlay("red", subnets=subnets[1:]))
        assert [":" in each for each in leases(parts)["h1"]] == [True] * 16
        assert parts.push.plan == plan(parts.ledger.state)

    with_parts(tmp_path, body)


def test_an_endpoint_that_moves_takes_its_address_out_of_the_lease(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*HOSTS, overlay("red"))
        own = (await ask(parts, "h1", "lease", **RED))["addresses"][0]
        await parts.apply(endpoint("e", "red", "h1", address=own))
        await parts.apply(endpoint("e", "red", "h2", address=own))
        assert own not in leases(parts)["h1"]
        assert parts.push.plan == plan(parts.ledger.state)

    with_parts(tmp_path, body)


def test_a_renumbered_network_takes_its_leases_along_and_an_automatic_one_in_use_stays(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*HOSTS, nat("office", "192.168.250.0/24", onOverlap="renumber"), nat("own", "auto"))
        await ask(parts, "h1", "lease", tenant="default", network="office", addresses=["192.168.250.77"])
        await ask(parts, "h1", "lease", tenant="default", network="own")
        own = parts.ledger.state.network(Ref("Network", "default", "own"))
        assert own is not None
        facts = type(FACTS)(addresses=(("wlan0", "192.168.250.9/24"), ("wlan0", own.assigned.subnets[0].prefix)))
        await parts.ledger.save_report("h1", Report("test", facts))
        async with asyncio.timeout(10):
            while leases(parts, "office")["h1"] == ("192.168.250.77",):     # noqa: ASYNC110
                await asyncio.sleep(0.01)
        moved = parts.ledger.state.network(Ref("Network", "default", "office"))
        assert moved is not None
        prefix = ip_network(moved.assigned.subnets[0].prefix)
        assert leases(parts, "office")["h1"] == (str(prefix[77]),)
        assert parts.ledger.state.leased == {(moved.ref, str(prefix[77])): "h1"}
        assert parts.ledger.state.objects[own.ref].assigned == own.assigned
        goal = [g for g in parts.push.plan.goals("h1").values() if isinstance(g, LeaseGoal) and g.addresses]
        assert goal[0].addresses == (str(prefix[77]),)

    with_parts(tmp_path, body)


def test_leases_outlive_a_restart_and_do_not_move_what_people_edit(tmp_path: Path) -> None:
    async def before(parts: Parts) -> tuple[Any, int]:
        await parts.apply(*HOSTS, overlay("red"))
        stored = parts.ledger.state.objects[Ref("Network", "default", "red")]
        await ask(parts, "h1", "lease", **RED)
        answer = await parts.http.put("/v1/tenants/default/networks/red", json=overlay("red", mtu=1400),
                                      headers={"If-Match": str(stored.revision)})
        assert answer.status_code == 200, answer.text
        return leases(parts), parts.ledger.state.revision

    async def after(parts: Parts) -> None:
        assert (leases(parts), parts.ledger.state.revision) == known
        assert lease_of(parts, "h1") is not None
        assert {address for _, address in parts.ledger.state.leased} == {*known[0]["h1"]}

    known = with_parts(tmp_path, before)
    with_parts(tmp_path, after)


def test_a_store_that_fails_is_told_as_such_and_nothing_has_changed(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*HOSTS, overlay("red"))
        before, commit = parts.ledger.state, parts.store.commit

        def full(_: object) -> None:
            raise StoreError("the store failed: disk full")

        parts.store.commit = full                       # type: ignore[method-assign]
        with pytest.raises(Asked) as refused:
            await ask(parts, "h1", "lease", **RED)
        assert (refused.value.codes, refused.value.first["message"]) == (["store"], "the store failed: disk full")
        assert parts.ledger.state is before
        parts.store.commit = commit                     # type: ignore[method-assign]
        assert len((await ask(parts, "h1", "lease", **RED))["given"]) == 16

    with_parts(tmp_path, body)


def test_many_that_ask_at_once_get_different_addresses(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*HOSTS, overlay("red", "10.1.0.0/16"))
        requests = HostRequests(parts.ledger)
        answers = await asyncio.gather(*(requests.answer(on, "lease", {**RED, "count": 5})
                                         for on in ("h1", "h2") for _ in range(20)))
        given = [each for answer in answers for each in answer["given"]]
        assert len(given) == len(set(given)) == 200

    with_parts(tmp_path, body)
