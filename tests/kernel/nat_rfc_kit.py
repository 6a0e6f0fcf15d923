"""A host that translates for two endpoints, in either engine, and packets through it that scapy makes and reads.

    A 192.168.0.3 (port 3) ┐
                           host, 198.51.100.1 ── uplink 1 ── world
    B 192.168.0.4 (port 4) ┘

Every frame that leaves is held against one whose checksums scapy has computed anew.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from engine_backends import LIMITS, Backend, BpfBackend, ReferenceBackend
from engine_frames import checksum
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from vfp.model import (
    ETH_P_IP,
    ETH_P_IPV6,
    Action,
    Allow,
    EngineState,
    Forward,
    Group,
    Hairpin,
    Layer,
    LocalPort,
    Mapping,
    Match,
    Pool,
    Port,
    PortRange,
    PrefixMapping,
    Rule,
    Space,
    ToUplink,
    TranslatePrefix,
    TranslateSource,
    Untranslate,
    Uplink,
)
from vfp.reasons import DropReason
from vfp.reference import Hook

A, B, EXTERNAL, SECOND = "192.168.0.3", "192.168.0.4", "198.51.100.1", "198.51.100.2"
WORLD, OTHER, ROUTER = "203.0.113.7", "203.0.113.8", "203.0.113.1"
PORTS = {A: 3, B: 4}
LOW, HIGH = 20000, 20099
ROOMY = replace(LIMITS, half_open=1000, udp=2000)   # budgets are not what these tests are about
_SPACE, _UPLINK, _POOL = 1 << 24, 1, 1
_ERROR_HEAD = 14 + 20 + 8                   # before the quotation
_GATEWAY, _ROUTER_MAC = bytes.fromhex("0200000000fe"), bytes.fromhex("0200000000aa")


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Two prefixes of one length, and A's address in the internal one."""

    internal: IPv6Network
    external: IPv6Network
    endpoint: IPv6Address


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of a packet: where it went, or why it was dropped, and how it looks now."""

    verdict: str
    reason: DropReason
    target: int
    packet: Packet
    frame: bytes

    @property
    def port(self) -> int:
        """The source port, or identifier, that the world sees."""
        return int(self.packet[ICMP].id if ICMP in self.packet else self.packet[IP].payload.sport)


def mac(port: int) -> bytes:
    """Of an endpoint."""
    return bytes((2, 0, 0, 0, 0, port))


def pool(**changed: Any) -> Pool:
    """The pool of both endpoints."""
    return replace(Pool(_POOL, _UPLINK, (IPv4Address(EXTERNAL),), PortRange(LOW, HIGH)), **changed)


def mapping(protocol: int, external_port: int, to: str, port: int, external: str = EXTERNAL) -> Mapping:
    """A static mapping to an endpoint."""
    return Mapping(_UPLINK, protocol, IPv4Address(external), external_port, PORTS[to], IPv4Address(to), port)


def state(*pools: Pool, mappings: tuple[Mapping, ...] = (), hairpin: bool = False,
          untranslated: tuple[str, ...] = (), prefix: Prefixes | None = None) -> EngineState:
    """The host; the first pool serves both endpoints. `prefix`: IPv6 is translated by prefix (RFC 6296)."""
    pools = pools or (pool(),)

    def rules(name: str, *actions: tuple[Action, Match]) -> Group:
        return Group(name, tuple(Rule(number, match, action, f"{name} {number}")
                                 for number, (action, match) in enumerate(actions)))

    any4, any6 = Match(ethertype=ETH_P_IP), Match(ethertype=ETH_P_IPV6)
    inside = IPv4Network("192.168.0.0/24")
    nat = Layer("nat", (
        rules("inside", (Allow(), Match(dst=inside)),
              *((Allow(), Match(dst=IPv4Network(each))) for each in untranslated)),
        *([rules("hairpin", (Hairpin(pools[0].id), any4))] if hairpin else []),
        rules("source", (TranslateSource(pools[0].id), any4),
              *(((TranslatePrefix(prefix.internal, prefix.external), any6),) if prefix else ())),
    ), (rules("static", (Untranslate(), Match())),), default_in=Allow())
    vnet = Layer("vnet", (rules(
        "route", (Forward(_SPACE), Match(dst=inside)), (ToUplink(_UPLINK), Match())),), default_in=Allow())
    return EngineState(
        ports=tuple(Port(number, f"p{number}", 10 + number, mac(number), _GATEWAY, (nat, vnet))
                    for number in PORTS.values()),
        spaces=(Space(_SPACE, (
            *((IPv4Address(address), LocalPort(number, mac(number))) for address, number in PORTS.items()),
            *(((prefix.endpoint, LocalPort(PORTS[A], mac(PORTS[A]))),) if prefix else ()))),),
        pools=pools, mappings=mappings, uplinks=(Uplink(_UPLINK, "lan0", 51),),
        prefixes=(PrefixMapping(_UPLINK, prefix.external, prefix.internal, _SPACE),) if prefix else (),
    )


class Reference(ReferenceBackend):
    """With room."""

    limits = ROOMY


class Bpf(BpfBackend):
    """With room."""

    limits = ROOMY


class Host:
    """One engine with a policy in force, and a clock that the test moves."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._began = time.monotonic()
        self._ahead = 0.0
        backend.reset()

    def load(self, wanted: EngineState) -> Host:
        """Make it the policy."""
        self.backend.load(wanted)
        return self

    def out(self, packet: Packet, sender: str = "") -> Seen:
        """From the endpoint whose address it has (or `sender`) to the host."""
        port = PORTS[sender or packet[IP].src]
        return self._through(Hook.PORT_OUT, port, Ether(src=mac(port).hex(":"), dst=_GATEWAY.hex(":")) / packet)

    def back(self, packet: Packet) -> Seen:
        """From the world to the host."""
        return self._through(Hook.UPLINK_IN, _UPLINK, Ether(src=_ROUTER_MAC.hex(":"), dst="02:00:00:00:00:bb") / packet)

    def _through(self, hook: Hook, number: int, frame: Packet) -> Seen:
        done = self.backend.process(hook, number, bytes(frame), None, self._now())
        if done.frame:
            packet = Ether(done.frame)
            assert done.frame == recomputed(done.frame), packet.show(dump=True)
        else:
            packet = Ether()
        return Seen(done.verdict, done.reason, done.target, packet, done.frame)

    def _now(self) -> float:
        return time.monotonic() + self._ahead

    def idle(self, seconds: float) -> None:
        """So much time passes in which nothing comes, and the host ages what it has.

        The kernel's clock cannot be set, so in its engine the sweep looks from the future, each time from further.
        """
        self._ahead += seconds
        self.backend.sweep(self._now())


