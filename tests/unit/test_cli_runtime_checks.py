"""The doctor's questions about container runtimes: what is here and does not find Sluice is named, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.checks_runtimes import agent, cni, docker, podman
from cli.findings import Finding


def test_a_host_without_runtimes_lacks_nothing(tmp_path: Path) -> None:
    assert docker(None, False, tmp_path).state == "ok"
    assert cni([], [tmp_path, tmp_path]).state == "ok"


def test_docker_without_our_sockets(tmp_path: Path) -> None:
    stopped, unasked = docker("/usr/sbin/dockerd", False, tmp_path), docker("/usr/sbin/dockerd", True, tmp_path)
    for found in (stopped, unasked):
        assert found.state == "absent"
        assert str(tmp_path) in found.found
        assert "docker network create" in found.cost
    assert stopped.todo == "start the agent"
    assert unasked.todo == f"start the agent with --docker {tmp_path}"
    for name in ("nat", "sluice"):
        (tmp_path / f"{name}.sock").touch()
    assert docker("/usr/sbin/dockerd", True, tmp_path) == Finding(
        "docker", "ok", "/usr/sbin/dockerd finds drivers nat, sluice")


def test_a_plug_in_that_is_not_where_it_is_looked_for(tmp_path: Path) -> None:
    absent, there = tmp_path / "none", tmp_path / "cni"
    there.mkdir()
    found = cni(["podman"], [absent, there])
    assert found.state == "absent"
    assert found.todo == f"sluice-cni install {there}"
    (there / "sluice-cni").touch()
    assert cni(["podman"], [absent, there]).found == str(there / "sluice-cni")
    assert podman(Path("/usr/lib/podman/netavark"), [there]).todo == f"sluice-netavark install {there}"
    (there / "sluice").touch()
    assert podman(Path("/usr/lib/podman/netavark"), [there]).state == "ok"


def test_no_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLUICE_AGENT", str(tmp_path / "agent.sock"))
    found = agent()
    assert found.state == "absent"
    assert "sluice agent run" in found.todo
