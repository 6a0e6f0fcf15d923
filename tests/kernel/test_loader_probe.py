"""The doctor's questions to the kernel, with and without the right to ask."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from loader_kit import COUNTER, REJECTED, compile_c, open_files

from vfp.datapath.probe import Feature, probe, probe_object

ROOT = Path(__file__).parents[2]
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


def test_this_host_has_everything() -> None:
    before = open_files()
    features = probe()
    assert [feature for feature in features if not feature.present] == []
    assert all(feature.detail and feature.costs and not feature.todo for feature in features)
    assert {"libbpf", "helper bpf_redirect_peer", "ring buffer map", "BPF JIT"} <= {one.name for one in features}
    assert open_files() == before


def test_without_capabilities_each_lack_says_what_to_do() -> None:
    script = (
        "import json; from dataclasses import asdict; from vfp.datapath.probe import probe;"
        "print(json.dumps([asdict(feature) for feature in probe()]))"
    )
    done = subprocess.run(
        [*WITHOUT_RIGHTS, sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, timeout=60
    )
    features = {one["name"]: Feature(**one) for one in json.loads(done.stdout)}
    assert not features["CAP_BPF"].present
    assert features["CAP_BPF"].todo.startswith("run as root")
    assert not features["helper bpf_loop"].present, "a no for lack of rights is not taken for a yes"
    assert features["libbpf"].present
    assert all(feature.todo for feature in features.values() if not feature.present)


def test_loading_without_capabilities_says_what_to_do(tmp_path: Path) -> None:
    source = compile_c(COUNTER, tmp_path, VERDICT=5)
    script = (
        "import sys; from pathlib import Path; from vfp.datapath.errors import NotPermitted\n"
        "from vfp.datapath.object import BpfObject\n"
        "try: BpfObject.load(Path(sys.argv[1]))\n"
        "except NotPermitted as error: print(error)"
    )
    done = subprocess.run(
        [*WITHOUT_RIGHTS, sys.executable, "-c", script, source], cwd=ROOT, capture_output=True, text=True, check=True,
        timeout=60,
    )
    assert done.stdout.startswith("load BPF object test: EPERM (Operation not permitted); run as root, or with CAP_BPF")


@pytest.mark.parametrize(("text", "present"), [(COUNTER, True), (REJECTED, False)])
def test_an_object_is_tried_on_this_kernel(tmp_path: Path, text: str, present: bool) -> None:
    feature = probe_object(compile_c(text, tmp_path, VERDICT=5))
    assert feature.present is present
    assert ("3 programs verified" if present else "load program careless: EACCES") in feature.detail


def test_an_object_that_is_not_there(tmp_path: Path) -> None:
    feature = probe_object(tmp_path / "absent.o")
    assert not feature.present
    assert "absent.o: ENOENT" in feature.detail
