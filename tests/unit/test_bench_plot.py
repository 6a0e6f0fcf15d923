"""The picture is drawn of a whole run and of a part of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report import Run
from bench.results import Key, Results, Sample

pytest.importorskip("matplotlib", reason="only `make bench` installs matplotlib")


@pytest.mark.parametrize("cases", [("same-host", "scale", "engine"), ("engine",), ()])
def test_a_picture_is_written(cases: tuple[str, ...], tmp_path: Path) -> None:
    from bench.plot import draw

    keys = {
        "same-host": [Key("same-host", "tcp_gbps", subject, 20) for subject in ("raw", "bridge", "sluice")],
        "scale": [Key("scale", "crr_per_s", "sluice", rules) for rules in (20, 1000)],
        "engine": [Key("engine", "hit_ns", "sluice", rules, 5) for rules in (20, 1000)],
    }
    samples = [Sample(key, number, 10.0 + number) for case in cases for key in keys[case] for number in range(2)]
    draw(Run({}, 2, 1.0, Results(samples), ()), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
