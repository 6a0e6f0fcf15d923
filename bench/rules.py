"""The same rules for everybody, as Sluice, iptables, nftables and Open vSwitch say it: TCP connections to refuse.

None of them matches the traffic that is measured, so every new connection is held against all. Three shapes in a mix:
half name one address, a quarter a /28, a quarter a /24, each with one destination port.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network

from bench.processes import inside, run
from bench.site import Site
from southbound.messages import AclRule

__all__ = ["USUAL", "acl", "docker_chains", "docker_user", "openflow", "refused", "use_iptables", "use_nftables"]

USUAL = 20                                  # rules, where the number is not what is measured
_HOSTS, _WIDE, _WIDEST = IPv4Network("100.64.0.0/11"), IPv4Network("100.96.0.0/12"), IPv4Network("100.112.0.0/12")
_FIRST_PORT = 20000
_LOAD_S = 40.0                              # a peer that takes longer to take its rules does not finish
_FILTER = ("net.bridge.bridge-nf-call-iptables=1", "net.ipv4.ip_forward=1")


@dataclass(frozen=True, slots=True)
class Refused:
    """TCP connections of whoever is in `prefix` to `port`."""

    prefix: str
    port: int


def refused(count: int) -> Iterator[Refused]:
    """`count` rules, no two alike."""
    for number in range(count):
        index, kind = divmod(number, 4)
        if kind < 2:
            yield _in(_HOSTS, 32, 2 * index + kind)
        else:
            yield _in(*((_WIDE, 28) if kind == 2 else (_WIDEST, 24)), index)


def acl(count: int) -> tuple[AclRule, ...]:
    """As an endpoint's policy, in both directions."""
    return tuple(
        AclRule(number % 65536, direction, "deny", (rule.prefix,), 6, ((rule.port, rule.port),), f"rule {number}")
        for direction in ("in", "out") for number, rule in enumerate(refused(count))
    )


def docker_chains(count: int) -> str:
    """For iptables-restore: the chains dockerd 20.10 makes, the rules where it tells users to put theirs."""
    return "\n".join([
        "*filter", ":FORWARD DROP", ":DOCKER-USER -", ":DOCKER -", ":ISOLATION-1 -", ":ISOLATION-2 -",
        "-A FORWARD -j DOCKER-USER", "-A FORWARD -j ISOLATION-1",
        "-A FORWARD -o br0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -o br0 -j DOCKER", "-A FORWARD -i br0 ! -o br0 -j ACCEPT", "-A FORWARD -i br0 -o br0 -j ACCEPT",
        "-A ISOLATION-1 -i br0 ! -o br0 -j ISOLATION-2", "-A ISOLATION-1 -j RETURN",
        "-A ISOLATION-2 -o br0 -j DROP", "-A ISOLATION-2 -j RETURN",
        *_user_rules(count), "-A DOCKER-USER -j RETURN", "COMMIT", "",
    ])


def docker_user(count: int) -> str:
    """For iptables-restore --noflush, beside a real dockerd's own chains."""
    return "\n".join(["*filter", "-F DOCKER-USER", *_user_rules(count), "-A DOCKER-USER -j RETURN", "COMMIT", ""])


def nftables_ruleset(count: int) -> str:
    """For nft -f: established first, then one set of address ranges and ports."""
    elements = ",\n".join(f"{rule.prefix} . {rule.port}" for rule in refused(count))
    return (
        "table ip bench {\n"
        " set refused { type ipv4_addr . inet_service; flags interval; elements = {\n"
        f"{elements} }} }}\n"
        " chain forward { type filter hook forward priority 0; policy drop;\n"
        "  ct state established,related accept\n"
        "  ip saddr . tcp dport @refused drop\n"
        '  iifname "br0" oifname "br0" accept\n'
        " }\n}\n"
    )


def openflow(count: int) -> str:
    """For ovs-ofctl replace-flows: connection tracking, established first."""
    return "\n".join([
        "table=0,priority=20,arp,actions=NORMAL",
        "table=0,priority=10,ip,actions=ct(table=1)",
        "table=1,priority=200,ip,ct_state=+trk+est,actions=NORMAL",
        *(f"table=1,priority=100,tcp,ct_state=+trk+new,nw_src={rule.prefix},tp_dst={rule.port},actions=drop"
          for rule in refused(count)),
        "table=1,priority=10,ip,ct_state=+trk+new,actions=ct(commit),NORMAL", "",
    ])


def use_iptables(host: str, chains: str, *options: str) -> None:
    """Load chains into a host whose bridge is filtered."""
    run(*inside(host, "sysctl", "-eqw", *_FILTER))
    run(*inside(host, "iptables-restore", *options), text=chains, limit_s=_LOAD_S)


def use_nftables(site: Site, host: str, count: int) -> None:
    """Load the table into a host whose bridge is filtered. Emptied first in the end: a namespace frees it late."""
    run(*inside(host, "sysctl", "-eqw", *_FILTER))
    run(*inside(host, "nft", "-f", "-"), text=nftables_ruleset(count), limit_s=_LOAD_S)
    site.stack.callback(partial(run, *inside(host, "nft", "flush", "ruleset"), limit_s=_LOAD_S))


def _in(network: IPv4Network, length: int, index: int) -> Refused:
    places = 1 << (length - network.prefixlen)
    round_, place = divmod(index, places)
    first = int(network.network_address) + (place << (32 - length))
    return Refused(str(IPv4Network((first, length))), _FIRST_PORT + round_)


def _user_rules(count: int) -> Iterator[str]:
    return (f"-A DOCKER-USER -s {rule.prefix} -p tcp --dport {rule.port} -j DROP" for rule in refused(count))
