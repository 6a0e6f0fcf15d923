"""The same two endpoints joined in four ways, on one host and across two. All in namespaces of our own.

raw       same host: one veth pair. Across: a point-to-point VXLAN device in each endpoint's namespace, no bridge
bridge    veth pairs on a Linux bridge; across: bridge and VXLAN with static entries
iptables  the same, with bridge netfilter, conntrack and the chains Docker makes, and 20 rules
sluice    veth pairs with guard, acl (20 rules) and vnet; across: the overlay
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.host import GOALS, HostPlan
from bench.measure import Pair, inside

UNDERLAY = ("172.31.9.1", "172.31.9.2")
ENDPOINTS = ("10.9.0.1", "10.9.0.2")
MACS = ("02:09:00:00:00:01", "02:09:00:00:00:02")
VNI = 900
OVERLAY_MTU = 1450
RULES = 20


class Site:
    """Namespaces of one subject, removed with everything in them. `name` keeps subjects apart."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._made: list[str] = []
        self.pins: list[Path] = []

    def namespace(self, part: str) -> str:
        """A new namespace with loopback up and IPv6 off."""
        name = f"bench-{self.name}-{part}"
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)  # of a run that was killed
        run("ip", "netns", "add", name)
        self._made.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        quiet = ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        # Bridge netfilter is on in a new namespace; only the subject that is about it pays for it.
        plain = ("net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-arptables=0")
        run(*inside(name, "sysctl", "-eqw", *quiet, *plain))
        return name

    def close(self) -> None:
        """Remove what was made."""
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        for pins in self.pins:
            subprocess.run(["rm", "-rf", str(pins)], check=False)


def run(*command: str) -> None:
    """Run, or raise with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")


def veth(one: str, one_name: str, other: str, other_name: str) -> None:
    """A pair between two namespaces, both ends up."""
    run("ip", "-n", one, "link", "add", one_name, "type", "veth", "peer", "name", other_name, "netns", other)
    run("ip", "-n", one, "link", "set", one_name, "up")
    run("ip", "-n", other, "link", "set", other_name, "up")


def endpoint(namespace: str, number: int, interface: str = "eth0") -> None:
    """Give the endpoint's interface its MAC and address."""
    run("ip", "-n", namespace, "link", "set", interface, "address", MACS[number])
    run("ip", "-n", namespace, "addr", "add", f"{ENDPOINTS[number]}/24", "dev", interface)


def underlay(site: Site) -> tuple[str, str]:
    """Two hosts with an underlay between them."""
    hosts = site.namespace("h1"), site.namespace("h2")
    veth(hosts[0], "under0", hosts[1], "under0")
    for host, address in zip(hosts, UNDERLAY, strict=True):
        run("ip", "-n", host, "addr", "add", f"{address}/24", "dev", "under0")
    return hosts


def add_vxlan(host: str, number: int, name: str) -> None:
    """A VXLAN device to the other host only, that learns nothing."""
    run(
        "ip", "-n", host, "link", "add", name, "type", "vxlan", "id", str(VNI), "dstport", "4789", "local",
        UNDERLAY[number], "remote", UNDERLAY[1 - number], "dev", "under0", "nolearning",
    )


