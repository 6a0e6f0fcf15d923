"""Resource files are read as YAML 1.2, and everything wrong in them is named by file, line and document."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.documents import Document, parse_documents, read_documents
from cli.problems import Problem

TWO = """\
apiVersion: sluice/v1
kind: Network
metadata: {name: red}
spec:
  mode: overlay
  subnets:
  - prefix: 10.1.0.0/24
---
kind: Tenant
metadata:
  name: acme
"""


def documents(text: str) -> list[Document]:
    return list(parse_documents("net.yaml", text))


def test_every_field_has_its_line() -> None:
    network, tenant = documents(TWO)
    assert network.where("spec.subnets[0].prefix") == "net.yaml:7 (document 1)"
    assert network.where("spec.subnets[3].gateway") == "net.yaml:6 (document 1)"
    assert network.where("nowhere.at.all") == "net.yaml:1 (document 1)"
    assert tenant.where("metadata.name") == "net.yaml:11 (document 2)"


def test_titles_are_those_of_the_controller() -> None:
    assert [document.title() for document in documents(TWO)] == ["Network default/red", "Tenant acme"]


@pytest.mark.parametrize(("text", "value"), [
    ("52:54:00:11:22:33", "52:54:00:11:22:33"), ("yes", "yes"), ("off", "off"), ("2026-01-01", "2026-01-01"),
    ("010", 10), ("0x10", 16), ("0o17", 15), ("1e3", 1000.0), ("true", True), ("~", None), ("", None),
    ("8000-8100", "8000-8100"), ("'80'", "80"), ("+7", 7),
])
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    (document,) = documents(f"a: {text}\n")
    assert document.resource == {"a": value}


def test_json_and_top_level_lists_are_taken() -> None:
    found = documents('[{"kind": "Tenant"},\n {"kind": "Host"}]')
    assert [(document.resource["kind"], document.line("kind")) for document in found] == [("Tenant", 1), ("Host", 2)]


@pytest.mark.parametrize(("text", "where", "message"), [
    ("a: [1, 2\nb: 3\n", "net.yaml:2 (document 1)", "not YAML"),
    ("a: 1\n---\nb:\n\t- c\n", "net.yaml:4 (document 2)", "not YAML"),
    ("a: 1\nb: 2\na: 3\n", "net.yaml:3 (document 1)", "a: given twice"),
    ("- 3\n", "net.yaml:1 (document 1)", "not a resource"),
    ("hello\n", "net.yaml:1 (document 1)", "not a resource"),
    ("a: !!python/object:os.system x\n", "net.yaml:1 (document 1)", "a: a value of an unknown type"),
    ("a: &x [*x]\n", "net.yaml:1 (document 1)", "nested too deep"),
    ("? [1]\n: 3\n", "net.yaml:1 (document 1)", "a field name must be text"),
    ("a: 1\nb: \x01\n", "net.yaml:2", "a character that YAML does not allow"),
])
def test_what_is_wrong_is_named(text: str, where: str, message: str) -> None:
    with pytest.raises(Problem) as caught:
        documents(text)
    (fault,) = caught.value.faults
    assert fault.where == where
    assert message in fault.message
    assert fault.todo


def test_aliases_cannot_unfold_without_bound() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    with pytest.raises(Problem, match="too large"):
        documents(bomb)


def test_folders_are_read_by_name_and_odd_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("kind: Host\n")
    (tmp_path / "a.json").write_text('{"kind": "Tenant"}')
    (tmp_path / "readme.txt").write_text("nothing")
    assert [document.resource["kind"] for document in read_documents([str(tmp_path)])] == ["Tenant", "Host"]
    (tmp_path / "c.yml").write_bytes(b"kind: Host\n# \xff\n")
    with pytest.raises(Problem, match=r"c\.yml:2: not UTF-8"):
        read_documents([str(tmp_path)])
    with pytest.raises(Problem, match="cannot be read"):
        read_documents([str(tmp_path / "absent.yaml")])
