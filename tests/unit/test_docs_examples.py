"""The code in the pages runs, and the resources in them are what the controller takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_layer_of_the_guide_works_as_it_says() -> None:
    found = blocks("docs/add-a-layer.md", "python")
    assert len(found) == 2
    names: dict[str, object] = {"__name__": "hygiene"}
    for block in found:
        exec(compile(block, "docs/add-a-layer.md", "exec", dont_inherit=True), names)
    assert "denied" in names


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md", "docs/resources.md"])
def test_resources_in_the_pages_are_valid(page: str) -> None:
    from cli.documents import parse_documents
    from controller.resources import RESOURCES

    found = [document for block in blocks(page, "yaml") for document in parse_documents(page, block)]
    assert found
    for document in found:
        RESOURCES[document.resource["kind"]].model_validate(document.resource, strict=False)


def test_every_command_is_on_its_page() -> None:
    from typer.main import get_command

    from cli.main import command_line

    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    commands = getattr(get_command(command_line()), "commands")  # noqa: B009 (a group's, which the type does not tell)
    for name, command in commands.items():
        inner = getattr(command, "commands", None)
        for full in [f"{name} {sub}" for sub in inner] if inner else [name]:
            assert f"sluice {full}" in text, full
