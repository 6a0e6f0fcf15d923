"""kill -9 of dockerd, agent, controller in any combination, and reboots: what runs keeps its network, the rest goes."""

from __future__ import annotations

import os
import signal
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from itertools import combinations
from pathlib import Path

import pytest
from docker_agree import agree
from docker_kit import IMAGE, httpd
from docker_site import Host, Site, eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")

CURL = ("curl", "-sS", "-m", "4")
DAEMONS = ("dockerd", "agent", "controller")
LIVE_RESTORE = ("--live-restore",)
COMBINATIONS = [each for size in (1, 2, 3) for each in combinations(DAEMONS, size)]


@pytest.fixture
def running(site: Site, host: Host) -> Iterator[Callable[[], None]]:
    """Two servers with a mapped port and a client on a nat network; whether they work is what calling it says."""
    docker = host.docker
    docker("network", "create", "-d", "nat", "--subnet", "192.168.250.0/24", "web")
    docker.run("one", "--network", "web", "-p", "82:80", command=httpd("one"))
    docker.run("two", "--network", "web", "-p", "83:80", command=httpd("two"))
    docker.run("client", "--network", "web")
    client, one = docker.pid("client"), docker.address("one", "web")

    def works() -> None:
        there = ("nsenter", f"--net=/proc/{client}/ns/net")
        assert host(*there, *CURL, f"http://{one}/") == "one"
        assert host(*there, "ping", "-c1", "-W2", "172.16.8.1")
        assert site.world(*CURL, f"http://{host.lan}:82/") == "one"

    works()
    yield works
    if host.docker.options != LIVE_RESTORE:
        host.docker.stop()
        host.docker.options = LIVE_RESTORE
        host.docker.start()


def kill(site: Site, host: Host, daemons: tuple[str, ...]) -> None:
    for daemon in daemons:
        {"dockerd": host.docker.kill, "agent": host.kill_agent, "controller": site.kill_controller}[daemon]()


def start(site: Site, host: Host, daemons: tuple[str, ...]) -> None:
    """In this order, none waiting for another to be of use."""
    for daemon in daemons:
        if daemon == "controller":
            site.start_controller()
        elif daemon == "agent":
            host.start_agent(wait=False)
        else:
            host.docker.start(wait=False)
    host.wait_agent()
    host.docker.wait()


@pytest.mark.parametrize("daemons", COMBINATIONS, ids="+".join)
def test_killed_daemons(site: Site, host: Host, running: Callable[[], None], daemons: tuple[str, ...]) -> None:
    """While they are away what runs goes on; a container that ends meanwhile is found when they are back."""
    docker = host.docker
    before, victim = host.ports(), docker.pid("two")
    kill(site, host, daemons)
    running()
    os.kill(victim, signal.SIGKILL)
    running()
    start(site, host, tuple(reversed(daemons)))
    eventually(lambda: docker.names() == {"one", "client"}, "Docker sees that one has ended")
    agree(host)
    assert host.ports() < before            # of what runs no link was made anew
    running()
    docker("start", "two")
    assert site.world(*CURL, f"http://{host.lan}:83/") == "two"
    agree(host)


def test_a_dockerd_that_takes_its_containers_along(site: Site, host: Host, running: Callable[[], None]) -> None:
    """Without --live-restore a dockerd that comes back ends what ran, and starts what it was told to restart."""
    docker = host.docker
    docker.run("stays", "--network", "web", "-p", "84:80", "--restart", "always", command=httpd("stays"))
    docker.kill()
    docker.options = ()
    docker.start()
    eventually(lambda: docker.names() == {"stays"}, "what restarts is there, the rest is not")
    agree(host)
    assert site.world(*CURL, f"http://{host.lan}:84/") == "stays"
    docker("start", "one", "two")
    assert site.world(*CURL, f"http://{host.lan}:82/") == "one"
    agree(host)
    docker.stop()
    docker.start()
    eventually(lambda: docker.names() == {"stays"}, "what restarts is there, the rest is not")
    agree(host)


