"""Small packets: as many 64-byte UDP frames as one processor makes, counted where the receiver's UDP takes them.

On one host frames are made by the kernel itself: an XDP program that writes the frame sends it through the client's
veth (BPF_PROG_TEST_RUN with live frames, Linux 5.18). They arrive as frames of any veth do, provided that its far end
polls (NAPI), which `generic receive offload` switches on for the reading. Across hosts the client's link may be a VXLAN
device, which takes no such frames: there, and for every subject, a packet socket sends them, 1,024 a system call.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from bench.cpu import ProgramClock, busy_ns, program_stats
from bench.ethtool import Offload, offloaded
from bench.measure import MeasureError, Pair
from bench.processes import within
from vfp.datapath.libbpf import ProgLoadOpts, TestRunOpts, check, library
from vfp.datapath.program import ProgType

__all__ = ["FRAME_BYTES", "SINK_PORT", "frame", "internet_checksum", "mac_of", "read_packets"]

FRAME_BYTES = 64                            # on the wire with its checksum of 4 bytes, which veth does not carry
SINK_PORT, SOURCE_PORT = 7001, 7000
_INTERFACE = "eth0"
_LIVE_FRAMES, _XDP_TX = 1 << 1, 3           # BPF_F_TEST_XDP_LIVE_FRAMES, enum xdp_action
_BATCH = 64
_CALL_S = 0.3                               # the longest system call; a slow subject must end in time
_KEPT = 0.99                                # of packets sent, if the sender does all the work of the path
_STATS_S = 0.3                              # how long programs are timed
_MANY = 1024

Send = Callable[[float], tuple[int, float]]


def read_packets(pair: Pair, seconds: float) -> dict[str, float]:
    """Packets a second that arrive, and what each costs: processor time of all, and nanoseconds of our programs."""
    with _sink(pair.server):
        to = pair.via or mac_of(pair.server), IPv4Address(pair.address)
        raw = frame((mac_of(pair.client), _address(pair.client)), to)
        with _generator(pair, raw) as send:
            send(0.05)                      # flows exist, the receiver's buffer is full
            busy, before, began = busy_ns(), _arrived(pair.server), time.perf_counter()
            sent, took = send(seconds)
            count, busy = _arrived(pair.server) - before, busy_ns() - busy
            # A path behind its sender, which so loses packets, goes on while the sender is set up: by the clock.
            if count < _KEPT * sent:
                took = time.perf_counter() - began
            if count <= 0:
                raise MeasureError(f"none of {sent} packets from {pair.client} arrived in {pair.server}")
            out = {"packets_per_s": count / took, "packet_cpu_ns": busy / count}
            if pair.programs:
                out["packet_bpf_ns"] = _in_programs(pair, send)
    return out


def frame(sender: tuple[bytes, IPv4Address], to: tuple[bytes, IPv4Address]) -> bytes:
    """A UDP datagram in Ethernet, without UDP checksum (RFC 768 allows it)."""
    size = FRAME_BYTES - 4 - 14
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, size, 0, 0x4000, 64, 17, 0, sender[1].packed, to[1].packed)
    ip = ip[:10] + internet_checksum(ip) + ip[12:]
    udp = struct.pack(">HHHH", SOURCE_PORT, SINK_PORT, size - 20, 0)
    return to[0] + sender[0] + b"\x08\x00" + ip + udp + bytes(size - 28)


def internet_checksum(data: bytes) -> bytes:
    """Of data of even length whose checksum field is zero (RFC 1071)."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF)


def _in_programs(pair: Pair, send: Send) -> float:
    """Nanoseconds in BPF programs for a packet, over all hooks it meets."""
    with ProgramClock(pair.programs) as clock, program_stats():
        before, arrived = clock.read(), _arrived(pair.server)
        send(_STATS_S)
        after, count = clock.read(), _arrived(pair.server) - arrived
    return (after.ns - before.ns) / max(1, count)


@contextmanager
def _sink(namespace: str) -> Iterator[None]:
    """A UDP socket that nobody reads: what arrives is counted and goes."""
    with within(namespace):
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sink:
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sink.bind(("0.0.0.0", SINK_PORT))
        yield


def _arrived(namespace: str) -> int:
    """Datagrams that reached UDP in the namespace: taken, or refused by a full socket."""
    with within(namespace):
        names, values = (
            line.split()[1:] for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
            if line.startswith("Udp:")
        )
    found = dict(zip(names, map(int, values), strict=True))
    return found["InDatagrams"] + found["RcvbufErrors"]


def mac_of(namespace: str) -> bytes:
    """Of the endpoint's interface."""
    return _ask(namespace, 0x8927)[18:24]                           # SIOCGIFHWADDR


def _address(namespace: str) -> IPv4Address:
    return IPv4Address(_ask(namespace, 0x8915)[20:24])              # SIOCGIFADDR


