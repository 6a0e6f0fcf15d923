"""Values in steps: `${names}`, paths into JSON, and whether a value is what was expected. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from labs.errors import StepFailed
from labs.schema import Matcher

_NAME = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_./-]*)\}")
_PART = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]|(\.)")
_SHOWN = 120


def fill(value: Any, names: Mapping[str, Any]) -> Any:
    """Replace `${name}` (or `${name.field}`) in texts, lists and mappings.

    A text that is one `${name}` and nothing else becomes the value itself, of whatever type.

    Raises:
        StepFailed: nothing has that name.
    """
    if isinstance(value, str):
        whole = _NAME.fullmatch(value)
        if whole:
            return _named(whole[1], names)
        return _NAME.sub(lambda found: text_of(_named(found[1], names)), value)
    if isinstance(value, Mapping):
        return {fill(key, names): fill(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [fill(item, names) for item in value]
    return value


def fill_text(value: str, names: Mapping[str, Any]) -> str:
    """`fill` where only text will do."""
    return text_of(fill(value, names))


def text_of(value: Any) -> str:
    """A value as it stands in a command or a table."""
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e6 else repr(value)
    return str(value)


def _named(name: str, names: Mapping[str, Any]) -> Any:
    if name in names:
        return names[name]
    head, dot, rest = name.partition(".")
    if dot and isinstance(names.get(head), Mapping):
        return _named(rest, names[head])
    raise StepFailed(f"nothing is called ${{{name}}}; there are {', '.join(sorted(names))}")


def find(path: str, data: Any) -> list[Any]:
    """All values at a path: `status.vni`, `items[0].name`, `items[*].name`, `items[metadata.name=h1].status`.

    Several conditions in one pair of brackets are separated by commas. An empty path is the whole.

    Raises:
        StepFailed: the path is not one.
    """
    values, position = [data], 0
    while position < len(path):
        part = _PART.match(path, position)
        if not part:
            raise StepFailed(f"bad JSON path {path!r} at {path[position:]!r}")
        key, bracket, _ = part.groups()
        if key is not None:
            values = [value[key] for value in values if isinstance(value, Mapping) and key in value]
        elif bracket is not None:
            values = [item for value in values if isinstance(value, list) for item in _select(bracket, value)]
        position = part.end()
    return values


def _select(bracket: str, items: list[Any]) -> list[Any]:
    if bracket == "*":
        return items
    if re.fullmatch(r"-?\d+", bracket):
        index = int(bracket)
        return [items[index]] if -len(items) <= index < len(items) else []
    conditions = [condition.partition("=") for condition in bracket.split(",")]
    return [item for item in items
            if all(any(text_of(value) == wanted for value in find(path, item))
                   for path, _, wanted in conditions)]


def mismatch(expected: Matcher, values: list[Any], names: Mapping[str, Any]) -> str:
    """Why the found values are not what was expected; empty: they are.

    With several values, each must fit, unless `sum` makes one of them.
    """
    found = [value for value in values if value not in (None, "", [])]
    if expected.count is not None and len(values) != expected.count:
        return f"found {len(values)} values instead of {expected.count}"
    if expected.empty is not None:
        if expected.empty == bool(found):
            return f"found {_shown(found)} where nothing was expected" if found else "found nothing"
        if expected.empty:
            return ""
    if expected.sum:
        values = [sum(number(value) for value in values)]
    if not values and _asks_for_a_value(expected):
        return "found nothing"
    return next((why for value in values if (why := _one(expected, value, names))), "")


def _asks_for_a_value(expected: Matcher) -> bool:
    return bool(expected.model_fields_set - {"count", "empty", "differs", "lacks"})


def _one(expected: Matcher, value: Any, names: Mapping[str, Any]) -> str:
    if expected.minus is not None:
        value = number(value) - number(fill(expected.minus, names))
    text = text_of(value)
    given = expected.model_fields_set
    if "equals" in given and not _same(value, wanted := fill(expected.equals, names)):
        return f"found {_shown(value)} instead of {_shown(wanted)}"
    if "differs" in given and _same(value, fill(expected.differs, names)):
        return f"found {_shown(value)}, which it must not be"
    if expected.one_of is not None:
        options = [fill(option, names) for option in expected.one_of]
        if not any(_same(value, option) for option in options):
            return f"found {_shown(value)}, which is none of {_shown(options)}"
    if expected.matches is not None:
        pattern = fill_text(expected.matches, names)
        if not re.search(pattern, text, re.MULTILINE):
            return f"found {_shown(value)}, which does not match /{pattern}/"
    if expected.lacks is not None:
        pattern = fill_text(expected.lacks, names)
        if hit := re.search(pattern, text, re.MULTILINE):
            return f"found {_shown(hit[0])}, which must not be there"
    for wanted in expected.contains or ():
        if fill_text(wanted, names) not in text:
            return f"found {_shown(value)}, without {_shown(fill_text(wanted, names))}"
    return _compare(expected, value, names)


def _compare(expected: Matcher, value: Any, names: Mapping[str, Any]) -> str:
    bounds = {"at least": expected.at_least, "at most": expected.at_most,
              "more than": expected.more_than, "less than": expected.less_than}
    if all(bound is None for bound in bounds.values()):
        return ""
    found = number(value)
    for word, bound in bounds.items():
        if bound is None:
            continue
        limit = number(fill(bound, names))
        holds = {"at least": found >= limit, "at most": found <= limit,
                 "more than": found > limit, "less than": found < limit}[word]
        if not holds:
            return f"found {text_of(found)}, expected {word} {text_of(limit)}"
    return ""


def number(value: Any) -> float:
    """A value as a number.

    Raises:
        StepFailed: it is none.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise StepFailed(f"found {_shown(value)} where a number was expected") from None


def _same(value: Any, wanted: Any) -> bool:
    """Text compares without the white space around it; `443` and `"443"` are the same, as in YAML."""
    return bool(value == wanted) or text_of(value).strip() == text_of(wanted).strip()


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else text_of(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
