"""Before a mapping is checked the host is asked what listens now; a host that cannot say is taken at its last word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from controller_kit import Parts, endpoint, mapping, with_parts

from controller.errors import Problem, Refused, Unavailable
from controller.host_requests import HostRequests

PATH = "/v1/tenants/default/staticmappings/late"


class Asked:
    """In place of `Push.query`."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.questions: list[tuple[str, str]] = []

    async def query(self, host: str, what: str, args: dict[str, Any]) -> Any:
        self.questions.append((host, what))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_new_listener_refuses_the_mapping_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked({"listeners": [["tcp", "0.0.0.0", 8443]]})

    async def body(parts: Parts) -> None:
        await parts.world()
        monkeypatch.setattr(parts.push, "query", asked.query)
        late = mapping("late", "office", "web", 8443)
        for refused in (await parts.apply(late), await parts.http.put(PATH, json=late)):
            assert refused.status_code == 409
            assert "listens on 0.0.0.0:8443" in refused.json()["error"]["message"]
        asked.answer = {"listeners": []}
        assert (await parts.apply(late)).status_code == 200
        assert set(asked.questions) == {("h1", "listeners")}

    with_parts(tmp_path, body)


def test_what_a_host_says_with_its_request_is_newer_than_its_report(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        runtime = {"sluice.io/runtime": "docker"}
        await parts.apply(endpoint("box", "office", labels=runtime))
        requests = HostRequests(parts.ledger)
        late = mapping("late", "office", "box", 8443)
        late["metadata"]["labels"] = runtime
        with pytest.raises(Refused, match=r"listens on 0\.0\.0\.0:8443"):
            await requests.answer("h1", "apply", {"documents": [late], "listeners": [["tcp", "0.0.0.0", 8443]]})
        with pytest.raises(Refused, match=r"listens on 0\.0\.0\.0:8443"):
            await requests.answer("h1", "apply", {"documents": [late]})
        assert (await requests.answer("h1", "apply", {"documents": [late], "listeners": []}))["items"]
        with pytest.raises((TypeError, ValueError)):
            await requests.answer("h1", "apply", {"documents": [late], "listeners": [["tcp"]]})

    with_parts(tmp_path, body)


def test_program_that_comes_after_the_mapping_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked({"listeners": []})

    async def body(parts: Parts) -> None:
        await parts.world()
        monkeypatch.setattr(parts.push, "query", asked.query)
        assert (await parts.apply(mapping("late", "office", "web", 8443))).status_code == 200
        asked.answer = {"listeners": [["tcp", "0.0.0.0", 8443], ["tcp", "0.0.0.0", 8444]]}
        assert (await parts.apply(mapping("late", "office", "web", 8443))).status_code == 200
        inside = mapping("late", "office", "web", 8443, 81)
        assert (await parts.apply(inside)).status_code == 200
        assert (await parts.apply(mapping("late", "office", "web", 8444))).status_code == 409

    with_parts(tmp_path, body)


def test_nobody_is_asked_for_other_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked({"listeners": []})

    async def body(parts: Parts) -> None:
        await parts.world()
        monkeypatch.setattr(parts.push, "query", asked.query)
        for odd in ([], [7], [{"kind": "StaticMapping"}], [{"kind": "StaticMapping", "spec": {}, "metadata": {}}],
                    [mapping("late", "nowhere", "web", 8443)]):
            await parts.http.post("/v1/apply", json=odd)
        assert asked.questions == []

    with_parts(tmp_path, body)


@pytest.mark.parametrize("answer", [
    Unavailable(Problem("unavailable", "host h1 is not connected")), TimeoutError(), {}, {"listeners": [["tcp"]]},
    {"listeners": 7}, []])
def test_without_a_good_answer_the_last_word_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   answer: Any) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        monkeypatch.setattr(parts.push, "query", Asked(answer).query)
        assert (await parts.apply(mapping("late", "office", "web", 22))).status_code == 409
        assert (await parts.apply(mapping("late", "office", "web", 8443))).status_code == 200

    with_parts(tmp_path, body)
