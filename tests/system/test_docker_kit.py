"""The kit that other tests of Docker stand on, with Docker's own bridge: what fails here is not Sluice's doing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_kit import IMAGE, Docker, httpd

NETNS = f"dk{os.getpid()}-kit"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[Docker]:
    subprocess.run(["ip", "netns", "add", NETNS], check=True)
    subprocess.run(["ip", "-n", NETNS, "link", "set", "lo", "up"], check=True)
    docker = Docker(NETNS, tmp_path / "docker", bridge=True, options=["--live-restore"])
    try:
        docker.start()
        yield docker
    finally:
        docker.close()
        subprocess.run(["ip", "netns", "delete", NETNS], check=True)


def test_containers_run_and_stay_while_dockerd_is_killed_and_go_with_the_host(docker: Docker) -> None:
    docker("network", "create", "--subnet", "10.88.0.0/24", "net")
    docker.run("web", "--network", "net", "--publish", "8080:80", command=httpd("hello"))
    docker.run("other", "--network", "net", "--ip", "10.88.0.9")
    assert docker.exec("other", "wget", "-qO-", "http://web/") == "hello"       # Docker's own DNS, too
    assert docker.ports("web") == {"80/tcp": [("0.0.0.0", 8080)]}
    assert docker.address("other", "net") == "10.88.0.9"
    assert "10.88.0.9" in docker.inside("other", "ip", "address", "show", "dev", "eth0")
    assert "nobody" in docker.refused("network", "inspect", "nobody")
    web = docker.pid("web")
    docker.kill()
    assert Path(f"/proc/{web}").exists()
    docker.start()
    assert docker.names() == {"web", "other"}
    assert docker.pid("web") == web
    docker.crash()
    assert not Path(f"/proc/{web}").exists()
    docker.start()
    assert docker.names() == set()
    assert docker.names(all=True) == {"web", "other"}
    docker.clean()
    assert docker("images", "--format", "{{.Repository}}:{{.Tag}}") == IMAGE
    assert docker.names(all=True) == set()
