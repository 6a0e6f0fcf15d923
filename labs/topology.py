"""Segments and nodes as network namespaces: a pure plan of `ip` commands, and the few places that run it.

All links live in the lab's own namespaces. Each segment is a bridge in `<lab>-switch`; a node's interface is
the far end of a veth pair whose near end is a port of that bridge. IPv6 is off, so that links stay silent,
unless a node of the lab has an IPv6 address.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from labs.cross import places
from labs.errors import LabError
from labs.schema import Lab, Node

NETNS = Path("/run/netns")

# Namespaces take the initial namespace's values, which differ from host to host.
SYSCTLS = {
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}
WITHOUT_IPV6 = {
    "net.ipv6.conf.all.disable_ipv6": "1",
    "net.ipv6.conf.default.disable_ipv6": "1",
}
# Addresses are there at once, and nobody asks for routers.
WITH_IPV6 = {
    "net.ipv6.conf.all.disable_ipv6": "0",
    "net.ipv6.conf.default.disable_ipv6": "0",
    "net.ipv6.conf.all.accept_dad": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.all.accept_ra": "0",
    "net.ipv6.conf.default.accept_ra": "0",
    "net.ipv6.conf.default.router_solicitations": "0",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to make. `links` are lines for `ip -batch`, by namespace, in the order to run them."""

    namespaces: tuple[str, ...]
    sysctls: Mapping[str, Mapping[str, str]]
    links: tuple[tuple[str, tuple[str, ...]], ...]


def switch_of(lab: Lab) -> str:
    """Namespace that holds the bridges."""
    return f"{lab.name}-switch"


def plan(lab: Lab) -> Plan:
    """Everything that the lab's segments, nodes and endpoints need before a program starts."""
    switch = switch_of(lab)
    namespaces = tuple(dict.fromkeys([switch, *places(lab).values()]))
    forwarding = {f"{lab.name}-{name}": node.ip_forward for name, node in lab.nodes.items()}
    common = SYSCTLS | (WITH_IPV6 if has_ipv6(lab) else WITHOUT_IPV6)
    sysctls = {name: common | _forwarding(bool(forwarding.get(name)), has_ipv6(lab)) for name in namespaces}
    sysctls[switch] = SYSCTLS | WITHOUT_IPV6
    links = [(switch, _switch(lab))]
    links += [(f"{lab.name}-{name}", _node(lab, name, node)) for name, node in lab.nodes.items()]
    plain = [name for name in namespaces if name not in dict(links)]
    links += [(name, ("link set lo up",)) for name in plain]
    return Plan(namespaces, sysctls, tuple(links))


def has_ipv6(lab: Lab) -> bool:
    """Whether any node has an IPv6 address."""
    links = [link for node in lab.nodes.values() for link in node.interfaces.values()]
    given = [address for node in lab.nodes.values() for address in node.addresses]
    return any(address.version == 6 for address in (*given, *(a for link in links for a in link.addresses)))


def _forwarding(wanted: bool, ipv6: bool) -> dict[str, str]:
    value = "1" if wanted else "0"
    return {"net.ipv4.ip_forward": value} | ({"net.ipv6.conf.all.forwarding": value} if ipv6 else {})


def mac_of(lab: str, node: str, interface: str) -> str:
    """A locally administered address, the same in every run."""
    digest = hashlib.sha256(f"{lab}/{node}/{interface}".encode()).digest()
    return "02:" + ":".join(f"{byte:02x}" for byte in digest[:5])


def _switch(lab: Lab) -> tuple[str, ...]:
    lines = ["link set lo up"]
    for name, segment in lab.segments.items():
        # No spanning tree, no multicast snooping: a bridge that sends nothing of its own.
        lines += [f"link add {name} mtu {segment.mtu} type bridge stp_state 0 mcast_snooping 0",
                  f"link set {name} up"]
    number = 0
    for node_name, node in lab.nodes.items():
        for interface, link in node.interfaces.items():
            number += 1
            mtu = lab.segments[link.segment].mtu
            lines += [f"link add p{number} mtu {mtu} type veth peer name {interface} "
                      f"address {link.mac or mac_of(lab.name, node_name, interface)} mtu {mtu} "
                      f"netns {lab.name}-{node_name}",
                      f"link set p{number} master {link.segment} alias {node_name}/{interface} up"]
    return tuple(lines)


def _node(lab: Lab, name: str, node: Node) -> tuple[str, ...]:
    lines = ["link set lo up"]
    lines += [f"address add {address} dev lo" for address in node.addresses]
    for interface, link in node.interfaces.items():
        lines += [f"address add {address} dev {interface}" for address in link.addresses]
        lines.append(f"link set {interface} up")
        if lab.segments[link.segment].static_neighbours:
            lines += [f"neighbour replace {address} lladdr {mac} dev {interface} nud permanent"
                      for address, mac in _neighbours(lab, link.segment, but=name)]
    lines += [f"route add {route.to} via {route.via}" + (f" mtu {route.mtu}" if route.mtu else "")
              for route in node.routes]
    return tuple(lines)


def _neighbours(lab: Lab, segment: str, but: str) -> Iterable[tuple[str, str]]:
    for name, node in lab.nodes.items():
        for interface, link in node.interfaces.items():
            if name != but and link.segment == segment:
                for address in link.addresses:
                    yield str(address.ip), link.mac or mac_of(lab.name, name, interface)


def occupied(wanted: Plan) -> list[str]:
    """Namespaces of the plan that exist already."""
    return [name for name in wanted.namespaces if (NETNS / name).exists()]


def build(wanted: Plan) -> None:
    """Make it so.

    Raises:
        LabError: a namespace or link could not be made; says which, and the kernel's answer.
    """
    _batch([f"netns add {name}" for name in wanted.namespaces])
    for name, values in wanted.sysctls.items():
        settings = [f"{key}={value}" for key, value in values.items()]
        _run(["nsenter", f"--net={NETNS / name}", "sysctl", "-qw", *settings])
    for name, lines in wanted.links:
        _batch(lines, name)


def remove(namespaces: Iterable[str]) -> list[str]:
    """Remove namespaces, with all that is in them; returns those that could not be removed."""
    there = [name for name in namespaces if (NETNS / name).exists()]
    if there:
        subprocess.run(["ip", "-force", "-batch", "-"], input="".join(f"netns delete {n}\n" for n in there),
                       capture_output=True, text=True, check=False, start_new_session=True)
    return [name for name in there if (NETNS / name).exists()]


def _batch(lines: Iterable[str], namespace: str = "") -> None:
    inside = ["-netns", namespace] if namespace else []
    _run(["ip", *inside, "-batch", "-"], "".join(line + "\n" for line in lines))


def _run(command: list[str], text: str = "") -> None:
    # A session of its own: Ctrl-C is for the runner, which then removes what is half made.
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False,
                          start_new_session=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"`{' '.join(command)}` failed: {said}; commands were:\n{text}"
                       "a lab needs root and Debian's iproute2, util-linux and procps")
