"""An endpoint behind a host that translates, and the world; the same for Sluice, iptables and nftables.

    a ──veth── ┐
               h1 ──up0──veth── w
    c ──veth── ┘

Outbound: `a` asks `w` by source translation, while the host keeps a number of bindings of `c` alive (of conntrack: as
many entries): UDP, echo and half-open TCP to an address that does not answer. Inbound: `w` asks `a` by one of a number
of static mappings, each of one port to another one of `c`, except the five that lead to `a`, which are the middle ones.

Peers in their best form: no bridge, no filter, nothing but the translation. iptables has a rule a mapping, since it
knows no tables of translations; nftables looks mappings up in a map.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

from bench.host import NatPlan
from bench.measure import HTTP_PORT, IPERF_PORT, TCP_PORT, UDP_PORT, MeasureError, Pair
from bench.packets import SINK_PORT, internet_checksum, mac_of
from bench.processes import inside, run, within
from bench.site import Site, peer_of, program, veth

__all__ = ["BINDINGS", "INBOUND", "MAPPINGS", "OUTBOUND", "PEERS", "Static", "inbound", "outbound", "static_mappings"]

OUTBOUND, INBOUND = "nat-out", "nat-in"
BINDINGS = (1, 1_000, 100_000)
MAPPINGS = (10, 1_000, 30_000)
PEERS = ("iptables", "nftables")
HOST, WORLD, SILENT = "172.31.9.1", "172.31.9.2", "198.51.100.1"
ENDPOINT, CROWD = "10.9.0.1", "10.9.1.1"
NAT_PORTS = (20000, 65535)
LIFE_S = 3600                               # of what nobody answers: longer than the benchmark
_CLIENT_PORTS = "40000 60000"               # fewer than the ports that the crowd leaves free
_FIRST_MAPPED = 4000                        # TCP and UDP ports from here on are mapped
_MEASURED = ((6, IPERF_PORT), (6, HTTP_PORT), (6, TCP_PORT), (17, UDP_PORT), (17, SINK_PORT))
_SHARES = ((17, 0.40), (6, 0.15), (1, 0.45))            # of the bindings, by protocol: TCP keeps ports for `a`
_LOAD_S = 60.0

Builder = Callable[[Site], Pair]


@dataclass(frozen=True, slots=True)
class Static:
    """One port of the host, and where it leads."""

    protocol: int
    external_port: int
    address: str
    port: int


def outbound(sizes: Iterable[int], peers: Iterable[str]) -> dict[str, Builder]:
    """Subjects by live bindings: `sluice@1000`."""
    return {
        f"{subject}@{size}": partial(_outbound, subject=subject, bindings=size)
        for subject in ("sluice", *(peer for peer in PEERS if peer in peers)) for size in sizes
    }


def inbound(sizes: Iterable[int], peers: Iterable[str]) -> dict[str, Builder]:
    """Subjects by static mappings."""
    return {
        f"{subject}@{size}": partial(_inbound, subject=subject, mappings=size)
        for subject in ("sluice", *(peer for peer in PEERS if peer in peers)) for size in sizes
    }


def static_mappings(count: int) -> list[Static]:
    """`count` mappings in their order; half TCP, half UDP, one external port each, no two in a row to the next port."""
    measured = [Static(protocol, port, ENDPOINT, port) for protocol, port in _MEASURED]
    taken = {(each.protocol, each.external_port) for each in measured}
    others: list[Static] = []
    port, left = _FIRST_MAPPED, count - len(measured)
    while len(others) < left:
        others += [Static(protocol, port, CROWD, 1024 + port * 7919 % 60000) for protocol in (6, 17)
                   if (protocol, port) not in taken]
        port += 1
    others = others[:left]
    return [*others[:left // 2], *measured, *others[left // 2:]]


def _outbound(site: Site, subject: str, bindings: int) -> Pair:
    made = _gateway(site, subject, ())
    run(*inside(made.endpoint, "sysctl", "-eqw", f"net.ipv4.ip_local_port_range={_CLIENT_PORTS}"))
    if bindings > 1:
        _fill(made, bindings)
    return Pair(made.endpoint, made.world, WORLD, (made.host, made.port), made.programs, via=made.port_mac)


def _inbound(site: Site, subject: str, mappings: int) -> Pair:
    made = _gateway(site, subject, static_mappings(mappings))
    return Pair(
        made.world, made.endpoint, HOST, (made.host, "up0"), made.programs, via=_mac(made.host, "up0"), listen=ENDPOINT
    )


@dataclass(frozen=True, slots=True)
class _Gateway:
    """Namespaces; `port` is the host's link to the endpoint, with the MAC that endpoints send to."""

    host: str
    endpoint: str
    crowd: str
    world: str
    port: str
    port_mac: bytes
    crowd_mac: bytes                        # that the crowd sends to
    programs: tuple[str, ...] = ()


