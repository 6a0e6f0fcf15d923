"""Traffic of the fault proof: one process, sockets in every endpoint's namespace, a record of each packet.

`python faults_traffic.py NAMESPACES HOT LOG RATE`: NAMESPACES is JSON (endpoint to namespace); HOT is a file of 4
bytes, a flow's number plus one, of which more is sent, or 0. It says `ready`, sends until SIGTERM, waits for the last
packets, then writes LOG: an array of `PACKET`. A packet's number is its index.

- Long flows: a UDP socket a flow, the same ports all the time; who receives one answers it from the service's socket.
- New flows: frames with a new source port each, by a packet socket.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from faults_policy import ENDPOINTS, FLOWS, SERVICES, UDP, Flow  # noqa: E402

LONG, NEW, ANSWER = range(3)
PACKET = np.dtype([("sent_ns", np.int64), ("came_ns", np.int64), ("flow", np.uint16), ("kind", np.uint8)])
SETTLE_S = 0.5

_HEAD = struct.Struct("!IHB")               # number, flow, kind
_BUFFER = 4 << 20
_SO_RCVBUFFORCE = 33                      # not in socket
_CLONE_NEWNET = 0x40000000
_HOT_SHARE = 0.5


class Traffic:
    """Sockets and the record."""

    def __init__(self, namespaces: dict[str, str], seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self._sent: list[tuple[int, int, int]] = []     # (time, flow, kind) by number
        self._came: dict[int, int] = {}
        self._epoll = select.epoll()
        self._on: dict[int, Callable[[bytes, tuple[str, int]], None]] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._services: dict[tuple[str, int], socket.socket] = {}
        self._long: list[socket.socket] = []
        self._raw: dict[str, socket.socket] = {}
        self._port = 20000
        for name, namespace in namespaces.items():
            _enter(namespace)
            self._raw[name] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._raw[name].bind(("eth0", 0))
            for service in SERVICES:
                self._services[name, service] = self._udp(name, service, self._serve)
        for number, flow in enumerate(FLOWS):
            _enter(namespaces[flow.source])
            made = self._udp(flow.source, 60000 + number, self._take)
            made.connect((ENDPOINTS[flow.destination].address, flow.service))
            self._long.append(made)

    def _udp(self, name: str, port: int, on: Callable[[socket.socket, bytes, tuple[str, int]], None]) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        made.setblocking(False)
        made.bind((ENDPOINTS[name].address, port))
        self._epoll.register(made.fileno(), select.EPOLLIN)
        self._sockets[made.fileno()] = made
        self._on[made.fileno()] = lambda data, whence: on(made, data, whence)
        return made

    def run(self, rate: float, hot: mmap.mmap, told: list[int]) -> None:
        """Send until told, evenly but in no order, then wait for the last ones."""
        pause = 1 / rate
        due = time.monotonic()
        while not told:
            now = time.monotonic()
            if now < due:
                self._poll(max(due - now, 0.0001))
                continue
            due = max(due + pause * self._rng.uniform(0.5, 1.5), now - 0.01)
            warm = int.from_bytes(hot[:4], "little")
            chosen = warm - 1 if warm and self._rng.random() < _HOT_SHARE else self._rng.randrange(len(FLOWS))
            if self._rng.random() < 0.35:
                self._send_new(chosen)
            else:
                self._send_long(chosen)
        until = time.monotonic() + SETTLE_S
        while time.monotonic() < until:
            self._poll(0.05)

    def record(self) -> np.ndarray:  # type: ignore[type-arg]
        """All packets."""
        out = np.zeros(len(self._sent), PACKET)
        if self._sent:
            out["sent_ns"], out["flow"], out["kind"] = zip(*self._sent, strict=True)
        for number, when in self._came.items():
            out["came_ns"][number] = when
        return out

    def _poll(self, wait_s: float) -> None:
        for descriptor, _ in self._epoll.poll(wait_s):
            while True:
                try:
                    data, whence = self._sockets[descriptor].recvfrom(64)
                except BlockingIOError:
                    break
                except OSError:             # an ICMP error
                    continue
                self._on[descriptor](data, whence)

    def _number(self, flow: int, kind: int) -> bytes:
        self._sent.append((time.monotonic_ns(), flow, kind))
        return _HEAD.pack(len(self._sent) - 1, flow, kind)

    def _send_long(self, flow: int) -> None:
        try:
            self._long[flow].send(self._number(flow, LONG))
        except OSError:                     # an ICMP error that came, or no buffer: it was not sent
            self._sent.pop()

    def _send_new(self, flow: int) -> None:
        self._port = 20000 + (self._port - 19999) % 30000
        self._raw[FLOWS[flow].source].send(_frame(FLOWS[flow], self._port, self._number(flow, NEW)))

    def _take(self, _: socket.socket, data: bytes, __: tuple[str, int]) -> None:
        self._came.setdefault(_HEAD.unpack(data)[0], time.monotonic_ns())

    def _serve(self, service: socket.socket, data: bytes, whence: tuple[str, int]) -> None:
        self._take(service, data, whence)
        _, flow, kind = _HEAD.unpack(data)
        if kind == LONG:
            service.sendto(self._number(flow, ANSWER), whence)


def _frame(flow: Flow, source_port: int, payload: bytes) -> bytes:
    """Ethernet, IPv4, UDP without checksum (RFC 768)."""
    source, destination = ENDPOINTS[flow.source], ENDPOINTS[flow.destination]
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0x4000, 64, UDP, 0,
        socket.inet_aton(source.address), socket.inet_aton(destination.address),
    )
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return b"".join((
        bytes.fromhex(destination.mac.replace(":", "")), bytes.fromhex(source.mac.replace(":", "")), b"\x08\x00",
        head[:10], struct.pack("!H", checksum), head[12:],
        struct.pack("!HHHH", source_port, flow.service, 8 + len(payload), 0), payload,
    ))


def _enter(namespace: str) -> None:
    with Path(f"/run/netns/{namespace}").open() as entry:
        if ctypes.CDLL(None, use_errno=True).setns(entry.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


def main() -> None:
    """See the module."""
    namespaces, hot_path, log, rate = sys.argv[1:]
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    traffic = Traffic(json.loads(namespaces))
    with Path(hot_path).open("r+b") as file, mmap.mmap(file.fileno(), 4) as hot:
        print("ready", flush=True)
        traffic.run(float(rate), hot, told)
    with Path(log).open("wb") as out:
        traffic.record().tofile(out)


if __name__ == "__main__":
    os.nice(-5)                             # an even rate
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})     # one CPU: what is sent first is judged first
    main()
