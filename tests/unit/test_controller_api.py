"""The REST API over ASGI: items, all-or-nothing, If-Match, idempotence, pages, selectors, watch, tokens, OpenAPI."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from controller_kit import WORLD, Parts, document, endpoint, host, overlay, policy, tenant, with_parts

from controller.texts import MODES
from controller.watch import Filter


def test_put_creates_then_changes_then_leaves_alone(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        path = "/v1/tenants/default/networks/red"
        created = await parts.http.put(path, json=overlay("red"))
        assert (created.status_code, created.json()["items"][0]["result"]) == (201, "created")
        revision = created.json()["revision"]
        same = await parts.http.put(path, json=overlay("red"))
        assert (same.status_code, same.json()["items"][0]["result"]) == (200, "unchanged")
        assert same.json()["revision"] == revision
        changed = await parts.http.put(path, json=overlay("red", mtu=1400))
        assert (changed.status_code, changed.json()["items"][0]["result"]) == (200, "configured")
        assert changed.json()["revision"] == revision + 1
        got = await parts.http.get(path)
        assert got.headers["etag"] == f'"{revision + 1}"'
        assert got.json()["spec"]["mtu"] == 1400
        # What get gave, with its status and server fields, can be put back as it is.
        assert (await parts.http.put(path, json=got.json())).json()["items"][0]["result"] == "unchanged"

    with_parts(tmp_path, body)


def test_put_for_another_resource_than_the_path_is_refused(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        for path, field in (("networks/blue", "metadata.name"), ("endpoints/red", "kind")):
            answer = await parts.http.put(f"/v1/tenants/default/{path}", json=overlay("red"))
            assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
        answer = await parts.http.put("/v1/tenants/acme/networks/red", json=overlay("red", in_tenant="default"))
        assert answer.json()["error"]["field"] == "metadata.tenant"
        assert (await parts.http.put("/v1/tenants/default/networks/red", json=[])).status_code == 422
        assert (await parts.everything())[2]["items"] == []

    with_parts(tmp_path, body)


def test_if_match_guards_put_and_delete(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        path = "/v1/tenants/default/networks/red"
        absent = await parts.http.put(path, json=overlay("red"), headers={"If-Match": '"7"'})
        assert absent.status_code == 412
        revision = (await parts.http.put(path, json=overlay("red"))).json()["revision"]
        stale = await parts.http.put(path, json=overlay("red", mtu=1400), headers={"If-Match": f'"{revision - 1}"'})
        assert stale.status_code == 412
        assert f"at revision {revision}" in stale.json()["error"]["message"]
        assert stale.json()["error"]["field"] == "If-Match"
        assert (await parts.http.delete(path, headers={"If-Match": "99"})).status_code == 412
        assert (await parts.http.delete(path, headers={"If-Match": "soon"})).status_code == 400
        good = await parts.http.put(path, json=overlay("red", mtu=1400), headers={"If-Match": f'"{revision}"'})
        assert good.status_code == 200
        assert (await parts.http.delete(path, headers={"If-Match": f'"{revision + 1}"'})).status_code == 200

    with_parts(tmp_path, body)


def test_dry_run_answers_as_if_and_stores_nothing(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        before = await parts.everything()
        answer = await parts.apply(*WORLD, dryRun="true")
        assert [i["result"] for i in answer.json()["items"]] == ["created"] * len(WORLD)
        assert await parts.everything() == before
        refused = await parts.apply(endpoint("x", "nowhere"), dryRun="true")
        assert refused.status_code == 422

    with_parts(tmp_path, body)


def test_apply_in_any_order_and_delete_in_any_order(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        answer = await parts.apply(*reversed(WORLD))
        assert answer.status_code == 200
        assert [i["name"] for i in answer.json()["items"]] == [d["metadata"]["name"] for d in reversed(WORLD)]
        refs = [{"kind": d["kind"], "name": d["metadata"]["name"]} for d in WORLD]
        part = await parts.http.post("/v1/delete", json=[refs[0], *refs[3:7]])
        assert part.status_code == 409
        gone = await parts.http.post("/v1/delete", json=refs)
        assert gone.status_code == 200, gone.text
        assert [i["result"] for i in gone.json()["items"]] == ["deleted"] * len(refs)
        again = await parts.http.post("/v1/delete", json=refs)
        assert again.status_code == 404
        assert (await parts.http.post("/v1/delete", json=refs, params={"missingOk": "true"})).json()["items"] == []
        assert [each["items"] for each in (await parts.everything())[1:]] == [[]] * 5

    with_parts(tmp_path, body)


def test_get_and_delete_of_nothing_say_what_there_is(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        for call in (parts.http.get, parts.http.delete):
            answer = await call("/v1/tenants/default/networks/rad")
            assert answer.status_code == 404
            error = answer.json()["error"]
            assert error["found"] == "rad"
            assert "blue, office, red" in error["todo"]
        assert (await parts.http.get("/v1/tenants/acme/networks")).status_code == 404
        nowhere = await parts.http.get("/v1/netwroks")
        assert (nowhere.status_code, nowhere.json()["error"]["found"]) == (404, "/v1/netwroks")
        assert (await parts.http.patch("/v1/hosts/h1")).status_code == 405

    with_parts(tmp_path, body)


def test_pages_hold_everything_once(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(tenant("acme"), host("h1", "172.31.0.1"), overlay("red"), overlay("red", in_tenant="acme"),
                          *(endpoint(f"e{i}", "red") for i in range(7)),
                          *(endpoint(f"e{i}", "red", in_tenant="acme") for i in range(5)))
        names: list[tuple[str, str]] = []
        params: dict[str, Any] = {"limit": 5}
        while True:
            answer = (await parts.http.get("/v1/endpoints", params=params)).json()
            names += [(i["metadata"]["tenant"], i["metadata"]["name"]) for i in answer["items"]]
            assert len(answer["items"]) <= 5
            if "continue" not in answer:
                break
            params["continue"] = answer["continue"]
        assert names == sorted([("default", f"e{i}") for i in range(7)] + [("acme", f"e{i}") for i in range(5)])
        of_acme = (await parts.http.get("/v1/endpoints", params={"tenant": "acme"})).json()["items"]
        assert of_acme == (await parts.http.get("/v1/tenants/acme/endpoints")).json()["items"]
        assert len(of_acme) == 5
        for bad in ({"limit": 0}, {"limit": 2000}, {"limit": "many"}, {"continue": "nonsense"}):
            answer = await parts.http.get("/v1/endpoints", params=bad)
            assert answer.status_code in (400, 422)
            assert answer.json()["error"]["field"] == next(iter(bad))

    with_parts(tmp_path, body)


@pytest.mark.parametrize(("text", "names"), [
    ("app=web", ["a", "b"]), ("app==web,env!=test", ["a"]), ("env", ["b", "c"]), ("!env", ["a"]),
    ("app!=web", ["c"]), ("app=", []), ("", ["a", "b", "c"]),
])
def test_label_selectors(text: str, names: list[str], tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.apply(host("h1", "172.31.0.1"), overlay("red"), endpoint("a", "red", labels={"app": "web"}),
                          endpoint("b", "red", labels={"app": "web", "env": "test"}),
                          endpoint("c", "red", labels={"env": "prod"}))
        answer = await parts.http.get("/v1/endpoints", params={"labelSelector": text})
        assert [i["metadata"]["name"] for i in answer.json()["items"]] == names
        bad = await parts.http.get("/v1/endpoints", params={"labelSelector": "app in (a)"})
        assert (bad.status_code, bad.json()["error"]["field"]) == (422, "labelSelector")

    with_parts(tmp_path, body)


async def events(parts: Parts, count: int, since: int | None = None, wanted: Filter | None = None) -> list[Any]:
    found = []
    stream = parts.watches.stream(wanted or Filter(), since)
    async for text in stream:
        if text.startswith("event"):
            found.append(json.loads(text.partition("data: ")[2]))
        if len(found) == count:
            break
    await stream.aclose()
    return found


def test_watch_goes_on_from_a_revision_and_then_follows(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        start = parts.ledger.state.revision
        await parts.apply(overlay("green", "10.5.0.0/24"))
        follower = asyncio.create_task(events(parts, 5, since=start))
        await asyncio.sleep(0.05)
        await parts.apply(endpoint("g", "green"), policy("p", "green"))
        await parts.http.delete("/v1/tenants/default/policies/p")
        seen = await follower
        assert [(e["type"], e["revision"] - start, e.get("kind"), e.get("name")) for e in seen] == [
            ("put", 1, "Network", "green"), ("bookmark", 1, None, None), ("put", 2, "Endpoint", "g"),
            ("put", 2, "Policy", "p"), ("delete", 3, "Policy", "p")]
        assert seen[2]["resource"]["status"]["phase"] == "Pending"
        # From the start, filtered: the whole history of one kind, whoever connects late.
        networks = await events(parts, 5, since=0, wanted=Filter("Network"))
        assert [e.get("name", "") for e in networks] == ["red", "blue", "office", "green", ""]

    with_parts(tmp_path, body)


def test_watch_over_http_has_ids_and_refuses_what_it_does_not_have(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        parts.watches.close()               # streams end after their backlog: ASGITransport reads to the end
        answer = await parts.http.get("/v1/watch", headers={"Last-Event-ID": "1"})
        assert answer.headers["content-type"].startswith("text/event-stream")
        first = answer.text.split("\n\n")[0].split("\n")
        assert first[:2] == ["event: put", "id: 2"]
        future = await parts.http.get("/v1/watch", params={"since": 10_000})
        assert (future.status_code, future.json()["error"]["code"]) == (410, "gone")
        assert (await parts.http.get("/v1/watch", params={"kind": "Netwrok"})).status_code == 422

    with_parts(tmp_path, body)


def test_a_watch_whose_past_is_gone_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.store.KEPT_EVENTS", 3)

    async def body(parts: Parts) -> None:
        for i in range(6):
            await parts.apply(tenant(f"t{i}"))
        assert (await parts.http.get("/v1/watch", params={"since": 1})).status_code == 410
        now = parts.ledger.state.revision
        seen = await events(parts, 2, since=now - 1)
        assert [e["type"] for e in seen] == ["put", "bookmark"]

    with_parts(tmp_path, body)


def test_a_token_is_shown_once_and_is_good_once(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        answer = await parts.http.post("/v1/tokens", json={"host": "h1"})
        assert answer.status_code == 201
        text = answer.json()["token"]
        assert answer.headers["cache-control"] == "no-store"
        assert text.encode() not in (tmp_path / "sluice.db").read_bytes()
        secret_hash = parts.pki.token_hash(text)
        assert await parts.ledger.take_token(secret_hash, "h2") == "other host"
        assert await parts.ledger.take_token(secret_hash, "h1") == "taken"
        assert await parts.ledger.take_token(secret_hash, "h1") == "unknown"
        await parts.ledger.add_token("late", "h1", -1)
        assert await parts.ledger.take_token("late", "h1") == "expired"
        for bad, field in (({}, "host"), ({"host": "H 1"}, "host"), ({"host": "h1", "ttlSeconds": 5}, "ttlSeconds"),
                           ({"host": "h1", "ttl": 60}, "ttl")):
            refused = await parts.http.post("/v1/tokens", json=bad)
            assert (refused.status_code, refused.json()["error"]["field"]) == (422, field)

    with_parts(tmp_path, body)


def test_status_of_what_nobody_has_programmed_is_pending(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        found = (await parts.http.get("/v1/tenants/default/endpoints/a")).json()["status"]
        assert (found["phase"], found["message"]) == ("Pending", "host h1 is not connected")
        assert found["address"] == "10.1.0.5"
        red = (await parts.http.get("/v1/tenants/default/networks/red")).json()["status"]
        assert (red["vni"], red["endpoints"], red["hosts"]) == (4096, 2, ["h1", "h2"])
        h1 = (await parts.http.get("/v1/hosts/h1")).json()["status"]
        assert (h1["connected"], h1["appliedRevision"]) == (False, 0)
        assert h1["facts"]["addresses"][1] == ["lan0", "192.168.7.10/24"]

    with_parts(tmp_path, body)


def test_looking_inside_needs_the_host_and_says_so(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        ask = {"from": "a", "to": "b", "protocol": "tcp", "destinationPort": 80}
        answer = await parts.http.post("/v1/trace", json=ask)
        assert answer.status_code == 503
        assert "h1 is not connected" in answer.json()["error"]["message"]
        for change, status, field in (({"from": "zz"}, 404, "from"), ({"to": "zz"}, 404, "to"),
                                      ({"protocol": "tpc"}, 422, "protocol"), ({"prot": 1}, 422, "prot"),
                                      ({"destinationPort": None}, 422, "destinationPort")):
            refused = await parts.http.post("/v1/trace", json=ask | change)
            assert (refused.status_code, refused.json()["error"]["field"]) == (status, field), refused.text
        assert (await parts.http.get("/v1/hosts/h9/flows")).status_code == 404
        assert (await parts.http.get("/v1/flows", params={"endpoint": "default/a"})).status_code == 503
        everywhere = (await parts.http.get("/v1/drops")).json()["hosts"]
        assert [h["error"] for h in everywhere] == [f"host h{i} is not connected" for i in (1, 2, 3)]

    with_parts(tmp_path, body)


def test_openapi_describes_every_kind_and_route(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        description = (await parts.http.get("/v1/openapi.json")).json()
        schemas = description["components"]["schemas"]
        assert schemas["NetworkSpec"]["properties"]["mode"]["enum"] == list(MODES)
        assert schemas["NetworkSpec"]["additionalProperties"] is False
        text = json.dumps(description)
        referred = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
        assert referred <= set(schemas)
        for path in ("/v1/apply", "/v1/delete", "/v1/watch", "/v1/tokens", "/v1/trace", "/v1/flows",
                     "/v1/hosts/{host}/rules", "/v1/tenants/{tenant}/policies/{name}", "/v1/healthz"):
            for operation in description["paths"][path].values():
                assert operation["summary"]

    with_parts(tmp_path, body)


def test_a_resource_in_the_answer_of_a_dry_run_of_a_document_with_null_fields(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        answer = await parts.apply(document("Host", "h1", {"underlay": None}), dryRun="true")
        assert answer.status_code == 200, answer.text

    with_parts(tmp_path, body)
