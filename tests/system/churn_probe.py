"""Who reaches whom: a datagram from every endpoint to every address, made by hand and taken by real sockets.

One process holds, for every slot, a packet socket that sends and a UDP socket that receives; so a whole matrix of some
100,000 pairs takes seconds. Frames are such as the endpoint's own stack would make: to the MAC that is declared for
the address, else to the gateway's.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address

from churn_stage import Hopper, slot_netns
from churn_world import Endpoint, Network, Slot, World

PORT = 7007
_BODY = struct.Struct("!IIIB")              # round, number of the sender's slot, number of the target, network
_BURST = 64
_PATIENCE_S = 0.25
_UDP = 17

Pair = tuple[Slot, int]                     # sender, number of the target


class Probe:
    """Sockets in every slot."""

    def __init__(self, hopper: Hopper) -> None:
        self._hopper = hopper
        self._epoll = select.epoll()
        self._out: dict[Slot, socket.socket] = {}
        self._in: dict[int, tuple[Slot, socket.socket]] = {}
        self._slots: list[Slot] = []        # every slot that ever was; its place is its number
        self._numbers: dict[Slot, int] = {}
        self._round = 0
        self.sent = 0

    def open(self, slots: Iterable[Slot]) -> None:
        """Sockets in the namespaces of these slots, which are new."""
        slots = list(slots)

        def make(_: str) -> tuple[socket.socket, socket.socket]:
            out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            taker = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            taker.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            taker.setsockopt(socket.SOL_SOCKET, 33, 1 << 20)        # SO_RCVBUFFORCE
            taker.setblocking(False)
            taker.bind(("::", PORT))
            return out, taker

        for slot, (out, taker) in zip(slots, self._hopper.each(map(slot_netns, slots), make), strict=True):
            if slot not in self._numbers:
                self._numbers[slot] = len(self._slots)
                self._slots.append(slot)
            self._out[slot] = out
            self._in[taker.fileno()] = (slot, taker)
            self._epoll.register(taker.fileno(), select.EPOLLIN)

    def close(self, slots: Iterable[Slot] | None = None) -> None:
        """Let go of the namespaces of these slots, or of all."""
        gone = set(self._out) if slots is None else set(slots)
        for descriptor, (slot, taker) in list(self._in.items()):
            if slot in gone:
                self._epoll.unregister(descriptor)
                taker.close()
                del self._in[descriptor]
        for slot in gone:
            self._out.pop(slot).close()

    def matrix(
        self, world: World, gateways: Mapping[Network, str], sources: Iterable[Endpoint], again: Iterable[Pair] = ()
    ) -> tuple[dict[Pair, list[Slot]], dict[Pair, Slot | None]]:
        """What came where, and what should have: by sender and target, who got it. `again`: only these pairs."""
        targets, reached, only = world.targets(), world.reached(), set(again)
        self._round += 1
        found: dict[Pair, list[Slot]] = {}
        wanted: dict[Pair, Slot | None] = {}

        def take(slot: Slot, data: bytes) -> None:
            round_, sender, target, _ = _BODY.unpack(data)
            if round_ == self._round:
                found.setdefault((self._slots[sender], target), []).append(slot)

        for source in sources:
            for number, (version, address) in enumerate(targets):
                if only and (source.slot, number) not in only:
                    continue
                to = reached.get((source.network, address))
                if to is source:
                    continue
                wanted[source.slot, number] = to.slot if to else None
                mac = to.mac if to and to.network == source.network else gateways[source.network]
                self._send(source, version, address, mac, number)
                if not self.sent % _BURST:
                    self._drain(take, 0)
        self._drain(take, _PATIENCE_S)
        return found, wanted

    def scatter(self, pairs: Iterable[tuple[Endpoint, int, str, str]]) -> list[tuple[Slot, int]]:
        """Send while things change; (who got something, number of the sender's network) of all that came."""
        came: list[tuple[Slot, int]] = []
        for source, version, address, mac in pairs:
            self._send(source, version, address, mac, 0)
        self._drain(lambda slot, data: came.append((slot, _BODY.unpack(data)[3])), 0)
        return came

    def _send(self, source: Endpoint, version: int, address: str, mac: str, target: int) -> None:
        body = _BODY.pack(self._round, self._numbers[source.slot], target, source.network.number)
        self.sent += 1
        frame = (_frame4 if version == 4 else _frame6)(source, address, mac, body)
        with suppress(OSError, KeyError):   # its link, or all of it, is gone at this moment
            self._out[source.slot].sendto(frame, ("eth0", 0))

    def _drain(self, take: Callable[[Slot, bytes], None], wait_s: float) -> None:
        until = time.monotonic() + wait_s
        while True:
            ready = self._epoll.poll(max(0.0, until - time.monotonic()), 1024)
            for descriptor, _ in ready:
                slot, taker = self._in[descriptor]
                while True:
                    try:
                        data = taker.recv(64)
                    except BlockingIOError:
                        break
                    except OSError:         # an ICMP error
                        continue
                    if len(data) == _BODY.size:
                        take(slot, data)
            if not ready and time.monotonic() >= until:
                return


@lru_cache(1 << 14)
def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


@lru_cache(1 << 14)
def _address(text: str) -> bytes:
    return ip_address(text).packed


def _sum(data: bytes) -> int:
    """The ones' complement sum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _frame4(source: Endpoint, address: str, mac: str, body: bytes) -> bytes:
    """UDP without checksum (RFC 768)."""
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(body), 0, 0x4000, 64, _UDP, 0,
                       _address(source.address(4)), _address(address))
    head = head[:10] + struct.pack("!H", ~_sum(head) & 0xFFFF) + head[12:]
    return b"".join((_packed(mac), _packed(source.mac), b"\x08\x00", head,
                     struct.pack("!HHHH", PORT, PORT, 8 + len(body), 0), body))


def _frame6(source: Endpoint, address: str, mac: str, body: bytes) -> bytes:
    size = 8 + len(body)
    ends = _address(source.address(6)) + _address(address)
    udp = struct.pack("!HHHH", PORT, PORT, size, 0) + body
    check = ~_sum(ends + struct.pack("!II", size, _UDP) + udp) & 0xFFFF or 0xFFFF
    return b"".join((_packed(mac), _packed(source.mac), b"\x86\xdd", struct.pack("!IHBB", 0x60000000, size, _UDP, 64),
                     ends, udp[:6], struct.pack("!H", check), udp[8:]))
