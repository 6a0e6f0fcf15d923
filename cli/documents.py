"""Resource files: multi-document YAML or JSON, from files, folders or standard input, and its lines.

YAML is read by the core schema of YAML 1.2: `yes`, `off` and `52:54:00:11:22:33` are text, not booleans and
base-60 numbers as in YAML 1.1.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from cli.kinds import DEFAULT_TENANT, KINDS
from cli.problems import problem

SUFFIXES = (".yaml", ".yml", ".json")
MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 64
MAX_NODES = 1_000_000  # also bounds what nested aliases can unfold to


class _Loader(yaml.SafeLoader):
    """A YAML 1.2 core schema loader; its resolvers are set below."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (a PyYAML hook)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
):
    _resolver: Any = list(_first) if _tag != "null" else ["~", "n", "N", ""]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _resolver)


@dataclass(frozen=True, slots=True)
class Document:
    """One resource of a file, and where its fields stand."""

    resource: dict[str, Any]
    source: str
    number: int  # of the document in its file, from 1
    lines: dict[str, int]  # "spec.subnets[0].prefix" -> line, from 1

    def title(self) -> str:
        """`Network default/red`, as the controller names resources in its refusals."""
        metadata = self.resource.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        kind, name = str(self.resource.get("kind", "")), str(metadata.get("name", ""))
        if any(known.name == kind and not known.tenanted for known in KINDS):
            return f"{kind} {name}"
        return f"{kind} {metadata.get('tenant', DEFAULT_TENANT)}/{name}"

    def where(self, field: str = "") -> str:
        """`net.yaml:12 (document 2)`: the line of `field`, or of the nearest field around it."""
        return f"{self.source}:{self.line(field)} (document {self.number})"

    def line(self, field: str = "") -> int:
        """The line of `field`, or of the nearest field around it."""
        while field and field not in self.lines:
            field = field[: max(field.rfind("."), field.rfind("["), 0)]
        return self.lines[field]


def read_documents(paths: Iterable[str]) -> list[Document]:
    """Everything that `-f` named: files, folders (their YAML and JSON files by name), `-` for standard input.

    Raises:
        Problem: a file cannot be read, or is not YAML or JSON of mappings; names file, line and document.
    """
    documents = [
        document
        for path in paths
        for source, text in _texts(path)
        for document in parse_documents(source, text)
    ]
    if not documents:
        raise problem(
            "-f",
            "no resource in there",
            ", ".join(paths),
            "give a file with apiVersion, kind, metadata and spec",
        )
    return documents


def parse_documents(source: str, text: str) -> Iterator[Document]:
    """The documents of one text. A sequence at the top is one document per item; empty ones are skipped.

    Raises:
        Problem: the text is not YAML or JSON, or a document is not a mapping.
    """
    number = 0
    try:
        loader = _Loader(text)
        while loader.check_node():
            root: Any = loader.get_node()
            nodes = root.value if isinstance(root, yaml.SequenceNode) else [root]
            for node in nodes:
                number += 1
                if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
                    continue
                yield _document(source, number, node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise problem(
            f"{source}:{line} (document {number + 1})",
            "not YAML",
            error.problem or error.context or "",
            "mend the syntax; indent with spaces",
        ) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise problem(
            f"{source}:{line}",
            "a character that YAML does not allow",
            f"#x{ord(str(error.character)):x}",
            "save the file as UTF-8 text",
        ) from None


def _document(source: str, number: int, node: yaml.Node) -> Document:
    lines: dict[str, int] = {}
    builder = _Builder(source, number, lines)
    value = builder.build(node, "", 0)
    if not isinstance(value, dict):
        raise problem(
            f"{source}:{node.start_mark.line + 1} (document {number})",
            "not a resource",
            repr(value),
            "write a mapping with apiVersion, kind, metadata and spec",
        )
    return Document(value, source, number, lines)


class _Builder:
    """Turns YAML nodes into plain values and notes the line of each field."""

    def __init__(self, source: str, number: int, lines: dict[str, int]) -> None:
        self._source, self._number, self._lines = source, number, lines
        self._nodes = 0
        self._scalars = _Loader("")

    def build(self, node: yaml.Node, path: str, depth: int) -> Any:
        """The value of a node at `path`."""
        line = node.start_mark.line + 1
        self._lines.setdefault(path, line)
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise problem(
                self._where(line),
                f"{path[:80]}: nested too deep or too large",
                "",
                f"at most {MAX_DEPTH} levels; an anchor must not contain its own alias",
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(node.value)]
        return self._scalar(node, path, line)

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, Hashable):
                raise problem(
                    self._where(line),
                    f"{path or 'the document'}: a field name must be text",
                    "",
                    "write name: value",
                )
            field = f"{path}.{key}" if path else str(key)
            if key in result:
                raise problem(
                    self._where(line),
                    f"{field}: given twice",
                    f"first on line {self._lines[field]}",
                    "keep one of the two",
                )
            self._lines[field] = line
            result[str(key)] = self.build(value_node, field, depth + 1)
        return result

    def _scalar(self, node: yaml.Node, path: str, line: int) -> Any:
        try:
            if node.tag == "tag:yaml.org,2002:int" and node.value.startswith("0o"):
                return int(node.value, 8)
            if node.tag == "tag:yaml.org,2002:int" and not node.value.startswith("0x"):
                return int(node.value, 10)
            return self._scalars.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError):
            raise problem(
                self._where(line),
                f"{path}: a value of an unknown type",
                repr(node.value),
                "write plain text, a number, true, false or null",
            ) from None

    def _where(self, line: int) -> str:
        return f"{self._source}:{line} (document {self._number})"


def _texts(path: str) -> Iterator[tuple[str, str]]:
    if path == "-":
        yield "<stdin>", _decode("<stdin>", sys.stdin.buffer.read(MAX_BYTES + 1))
        return
    root = Path(path)
    files = [root]
    if root.is_dir():
        files = sorted(file for file in root.iterdir() if file.suffix in SUFFIXES and file.is_file())
        if not files:
            raise problem(
                "-f", "no YAML or JSON file in this folder", path, f"add files that end in {SUFFIXES}"
            )
    for file in files:
        try:
            with file.open("rb") as stream:
                content = stream.read(MAX_BYTES + 1)
        except OSError as error:
            raise problem(
                f"-f {file}",
                "cannot be read",
                error.strerror or str(error),
                "give a file, a folder, or - for standard input",
            ) from None
        yield str(file), _decode(str(file), content)


def _decode(source: str, content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise problem(source, f"larger than {MAX_BYTES} bytes", "", "split it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise problem(
            f"{source}:{line}",
            "not UTF-8",
            f"byte 0x{content[error.start]:02x}",
            "save the file as UTF-8 text",
        ) from None
