"""The table of RFC requirements names tests that are there, and leaves out none of those modules."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_SECTION = re.compile(r"^\*\*RFC (\d+)\*\*", re.MULTILINE)


def _tests(module: str) -> set[str]:
    (path,) = ROOT.glob(f"tests/*/{module}")
    return set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def _named() -> dict[str, set[str]]:
    """Tests by module; of a name without one, the module of the RFC whose table it is in."""
    page = (ROOT / "docs/nat.md").read_text(encoding="utf-8").partition("## RFC requirements")[2]
    found: dict[str, set[str]] = {}
    _, *parts = _SECTION.split(page)
    for number, table in zip(parts[::2], parts[1::2], strict=True):
        for module, name in re.findall(r"`(?:(test_\w+\.py)(?:::)?)?(test_\w+)?`", table):
            if module or name:
                found.setdefault(module or f"test_nat_rfc{number}.py", set()).update({name} - {""})
    return found


def test_every_test_of_the_table_is_there() -> None:
    named = _named()
    assert len(named) > 5
    for module, names in named.items():
        assert names <= _tests(module), module


def test_every_test_of_a_requirement_is_in_the_table() -> None:
    named = _named()
    for path in sorted((ROOT / "tests/kernel").glob("test_nat_rfc*.py")):
        told = {name for name in _tests(path.name) if re.match(r"test_(req_)?\d", name)}
        assert told <= named[path.name], path.name
