"""`python -m bench` takes cases and peers by name, and says what it takes."""

from __future__ import annotations

import sys

import pytest

from bench.__main__ import _options
from bench.report import CASES
from bench.topologies import SAME


def _parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, object]:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    return vars(_options())


def test_all_is_measured_by_default_and_may_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    options = _parsed(monkeypatch)
    assert (options["only"], options["peers"], options["rounds"]) == (CASES, tuple(SAME), 5)
    assert not options["narrowed"]


def test_raw_and_sluice_are_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    options = _parsed(monkeypatch, "--peers", "docker,iptables", "--only", "scale")
    assert options["peers"] == ("raw", "iptables", "docker", "sluice")
    assert options["only"] == ("scale",)
    assert options["narrowed"]


def test_quick_is_one_round_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _parsed(monkeypatch, "--quick")["rounds"] == 1
    assert _parsed(monkeypatch, "--quick", "--rounds", "2")["rounds"] == 2


@pytest.mark.parametrize(("arguments", "right"), [
    (("--only", "moon"), "same-host"), (("--peers", "moon"), "nftables"), (("--rounds", "0"), "1 or more"),
])
def test_what_is_wrong_is_refused_with_what_is_right(
    arguments: tuple[str, str], right: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        _parsed(monkeypatch, *arguments)
    assert right in capsys.readouterr().err
