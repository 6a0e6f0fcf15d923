"""Attaching while the controller is away: by a lease, under the policies that hold for such endpoints; and what becomes
of it when the controller is back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_kit import NAT, LocalHost, local_host, until

from runtimes.local import LocalError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")

DOCUMENTS: list[dict[str, Any]] = [
    {"apiVersion": "sluice/v1", "kind": "Host", "metadata": {"name": "h1"}, "spec": {"underlay": "172.16.9.10"}},
    {"apiVersion": "sluice/v1", "kind": "Host", "metadata": {"name": "h2"}, "spec": {"underlay": "172.16.9.20"}},
    NAT,
    {"apiVersion": "sluice/v1", "kind": "Network", "metadata": {"name": "red"},
     "spec": {"mode": "overlay", "subnets": [{"prefix": "10.1.0.0/24"}, {"prefix": "fd00:1::/64"}]}},
    {"apiVersion": "sluice/v1", "kind": "Policy", "metadata": {"name": "shut"},
     "spec": {"network": "red", "defaultIn": "deny", "rules": [
         {"direction": "in", "action": "allow", "protocol": "icmp", "from": {"cidrs": ["10.1.0.0/24"]}}]}},
]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHost]:
    with local_host(tmp_path_factory.mktemp("leases"), "c1l") as made:
        made.apply(*DOCUMENTS)
        for name in ("c1l-a", "c1l-b", "c1l-c"):
            made.namespace(name)
        yield made


def attach(host: LocalHost, name: str, network: str, **more: Any) -> dict[str, Any]:
    return host.ask("attach", runtime="attach", id=name, network=network, netns=f"c1l-{name[0]}", name=name, **more)


def leases(host: LocalHost) -> dict[str, Any]:
    return {each["metadata"]["name"]: each["status"].get("leases", {}) for each in host.declared("Network")}


def endpoints(host: LocalHost) -> dict[str, Any]:
    return {each["metadata"]["name"]: each for each in host.declared("Endpoint")}


def pings(host: LocalHost, source: str, target: str) -> bool:
    return " 0% packet loss" in host.inside(f"c1l-{source}", "ping", "-c", "1", "-W", "1", target)


def use(host: LocalHost, *networks: str) -> None:
    """As a runtime; the host is told of them a moment later."""
    for network in networks:
        host.ask("network-create", runtime="cni", id=network, network=network)
    until(lambda: all(each["subnets"] for each in host.ask("networks", runtime="cni")["networks"]), "it is told")


def lose_controller(host: LocalHost) -> None:
    host.kill("controller")
    until(lambda: host.ask("hello")["controller"] == "away", "the agent has noticed")


def refused(host: LocalHost, name: str, network: str, **more: Any) -> LocalError:
    """The error, which must come in 5 s and leave nothing."""
    before, began = (host.links(), host.kept("attachments")), time.monotonic()
    with pytest.raises(LocalError) as error:
        attach(host, name, network, **more)
    assert time.monotonic() - began < 5.5
    assert (host.links(), host.kept("attachments")) == before
    return error.value


def test_a_host_goes_on_attaching_while_the_controller_is_away(host: LocalHost) -> None:
    first = attach(host, "a1", "red")
    use(host, "web", "red")
    assert leases(host) == {"web": {"h1": 0}, "red": {"h1": 32}}
    lose_controller(host)

    began = time.monotonic()
    made = attach(host, "b1", "red")
    assert made["leased"]
    assert time.monotonic() - began < 3
    assert pings(host, "b", first["addresses"][0].partition("/")[0]), "as the policy of all endpoints allows"
    address6 = next(each for each in first["addresses"] if ":" in each).partition("/")[0]
    assert not pings(host, "b", address6), "and no more than that"
    web = attach(host, "c1", "web", mappings=[{"protocol": "tcp", "externalPort": 8081, "internalPort": 80}])
    assert web["leased"]
    assert pings(host, "c", "172.16.9.1")

    for error, word in ((refused(host, "b2", "red", interface="eth1", labels={"app": "x"}), "labels"),
                        (refused(host, "b3", "red", interface="eth1", addresses=["10.1.0.200"]), "10.1.0.200"),
                        (refused(host, "b4", "none", interface="eth1"), "none")):
        assert error.code == "unavailable", error
        assert word in error.text
        assert error.todo

    host.start_controller()
    until(lambda: {"b1", "c1"} <= endpoints(host).keys(), "they are declared")
    until(lambda: all(each["status"]["phase"] == "Ready" for each in endpoints(host).values()), "and ready")
    found = endpoints(host)["b1"]
    assert found["metadata"]["uid"] == made["uid"]
    assert found["status"]["address"] == made["addresses"][0].partition("/")[0]
    assert found["status"]["mac"] == made["mac"]
    until(lambda: not any(each["leased"] for each in host.ask("list")["attachments"]), "none is provisional any more")
    assert pings(host, "b", first["addresses"][0].partition("/")[0])

    for name in ("a1", "b1", "c1"):
        host.ask("detach", runtime="attach", id=name)
    for network in ("web", "red"):
        assert host.ask("network-delete", runtime="cni", id=network)["existed"]
    until(lambda: leases(host) == {"web": {}, "red": {}}, "the leases are given back")
    until(lambda: not host.links() and not host.declared("Endpoint"), "nothing is left")


def test_what_the_controller_refuses_afterwards_goes(host: LocalHost) -> None:
    use(host, "red")
    lose_controller(host)
    attach(host, "a2", "red")
    attach(host, "b2", "red")
    host.signal("agent", signal.SIGSTOP)                # meanwhile somebody takes its name for something else
    try:
        host.start_controller()
        host.apply({"apiVersion": "sluice/v1", "kind": "Endpoint", "metadata": {"name": "a2"},
                    "spec": {"network": "red", "host": "h2", "netns": "elsewhere"}})
    finally:
        host.signal("agent", signal.SIGCONT)
    until(lambda: "b2" in endpoints(host), "the other one is declared")
    until(lambda: [each["name"] for each in host.ask("list")["attachments"]] == ["b2"], "the refused one goes")
    assert endpoints(host)["a2"]["spec"]["host"] == "h2"
    assert "is on host h2" in host.log.read_text()
    assert "eth0" not in host.inside("c1l-a", "ip", "link")
    host.ask("detach", runtime="attach", id="b2")
    host.ask("network-delete", runtime="cni", id="red")
    until(lambda: leases(host)["red"] == {}, "the lease is given back")


@pytest.fixture(autouse=True, scope="module")
def nothing_left(host: LocalHost) -> Iterator[None]:
    yield
    for each in host.ask("list")["attachments"]:
        host.ask("detach", runtime=each["runtime"], id=each["id"])


def test_after_a_kill_of_the_agent_what_was_leased_is_still_there(host: LocalHost, tmp_path: Path) -> None:
    use(host, "red")
    lose_controller(host)
    made = [attach(host, name, "red") for name in ("a3", "b3")]
    host.kill("agent")
    host.start_agent(wait=False)
    until(lambda: _answers(host), "the agent is back")
    listed = {each["name"]: each for each in host.ask("list")["attachments"]}
    assert {name: each["leased"] for name, each in listed.items()} == {"a3": True, "b3": True}
    target = made[1]["addresses"][0].partition("/")[0]
    until(lambda: pings(host, "a", target), "they still reach each other")
    third = attach(host, "c3", "red")
    assert not set(third["addresses"]) & {address for each in made for address in each["addresses"]}
    host.start_controller()
    until(lambda: {"a3", "b3", "c3"} <= endpoints(host).keys(), "they are declared")
    for name in ("a3", "b3", "c3"):
        host.ask("detach", runtime="attach", id=name)
    host.ask("network-delete", runtime="cni", id="red")
    until(lambda: leases(host)["red"] == {} and not host.links(), "nothing is left")


def _answers(host: LocalHost) -> bool:
    try:
        return bool(host.ask("hello"))
    except LocalError:
        return False
