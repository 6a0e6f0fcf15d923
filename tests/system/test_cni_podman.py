"""Podman (its CNI backend) with `sluice-cni`: what a user types, and what is declared and left afterwards."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest
from cni_stage import IMAGE, Stage, conflist, eventually, need, plugin, world

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")
SERVER = ("sh", "-c", "mkdir -p /www && hostname > /www/index.html && exec httpd -f -p 80 -h /www")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    need("podman", "crun", "/bin/busybox")
    files = {"/etc/cni/net.d/10-web.conflist": conflist("web", plugin(network="red")),
             "/etc/cni/net.d/20-back.conflist": conflist("back", {"type": "sluice-cni", "network": "blue",
                                                                 "capabilities": {"ips": True}}, version="0.4.0"),
             "/etc/cni/net.d/25-third.conflist": conflist("third", plugin(network="green")),
             "/etc/cni/net.d/30-none.conflist": conflist("none-such", plugin())}
    with Stage(files) as made:
        made.network("red", "nat", "10.71.0.0/24", "fd71::/64")
        made.network("green", "nat", "10.74.0.0/24")
        made.network("blue", "private", "10.73.0.0/24")
        made.podman("import", str(made.folder / "image.tar"), IMAGE)
        yield made


@pytest.fixture(autouse=True)
def clean(stage: Stage) -> Iterator[None]:
    yield
    stage.podman("rm", "--all", "--force", "--time", "0")
    assert not stage.list("Endpoint")
    assert not stage.list("StaticMapping")
    assert not stage.links()


def run(stage: Stage, name: str, *words: str, command: tuple[str, ...] = ("sleep", "1000")) -> str:
    return stage.podman("run", "--detach", "--name", name, *words, IMAGE, *command)


def networks(stage: Stage, name: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(
        stage.podman("inspect", "--format", "{{json .NetworkSettings.Networks}}", name))
    return found


def test_two_containers_and_the_world(stage: Stage) -> None:
    first = run(stage, "one", "--network", "web", "--publish", "8080:80", command=SERVER)
    run(stage, "two", "--network", "web")
    shown = networks(stage, "one")["web"]
    assert shown["IPAddress"].startswith("10.71.0.")
    assert shown["GlobalIPv6Address"].startswith("fd71::")
    assert shown["Gateway"] == "10.71.0.1"
    page = eventually(lambda: stage.run("podman", "exec", "two", "wget", "-qO-", f"http://{shown['IPAddress']}").stdout,
                      "the page")
    assert page.strip() == first[:12]
    assert world(stage.lan, "curl", "-sS", "--max-time", "5", "http://172.16.7.10:8080").strip() == first[:12]
    assert "8080" in stage.podman("port", "one")
    endpoints = stage.list("Endpoint")
    assert set(endpoints) == {f"{name}-{stage.podman('inspect', '--format', '{{.Id}}', name)[:12]}"
                              for name in ("one", "two")}
    assert {each["status"]["address"] for each in endpoints.values()} == {
        networks(stage, name)["web"]["IPAddress"] for name in ("one", "two")}
    assert {each["metadata"]["labels"]["sluice.io/runtime"] for each in endpoints.values()} == {"cni"}


def test_addresses_ranges_of_ports_and_two_networks(stage: Stage) -> None:
    run(stage, "one", "--network", "web:ip=10.71.0.40,mac=02:00:00:00:00:40", "--network", "back",
        "--publish", "9000-9003:80-83", "--publish", "172.16.7.10:5353:53/udp", command=SERVER)
    assert networks(stage, "one")["web"]["IPAddress"] == "10.71.0.40"
    assert networks(stage, "one")["web"]["MacAddress"] == "02:00:00:00:00:40"
    assert networks(stage, "one")["back"]["IPAddress"].startswith("10.73.0.")
    # Podman attaches networks in an order of its own choice, and counts interfaces by it.
    assert "10.73.0." in stage.podman("exec", "one", "ip", "address", "show")
    ports = {(each["spec"]["externalPort"], each["spec"]["protocol"]) for each in stage.list("StaticMapping").values()}
    assert ports == {("9000-9003", "tcp"), (5353, "udp")}
    assert {each["spec"].get("externalAddress") for each in stage.list("StaticMapping").values()} == {
        "0.0.0.0", "::", "172.16.7.10"}
    # Whichever network podman attached first: only web leads out.
    assert world(stage.lan, "curl", "-sS", "--max-time", "5", "http://172.16.7.10:9000")


def test_ports_of_two_networks_that_could_have_them(stage: Stage) -> None:
    run(stage, "one", "--network", "web", "--network", "third", "--publish", "9100:80", command=SERVER)
    assert len({each["spec"]["network"] for each in stage.list("StaticMapping").values()}) == 1
    eventually(lambda: stage.run("podman", "exec", "one", "wget", "-qO-", "http://127.0.0.1").stdout, "the page")
    assert world(stage.lan, "curl", "-sS", "--max-time", "5", "http://172.16.7.10:9100")


@pytest.mark.parametrize(("words", "told"), [
    (("--network", "none-such"), "none-such"), (("--network", "web:ip=10.71.0.41"), "10.71.0.41"),
    (("--network", "web:ip=10.99.0.1"), "10.99.0.1"), (("--network", "web", "--publish", "8443:80"), "8443")])
def test_what_cannot_be_done_is_told_and_leaves_nothing(stage: Stage, words: tuple[str, ...], told: str) -> None:
    run(stage, "holder", "--network", "web:ip=10.71.0.41", "--publish", "8443:80")
    before = stage.links()
    said = stage.refused("podman", "run", "--name", "one", *words, IMAGE, "true")
    assert told in said, said
    assert "apply it" in said or "choose another" in said or "use one" in said, said        # what to do
    stage.podman("rm", "--force", "one")
    assert stage.links() == before
    assert len(stage.list("Endpoint")) == 1


def test_a_pod_is_one_endpoint(stage: Stage) -> None:
    stage.podman("pod", "create", "--name", "pod", "--infra-image", IMAGE, "--infra-command", "sleep 1000",
                 "--network", "web", "--publish", "8090:80")
    try:
        page = run(stage, "server", "--pod", "pod", command=SERVER)
        run(stage, "beside", "--pod", "pod")
        assert len(stage.list("Endpoint")) == 1
        inside = eventually(lambda: stage.run("podman", "exec", "beside", "wget", "-qO-", "http://127.0.0.1").stdout,
                            "the page beside")
        assert inside == world(stage.lan, "curl", "-sS", "--max-time", "5", "http://172.16.7.10:8090")
        assert inside.strip() in ("pod", page[:12])
        stage.podman("pod", "restart", "pod")
        assert len(stage.list("Endpoint")) == 1
        eventually(lambda: stage.run("podman", "exec", "beside", "wget", "-qO-", "http://127.0.0.1").stdout, "it again")
        assert world(stage.lan, "curl", "-sS", "--max-time", "5", "http://172.16.7.10:8090")
    finally:
        stage.podman("pod", "rm", "--force", "--time", "0", "pod")


def test_killed_restarted_and_gone(stage: Stage) -> None:
    run(stage, "one", "--network", "web:ip=10.71.0.42", command=SERVER)
    stage.podman("restart", "--time", "0", "one")
    assert networks(stage, "one")["web"]["IPAddress"] == "10.71.0.42"
    stage.podman("kill", "one")
    stage.podman("start", "one")
    assert stage.podman("exec", "one", "ip", "route").startswith("default via 10.71.0.1")
    stage.podman("stop", "--time", "0", "one")
    eventually(lambda: not stage.list("Endpoint"), "a container that is stopped has no endpoint")


def test_starts_and_ends_one_after_the_other(stage: Stage) -> None:
    seconds = []
    for number in range(5):
        start = time.monotonic()
        stage.podman("run", "--rm", "--name", f"c{number}", "--network", "web", IMAGE, "true")
        seconds.append(time.monotonic() - start)
    assert not stage.list("Endpoint")
    assert max(seconds) < 30


def test_with_the_controller_away(stage: Stage) -> None:
    run(stage, "before", "--network", "web")
    stage.kill("controller")
    run(stage, "one", "--network", "web", command=SERVER)
    address = networks(stage, "one")["web"]["IPAddress"]
    assert eventually(lambda: stage.run("podman", "exec", "before", "wget", "-qO-", f"http://{address}").stdout, "it")
    start = time.monotonic()
    said = stage.refused("podman", "run", "--rm", "--network", "none-such", IMAGE, "true")
    assert time.monotonic() - start < 15                            # the plug-in says so within 5 s
    assert "controller" in said
    stage.podman("rm", "--force", "--time", "0", "before")
    stage.start_controller()
    eventually(lambda: [each["status"].get("address") for each in stage.list("Endpoint").values()] == [address],
               stage.told, 30)


def test_a_container_that_ends_without_the_agent_is_found_out(stage: Stage) -> None:
    run(stage, "one", "--network", "web", "--publish", "9200:80", command=SERVER)
    run(stage, "two", "--network", "web")
    address = networks(stage, "one")["web"]["IPAddress"]
    stage.kill("agent")
    assert stage.run("podman", "exec", "two", "wget", "-qO-", f"http://{address}").stdout
    stage.run("podman", "rm", "--force", "--time", "0", "two")      # podman tells that the plug-in could not
    stage.start_agent()
    eventually(lambda: len(stage.list("Endpoint")) == 1, stage.told, 30)
    assert world(stage.lan, "curl", "-sS", "--max-time", "5", "http://172.16.7.10:9200")


def test_eight_at_once(stage: Stage) -> None:
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: run(stage, f"c{number}", "--network", "web"), range(8)))
    addresses = {networks(stage, f"c{number}")["web"]["IPAddress"] for number in range(8)}
    assert len(addresses) == 8
