"""Matches, actions and dropped packets as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vfp.model import (
    ETH_P_ARP,
    ETH_P_IP,
    ETH_P_IPV6,
    Action,
    Allow,
    AnswerArp,
    Deny,
    Forward,
    Hairpin,
    Inspect,
    Log,
    Mark,
    Match,
    Meter,
    Mirror,
    Pass,
    PortRange,
    Reject,
    Rewrite,
    Switch,
    ToUplink,
    TranslatePrefix,
    TranslateSource,
    Untranslate,
)

__all__ = ["action_text", "match_text", "packet_text"]

_ETHERTYPES = {ETH_P_IP: "ip", ETH_P_ARP: "arp", ETH_P_IPV6: "ipv6"}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}


def match_text(match: Match, sets: Mapping[int, str] = MappingProxyType({})) -> str:
    """`tcp src 10.1.0.0/24 dport 80`; `any` for a match without conditions. `sets`: their names by id."""
    words: list[str] = []
    if match.protocol is not None and match.ethertype != ETH_P_ARP:
        words.append(_PROTOCOLS.get(match.protocol, f"protocol {match.protocol}"))
    elif match.ethertype is not None:
        words.append(_ETHERTYPES.get(match.ethertype, f"ethertype {match.ethertype:#06x}"))
        if match.protocol is not None:
            words.append(f"opcode {match.protocol}")
    for name, mac in (("smac", match.src_mac), ("dmac", match.dst_mac)):
        if mac is not None:
            words.append(f"{name} {mac.hex(':')}")
    for name, prefix in (("src", match.src), ("dst", match.dst)):
        if prefix is not None:
            words.append(f"{name} {prefix.network_address if prefix.prefixlen == prefix.max_prefixlen else prefix}")
    for name, identity in (("src set", match.src_set), ("dst set", match.dst_set)):
        if identity is not None:
            words.append(f"{name} {sets.get(identity) or identity}")
    for name, ports in (("sport", match.src_ports), ("dport", match.dst_ports)):
        if ports is not None:
            words.append(f"{name} {_ports(ports)}")
    if match.icmp_type is not None:
        words.append(f"type {match.icmp_type}")
    if match.icmp_code is not None:
        words.append(f"code {match.icmp_code}")
    if match.tcp_flags is not None:
        words.append(f"flags {match.tcp_flags[1]:#04x}/{match.tcp_flags[0]:#04x}")
    if match.dscp is not None:
        words.append(f"dscp {match.dscp}")
    if match.vni is not None:
        words.append(f"vni {match.vni}")
    if match.fragment is not None:
        words.append("fragment" if match.fragment else "no fragment")
    if match.mapped is not None:
        words.append("mapped" if match.mapped else "not mapped")
    if match.arp_sender_is_source or match.nd_sender_is_source:
        words.append("sender = smac")
    return " ".join(words) or "any"


def action_text(action: Action) -> str:
    """`allow`, `forward space 5001`, ..."""
    match action:
        case Allow() | Deny() | Pass() | Untranslate() | Reject():
            return type(action).__name__.lower()
        case TranslateSource(pool):
            return f"translate source from pool {pool}"
        case TranslatePrefix(internal, external):
            return f"translate prefix {internal} to {external}"
        case Hairpin(pool):
            return f"hairpin, as from pool {pool}"
        case Forward(space):
            return f"forward space {space}"
        case ToUplink(uplink):
            return f"to uplink {uplink}"
        case Switch(space):
            return f"switch in space {space}"
        case AnswerArp(space):
            return f"answer arp from space {space}"
        case Rewrite():
            ends = (("src", action.src), ("dst", action.dst))
            ports = (("sport", action.src_port), ("dport", action.dst_port))
            return "rewrite " + " ".join(f"{name} {value}" for name, value in ends + ports if value is not None)
        case Mark(dscp):
            return f"mark dscp {dscp}"
        case Meter(meter):
            return f"meter {meter}"
        case Log(every):
            return f"log every {every} packets" if every else "log"
        case Mirror(port):
            return f"mirror to port {port}"
        case Inspect(queue, fail_open):
            return f"inspect by queue {queue}{', or pass' if fail_open else ''}"


def packet_text(
    ethertype: int,
    protocol: int,
    src: object,
    dst: object,
    src_port: int,
    dst_port: int,
    macs: tuple[bytes, bytes],
    length: int,
) -> str:
    """`tcp 10.1.0.2:4711 > 10.1.0.3:80, 02:..:07 > 02:..:01, 74 bytes`."""
    addresses = f"{_end(src, src_port)} > {_end(dst, dst_port)}"
    if ethertype == ETH_P_IP:
        head = f"{_PROTOCOLS.get(protocol, f'protocol {protocol}')} {addresses}"
    elif ethertype == ETH_P_ARP:
        head = f"arp {src} asks for {dst}" if protocol == 1 else f"arp {src} tells {dst}"
    else:
        head = _ETHERTYPES.get(ethertype, f"ethertype {ethertype:#06x}")
    return f"{head}, {macs[0].hex(':')} > {macs[1].hex(':')}, {length} bytes"


def _ports(ports: PortRange) -> str:
    return str(ports.low) if ports.low == ports.high else f"{ports.low}-{ports.high}"


def _end(address: object, port: int) -> str:
    return f"{address}:{port}" if port else str(address)
