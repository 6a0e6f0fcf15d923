"""docker-compose with the file that people have: `driver: nat` and a subnet."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docker_agree import agree
from docker_kit import need
from docker_site import Host, Site, eventually
from test_docker_nat import CURL, resolved

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")

FILE = """
version: "3"
services:
  web:
    image: busybox:local
    command: sh -c "mkdir -p /www && hostname > /www/index.html && exec httpd -f -p 80 -h /www"
    init: true
    ports: ["8081:80"]
    depends_on: [db]
  db:
    image: busybox:local
    command: sleep 1000000
    init: true
    stop_grace_period: 1s
networks:
  default:
    driver: nat
    ipam:
      config:
        - subnet: 172.31.212.0/24
"""

Compose = Callable[..., str]


@pytest.fixture
def compose(host: Host, tmp_path: Path) -> Iterator[Compose]:
    need("docker-compose", packages={"docker-compose": "docker-compose"})
    folder = tmp_path / "blog"
    folder.mkdir()
    (folder / "docker-compose.yml").write_text(FILE, encoding="utf-8")

    def run(*words: str) -> str:
        done = subprocess.run(["docker-compose", *words], cwd=folder, capture_output=True, text=True, timeout=90,
                              env={**os.environ, "DOCKER_HOST": host.docker.socket}, check=False)
        assert done.returncode == 0, f"docker-compose {' '.join(words)}: {done.stdout}{done.stderr}\n{host.told()}"
        return done.stdout

    yield run
    run("down", "--timeout", "1")


def test_the_file_works_as_written_and_scales(site: Site, host: Host, compose: Compose) -> None:
    docker = host.docker
    compose("up", "-d", "--scale", "db=3")
    web = "blog_web_1"
    assert docker.address(web, "blog_default").startswith("172.31.212.")
    assert site.world(*CURL, f"http://{host.lan}:8081/") == docker.inspect(web)["Config"]["Hostname"]
    everyone = {docker.address(f"blog_db_{number}", "blog_default") for number in (1, 2, 3)}
    assert len(everyone) == 3
    assert resolved(docker, web, "db") == everyone
    assert len(host.endpoints()) == 4
    agree(host)
    compose("up", "-d", "--scale", "db=2")
    assert len(resolved(docker, web, "db")) == 2
    eventually(lambda: len(host.endpoints()) == 3, "the endpoint goes with its container", 10)
    compose("restart", "--timeout", "1")
    assert len(resolved(docker, web, "db")) == 2
    agree(host)
    (network,) = site.list("Network")
    assert json.dumps(network["spec"]).count("172.31.212.0/24") == 1
    compose("down", "--timeout", "1")
    assert not site.remains()
