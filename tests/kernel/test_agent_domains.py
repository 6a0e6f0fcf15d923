"""Egress by domain name on a real agent with a real resolver: open in time, for those addresses only, not for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_host_kit import Machine, inside, machine, sh, until

from southbound.messages import AclRule, AclTier, Goal, HostGoal, NetworkGoal, PortGoal, Subnet

PREFIX = f"dom{os.getpid()}"
HOST = HostGoal("self", underlay="172.31.0.1", uplink="lan0")
NAT = NetworkGoal(
    "n1", "front", "default", "nat", (1 << 24) + 1, (Subnet("192.168.50.0/24", "192.168.50.1"),), "02:fe:00:00:50:01", 0
)
NAMES = 100
TIERS = (AclTier("default/egress", 10, (
    AclRule(10, "out", "allow", ("172.16.0.80/32",), 17, ((53, 53),), "resolver"),
    AclRule(11, "out", "allow", ("172.16.0.80/32",), 6, ((53, 53),), "resolver-tcp"),
    AclRule(20, "out", "allow", (), 6, ((8080, 8080),), "by-name", domains=("api.example.net", "*.example.com")),
)),)

# Run in the endpoint. Each line of input is a list of arguments; a line of JSON answers it.
_CLIENT = """
import json, socket, sys
import dns.message, dns.query
held = []
def connect(address, hold=False):
    try:
        made = socket.create_connection((address, 8080), timeout=0.6)      # the kernel would try again after 1 s
    except OSError:
        return False
    if hold:
        held.append(made)
    else:
        made.close()
    return True
def resolve(name, over="udp"):
    asked = dns.message.make_query(name, "A")
    said = getattr(dns.query, over)(asked, "172.16.0.80", timeout=5)
    return [record.address for given in said.answer for record in given if given.rdtype == 1]
def by_name(name, over="udp"):
    return [connect(address) for address in resolve(name, over)]
def each(count):
    return [all(by_name(f"n{i}.example.com")) for i in range(1, count + 1)]
def talk():
    held[0].sendall(b"x")
    held[0].settimeout(2)
    try:
        return held[0].recv(1) == b"x"
    except OSError:
        return False
print("ready", flush=True)
for line in sys.stdin:
    what, *rest = json.loads(line)
    try:
        print(json.dumps(globals()[what](*rest)), flush=True)
    except Exception as error:
        print(json.dumps(repr(error)), flush=True)
"""
_SERVER = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(100):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 100
with Server(("0.0.0.0", 8080), Echo) as server:
    print("ready", flush=True)
    server.serve_forever()
"""


