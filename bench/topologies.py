"""The same two endpoints joined in many ways, on one host and across two. All in namespaces of our own.

raw        one veth pair between the endpoints; across hosts that is the underlay itself
vxlan      across: a point-to-point VXLAN device in each endpoint's namespace, no bridge
bridge     veth pairs on a Linux bridge; across: bridge and VXLAN with static entries
iptables   the same, with bridge netfilter, conntrack and the chains that Docker makes, and the rules
nftables   the same, with bridge netfilter, conntrack and the rules as elements of one set
docker     containers on a bridge network of a real dockerd, and the rules in DOCKER-USER (`bench.docker`)
ovs        Open vSwitch in user space, with connection tracking and the rules as flows (`bench.openvswitch`)
sluice     veth pairs with guard, acl (the rules) and vnet; across: the overlay
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from bench.docker import docker_same_host
from bench.host import HostPlan
from bench.measure import MeasureError, Pair
from bench.openvswitch import ovs_cross_host, ovs_same_host
from bench.processes import CommandFailed, run
from bench.rules import USUAL, docker_chains, use_iptables, use_nftables
from bench.site import (
    ENDPOINTS,
    MACS,
    OVERLAY_MTU,
    UNDERLAY,
    VNI,
    Site,
    add_vxlan,
    endpoint,
    peer_of,
    program,
    veth,
)

__all__ = ["ACROSS", "SAME", "SCALE_RULES", "Absent", "Builder", "Built", "built", "scale"]

SCALE_RULES = (20, 1_000, 10_000, 100_000)

Builder = Callable[[Site], Pair]
Filter = Callable[[Site, str], None]


class Absent(Exception):
    """A subject that cannot be built here, with the reason."""


@dataclass(slots=True)
class Built:
    """Subjects that stand, and why others do not."""

    pairs: dict[str, Pair] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


@contextmanager
def built(builders: dict[str, Builder]) -> Iterator[Built]:
    """Every subject at the same time; all gone afterwards. One that fails is told, not fatal."""
    with ExitStack() as stack:
        out = Built()
        for number, (subject, build) in enumerate(builders.items()):
            with ExitStack() as undo:
                site = Site(f"{subject.split('@')[0]}{number}")
                undo.callback(site.close)
                try:
                    out.pairs[subject] = build(site)
                except (Absent, CommandFailed, MeasureError) as error:
                    out.absent[subject] = str(error)
                    continue
                stack.push(undo.pop_all())
        yield out


def raw_same_host(site: Site) -> Pair:
    """One veth pair between the endpoints."""
    a, b = site.namespace("a"), site.namespace("b")
    veth(a, "eth0", b, "eth0")
    endpoint(a, 0)
    endpoint(b, 1)
    return Pair(a, b, ENDPOINTS[1], (b, "eth0"))


def bridge_same_host(site: Site, filters: Filter | None = None) -> Pair:
    """Two veth pairs on a bridge."""
    host, a, b = site.namespace("h1"), site.namespace("a"), site.namespace("b")
    run("ip", "-n", host, "link", "add", "br0", "up", "type", "bridge")
    for number, namespace in enumerate((a, b)):
        veth(host, f"port{number}", namespace, "eth0")
        run("ip", "-n", host, "link", "set", f"port{number}", "master", "br0")
        endpoint(namespace, number)
    if filters:
        filters(site, host)
    return Pair(a, b, ENDPOINTS[1], (host, "port0"))


def raw_cross_host(site: Site) -> Pair:
    """The underlay as it is: each endpoint is its own host."""
    a, b = site.namespace("a"), site.namespace("b")
    veth(a, "eth0", b, "eth0")
    endpoint(a, 0)
    endpoint(b, 1)
    return Pair(a, b, ENDPOINTS[1])


def vxlan_cross_host(site: Site) -> Pair:
    """The VXLAN devices themselves are the endpoints' interfaces."""
    hosts = _underlay(site)
    endpoints = site.namespace("a"), site.namespace("b")
    for number, (host, namespace) in enumerate(zip(hosts, endpoints, strict=True)):
        add_vxlan(host, number, "vx0")
        run("ip", "-n", host, "link", "set", "vx0", "netns", namespace, "name", "eth0", "mtu", str(OVERLAY_MTU))
        endpoint(namespace, number)
        run("ip", "-n", namespace, "link", "set", "eth0", "up")
    return Pair(*endpoints, ENDPOINTS[1])