def udp(src: str, dst: str, sport: int = 5000, dport: int = 53, size: int = 8, **ip: Any) -> Packet:
    return IP(src=src, dst=dst, **ip) / UDP(sport=sport, dport=dport) / Raw(bytes(n % 251 for n in range(size)))


def tcp(src: str, dst: str, flags: str = "S", sport: int = 5000, dport: int = 80, **ip: Any) -> Packet:
    return IP(src=src, dst=dst, **ip) / TCP(sport=sport, dport=dport, flags=flags)


def echo(src: str, dst: str, identifier: int = 7, *, reply: bool = False) -> Packet:
    return IP(src=src, dst=dst) / ICMP(type=0 if reply else 8, id=identifier) / Raw(b"ping")


def fragments(whole: Packet, size: int) -> list[Packet]:
    """The datagram in pieces, each of so many bytes of its payload."""
    data, head = bytes(whole)[20:], {name: getattr(whole[IP], name) for name in ("src", "dst", "id")}
    return [
        IP(**head, proto=bytes(whole)[9], frag=at // 8, flags="MF" if at + size < len(data) else 0)
        / Raw(data[at:at + size]) for at in range(0, len(data), size)]


def error(src: str, about: Packet, kind: int = 3, code: int = 3, **icmp: Any) -> Packet:
    """An ICMP error to who sent `about`, which quotes it as it was seen (RFC 1812: as much as goes in 576 bytes)."""
    quoted = about[IP]
    return IP(src=src, dst=quoted.src) / ICMP(type=kind, code=code, **icmp) / Raw(bytes(quoted)[:548])


def quoted(seen: Seen) -> Packet:
    """The packet that an ICMP error is about."""
    return IP(seen.frame[_ERROR_HEAD:])


def recomputed(frame: bytes) -> bytes:
    """The frame with every checksum computed anew: by scapy; in an ICMP error, which scapy takes apart, by RFC 1071."""
    packet = Ether(frame)
    if ICMP in packet and packet[ICMP].type not in (0, 8):
        end, body = 14 + packet[IP].len, 14 + 4 * packet[IP].ihl
        whole = frame[body:body + 2] + bytes(2) + frame[body + 4:end]
        return frame[:body + 2] + checksum(whole) + frame[body + 4:]
    fragment = IP in packet and (packet[IP].frag or "MF" in packet[IP].flags)
    for kind in (IP, *(() if fragment else (TCP, UDP, ICMP))):
        if kind in packet and not (kind is UDP and packet[UDP].chksum == 0):
            del packet[kind].chksum
    for kind in (ICMPv6EchoRequest, ICMPv6EchoReply):
        if kind in packet:
            del packet[kind].cksum
    return bytes(packet)