def test_a_reboot(site: Site, host: Host, running: Callable[[], None]) -> None:
    """Every namespace, link, pin and process is gone; what is on disk is enough."""
    docker, other = host.docker, site.hosts[1]
    overlay = ("network", "create", "-d", "sluice", "-o", "mode=overlay", "-o", "network=red", "--ipam-driver",
               "sluice", "--ipam-opt", "network=red", "--subnet", "10.77.0.0/24", "red")
    docker(*overlay)
    other.docker(*overlay)
    docker.run("stays", "--network", "web", "-p", "84:80", "--restart", "always", command=httpd("stays"))
    docker.run("far", "--network", "red", "--restart", "always", command=httpd("far"))
    other.docker.run("near", "--network", "red")
    for dockerd_first in (True, False):
        host.reboot()
        start(site, host, ("dockerd", "agent") if dockerd_first else ("agent", "dockerd"))
        eventually(lambda: docker.names() == {"stays", "far"}, "what restarts is there, the rest is not")
        agree(host, other)
        assert site.world(*CURL, f"http://{host.lan}:84/") == "stays"
        assert other.docker.inside("near", *CURL, f"http://{docker.address('far', 'red')}/") == "far"
    docker("start", "one", "client")
    assert docker.exec("client", "wget", "-qO-", "http://one/") == "one"
    assert site.world(*CURL, f"http://{host.lan}:82/") == "one"
    agree(host)


def test_the_controller_is_away(site: Site, host: Host, running: Callable[[], None]) -> None:
    """A network that the host knows goes on giving addresses; what needs the controller says so, soon."""
    docker = host.docker
    site.kill_controller()
    try:
        docker.run("late", "--network", "web", "-p", "85:80", command=httpd("late"))
        assert site.world(*CURL, f"http://{host.lan}:85/") == "late"
        assert docker.exec("late", "wget", "-qO-", "http://one/") == "one"
        docker.remove("two")
        began = time.monotonic()
        told = docker.refused("network", "create", "-d", "nat", "--subnet", "192.168.77.0/24", "new")
        assert time.monotonic() - began < 7
        assert "controller" in told
        assert "new" not in docker("network", "ls", "--format", "{{.Name}}").split()
    finally:
        site.start_controller()
    host.wait_agent()
    agree(host)
    running()


def test_an_agent_that_comes_back_while_docker_waits(site: Site, host: Host, running: Callable[[], None]) -> None:
    """Docker asks again when a plug-in does not answer: stopping and starting containers outlasts a restart of it."""
    docker = host.docker
    for act in (lambda: docker("stop", "--time", "0", "two"), lambda: docker("start", "two"),
                lambda: docker.remove("two")):
        host.kill_agent()
        later = threading.Timer(0.5, host.start_agent, kwargs={"wait": False})
        later.start()
        try:
            act()
        finally:
            later.join()
        host.wait_agent()
        agree(host)
    running()


def test_a_container_whose_end_nobody_could_be_told(site: Site, host: Host, running: Callable[[], None]) -> None:
    """Docker forgets a container although the plug-in failed it, and puts the link back: its address is free again."""
    docker = host.docker
    address = docker.address("two", "web")
    host.kill_agent()
    with failing_plug_in(host.plugins / "nat.sock"):
        os.kill(docker.pid("two"), signal.SIGKILL)
        eventually(lambda: "two" not in docker.names(), "it has ended", 60)
    host.start_agent()
    docker.remove("two")
    docker.run("again", "--network", "web", "--ip", address, "-p", "83:80", command=httpd("again"))
    assert site.world(*CURL, f"http://{host.lan}:83/") == "again"
    assert docker.refused("run", "-d", "--name", "bad", "--network", "web", "--ip", address, IMAGE, "true")
    docker.remove("bad")
    agree(host)
    running()


@contextmanager
def failing_plug_in(path: Path) -> Iterator[None]:
    """In place of the agent's: whatever it is asked fails."""
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b'{"Err": "no"}')

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    path.unlink(missing_ok=True)
    with Server(str(path), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
    path.unlink()