def _gateway(site: Site, subject: str, mappings: Iterable[Static]) -> _Gateway:
    host, endpoint, crowd, world = (site.namespace(part) for part in ("h1", "a", "c", "w"))
    veth(host, "up0", world, "eth0")
    run("ip", "-n", host, "addr", "add", f"{HOST}/24", "dev", "up0")
    run("ip", "-n", world, "addr", "add", f"{WORLD}/24", "dev", "eth0")
    run("ip", "-n", host, "route", "add", "default", "via", WORLD)
    run(*inside(world, "sysctl", "-eqw", "net.ipv4.ip_forward=0"))
    if subject == "sluice":
        plan = NatPlan(
            {"a": (endpoint, ENDPOINT), "c": (crowd, CROWD)}, NAT_PORTS, LIFE_S,
            tuple((each.protocol, each.external_port, each.address, each.port) for each in mappings),
        )
        program(site, host, plan.encode())
        mac = bytes.fromhex(plan.gateway_mac.replace(":", ""))
        return _Gateway(host, endpoint, crowd, world, peer_of(endpoint, host), mac, mac, (host,))
    for namespace, address, link in ((endpoint, ENDPOINT, "port0"), (crowd, CROWD, "port1")):
        gateway = address.rpartition(".")[0] + ".254"
        veth(host, link, namespace, "eth0")
        run("ip", "-n", host, "addr", "add", f"{gateway}/24", "dev", link)
        run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", namespace, "route", "add", "default", "via", gateway)
    _translate(site, host, subject, mappings)
    return _Gateway(host, endpoint, crowd, world, "port0", _mac(host, "port0"), _mac(host, "port1"))


def _translate(site: Site, host: str, subject: str, mappings: Iterable[Static]) -> None:
    load, text = ("iptables-restore", _iptables(mappings)) if subject == "iptables" else (
        "nft -f -", _nftables(mappings))
    run(*inside(host, *load.split()), text=text, limit_s=_LOAD_S)
    if subject != "iptables":               # a namespace frees it late
        site.stack.callback(partial(run, *inside(host, "nft", "flush", "ruleset"), limit_s=_LOAD_S))
    lives = ("udp_timeout", "icmp_timeout", "tcp_timeout_syn_sent")
    run(*inside(host, "sysctl", "-qw", "net.ipv4.ip_forward=1",
                *(f"net.netfilter.nf_conntrack_{life}={LIFE_S}" for life in lives)))


def _iptables(mappings: Iterable[Static]) -> str:
    names = {6: "tcp", 17: "udp"}
    return "\n".join([
        "*nat",
        *(f"-A PREROUTING -i up0 -d {HOST} -p {names[each.protocol]} --dport {each.external_port} -j DNAT"
          f" --to-destination {each.address}:{each.port}" for each in mappings),
        "-A POSTROUTING -o up0 -j MASQUERADE", "COMMIT", "",
    ])


def _nftables(mappings: Iterable[Static]) -> str:
    mappings, maps, rules = list(mappings), [], []
    for protocol, name in ((6, "tcp"), (17, "udp")):
        elements = ",\n".join(
            f"{each.external_port} : {each.address} . {each.port}" for each in mappings if each.protocol == protocol)
        if elements:
            sort = "type inet_service : ipv4_addr . inet_service"
            maps.append(f" map {name}s {{ {sort}; elements = {{\n{elements} }} }}\n")
            rules.append(f'  iifname "up0" ip daddr {HOST} dnat ip to {name} dport map @{name}s\n')
    return (
        "table ip bench {\n" + "".join(maps) + " chain in { type nat hook prerouting priority dstnat;\n"
        + "".join(rules) + " }\n"
        ' chain out { type nat hook postrouting priority srcnat; oifname "up0" masquerade; }\n}\n'
    )


def _fill(made: _Gateway, count: int) -> None:
    """`count` flows of the crowd, each from a port of its own; all have arrived in the world once."""
    frames = list(_crowd(count, made.crowd_mac, mac_of(made.crowd)))
    with within(made.crowd):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        raw.bind(("eth0", 0))
    with raw:
        for _ in range(3):                  # a queue on the way may have been full
            before = _received(made.world)
            for frame in frames:
                raw.send(frame)
            arrived = _received(made.world) - before
            if arrived >= len(frames):
                return
    raise MeasureError(f"{arrived:,} of {len(frames):,} new flows reach the world through {made.host}")


def _crowd(count: int, to: bytes, sender: bytes) -> Iterator[bytes]:
    low, high = NAT_PORTS
    addresses = IPv4Address(CROWD).packed + IPv4Address(SILENT).packed
    left = count
    for protocol, share in _SHARES:
        of_this = left if protocol == _SHARES[-1][0] else round(count * share)
        left -= of_this
        for number in range(of_this):
            port = low + number * (high - low + 1) // of_this
            body = _transport(protocol, port, addresses)
            header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, protocol, 0) + addresses
            header = header[:10] + internet_checksum(header) + header[12:]
            yield to + sender + b"\x08\x00" + header + body


def _transport(protocol: int, port: int, addresses: bytes) -> bytes:
    if protocol == 17:
        return struct.pack(">HHHH", port, 9, 8, 0)
    if protocol == 1:
        echo = struct.pack(">BBHHH", 8, 0, 0, port, 1)
        return echo[:2] + internet_checksum(echo) + echo[4:]
    syn = struct.pack(">HHIIBBHHH", port, 9, 1, 0, 0x50, 2, 8192, 0, 0)
    return syn[:16] + internet_checksum(addresses + struct.pack(">HH", 6, len(syn)) + syn) + syn[18:]


def _received(namespace: str) -> int:
    (link,) = json.loads(run("ip", "-s", "-j", "-n", namespace, "link", "show", "eth0"))
    return int(link["stats64"]["rx"]["packets"])


def _mac(namespace: str, link: str) -> bytes:
    (found,) = json.loads(run("ip", "-j", "-n", namespace, "link", "show", link))
    return bytes.fromhex(found["address"].replace(":", ""))
