"""What a host may ask for and what not: refused with field, find and remedy, and nothing is changed."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
from controller_kit import Document, Parts, document, endpoint, host, mapping, nat, overlay, policy, tenant, with_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from test_controller_leases import Asked, ask, container

from controller.host_requests import MAX_OBJECTS
from controller.state import Ref
from southbound.messages import Request

WORLD = [tenant("acme"), tenant("shop"), host("h1", "172.31.0.1", runtimes={"tenants": ["default", "shop"]}),
         host("h2", "172.31.0.2"), host("h3", "172.31.0.3", runtimes={"networks": False}),
         overlay("red", mtu=1400, vni=5001), overlay("theirs", "10.5.0.0/24", in_tenant="acme"),
         nat("office", "192.168.250.0/24"),
         container("mine", "office"), container("other", "red", "h2"), endpoint("declared", "office"),
         document("StaticMapping", "www", {"network": "office", "endpoint": "mine", "protocol": "tcp",
                                           "externalPort": 80})]
RUNTIME = {"sluice.io/runtime": "docker"}


def mapped(name: str, target: str, external: int = 8080, **labels: str) -> Document:
    made = mapping(name, "office", target, external)
    made["metadata"]["labels"] = RUNTIME | labels
    return made


REFUSED: list[tuple[str, str, Any, str, str, str]] = [
    ("h1", "apply", [container("x", "red", "h2")], "forbidden", "spec.host", "for an endpoint of host h2"),
    ("h1", "apply", [container("other", "red", "h1")], "in_use", "metadata.name", "is on host h2"),
    ("h1", "apply", [container("declared", "office")], "in_use", "metadata.name", "declared by somebody else"),
    ("h1", "apply", [endpoint("x", "red")], "missing", "metadata.labels.sluice.io/runtime", "says which it is"),
    ("h1", "apply", [endpoint("x", "theirs", in_tenant="acme", labels=RUNTIME)], "forbidden", "metadata.tenant",
     "for tenants default, shop"),
    ("h1", "apply", [mapped("m", "other")], "forbidden", "spec.endpoint", "not an endpoint of a runtime of host h1"),
    ("h1", "apply", [mapped("m", "declared")], "forbidden", "spec.endpoint", "not an endpoint of a runtime"),
    ("h1", "apply", [mapped("www", "mine")], "in_use", "metadata.name", "declared by somebody else"),
    ("h2", "apply", [mapped("www", "other")], "in_use", "metadata.name", "is on host h1"),
    ("h1", "apply", [tenant("new")], "forbidden", "kind", "cannot declare a Tenant"),
    ("h1", "apply", [host("h1", "172.31.0.9")], "forbidden", "kind", "cannot declare a Host"),
    ("h1", "apply", [policy("p", "red")], "forbidden", "kind", "cannot declare a Policy"),
    ("h3", "apply", [nat("new", "10.9.0.0/24", "h3")], "forbidden", "metadata.name", "may not make networks"),
    ("h1", "apply", [nat("new", "10.9.0.0/24", "h2")], "forbidden", "spec.host", "for a network of host h2"),
    ("h1", "apply", [overlay("new", "10.9.0.0/24", peers=["acme/theirs"])], "forbidden", "spec.peers[0]",
     "for tenants"),
    ("h1", "apply", [overlay("new", "10.9.0.0/24", egress={"host": "h2"})], "forbidden", "spec.egress", "by host h2"),
    ("h1", "apply", [overlay("red", mtu=1300)], "exists", "spec.mtu", "is there, with 1400 in place of 1300"),
    ("h1", "apply", [overlay("red", vni=5002)], "exists", "spec.vni", "5001 in place of 5002"),
    ("h1", "apply", [overlay("red", "10.7.0.0/24")], "exists", "spec.subnets[0].prefix", "10.1.0.0/24 in place of"),
    ("h1", "apply", [nat("red", "10.1.0.0/24")], "exists", "spec.host", "nothing in place of h1"),
    ("h2", "apply", [nat("office", "192.168.250.0/24", "h2")], "exists", "spec.host", "h1 in place of h2"),
    ("h1", "apply", [overlay("red", subnets=[{"prefix": "10.1.0.0/24", "gateway": "10.1.0.254"}])], "exists",
     "spec.subnets[0].gateway", "10.1.0.1 in place of 10.1.0.254"),
    ("h1", "apply", [overlay("theirs", "10.5.0.0/24", in_tenant="acme")], "forbidden", "metadata.tenant",
     "for tenants"),
    ("h1", "apply", [{"kind": "Endpoint"}], "invalid", "apiVersion", "not a version"),
    ("h1", "delete", [["Network", "default", "red"]], "forbidden", "metadata.name", "declared by somebody else"),
    ("h1", "delete", [["Endpoint", "default", "declared"]], "in_use", "metadata.name", "declared by somebody else"),
    ("h1", "delete", [["Endpoint", "default", "other"]], "in_use", "metadata.name", "is on host h2"),
    ("h1", "delete", [["StaticMapping", "default", "www"]], "in_use", "metadata.name", "declared by somebody else"),
    ("h1", "delete", [["Host", "", "h2"]], "forbidden", "kind", "cannot ask for a Host"),
    ("h1", "get", [["Endpoint", "default", "other"]], "forbidden", "metadata.name", "is on host h2"),
    ("h1", "get", [["Network", "acme", "theirs"]], "forbidden", "metadata.tenant", "for tenants default, shop"),
    ("h1", "get", [["Network", "default", "none"]], "not_found", "metadata.name", "there is no Network default/none"),
    ("h1", "get", [["Policy", "default", "p"]], "forbidden", "kind", "cannot ask for a Policy"),
    ("h1", "sing", [], "invalid", "what", "cannot ask for 'sing'"),
]
"""Host, request, documents or references; code, field and words of the problem."""


def test_what_a_host_must_not(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        answer = await parts.apply(*WORLD)
        assert answer.status_code == 200, answer.text
        before = parts.ledger.state
        for on, what, args, code, field, message in REFUSED:
            fine = container("fine", "office") if on == "h1" else container("fine", "red", on)
            given = {"documents": [fine, *args]} if what == "apply" else {"refs": args}
            with pytest.raises(Asked) as refused:
                await ask(parts, on, what, **given)
            first = refused.value.first
            assert (first["code"], first["field"]) == (code, field), first
            assert message in first["message"]
            assert first["todo"]
            assert parts.ledger.state is before

    with_parts(tmp_path, body)


def test_what_a_host_may(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*WORLD[:-1])
        uids = {"Endpoint/default/c": str(uuid.uuid4()), "StaticMapping/default/c-1": str(uuid.uuid4())}
        request = {"documents": [container("c", "office"), mapped("c-1", "c", app="x")], "uids": uids}
        made = await ask(parts, "h1", "apply", **request)
        assert [item["uid"] for item in made["items"]] == list(uids.values())
        listed = await parts.http.get("/v1/endpoints", params={"labelSelector": "sluice.io/runtime=docker"})
        assert sorted(each["metadata"]["name"] for each in listed.json()["items"]) == ["c", "mine", "other"]
        again = await ask(parts, "h1", "apply", **request)
        assert ([item["result"] for item in again["items"]], again["revision"]) == (["unchanged"] * 2, made["revision"])
        got = await ask(parts, "h1", "get", refs=[["Endpoint", "default", "c"], ["Network", "default", "red"]])
        assert got["items"][0]["assigned"]["address"].startswith("192.168.250.")
        with pytest.raises(Asked) as refused:       # made already, as another
            await ask(parts, "h1", "apply", documents=[container("c", "office", mac="02:00:00:00:00:07")],
                      uids={"Endpoint/default/c": str(uuid.uuid4())})
        assert refused.value.first["field"] == "metadata.uid"
        kept = await ask(parts, "h1", "delete", refs=[["Endpoint", "default", "c"]],
                         uids={"Endpoint/default/c": str(uuid.uuid4())})
        assert kept["deleted"] == []
        gone = await ask(parts, "h1", "delete", uids=uids, refs=[
            ["Endpoint", "default", "c"], ["StaticMapping", "default", "c-1"], ["Endpoint", "default", "none"]])
        assert sorted(gone["deleted"]) == ["default/c", "default/c-1"]

        joined = await ask(parts, "h3", "apply", documents=[overlay("red")])
        assert joined["items"][0]["spec"]["mtu"] == 1400, "what it leaves open is as it is"
        segment = {"mode": "transparent", "subnets": [{"prefix": "192.168.7.0/24"}]}
        await parts.apply(document("Network", "lan", segment))
        joined = await ask(parts, "h1", "apply", documents=[document("Network", "lan", {**segment, "host": "h1"})])
        assert joined["items"][0]["result"] == "unchanged", "a network of all hosts is one of this host"
        own = await ask(parts, "h1", "apply", documents=[overlay("own", "10.9.0.0/24", peers=["red"], egress="nat")])
        assert own["items"][0]["labels"] == {"sluice.io/host": "h1"}
        changed = await ask(parts, "h1", "apply", documents=[overlay("own", "10.9.0.0/24", mtu=1300)])
        assert changed["items"][0]["result"] == "configured"
        await ask(parts, "h2", "lease", tenant="default", network="own")
        with pytest.raises(Asked) as refused:       # it is not its own alone any more
            await ask(parts, "h1", "apply", documents=[overlay("own", "10.9.0.0/24", mtu=1400)])
        assert refused.value.codes == ["exists"]
        with pytest.raises(Asked) as refused:
            await ask(parts, "h1", "delete", refs=[["Network", "default", "own"]])
        assert "in use by runtimes of host h2" in refused.value.first["message"]
        await ask(parts, "h2", "release", tenant="default", network="own")
        assert (await ask(parts, "h1", "delete", refs=[["Network", "default", "own"]]))["deleted"] == ["default/own"]

    with_parts(tmp_path, body)


def test_mappings_go_with_the_endpoint_whoever_made_them_and_what_needs_its_link_keeps_it(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*WORLD)
        refs = [["Endpoint", "default", "mine"]]
        assert (await ask(parts, "h1", "delete", refs=refs))["deleted"] == ["default/mine", "default/www"]
        await parts.apply(container("mine", "office"), endpoint("nested", "office", netns=None, behind="mine"))
        with pytest.raises(Asked) as refused:
            await ask(parts, "h1", "delete", refs=refs)
        assert "in use by Endpoint default/nested" in refused.value.first["message"]

    with_parts(tmp_path, body)


def test_hosts_that_make_one_overlay_at_the_same_time_share_it(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*(host(f"h{n}", f"172.31.0.{n}") for n in range(1, 6)))
        answers = await asyncio.gather(*(ask_only(parts, f"h{n}", "apply", documents=[overlay("red")])
                                         for n in range(1, 6)))
        assert sorted(answer["items"][0]["result"] for answer in answers) == ["created", *["unchanged"] * 4]
        assert len({answer["items"][0]["uid"] for answer in answers}) == 1
        leases = [answer["items"][0]["assigned"]["leases"] for answer in answers]
        given = [each for lease in leases for its in lease.values() for each in its]
        assert len(given) == len(set(given)) == 80

    with_parts(tmp_path, body)


async def ask_only(parts: Parts, on: str, what: str, **args: Any) -> Any:
    class Session:
        host = on

    reply = await parts.push.on_request(Session(), Request(1, what, args))   # type: ignore[arg-type]
    assert not reply.problems, reply.problems
    return reply.data


def test_a_tenant_that_a_host_names_must_be_there(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        answer = await parts.apply(host("h1", runtimes={"tenants": ["default", "shpo"]}), tenant("shop"))
        assert answer.json()["error"]["field"] == "spec.runtimes.tenants[1]"
        assert "did you mean 'shop'" in answer.json()["error"]["todo"]
        answer = await parts.apply(host("h1", runtimes={"tenants": ["default", "default"]}))
        assert answer.json()["error"]["field"] == "spec.runtimes.tenants"
        answer = await parts.apply(host("h1", runtimes={"tenants": [], "networks": False}))
        assert answer.status_code == 200, answer.text

    with_parts(tmp_path, body)


NONSENSE: list[tuple[str, Any]] = [
    ("apply", {}), ("apply", {"documents": 5}), ("apply", {"documents": {}}), ("apply", {"documents": "abc"}),
    ("apply", {"documents": [None]}), ("apply", {"documents": [], "uids": 7}),
    ("apply", {"documents": [], "uids": {"Endpoint/default/c": "../../etc"}}),
    ("apply", {"documents": [], "uids": {"Endpoint/default/c": 1}}),
    ("apply", {"documents": [None] * (MAX_OBJECTS + 1)}),
    ("delete", {"refs": [["Endpoint", "default"]]}), ("delete", {"refs": [7]}), ("delete", {"refs": [[1, 2, 3]]}),
    ("get", {"refs": "Network"}), ("get", {}),
    ("lease", {}), ("lease", {"tenant": "default"}), ("lease", {"tenant": 1, "network": {}}),
    ("lease", {"tenant": "default", "network": "red", "addresses": 5}),
    ("lease", {"tenant": "default", "network": "red", "addresses": ["10.1.0.9"] * 257}),
    ("lease", {"tenant": "default", "network": "red", "count": True}),
    ("release", {"tenant": "default", "network": "red", "addresses": "10.1.0.9"}),
]


def test_requests_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(*WORLD)
        before = parts.ledger.state
        for what, args in NONSENSE:
            with pytest.raises(Asked):
                await ask(parts, "h1", what, **args)
            assert parts.ledger.state is before

    with_parts(tmp_path, body)


PLAIN = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-5, 300), st.text(max_size=4), st.sampled_from(
    ["default", "red", "Network", "Endpoint", "10.1.0.9", "office"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.tuples(
    st.sampled_from(["apply", "delete", "get", "lease", "release"]),
    st.dictionaries(st.sampled_from(["documents", "uids", "refs", "tenant", "network", "count", "addresses", "ranges"]),
                    PLAIN, max_size=8)), min_size=1, max_size=30))
def test_any_arguments_are_answered(tmp_path_factory: pytest.TempPathFactory, requests: list[tuple[str, Any]]) -> None:
    """Always by a reply, with problems or data: never by an exception, which would be a mistake of ours in the log."""
    async def body(parts: Parts) -> None:
        await parts.apply(*WORLD)
        for what, args in requests:
            reply = await parts.push.on_request(session, Request(1, what, args))
            assert bool(reply.problems) != (reply.data is not None)
        assert parts.ledger.state.get(Ref("Endpoint", "default", "other")) is not None

    class Session:
        host = "h1"

    session: Any = Session()
    with_parts(tmp_path_factory.mktemp("any"), body)