def docker_rules(host: str) -> None:
    """Chains as dockerd 20.10 makes them, and as many rules as Sluice's acl gets."""
    run(*inside(host, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1", "net.ipv4.ip_forward=1"))
    lines = [
        "*filter", ":FORWARD DROP", ":DOCKER-USER -", ":DOCKER -", ":ISOLATION-1 -", ":ISOLATION-2 -",
        "-A FORWARD -j DOCKER-USER", "-A FORWARD -j ISOLATION-1",
        "-A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -o br0 -j DOCKER", "-A FORWARD -i br0 ! -o br0 -j ACCEPT", "-A FORWARD -i br0 -o br0 -j ACCEPT",
        "-A ISOLATION-1 -i br0 ! -o br0 -j ISOLATION-2", "-A ISOLATION-1 -j RETURN",
        "-A ISOLATION-2 -o br0 -j DROP", "-A ISOLATION-2 -j RETURN",
        *(f"-A DOCKER-USER -p tcp --dport {20000 + rule} -j DROP" for rule in range(RULES)),
        "-A DOCKER-USER -j RETURN", "COMMIT",
    ]
    done = subprocess.run(
        inside(host, "iptables-restore"), input="\n".join(lines) + "\n", capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"iptables-restore in {host}: {done.stderr}")


def raw_same_host(site: Site) -> Pair:
    """One veth pair between the endpoints."""
    a, b = site.namespace("a"), site.namespace("b")
    veth(a, "eth0", b, "eth0")
    endpoint(a, 0)
    endpoint(b, 1)
    return Pair(a, b, ENDPOINTS[1])


def bridge_same_host(site: Site, filtered: bool = False) -> Pair:
    """Two veth pairs on a bridge."""
    host, a, b = site.namespace("h1"), site.namespace("a"), site.namespace("b")
    run("ip", "-n", host, "link", "add", "br0", "up", "type", "bridge")
    for number, namespace in enumerate((a, b)):
        veth(host, f"port{number}", namespace, "eth0")
        run("ip", "-n", host, "link", "set", f"port{number}", "master", "br0")
        endpoint(namespace, number)
    if filtered:
        docker_rules(host)
    return Pair(a, b, ENDPOINTS[1])


def raw_cross_host(site: Site) -> Pair:
    """The VXLAN devices themselves are the endpoints' interfaces."""
    hosts = underlay(site)
    endpoints = site.namespace("a"), site.namespace("b")
    for number, (host, namespace) in enumerate(zip(hosts, endpoints, strict=True)):
        add_vxlan(host, number, "vx0")
        run("ip", "-n", host, "link", "set", "vx0", "netns", namespace, "name", "eth0", "mtu", str(OVERLAY_MTU))
        endpoint(namespace, number)
        run("ip", "-n", namespace, "link", "set", "eth0", "up")
    return Pair(*endpoints, ENDPOINTS[1])


def bridge_cross_host(site: Site, filtered: bool = False) -> Pair:
    """Bridge and VXLAN on each host."""
    hosts = underlay(site)
    endpoints = site.namespace("a"), site.namespace("b")
    for number, (host, namespace) in enumerate(zip(hosts, endpoints, strict=True)):
        run("ip", "-n", host, "link", "add", "br0", "up", "type", "bridge")
        add_vxlan(host, number, "vx0")
        run("ip", "-n", host, "link", "set", "vx0", "master", "br0", "mtu", str(OVERLAY_MTU), "up")
        veth(host, "port0", namespace, "eth0")
        run("ip", "-n", host, "link", "set", "port0", "master", "br0", "mtu", str(OVERLAY_MTU))
        run("ip", "-n", namespace, "link", "set", "eth0", "mtu", str(OVERLAY_MTU))
        endpoint(namespace, number)
        if filtered:
            docker_rules(host)
    return Pair(*endpoints, ENDPOINTS[1])


def sluice_same_host(site: Site) -> Pair:
    """Both endpoints on one host of an overlay network."""
    host, a, b = site.namespace("h1"), site.namespace("a"), site.namespace("b")
    veth(host, "under0", site.namespace("peer"), "under0")     # an overlay network wants an underlay
    run("ip", "-n", host, "addr", "add", f"{UNDERLAY[0]}/24", "dev", "under0")
    program(site, host, HostPlan(UNDERLAY[0], local={0: a, 1: b}))
    return Pair(a, b, ENDPOINTS[1])


def sluice_cross_host(site: Site) -> Pair:
    """One endpoint on each of two hosts."""
    hosts = underlay(site)
    endpoints = site.namespace("a"), site.namespace("b")
    for number, host in enumerate(hosts):
        plan = HostPlan(UNDERLAY[number], local={number: endpoints[number]}, remote={1 - number: UNDERLAY[1 - number]})
        program(site, host, plan)
    return Pair(*endpoints, ENDPOINTS[1])


def program(site: Site, host: str, plan: HostPlan) -> None:
    """Let the agent's reconciler make it so, in the host's namespace; the data path stays when it has gone."""
    pins = Path(f"/sys/fs/bpf/sluice-{host}")
    subprocess.run(["rm", "-rf", str(pins)], check=False)
    site.pins.append(pins)
    environment = {**os.environ, GOALS: plan.encode(ENDPOINTS, MACS, VNI, RULES)}
    command = inside(host, sys.executable, "-m", "bench.host", str(pins))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"programming {host}: {done.stderr.strip()[-2000:]}")


BUILDERS: dict[str, dict[str, Callable[[Site], Pair]]] = {
    "same-host": {
        "raw": raw_same_host,
        "bridge": bridge_same_host,
        "iptables": lambda site: bridge_same_host(site, filtered=True),
        "sluice": sluice_same_host,
    },
    "cross-host": {
        "raw": raw_cross_host,
        "bridge": bridge_cross_host,
        "iptables": lambda site: bridge_cross_host(site, filtered=True),
        "sluice": sluice_cross_host,
    },
}


@contextmanager
def built(case: str) -> Iterator[dict[str, Pair]]:
    """Every subject of a case at the same time; all gone afterwards."""
    with ExitStack() as stack:
        pairs: dict[str, Pair] = {}
        for subject, build in BUILDERS[case].items():
            site = Site(subject)
            stack.callback(site.close)
            pairs[subject] = build(site)
        yield pairs
