"""Two endpoints of one engine, and segments between them by BPF_PROG_TEST_RUN: as many as a flood needs."""

from __future__ import annotations

import ctypes
import struct
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

import numpy as np
from engine_frames import ACK, FIN, RST, SYN, TCP, UDP, IpFrame

from vfp.datapath.engine import Datapath, Limits
from vfp.datapath.libbpf import TestRunOpts, check, library
from vfp.layout import BUDGETS, ZoneKind, zone
from vfp.model import Allow, EngineState, Forward, Group, Layer, LocalPort, Match, Port, Rule, Space
from vfp.reasons import DropReason
from vfp.timeouts import Timeouts

FLAGS = {
    "S": SYN, "SA": SYN | ACK, "A": ACK, "FA": FIN | ACK, "R": RST, "RA": RST | ACK, "SF": SYN | FIN, "": 0, "F": FIN,
}
MACS = (b"\2\0\0\0\0\1", b"\2\0\0\0\0\2")
ADDRESSES = (IPv4Address("10.1.0.1"), IPv4Address("10.1.0.2"))
_SPACE = 1 << 24
_SKB_BYTES, _SKB_CB = 192, 48
_SOURCE = 26                                # of the IPv4 source in the frame


def state(*, strict: tuple[bool, bool] = (False, False), name: str = "vnet",
          timeouts: tuple[Timeouts | None, Timeouts | None] = (None, None)) -> EngineState:
    """Ports 1 and 2, which send whatever they like. Another `name` is another policy."""
    rule = Rule(0, Match(), Forward(_SPACE), name)
    layers = (Layer("vnet", (Group("vnet", (rule,)),), (), default_in=Allow()),)
    gateway = b"\2\0\0\0\0\xfe"
    ports = tuple(
        Port(n + 1, f"p{n + 1}", 1001 + n, MACS[n], gateway, layers, strict[n], timeouts[n]) for n in range(2))
    space = Space(_SPACE, tuple((ADDRESSES[n], LocalPort(n + 1, MACS[n])) for n in range(2)))
    return EngineState(ports=ports, spaces=(space,))


def frame(sender: int, *, flags: int = 0, port: int = 1000, protocol: int = TCP) -> bytes:
    """From endpoint 1, port `port`, to endpoint 2, port 80; or the way back."""
    ports = (port, 80) if sender == 1 else (80, port)
    return IpFrame(
        src_mac=MACS[sender - 1], dst_mac=MACS[2 - sender], src=ADDRESSES[sender - 1], dst=ADDRESSES[2 - sender],
        protocol=protocol, src_port=ports[0], dst_port=ports[1], tcp_flags=flags).build()


class Wire(AbstractContextManager["Wire"]):
    """The engine, and what comes to it from the two endpoints."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.datapath = Datapath.open(None, limits)
        self._probe = self.datapath.program("vfp_probe").fd

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.datapath.close()

    def __enter__(self) -> Self:
        return self

    def begin(self, timeouts: Timeouts | None = None, **bounds: int) -> None:
        """No flows, the first policy, and these times and bounds; to load the engine anew would take seconds."""
        flows = self.datapath._object.map("flows")
        flows.delete_batch(flows.lookup_all()[0])
        self.change(Timeouts(tcp_time_wait_s=0, tcp_reset_s=0))
        self.datapath.reap()                # all that is in the queues
        self.change(timeouts or Timeouts(), **bounds)
        self.datapath.apply(state())
        self.datapath.sweep()               # tells the budgets

    def change(self, timeouts: Timeouts, **bounds: int) -> None:
        """Other times and bounds from now on."""
        self.datapath._profiles.set_own(timeouts)
        self.datapath._settings |= self.datapath._profiles.shortest() | replace(self.limits, **bounds).settings()
        self.datapath._write_settings(dirty=False)

    def send(self, raw: bytes, sender: int = 1, *, sources: range = range(1)) -> Counter[DropReason]:
        """`raw` from each of `sources` (added to the IPv4 source address); what became of them."""
        fresh = bytearray(_SKB_BYTES)
        struct.pack_into("=I", fresh, _SKB_CB, zone(ZoneKind.PORT, sender))
        clean = bytes(fresh)
        context = ctypes.create_string_buffer(clean, _SKB_BYTES)
        data = ctypes.create_string_buffer(raw, len(raw))
        opts = TestRunOpts(sz=ctypes.sizeof(TestRunOpts))
        opts.ctx_in = opts.ctx_out = ctypes.addressof(context)
        opts.ctx_size_in = _SKB_BYTES
        opts.data_in = ctypes.cast(data, ctypes.c_void_p)
        opts.data_size_in, opts.repeat = len(raw), 1
        reference, run, first = ctypes.byref(opts), library().bpf_prog_test_run_opts, int.from_bytes(raw[26:30], "big")
        seen: Counter[int] = Counter()
        for source in sources:
            context.raw = clean
            struct.pack_into(">I", data, _SOURCE, first + source)
            opts.ctx_size_out = _SKB_BYTES
            check(run(self._probe, reference), "test-run vfp_probe")
            seen[context.raw[_SKB_CB + 12]] += 1
        return Counter({DropReason(reason): count for reason, count in seen.items()})

    def segment(self, text: str, *, port: int = 1000) -> DropReason:
        """A segment such as `S>` (from endpoint 1) or `SA<`; what it was dropped for."""
        sender = 1 if text[-1] == ">" else 2
        (reason,) = self.send(frame(sender, flags=FLAGS[text[:-1]], port=port), sender)
        return reason

    def datagram(self, way: str = ">", *, port: int = 1000) -> DropReason:
        """The same for UDP."""
        sender = 1 if way == ">" else 2
        (reason,) = self.send(frame(sender, port=port, protocol=UDP), sender)
        return reason

    def states(self) -> list[str]:
        """Of the forward half of each pair."""
        return [flow.state for flow in self.datapath.flows() if not flow.reply]

    def taken(self) -> tuple[int, int]:
        """Pairs that count as half-open, and as UDP."""
        raw = self.datapath._object.map("budgets").lookup(bytes(4))
        assert raw is not None
        budgets = np.frombuffer(raw, BUDGETS)[0]
        return int(budgets["half_open"]), int(budgets["udp"])