def bridge_cross_host(site: Site, filters: Filter | None = None) -> Pair:
    """Bridge and VXLAN on each host."""
    hosts = _underlay(site)
    endpoints = site.namespace("a"), site.namespace("b")
    for number, (host, namespace) in enumerate(zip(hosts, endpoints, strict=True)):
        run("ip", "-n", host, "link", "add", "br0", "up", "type", "bridge")
        add_vxlan(host, number, "vx0")
        run("ip", "-n", host, "link", "set", "vx0", "master", "br0", "mtu", str(OVERLAY_MTU), "up")
        veth(host, "port0", namespace, "eth0")
        run("ip", "-n", host, "link", "set", "port0", "master", "br0", "mtu", str(OVERLAY_MTU))
        run("ip", "-n", namespace, "link", "set", "eth0", "mtu", str(OVERLAY_MTU))
        endpoint(namespace, number)
        if filters:
            filters(site, host)
    return Pair(*endpoints, ENDPOINTS[1])


def sluice_same_host(site: Site, rules: int = USUAL) -> Pair:
    """Both endpoints on one host of an overlay network."""
    host, a, b = site.namespace("h1"), site.namespace("a"), site.namespace("b")
    veth(host, "under0", site.namespace("peer"), "under0")     # an overlay network wants an underlay
    run("ip", "-n", host, "addr", "add", f"{UNDERLAY[0]}/24", "dev", "under0")
    program(site, host, HostPlan(UNDERLAY[0], local={0: a, 1: b}).encode(ENDPOINTS, MACS, VNI, rules))
    return Pair(a, b, ENDPOINTS[1], (host, peer_of(a, host)), (host,))


def sluice_cross_host(site: Site, rules: int = USUAL) -> Pair:
    """One endpoint on each of two hosts."""
    hosts = _underlay(site)
    endpoints = site.namespace("a"), site.namespace("b")
    for number, host in enumerate(hosts):
        plan = HostPlan(UNDERLAY[number], local={number: endpoints[number]}, remote={1 - number: UNDERLAY[1 - number]})
        program(site, host, plan.encode(ENDPOINTS, MACS, VNI, rules))
    return Pair(*endpoints, ENDPOINTS[1], programs=hosts)


def _iptables(rules: int) -> Filter:
    return lambda _, host: use_iptables(host, docker_chains(rules))


def _nftables(rules: int) -> Filter:
    return lambda site, host: use_nftables(site, host, rules)


def _unable(reason: str) -> Builder:
    def refuse(site: Site) -> Pair:
        raise Absent(reason)

    return refuse


SAME: dict[str, Builder] = {
    "raw": raw_same_host,
    "bridge": bridge_same_host,
    "iptables": partial(bridge_same_host, filters=_iptables(USUAL)),
    "nftables": partial(bridge_same_host, filters=_nftables(USUAL)),
    "docker": docker_same_host,
    "ovs": ovs_same_host,
    "sluice": sluice_same_host,
}
ACROSS: dict[str, Builder] = {
    "raw": raw_cross_host,
    "vxlan": vxlan_cross_host,
    "bridge": bridge_cross_host,
    "iptables": partial(bridge_cross_host, filters=_iptables(USUAL)),
    "nftables": partial(bridge_cross_host, filters=_nftables(USUAL)),
    "docker": _unable("a bridge network ends at its host; Docker's overlay driver wants a swarm"),
    "ovs": ovs_cross_host,
    "sluice": sluice_cross_host,
}


def scale(rules: Iterable[int], peers: Iterable[str]) -> dict[str, Builder]:
    """Subjects by number of rules: `sluice@1000`."""
    kinds: dict[str, Callable[[int], Builder]] = {
        "sluice": lambda count: partial(sluice_same_host, rules=count),
        "iptables": lambda count: partial(bridge_same_host, filters=_iptables(count)),
        "nftables": lambda count: partial(bridge_same_host, filters=_nftables(count)),
    }
    return {f"{kind}@{count}": make(count) for kind, make in kinds.items() if kind in peers for count in rules}


def _underlay(site: Site) -> tuple[str, str]:
    """Two hosts with an underlay between them."""
    hosts = site.namespace("h1"), site.namespace("h2")
    veth(hosts[0], "under0", hosts[1], "under0")
    for host, address in zip(hosts, UNDERLAY, strict=True):
        run("ip", "-n", host, "addr", "add", f"{address}/24", "dev", "under0")
    return hosts