def _ask(namespace: str, request: int) -> bytes:
    with within(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        return fcntl.ioctl(asking, request, struct.pack("256s", _INTERFACE.encode()))


@contextmanager
def _generator(pair: Pair, raw: bytes) -> Iterator[Send]:
    if pair.entry is None:
        with within(pair.client), _PacketSocket(raw) as sender:
            yield sender.send
        return
    namespace, link = pair.entry
    with offloaded(namespace, link, Offload.RECEIVE), within(pair.client), _LiveFrames(raw) as live:
        yield live.send


def _sender(raw: bytes) -> bytes:
    """An XDP program: write the frame, four bytes an instruction, and XDP_TX. The kernel uses the pages of a run again
    as they come back, with the TTL and the source that the path has left in them."""
    words = [(at, *struct.unpack_from("=i", raw, at)) for at in range(0, len(raw), 4)]
    return b"".join(struct.pack("=BBhi", *each) for each in (
        (0x61, 0x12, 0, 0), (0x61, 0x13, 4, 0),             # r2 = data; r3 = data_end
        (0xBF, 0x24, 0, 0), (0x07, 0x04, 0, len(raw)),      # r4 = r2 + length
        (0x2D, 0x34, len(words), 0),                        # r4 > r3: past the stores
        *((0x62, 0x02, at, word) for at, word in words),
        (0xB7, 0, 0, _XDP_TX), (0x95, 0, 0, 0),
    ))


class _LiveFrames:
    """XDP_TX for every frame of a test run, out of the client's interface."""

    def __init__(self, raw: bytes) -> None:
        self._data = ctypes.create_string_buffer(raw, len(raw))
        context = struct.pack("=6I", 0, len(raw), 0, socket.if_nametoindex(_INTERFACE), 0, 0)     # struct xdp_md
        self._context = ctypes.create_string_buffer(context, len(context))
        code = _sender(raw)
        buffer, options = ctypes.create_string_buffer(code, len(code)), ProgLoadOpts(sz=ctypes.sizeof(ProgLoadOpts))
        self._program = check(
            library().bpf_prog_load(
                ProgType.XDP, b"bench_send", b"GPL", ctypes.addressof(buffer), len(code) // 8, ctypes.byref(options)
            ), "load the packet generator",
        )
        self._options = TestRunOpts(sz=ctypes.sizeof(TestRunOpts), flags=_LIVE_FRAMES, batch_size=_BATCH)
        self._options.data_in, self._options.data_size_in = ctypes.addressof(self._data), len(raw)
        self._options.ctx_in, self._options.ctx_size_in = ctypes.addressof(self._context), len(context)

    def __enter__(self) -> _LiveFrames:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._program)

    def send(self, seconds: float) -> tuple[int, float]:
        """Frames sent, and in how many seconds, as the kernel counts: setting a run up takes it some 20 ms more."""
        sent, spent, size = 0, 0.0, _BATCH
        give_up = time.perf_counter() + 4 * seconds + 1
        while spent < seconds and time.perf_counter() < give_up:
            self._options.repeat = size
            check(library().bpf_prog_test_run_opts(self._program, ctypes.byref(self._options)), "send live frames")
            took = size * int(self._options.duration) / 1e9
            sent, spent = sent + size, spent + took
            wanted = int(size * min(32.0, min(_CALL_S, seconds - spent) / max(took, 1e-6)))
            size = max(_BATCH, wanted // _BATCH * _BATCH)
        return sent, spent


class _Message(ctypes.Structure):
    """struct mmsghdr, flat."""

    _fields_ = (
        ("name", ctypes.c_void_p), ("name_bytes", ctypes.c_uint32), ("parts", ctypes.c_void_p),
        ("part_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int), ("sent", ctypes.c_uint32),
    )


class _PacketSocket:
    """The same frame 1,024 times a call, by sendmmsg(2) on a packet socket."""

    def __init__(self, raw: bytes) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((_INTERFACE, 0))
        self._data = ctypes.create_string_buffer(raw, len(raw))
        self._part = ctypes.create_string_buffer(struct.pack("@PN", ctypes.addressof(self._data), len(raw)))
        self._messages = (_Message * _MANY)()
        for message in self._messages:
            message.parts, message.part_count = ctypes.addressof(self._part), 1
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> _PacketSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, seconds: float) -> tuple[int, float]:
        """Frames sent, and in how many seconds."""
        began = now = time.perf_counter()
        sent = 0
        while now - began < seconds:
            done = self._libc.sendmmsg(self._socket.fileno(), self._messages, _MANY, 0)
            if done < 0 and ctypes.get_errno() not in (errno.ENOBUFS, errno.EINTR, errno.EAGAIN):
                raise MeasureError(f"packet socket: {os.strerror(ctypes.get_errno())}")
            sent += max(0, done)
            now = time.perf_counter()
        return sent, now - began
