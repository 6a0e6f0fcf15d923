"""The top level is the architecture: who may import whom (DESIGN §2), and the page that draws it names every room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A room, and the rooms or modules that it may import. Nothing imports upwards.
ARROWS: dict[str, tuple[str, ...]] = {
    "vfp": (),
    "inspection": ("vfp",),
    "vswitch": (),
    "southbound": (),
    # What a feature is given and gives (policy.contribution), and what guard knows of an endpoint, is shared.
    "nat": ("vfp", "southbound.messages", "policy"),
    "overlay": ("vfp", "southbound.messages", "southbound.vteps", "policy"),
    "segments": ("vfp", "southbound.messages", "policy"),
    "policy": ("vfp", "southbound.messages"),
    "agent": ("vfp", "inspection", "vswitch", "southbound", "nat", "overlay", "segments", "policy"),
    "controller": ("southbound",),
    "labs": ("controller.client", "runtimes.cni.install"),     # to put the plug-in where a lab's Podman looks
    # They speak to the agent's local socket, and Docker to theirs.
    "runtimes": ("southbound.durable", "southbound.listening"),
    # The command starts the daemons and the labs, joins a host, and asks the loader what the kernel can do.
    "cli": ("controller.client", "controller.app", "agent.app", "southbound.client", "southbound.errors",
            "southbound.identity", "labs", "runtimes", "vfp.datapath", "vfp.timeouts"),
    "bench": ("vfp", "inspection", "vswitch", "southbound", "nat", "overlay", "segments", "policy", "agent",
              "controller", "labs", "runtimes", "cli"),
}
ROOMS = tuple(ARROWS)


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, wherever in the file: also lazy ones, and those for types only."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from controller import client` is an import of controller.client, if there is such a module.
            for alias in node.names:
                deeper = ROOT / node.module.replace(".", "/") / alias.name
                is_module = deeper.with_suffix(".py").exists() or deeper.is_dir()
                yield node.lineno, f"{node.module}.{alias.name}" if is_module else node.module


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_imports_upwards(room: str) -> None:
    wrong = []
    for file in sorted((ROOT / room).rglob("*.py")):
        for line, module in imports(file):
            top = module.split(".")[0]
            if top not in ROOMS or top == room:
                continue
            if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in ARROWS[room]):
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, f"{room} may import {', '.join(ARROWS[room]) or 'no other room'}"


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_imports_tests(room: str) -> None:
    assert not [file for file in (ROOT / room).rglob("*.py")
                for _, module in imports(file) if module.split(".")[0] == "tests"]


def test_the_engine_knows_nothing_of_networks() -> None:
    """A word of the layers above in the engine means that something is in the wrong room (DESIGN §2)."""
    words = ("tenant", "docker", "kubernetes")
    found = [f"{file.relative_to(ROOT)}: {word}"
             for pattern in ("*.py", "*.c", "*.h") for file in (ROOT / "vfp").rglob(pattern)
             for word in words if word in file.read_text(encoding="utf-8").lower()]
    assert not found


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/rooms.svg"])
def test_the_architecture_page_and_its_picture_name_every_room(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not [room for room in ROOMS if room not in text]


def test_every_room_is_in_the_wheel_and_under_type_checks() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    import tomllib

    data = tomllib.loads(project)
    assert set(data["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == set(ROOMS)
    assert set(data["tool"]["mypy"]["packages"]) == set(ROOMS)


def test_links_in_the_pages_lead_somewhere() -> None:
    import re

    broken = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_pins_are_names_and_versions_only() -> None:
    """No download address anywhere: where packages come from is the business of whoever installs them."""
    import re

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.+!]+", line)]


def test_everything_that_is_needed_is_pinned() -> None:
    """What the project needs, with what that needs in turn, as installed here."""
    import re
    from importlib.metadata import PackageNotFoundError, distribution

    def canonical(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pinned = {canonical(line.split("==")[0]): line.split("==")[1]
              for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()}
    wanted, seen, wrong = ["sluice", "hatchling"], set(), []
    while wanted:
        name = wanted.pop()
        if canonical(name) in seen:
            continue
        seen.add(canonical(name))
        try:
            found = distribution(name)
        except PackageNotFoundError:        # wanted only on another system or an older Python
            continue
        if name != "sluice" and pinned.get(canonical(name)) != found.version:
            wrong.append(f"{name} {found.version}, pinned {pinned.get(canonical(name))}")
        for line in found.requires or []:
            extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
            if extra is None or (name == "sluice" and extra[1] in ("dev", "bench")):
                wanted.append(re.split(r"[^\w.-]", line)[0])
    assert not wrong
