"""Router advertisements (RFC 4861 section 6.2): to each port of a network that wants them, from its gateway.

A port is a link of its own, with one host on it. It gets three advertisements soon after it is there, then one every
200 to 600 seconds, and an answer when it solicits: at once to its address, or to all nodes if it has none yet, no
more often than every three seconds. They live for half an hour, so an agent that is away for a while is not missed.
When a network stops to advertise, its ports are told that the router is none any more.
"""

from __future__ import annotations

import heapq
import random
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

__all__ = ["Advertiser", "Router", "advertisement"]

MAX_INTERVAL_S, MIN_INTERVAL_S = 600.0, 200.0
FIRST_INTERVAL_S, FIRST = 16.0, 3           # MAX_INITIAL_RTR_ADVERT_INTERVAL, MAX_INITIAL_RTR_ADVERTISEMENTS
BETWEEN_S = 3.0                             # MIN_DELAY_BETWEEN_RAS
DELAY_S = 0.5                               # MAX_RA_DELAY_TIME
LIFETIME_S = 1800
_VALID_S, _PREFERRED_S = 86400, 14400       # RFC 4861 6.2.1 says 30 and 7 days: too long for what may be renumbered
_ON_LINK, _AUTONOMOUS = 0x80, 0x40
ALL_NODES, ALL_NODES_MAC = IPv6Address("ff02::1"), bytes.fromhex("333300000001")
_ICMPV6, _HOP_LIMIT, _ADVERTISEMENT = 58, 255, 134

Send = Callable[[str, bytes], None]         # link, frame


@dataclass(frozen=True, slots=True)
class Router:
    """What is advertised to one port."""

    link: str                               # host side
    mac: bytes                              # of the gateway
    address: IPv6Address                    # its link-local one
    mtu_bytes: int
    prefixes: tuple[IPv6Network, ...]
    slaac: bool


def advertisement(
    router: Router, to: IPv6Address = ALL_NODES, to_mac: bytes = ALL_NODES_MAC, lifetime_s: int = LIFETIME_S
) -> bytes:
    """The frame (RFC 4861 section 4.2)."""
    body = struct.pack("!BBHBBHII", _ADVERTISEMENT, 0, 0, 64, 0, lifetime_s, 0, 0)
    body += struct.pack("!BB", 1, 1) + router.mac
    body += struct.pack("!BBHI", 5, 1, 0, router.mtu_bytes)
    for prefix in router.prefixes:
        flags = _ON_LINK | (_AUTONOMOUS if router.slaac and prefix.prefixlen == 64 else 0)
        body += struct.pack("!BBBBIII", 3, 4, prefix.prefixlen, flags, _VALID_S, _PREFERRED_S, 0)
        body += prefix.network_address.packed
    pseudo = router.address.packed + to.packed + struct.pack("!IHBB", len(body), 0, 0, _ICMPV6)
    body = body[:2] + struct.pack("!H", _checksum(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, _HOP_LIMIT) + router.address.packed + to.packed
    return to_mac + router.mac + b"\x86\xdd" + header + body


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(slots=True)
class _Port:
    router: Router
    due_s: float
    sent: int = 0
    last_s: float = -BETWEEN_S              # to all nodes
    answered_s: float = -BETWEEN_S


class Advertiser:
    """Whom to tell what, and when. `send` never raises; `clock` is monotonic."""

    def __init__(
        self, send: Send, clock: Callable[[], float] = time.monotonic, uniform: Callable[[float, float], float] =
        random.uniform,
    ) -> None:
        self._send = send
        self._clock = clock
        self._uniform = uniform
        self._ports: dict[str, _Port] = {}
        self._heap: list[tuple[float, str]] = []

    def follow(self, routers: Mapping[str, Router], present: Mapping[str, str]) -> None:
        """What each port is to be told, by its uid; `present`: links of all ports that there are."""
        now_s = self._clock()
        for uid in self._ports.keys() - routers.keys():
            gone = self._ports.pop(uid)
            if present.get(uid) == gone.router.link:
                self._send(gone.router.link, advertisement(gone.router, lifetime_s=0))
        for uid, router in routers.items():
            before = self._ports.get(uid)
            if before is None or before.router != router:
                self._ports[uid] = _Port(router, now_s)
                self._plan(uid, now_s)

    def due_in_s(self) -> float | None:
        """When `run` is next to be called; None: not before something changes."""
        while self._heap and self._is_over(*self._heap[0]):
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0][0] - self._clock()) if self._heap else None

    def run(self) -> None:
        """Send what is due."""
        now_s = self._clock()
        while self._heap and (self._is_over(*self._heap[0]) or self._heap[0][0] <= now_s):
            due_s, uid = heapq.heappop(self._heap)
            port = self._ports.get(uid)
            if port is None or port.due_s != due_s:
                continue
            self._send(port.router.link, advertisement(port.router))
            port.sent += 1
            port.last_s = now_s
            most_s = FIRST_INTERVAL_S if port.sent < FIRST else MAX_INTERVAL_S
            least_s = FIRST_INTERVAL_S if port.sent < FIRST else MIN_INTERVAL_S
            self._plan(uid, now_s + self._uniform(least_s, most_s))

    def solicited(self, uid: str, frame: bytes) -> None:
        """A router solicitation came from a port (RFC 4861 section 6.1.1, 6.2.6)."""
        port = self._ports.get(uid)
        if port is None or len(frame) < 62 or frame[21] != _HOP_LIMIT or frame[55]:
            return
        now_s = self._clock()
        source = IPv6Address(frame[22:38])
        if source.is_link_local and now_s - port.answered_s >= DELAY_S:
            port.answered_s = now_s
            self._send(port.router.link, advertisement(port.router, source, frame[6:12]))
        elif source.is_unspecified:
            due_s = max(now_s + self._uniform(0, DELAY_S), port.last_s + BETWEEN_S)
            if due_s < port.due_s:
                self._plan(uid, due_s)

    def _plan(self, uid: str, due_s: float) -> None:
        self._ports[uid].due_s = due_s
        heapq.heappush(self._heap, (due_s, uid))

    def _is_over(self, due_s: float, uid: str) -> bool:
        return uid not in self._ports or self._ports[uid].due_s != due_s