def in_namespace(name: str, *command: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{PREFIX}-{name}", *command]


class Endpoint:
    """The program in the endpoint."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(in_namespace("web", sys.executable, "-c", _CLIENT), stdin=pipe, stdout=pipe,
                                        text=True)
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, *what: object) -> object:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.line())

    def close(self) -> None:
        self.process.communicate(timeout=10)


def goals(tiers: tuple[AclTier, ...] = TIERS) -> tuple[Goal, ...]:
    web = PortGoal("uid-web", "web", "default", "n1", "192.168.50.5/24", "02:00:00:00:50:05", f"{PREFIX}-web", "eth0",
                   tiers, default_out="deny")
    return HOST, NAT, web


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Machine]:
    hosts = tmp_path / "hosts"
    lines = [f"172.16.1.{i} n{i}.example.com" for i in range(1, NAMES + 1)]
    hosts.write_text("\n".join((*lines, "172.16.1.201 api.example.net", "172.16.1.202 other.example.net",
                                "172.16.1.203 end.example.org")) + "\n")
    with machine(tmp_path, PREFIX, "1 4 1") as made:
        made.add_namespace(f"{PREFIX}-web")
        sh(f"ip -n {PREFIX}-lan route add local 172.16.1.0/24 dev lo")
        sh(f"ip -n {PREFIX}-h1 route add 172.16.1.0/24 via 172.16.0.80")
        resolver = subprocess.Popen(in_namespace(
            "lan", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
            f"--addn-hosts={hosts}", "--listen-address=172.16.0.80", "--bind-interfaces", "--local-ttl=3",
            "--cname=alias.example.com,end.example.org", "--user=root", f"--pid-file={tmp_path}/dnsmasq.pid"))
        server = subprocess.Popen(in_namespace("lan", sys.executable, "-c", _SERVER), stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield made
        finally:
            for process in (resolver, server):
                process.terminate()
                process.wait(10)
            server.stdout.close()


@pytest.fixture
def endpoint(host: Machine) -> Iterator[Endpoint]:
    host.start_connected()
    ack = host.controller.tell(*goals())
    assert [status.error for status in ack.objects if status.error] == []
    made = Endpoint()
    try:
        yield made
    finally:
        made.close()


def test_a_hundred_first_connections_by_name_never_lose_the_race(endpoint: Endpoint) -> None:
    assert not endpoint.do("connect", "172.16.1.1")
    assert endpoint.do("each", NAMES) == [True] * NAMES


def test_names_open_their_addresses_and_no_others(endpoint: Endpoint) -> None:
    assert endpoint.do("by_name", "api.example.net") == [True]
    assert endpoint.do("by_name", "alias.example.com") == [True]            # by its alias, of another domain
    assert endpoint.do("by_name", "other.example.net") == [False]
    assert endpoint.do("by_name", "n1.example.com", "tcp") == [True]
    assert not endpoint.do("connect", "172.16.1.2")


def test_after_its_time_an_address_is_closed_and_the_open_connection_lives(host: Machine, endpoint: Endpoint) -> None:
    (address,) = endpoint.do("resolve", "n7.example.com")                   # type: ignore[misc]
    assert endpoint.do("connect", address, True)
    time.sleep(4.5)                                                         # TTL 3 s, grace 1 s
    assert not endpoint.do("connect", address)
    assert endpoint.do("talk")
    time.sleep(6)                                                           # expired members are looked for
    assert endpoint.do("talk")
    (more,) = TIERS
    wider = AclTier(more.policy, more.order, (*more.rules, AclRule(90, "out", "deny", (), 132, (), "no-sctp")))
    host.controller.tell(*goals((wider,)))                                  # decided again: its member is still there
    assert endpoint.do("talk")
    assert endpoint.do("by_name", "n7.example.com") == [True]


def test_a_restarted_agent_keeps_what_is_open_and_goes_on(host: Machine, endpoint: Endpoint) -> None:
    (address,) = endpoint.do("resolve", "n9.example.com")                   # type: ignore[misc]
    assert endpoint.do("connect", address, True)
    host.kill()
    assert endpoint.do("talk")
    host.start_connected()
    assert endpoint.do("talk")
    assert until(lambda: endpoint.do("by_name", "n11.example.com") == [True], "names open again")


def test_nobody_listens_is_closed_and_told(host: Machine, endpoint: Endpoint) -> None:
    assert endpoint.do("by_name", "n3.example.com") == [True]
    host.kill()
    assert "Timeout" in str(endpoint.do("resolve", "n4.example.com"))
    host.start_connected()
    reasons = {row["reason"]: row["packets"] for row in host.controller.ask("drops")["reasons"]}
    assert reasons["INSPECT_NOT_RETURNED"] >= 1


def test_without_names_in_policy_nothing_is_left(host: Machine, endpoint: Endpoint) -> None:
    spaces = Path("/run/netns")
    mine = f"sluice-inspect-{(spaces / f'{PREFIX}-h1').stat().st_ino}"
    assert (spaces / mine).exists()
    host.controller.tell(*goals(()))
    assert not (spaces / mine).exists()
    assert "sl-ins" not in inside(f"{PREFIX}-h1", "ip link show")
    host.controller.tell(*goals())
    assert endpoint.do("by_name", "n5.example.com") == [True]
    host.kill()
    host.purge()
    assert not (spaces / mine).exists()
