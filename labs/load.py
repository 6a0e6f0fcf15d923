"""From a file to a `Lab`: YAML with line numbers, so that every flaw is named by file, line and field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from labs.cross import flaws_across
from labs.errors import Flaw, InvalidLab, LabError
from labs.schema import ACTIONS, Lab, kind_of_action

FieldPath = tuple[str | int, ...]


def load(path: Path) -> Lab:
    """Read, parse and check a lab file.

    Raises:
        LabError: the file cannot be read.
        InvalidLab: it is not a lab; all that is wrong, with lines.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"cannot read lab file {path}: {error}") from error
    data, lines = parse(text, str(path))
    try:
        lab = Lab.model_validate(data)
    except ValidationError as error:
        told = [found for found in error.errors() if not _echo(found)]
        raise InvalidLab(str(path), [_flaw(found, data, lines) for found in told]) from None
    across = [Flaw(line_of(where, lines), _dotted(where), message) for where, message in flaws_across(lab)]
    if across:
        raise InvalidLab(str(path), across)
    return lab


def parse(text: str, file: str) -> tuple[Any, dict[FieldPath, int]]:
    """YAML as plain values, and the line of every field.

    Raises:
        InvalidLab: bad YAML, or a key that is given twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise InvalidLab(file, [Flaw(0, "", "the file is empty; a lab has at least a `name`")])
        lines: dict[FieldPath, int] = {}
        twice = list(_walk(root, (), lines))
        if twice:
            raise InvalidLab(file, twice)
        return loader.construct_document(root), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        raise InvalidLab(file, [Flaw(mark.line + 1 if mark else 0, "", f"not YAML: {said}")]) from None
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: FieldPath, lines: dict[FieldPath, int]) -> Iterator[Flaw]:
    """Fill `lines`; yield a flaw for each key that is there twice."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*path, index), lines)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name == "<<":
                continue
            if name in seen:
                yield Flaw(line, _dotted((*path, name)), f"given twice, first in line {seen[name]}; keep one")
            seen[name] = line
            lines[(*path, name)] = line
            yield from _walk(value, (*path, name), lines)


def line_of(path: FieldPath, lines: dict[FieldPath, int]) -> int:
    """Line of a field, or of the nearest thing around it."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 0)


def _flaw(found: ErrorDetails, data: Any, lines: dict[FieldPath, int]) -> Flaw:
    path = _real_path(found["loc"], data)
    return Flaw(line_of(path, lines), _dotted(path), _message(found, data, path))


def _echo(found: ErrorDetails) -> bool:
    """pydantic calls a list too short when all that is in it is wrong, which it has told by then."""
    return found["type"] == "too_short" and bool(found["input"])


def _real_path(loc: FieldPath, data: Any) -> FieldPath:
    """pydantic's location without the names of union members, which are not in the file."""
    path: list[str | int] = []
    for position, part in enumerate(loc):
        if position and isinstance(loc[position - 1], int) and part == kind_of_action(data):
            continue                        # the tag of an action, which is also a key in it
        if isinstance(data, dict) and (part in data or position == len(loc) - 1):
            path.append(part)
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            path.append(part)
            data = data[part]
    return tuple(path)


def _message(found: ErrorDetails, data: Any, path: FieldPath) -> str:
    value = found["input"]
    shown = repr(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    match found["type"]:
        case "extra_forbidden":
            return f"unknown field; remove it or correct its name ({_known(found)})"
        case "missing":
            return "is missing; add it"
        case "union_tag_not_found":
            keys = ", ".join(map(str, value)) if isinstance(value, dict) else shown
            return f"found {keys}; an action has exactly one of the keys {', '.join(ACTIONS)}"
        case _:
            return f"found {shown}; {found['msg'][:1].lower()}{found['msg'][1:]}"


def _known(found: ErrorDetails) -> str:
    """Names that would be right in the place of an unknown field, for the parts of a lab that we can tell."""
    kinds = [part for part in found["loc"] if part in ACTIONS]
    if kinds:
        return "an action `" + str(kinds[-1]) + "` has " + ", ".join(_fields(ACTIONS[str(kinds[-1])]))
    return "see labs/schema.json"


def _fields(model: Any) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _dotted(path: FieldPath) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
