"""Names, JSON paths and expectations of lab steps."""

from __future__ import annotations

from typing import Any

import pytest

from labs.errors import StepFailed
from labs.schema import Matcher
from labs.values import fill, find, mismatch

DATA = {"hosts": [
    {"host": "h1", "connected": True, "rules": [{"layer": "acl", "rule": "r", "packets": 3},
                                               {"layer": "guard", "rule": "", "packets": 4}]},
    {"host": "h2", "connected": False, "rules": [{"layer": "acl", "rule": "r", "packets": 5}]},
]}


@pytest.mark.parametrize(("path", "found"), [
    ("hosts[0].host", ["h1"]),
    ("hosts[-1].host", ["h2"]),
    ("hosts[7].host", []),
    ("hosts[*].host", ["h1", "h2"]),
    ("hosts[host=h2].connected", [False]),
    ("hosts[connected=true].host", ["h1"]),
    ("hosts[*].rules[layer=acl,rule=r].packets", [3, 5]),
    ("nothing.at.all", []),
    ("", [DATA]),
])
def test_path_finds(path: str, found: list[Any]) -> None:
    assert find(path, DATA) == found


def test_condition_may_hold_dots() -> None:
    assert find("[address=10.1.0.2].n", [{"address": "10.1.0.2", "n": 1}, {"address": "10.1.0.3"}]) == [1]


def test_names_are_filled_in_everywhere_and_keep_their_type_when_alone() -> None:
    names = {"port": 80, "pair": {"to": "b"}, "macs": ["x", "y"]}
    assert fill({"a": ["${port}", "port ${port}", "${pair.to}"]}, names) == {"a": [80, "port 80", "b"]}
    assert fill("${macs}", names) == ["x", "y"]
    assert fill("${1} $HOME ${", names) == "${1} $HOME ${"


def test_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(StepFailed, match=r"\$\{prt\}; there are port"):
        fill("${prt}", {"port": 80})


@pytest.mark.parametrize(("expected", "values"), [
    ({"equals": "80"}, [80]),
    ({"equals": "two words"}, ["two words\n"]),
    ({"equals": None}, [None]),
    ({"differs": 1}, [2]),
    ({"matches": "^b"}, ["a\nb"]),
    ({"lacks": "x"}, ["abc"]),
    ({"contains": ("a", "c")}, ["abc"]),
    ({"one_of": (1, 2)}, [2]),
    ({"at_least": 3, "at_most": "3"}, ["3.0"]),
    ({"more_than": "${before}"}, [8]),
    ({"minus": "${before}", "at_most": 1}, [8]),
    ({"minus": "${before}", "equals": 1}, [8]),
    ({"sum": True, "equals": 8}, [3, 5]),
    ({"more_than": 0}, [1, 2, 3]),
    ({"count": 2}, [0, 0]),
    ({"empty": True}, []),
    ({"empty": True}, [""]),
    ({"empty": False}, ["x"]),
])
def test_expectation_that_holds(expected: dict[str, Any], values: list[Any]) -> None:
    assert mismatch(Matcher(**expected), values, {"before": 7}) == ""


@pytest.mark.parametrize(("expected", "values", "says"), [
    ({"equals": 1}, [2], "found 2 instead of 1"),
    ({"equals": True}, [False], "found false instead of true"),
    ({"equals": 1}, [], "found nothing"),
    ({"more_than": 0}, [1, 0], "found 0, expected more than 0"),
    ({"at_most": 1, "minus": 5}, [7], "found 2, expected at most 1"),
    ({"at_most": 1}, ["x"], "where a number was expected"),
    ({"lacks": "b+"}, ["abbc"], "'bb'"),
    ({"count": 1}, [1, 2], "2 values instead of 1"),
    ({"empty": True}, ["x"], "where nothing was expected"),
    ({"empty": False}, [], "found nothing"),
])
def test_expectation_that_does_not_hold_says_what_was_found(expected: dict[str, Any], values: list[Any],
                                                            says: str) -> None:
    try:
        why = mismatch(Matcher(**expected), values, {})
    except StepFailed as failed:
        why = str(failed)
    assert says in why
