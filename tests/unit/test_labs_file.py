"""A lab file is read, or refused with file, line, field and what to do."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from labs.cross import places, process_names
from labs.errors import InvalidLab, LabError
from labs.load import load
from labs.schema import SCHEMA_FILE, published

TOUR = Path(__file__).parents[2] / "labs" / "tour.yaml"


def read(tmp_path: Path, text: str) -> InvalidLab:
    """The refusal of a lab file."""
    file = tmp_path / "lab.yaml"
    file.write_text(textwrap.dedent(text))
    with pytest.raises(InvalidLab) as refused:
        load(file)
    return refused.value


def test_published_schema_is_that_of_the_code() -> None:
    assert SCHEMA_FILE.read_text() == published(), "run `python -m labs.schema`"


def test_tour_is_a_lab() -> None:
    tour = load(TOUR)
    assert [chapter.title[:2] for chapter in tour.chapters] == ["1.", "2.", "3.", "4.", "5."]
    assert places(tour)["red/a"] == "tour-red-a"
    assert places(tour)["web"] == places(tour)["default/web"] == "tour-web"
    assert {"controller", "agent/h1", "agent/h2", "nginx/red/b"} <= set(process_names(tour))


@pytest.mark.parametrize(("text", "line", "field", "says"), [
    ("name: x\nsegmentz: {}\n", 2, "segmentz", "unknown field"),
    ("name: X_Y\n", 1, "name", "'X_Y'"),
    ("title: nameless\n", 1, "name", "is missing"),
    ("name: x\nnodes:\n  a:\n    interfaces:\n      eth0: {segment: wire, address: 10.0.0.300/24}\n",
     5, "nodes.a.interfaces.eth0.address", "10.0.0.300/24"),
    ("name: x\nnodes:\n  a:\n    interfaces:\n      eth0:\n        segment: wire\n",
     6, "nodes.a.interfaces.eth0.segment", "no segment is called 'wire'"),
    ("name: x\nsegments: {w: {}}\nnodes:\n  a: {interfaces: {e: {segment: w, address: 10.0.0.1/8}}}\n"
     "  b: {interfaces: {e: {segment: w, address: 10.0.0.1/8}}}\n",
     5, "nodes.b.interfaces.e.address", "10.0.0.1 is also a/e's"),
    ("name: x\nsegments: {w: {}}\nnodes:\n  a:\n    interfaces: {e: {segment: w, address: 10.0.0.1/8}}\n"
     "    routes:\n    - via: 192.0.2.1\n", 7, "nodes.a.routes[0].via", "on no link"),
    ("name: x\nnodes:\n  h: {kind: host}\n", 3, "nodes.h.kind", "needs a node of kind controller"),
    ("name: x\nname: y\n", 2, "name", "first in line 1"),
    ("name: x\nchapters:\n- title: t\n  steps:\n  - try: a\n    expect: b\n    do:\n    - walk: far\n",
     8, "chapters[0].steps[0].do[0]", "exactly one of the keys run, start"),
    ("name: x\nprepare:\n- run: ls\n  inn: a\n", 4, "prepare[0].inn", "an action `run` has run, in,"),
    ("name: x\nprepare:\n- run: ls\n  in: nowhere\n", 4, "prepare[0].in", "no node or endpoint"),
    ("name: x\nprepare:\n- kill: someone\n", 3, "prepare[0].kill", "no process is called 'someone'"),
    ("name: x\nprepare:\n- run: ls\n  check: {stdout: {at_lest: 3}}\n",
     4, "prepare[0].check.stdout.at_lest", "unknown field"),
    ("name: x\nprepare:\n- {each: [{a: 1}], do: [{run: ls, check: {exit: maybe}}]}\n",
     3, "prepare[0].do[0].check.exit", "maybe"),
    ("name: x\nprepare:\n- capture: c\n", 3, "prepare[0]", "either `segment`, or `in`"),
    ("name: x\nnodes: {c: {kind: controller}}\nresources:\n- kind: Endpoint\n  metadata: {name: e}\n"
     "  spec:\n    netns: y-e\n", 7, "resources[0].spec.netns", "starts with 'x-'"),
    ("name: x\nsegments: {w: {}}\nnodes:\n  a: {interfaces: {e: {segment: w, address: '2001:db8::1/64'}}}\n"
     "  b: {interfaces: {e: {segment: w, address: '2001:db8::1/64'}}}\n",
     5, "nodes.b.interfaces.e.address", "2001:db8::1 is also a/e's"),
    ("name: x\nsegments: {w: {}}\nnodes:\n  a:\n    interfaces: {e: {segment: w, address: 10.0.0.1/8}}\n"
     "    routes:\n    - via: '2001:db8::1'\n", 7, "nodes.a.routes[0].via", "on no link"),
    ("name: x\nnodes: {a: {}}\nimages: {web: {}}\n", 3, "images", "runtimes: {docker: {}}"),
    ("name: x\nnodes:\n  a: {files: {/etc/x: y}}\n", 3, "nodes.a.files", "only a node with `runtimes`"),
    ("name: x\nnodes:\n  a: {runtimes: {docker: {}}, files: {/usr/x: y}}\n", 3, "nodes.a.files./usr/x", "pattern"),
    ("name: x\nnodes: {a: {runtimes: {docker: {}}}, b: {}}\nprepare:\n- run: docker ps\n  in: b\n",
     5, "prepare[0].in", "found b; there are a"),
    ("name: x\nnodes: {a: {runtimes: {docker: {}}}}\nprepare:\n- run: podman ps\n",
     4, "prepare[0].in", "found none; there are none"),
    ("name: x\nnodes: {a: {runtimes: {docker: {}}}}\nprepare:\n- restart: machine/a\n",
     4, "prepare[0].restart", "does not come back"),
    ("name: x\nresources:\n- {kind: Tenant, metadata: {name: t}}\n", 2, "resources", "kind controller"),
])
def test_flaw_is_named_with_line_and_field(tmp_path: Path, text: str, line: int, field: str, says: str) -> None:
    refused = read(tmp_path, text)
    first = refused.flaws[0]
    assert (first.line, first.field) == (line, field), str(refused)
    assert says in first.message
    assert str(refused).startswith(f"{tmp_path}/lab.yaml:{line}: {field}: ")


LABS = [file for file in sorted((Path(__file__).parents[2] / "labs").glob("*.yaml")) if file.stem != "tour"]


@pytest.mark.parametrize("file", LABS, ids=lambda file: file.stem)
def test_lab_says_how_to_run_it_and_draws_its_hosts(file: Path) -> None:
    lab, head = load(file), file.read_text().partition("\nname:")[0]
    assert f"sudo sluice lab run labs/{file.name}" in head
    assert all(line.startswith("#") for line in head.splitlines() if line)
    assert [name for name in lab.nodes if name not in head] == []


def test_endpoint_with_a_tap_needs_no_namespace(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("name: x\nnodes: {c: {kind: controller}}\nresources:\n"
                    "- {kind: Endpoint, metadata: {name: e}, spec: {tap: tap0}}\n")
    assert "e" not in places(load(file))


def test_all_flaws_are_told_at_once(tmp_path: Path) -> None:
    refused = read(tmp_path, "name: X\nsegments: {w: {mtu: 1}}\nchapters: [{steps: []}]\n")
    assert [flaw.line for flaw in refused.flaws] == [1, 2, 3, 3]


@pytest.mark.parametrize("text", ["name: [x\n", "name: x\n\tb: c\n", "", "- a\n- b\n"])
def test_what_is_no_mapping_is_refused_with_its_file(tmp_path: Path, text: str) -> None:
    assert str(tmp_path / "lab.yaml") in str(read(tmp_path, text))


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"nothing\.yaml"):
        load(tmp_path / "nothing.yaml")


def test_manager_is_host_and_controller(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text("name: x\nnodes:\n  m: {kind: manager}\n", encoding="utf-8")
    lab = load(path)
    assert list(process_names(lab)) == ["controller", "agent/m"]


@pytest.mark.parametrize("spec", ["{behind: vm}", "{host: elsewhere}"])
def test_endpoint_that_no_host_of_the_lab_makes_needs_no_namespace(tmp_path: Path, spec: str) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text("name: x\nnodes:\n  m: {kind: manager}\nresources:\n"
                    f"  - {{kind: Endpoint, metadata: {{name: e}}, spec: {spec}}}\n", encoding="utf-8")
    assert load(path)


def test_endpoint_that_moves_has_each_of_its_namespaces(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text("name: x\nnodes:\n  m: {kind: manager}\nresources:\n"
                    "  - {kind: Endpoint, metadata: {name: e}, spec: {host: m, netns: x-e1}}\n"
                    "  - {kind: Endpoint, metadata: {name: e}, spec: {host: m, netns: x-e2}}\n", encoding="utf-8")
    assert {"e1", "e2"} <= set(places(load(path)))
