"""Nat networks on a real host: reconciled links, the BPF engine and real sockets; who reaches whom, and as whom.

What the page on nat networks (docs/nat.md) says of source addresses is tried here, with TCP and UDP.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

import pytest
from vswitch_kit import Namespace, world

from agent.goals import Goals
from agent.ids import Ids
from agent.reconcile import Outcome, Reconciler
from agent.state import Disk
from policy.addresses import held_addresses
from southbound.messages import Goal, HostGoal, MappingGoal, NatGoal, NetworkGoal, PortGoal, Subnet, key_of
from vfp.datapath.engine import Datapath, Limits
from vfp.reference.prefix import translate

LIMITS = Limits(flows=4096, rules=4096, bindings=4096, ports=64, space_entries=4096, mappings=256)
HOST = HostGoal("self", uplink="lan0")
BOTH = NetworkGoal(
    "n-both", "both", "red", "nat", (1 << 24) + 1,
    (Subnet("192.168.1.0/24", "192.168.1.1"), Subnet("fd00:1::/64", "fd00:1::1"),
     Subnet("192.168.7.0/24", "192.168.7.1")), "02:fe:00:00:01:01", 0)
HIDDEN = NetworkGoal(
    "n-hidden", "hidden", "red", "nat", (1 << 24) + 2,
    (Subnet("192.168.2.0/24", "192.168.2.1"), Subnet("fd00:2::/64", "fd00:2::1")), "02:fe:00:00:01:02", 0,
    NatGoal(addresses=("172.16.0.11",), ipv6="masquerade"))
MOVED = NetworkGoal(
    "n-moved", "moved", "red", "nat", (1 << 24) + 4,
    (Subnet("192.168.4.0/24", "192.168.4.1"), Subnet("fd00:4::/64", "fd00:4::1")), "02:fe:00:00:01:04", 0,
    NatGoal(ipv6="prefix", external_prefix="2001:db8:4::/64"))
TWIN = NetworkGoal(
    "n-twin", "twin", "blue", "nat", (1 << 24) + 3, (Subnet("192.168.1.0/24", "192.168.1.1"),), "02:fe:00:00:01:03", 0)

LAN, LAN_6 = "172.16.0.80", "2001:db8:ff::80"
FIRST, SECOND, WHOLE, HOST_6 = "172.16.0.10", "172.16.0.11", "172.16.0.12", "2001:db8:ff::10"
WEB, WEB_6, APP, APP_6, FAR = "192.168.1.5", "fd00:1::5", "192.168.1.6", "fd00:1::6", "192.168.7.6"


def endpoint(name: str, network: NetworkGoal, namespace: str, n: int, address: str, address6: str = "") -> PortGoal:
    return PortGoal(f"u-{name}", name, network.tenant, network.id, f"{address}/24", f"02:00:00:00:01:{n:02x}",
                    namespace, "eth0", address6=f"{address6}/64" if address6 else "")


def mapping(name: str, to: PortGoal, outside: int, external: str = "0.0.0.0", protocol: str = "tcp") -> MappingGoal:
    inside = to.address6 if ":" in external else to.address
    ports, port = ((0, 0), 0) if protocol == "any" else ((outside, outside), 80)
    return MappingGoal(f"u-{name}-{protocol}", name, to.tenant, protocol, external, ports, to.id,  # type: ignore[arg-type]
                       inside.split("/")[0], port)


class Server:
    """Tells each client who it is and whom it sees, by TCP and UDP, in both families."""

    def __init__(self, namespace: Namespace, name: str, port: int) -> None:
        def opened(kind: socket.SocketKind) -> socket.socket:
            made = socket.socket(socket.AF_INET6, kind)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            made.bind(("::", port))
            return made

        self._name = name
        self._stream = namespace.call(lambda: opened(socket.SOCK_STREAM))
        self._stream.listen()
        self._datagrams = namespace.call(lambda: opened(socket.SOCK_DGRAM))
        self._threads = [threading.Thread(target=work) for work in (self._accept, self._answer)]
        for thread in self._threads:
            thread.start()

    def _said(self, address: str) -> bytes:
        return f"{self._name} {address.removeprefix('::ffff:')}".encode()

    def _accept(self) -> None:
        try:
            while True:
                client, address = self._stream.accept()
                with client:
                    client.sendall(self._said(address[0]))
        except OSError:
            return

    def _answer(self) -> None:
        while True:
            data, address = self._datagrams.recvfrom(100)
            if data == b"end":
                return
            self._datagrams.sendto(self._said(address[0]), address)

    def close(self, namespace: Namespace) -> None:
        self._stream.shutdown(socket.SHUT_RDWR)
        port = self._datagrams.getsockname()[1]

        def end() -> None:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as last:
                last.sendto(b"end", ("::1", port))

        namespace.call(end)
        for thread in self._threads:
            thread.join(5)
        self._stream.close()
        self._datagrams.close()


def asked(kind: socket.SocketKind, address: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as client:
        client.settimeout(2)
        try:
            client.connect((address, port))
            if kind is socket.SOCK_DGRAM:
                client.send(b"who")
            return client.recv(100).decode()
        except OSError as error:
            return type(error).__name__


@dataclass
class Site:
    """One host with a LAN and endpoints."""

    spaces: dict[str, Namespace]
    reconciler: Reconciler
    goals: dict[str, Goal]
    outcome: Outcome

    def ask(self, who: str, address: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> str:
        return self.spaces[who].call(lambda: asked(kind, address, port))

    def tell(self, *goals: Goal) -> Outcome:
        return self.reconciler.reconcile(Goals(2, {key_of(goal): goal for goal in goals}))


INSIDE_6 = IPv6Address("fd00:4::5")
OUTSIDE_6 = str(translate(INSIDE_6, IPv6Network("fd00:4::/64"), IPv6Network("2001:db8:4::/64")))

ROLES = {"host": 22, "lan": 80, "moved": 80, "web": 80, "app": 80, "far": 80, "db": 80, "twin": 80, "whole": 80}


def _lan(host: Namespace, lan: Namespace) -> None:
    host.batch(f"link add lan0 type veth peer name eth0 netns {lan.name}\nlink set lan0 up\nlink set lo up\n")
    lan.batch("link set lo up\nlink set eth0 up\n")
    for address in (FIRST, SECOND, WHOLE):
        host.ip("address", "add", f"{address}/24", "dev", "lan0")
    host.ip("address", "add", f"{HOST_6}/64", "dev", "lan0", "nodad")
    host.ip("route", "add", "default", "via", LAN)
    host.ip("-6", "route", "add", "default", "via", LAN_6)
    lan.ip("address", "add", f"{LAN}/24", "dev", "eth0")
    lan.ip("address", "add", f"{LAN_6}/64", "dev", "eth0", "nodad")
    for prefix in ("fd00:1::/64", "2001:db8:4::/64"):
        lan.ip("-6", "route", "add", prefix, "via", HOST_6)


def _goals(spaces: dict[str, Namespace]) -> dict[str, Goal]:
    def port(n: int, name: str, network: NetworkGoal, address: str, address6: str = "") -> PortGoal:
        return endpoint(name, network, spaces[name].name, n, address, address6)

    web, twin = port(1, "web", BOTH, WEB, WEB_6), port(5, "twin", TWIN, WEB)
    whole = port(6, "whole", HIDDEN, "192.168.2.6")
    found: list[Goal] = [
        HOST, BOTH, HIDDEN, TWIN, MOVED, web, twin, whole, port(2, "app", BOTH, APP, APP_6), port(3, "far", BOTH, FAR),
        port(7, "moved", MOVED, "192.168.4.5", str(INSIDE_6)),
        port(4, "db", HIDDEN, "192.168.2.5", "fd00:2::5"), mapping("whole", whole, 0, WHOLE, "any"),
    ]
    for protocol in ("tcp", "udp"):
        found += [mapping("web", web, 8080, protocol=protocol), mapping("web6", web, 8080, "::", protocol),
                  mapping("twin", twin, 8081, protocol=protocol)]
    return {goal.id: goal for goal in found}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    scratch = tmp_path_factory.mktemp("nat")
    with world(scratch) as made, ExitStack() as stack:
        spaces = {role: made.namespace(f"a1{role}") for role in ROLES}
        for each in spaces.values():
            each.execute("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        _lan(spaces["host"], spaces["lan"])
        switch = made.switch(spaces["host"])
        datapath = stack.enter_context(Datapath.open(None, LIMITS))
        reconciler = Reconciler(switch, datapath, Disk(scratch / "state"), Ids(), LIMITS.ports)
        goals = _goals(spaces)
        site = Site(spaces, reconciler, goals, reconciler.reconcile(Goals(1, {key_of(g): g for g in goals.values()})))
        for role, number in ROLES.items():
            server = Server(spaces[role], role, number)
            stack.callback(server.close, spaces[role])
        yield site


def test_everything_is_programmed(site: Site) -> None:
    assert [status.error for status in site.outcome.objects if status.error] == []
    assert site.outcome.general == ()
    assert site.outcome.built.shadowed == {TWIN.id}


WAYS = [
    # from the world, by mappings and without translation
    ("lan", FIRST, 8080, f"web {LAN}"), ("lan", SECOND, 8080, f"web {LAN}"), ("lan", HOST_6, 8080, f"web {LAN_6}"),
    ("lan", FIRST, 8081, f"twin {LAN}"), ("lan", WHOLE, 80, f"whole {LAN}"),
    # from the host
    ("host", "127.0.0.1", 8080, "web 192.168.1.1"), ("host", FIRST, 8080, f"web {FIRST}"),
    ("host", WEB, 80, "web 192.168.1.1"), ("host", "::1", 8080, "web fd00:1::1"),
    ("host", HOST_6, 8080, f"web {HOST_6}"),
    ("host", WEB_6, 80, "web fd00:1::1"), ("host", "127.0.0.1", 8081, "twin 192.168.1.1"),
    ("host", FIRST, 8081, f"twin {FIRST}"), ("host", "127.0.0.1", 22, "host 127.0.0.1"),
    ("host", FIRST, 22, f"host {FIRST}"),
    # hairpin: another, itself, another network, one that is shadowed
    ("app", FIRST, 8080, f"web {FIRST}"), ("web", FIRST, 8080, f"web {FIRST}"), ("web", SECOND, 8080, f"web {FIRST}"),
    ("db", FIRST, 8080, f"web {SECOND}"), ("twin", FIRST, 8080, f"web {FIRST}"), ("app", FIRST, 8081, f"twin {FIRST}"),
    ("twin", FIRST, 8081, f"twin {FIRST}"), ("app", HOST_6, 8080, f"web {HOST_6}"),
    ("app", WHOLE, 80, f"whole {FIRST}"),
    # inside, and between subnets
    ("app", WEB, 80, f"web {APP}"), ("app", FAR, 80, f"far {APP}"), ("far", WEB, 80, f"web {FAR}"),
    ("app", WEB_6, 80, f"web {APP_6}"),
    # to the world
    ("app", LAN, 80, f"lan {FIRST}"), ("db", LAN, 80, f"lan {SECOND}"), ("twin", LAN, 80, f"lan {FIRST}"),
    ("whole", LAN, 80, f"lan {WHOLE}"), ("app", LAN_6, 80, f"lan {APP_6}"), ("db", LAN_6, 80, f"lan {HOST_6}"),
    ("moved", LAN_6, 80, f"lan {OUTSIDE_6}"), ("lan", OUTSIDE_6, 80, f"moved {LAN_6}"),
    # to the host
    ("app", "192.168.1.1", 22, f"host {APP}"), ("far", "192.168.7.1", 22, f"host {FAR}"),
    ("app", "fd00:1::1", 22, f"host {APP_6}"),
]
# A UDP server of the host that listens at :: answers from the address of its route, not from the one it was asked at. A
# client that insists, as ours does, sees nothing, with or without us.
BY_TCP = [
    ("app", FIRST, 22, f"host {APP}"), ("twin", FIRST, 22, f"host {FIRST}"),
    ("twin", "192.168.1.1", 22, f"host {FIRST}"),
]
TRIED = [
    *(pytest.param(*way, kind, id=f"{way[0]}-{way[1]}-{way[2]}-{kind.name[5:].lower()}")
      for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM) for way in WAYS),
    *(pytest.param(*way, socket.SOCK_STREAM) for way in BY_TCP),
]


@pytest.mark.parametrize(("who", "address", "port", "seen", "kind"), TRIED)
def test_who_is_reached_and_whom_it_sees(
    site: Site, who: str, address: str, port: int, seen: str, kind: socket.SocketKind
) -> None:
    assert site.ask(who, address, port, kind) == seen


@pytest.mark.parametrize(("who", "address", "port"), [
    ("app", "192.168.2.5", 80),             # another network
    ("app", "127.0.0.1", 22), ("lan", FIRST, 9999), ("twin", APP, 80),
])
def test_who_is_not_reached(site: Site, who: str, address: str, port: int) -> None:
    assert site.ask(who, address, port) in ("TimeoutError", "ConnectionRefusedError", "OSError")


@pytest.mark.parametrize(("who", "address"), [
    ("app", LAN), ("app", "192.168.1.1"), ("app", FIRST), ("twin", "192.168.1.1"), ("twin", LAN), ("twin", FIRST),
    ("app", LAN_6), ("app", "fd00:1::1"), ("db", LAN_6), ("moved", LAN_6),
    ("lan", OUTSIDE_6), ("whole", LAN), ("host", WEB), ("host", WEB_6), ("lan", WHOLE),
])
def test_pings(site: Site, who: str, address: str) -> None:
    assert site.spaces[who].pings(address)


def test_link_local_addresses_reach_neighbours(site: Site) -> None:
    web = site.goals["u-web"]
    assert isinstance(web, PortGoal)
    assert site.spaces["app"].pings(f"{held_addresses(web)[-1]}%eth0")


def test_what_is_removed_is_gone_and_the_rest_goes_on(site: Site) -> None:
    """The last test: it takes the site down."""
    kept = [goal for uid, goal in site.goals.items() if uid != TWIN.id and not isinstance(goal, MappingGoal)
            and getattr(goal, "network", "") != TWIN.id]
    outcome = site.tell(*kept)
    assert outcome.general == ()
    assert [uplink.name for uplink in outcome.built.uplinks] == ["lan0"]
    assert site.ask("host", "127.0.0.1", 8080) == "ConnectionRefusedError"
    assert site.ask("app", LAN, 80) == f"lan {FIRST}"
    assert site.tell(HOST).general == ()
    assert site.spaces["host"].show("link", "show", "type", "bridge") == []
