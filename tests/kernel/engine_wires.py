"""The kernel's engine at its real hooks: frames go in by veth pairs and a VXLAN device, and are caught coming out.

Nobody answers at the ends: the endpoints' namespace, which is also the world's and the other hosts', has no
addresses. The host's links have the interface indexes that `engine_states` gives them.
"""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import time
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Self

from engine_backends import Outcome, outcome_of
from engine_frames import checksum
from engine_states import HERE, PORT_IDS, TUNNEL_IFINDEX, UNDERLAY_IFINDEX, UPLINKS, VTEPS
from engine_storms import AgeingBpf, Duel
from engine_switching import ROUTERS
from vswitch_kit import Namespace, run

from vfp.datapath.engine import Hook as Program
from vfp.model import Address
from vfp.reasons import DropReason
from vfp.reference import Hook, Result, Verdict
from vswitch.switch import Switch

MTU, UNDERLAY_MTU = 9000, 9100
_UNDERLAY, _HOST, _HOST_6 = "ul0", IPv4Address("172.31.0.1"), IPv6Address("2001:db8:31::1")
_NEIGHBOUR = "02:00:00:00:00:aa"            # every next hop of the host
_VXLAN_PORT, _OUTER_BYTES = 4789, 50
# For what the kernel still has in its hands; short where nothing is to be seen if the engines agree.
_PATIENCE_S = (0.0, 0.0, 0.001, 0.005, 0.02, 0.1, 0.5)
_BRIEF_S = (0.0, 0.001)
_SO_RCVBUFFORCE = 33


class WireBpf(AgeingBpf):
    """The engine at four ports, two uplinks and a tunnel of a namespace of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._wires: dict[str, socket.socket] = {}
        self.brief = False
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()
        super().close()

    def process(self, hook: Hook, number: int, frame: bytes, vtep: Address | None, now_s: float) -> Outcome:
        before = self._datapath.drop_counts()
        self._enter(hook, number, frame, vtep)
        for patience_s in _BRIEF_S if self.brief else _PATIENCE_S:
            time.sleep(patience_s)
            if (caught := self._caught(hook, number)) is not None:
                return caught
            after = self._datapath.drop_counts()
            for reason, count in after.items():
                if count != before[reason]:
                    return Outcome(Verdict.DROP.value, reason, 0, b"")
        return Outcome(Verdict.STACK.value, DropReason.NONE, 0, b"")

    def quiet(self) -> None:
        """Forget what was caught."""
        for wire in self._wires.values():
            while _received(wire) is not None:
                pass

    def _enter(self, hook: Hook, number: int, frame: bytes, vtep: Address | None) -> None:
        match hook:
            case Hook.PORT_OUT:
                self._wires[f"e{number}"].send(frame)
            case Hook.PORT_IN:
                with suppress(OSError):     # ENOBUFS: dropped on the way out
                    self._wires[f"p{number}"].send(frame)
            case Hook.UPLINK_IN:            # to the host, else it would not look at it
                self._wires[f"w{number}"].send(self._macs[f"up{number}"] + frame[6:])
            case Hook.OVERLAY_IN:
                self._wires["far"].send(self._encapsulated(number, frame, vtep or VTEPS[0]))

    def _encapsulated(self, vni: int, frame: bytes, vtep: Address) -> bytes:
        inner = struct.pack("!II", 0x08000000, vni << 8) + frame
        udp = struct.pack("!HHHH", 50000, _VXLAN_PORT, 8 + len(inner), 0)
        if vtep.version == 6:
            outer = struct.pack("!IHBB16s16s", 6 << 28, len(udp + inner), 17, 64, vtep.packed, _HOST_6.packed)
            return self._macs[_UNDERLAY] + bytes.fromhex("0200000000aa86dd") + outer + udp + inner
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(inner), 0, 0, 64, 17, 0, vtep.packed, _HOST.packed)
        header = header[:10] + checksum(header) + header[12:]
        return self._macs[_UNDERLAY] + bytes.fromhex("0200000000aa0800") + header + udp + inner

    def _caught(self, hook: Hook, number: int) -> Outcome | None:
        for id in PORT_IDS:
            if (frame := _received(self._wires[f"e{id}"])) is not None:
                if hook is Hook.PORT_IN and id == number:       # what the stack sent it got
                    return Outcome(Verdict.STACK.value, DropReason.NONE, 0, b"")
                return Outcome(Verdict.REDIRECT_PORT.value, DropReason.NONE, id, frame)
        for id in UPLINKS:
            if (frame := _received(self._wires[f"w{id}"])) is not None:
                return Outcome(Verdict.REDIRECT_UPLINK.value, DropReason.NONE, id, frame[12:])
        if (frame := _received(self._wires["far"])) is not None:
            outer = _OUTER_BYTES if frame[12:14] == b"\x08\x00" else _OUTER_BYTES + 20
            vni = int.from_bytes(frame[outer - 4 : outer - 1], "big")
            return Outcome(Verdict.TUNNEL.value, DropReason.NONE, vni, frame[outer:])
        return None

    # Making it

    def _build(self) -> None:
        names = [f"wires-{part}-{os.getpid()}" for part in ("host", "ends")]
        for name in names:
            run("ip", "netns", "add", name)
            self._stack.callback(run, "ip", "netns", "del", name)
        host, ends = map(Namespace, names)
        for namespace in (host, ends):
            off = "1" if namespace is ends else "0"
            namespace.execute("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0",
                              f"net.ipv6.conf.all.disable_ipv6={off}", f"net.ipv6.conf.default.disable_ipv6={off}",
                              "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0")
        pairs = [(f"p{id}", f"e{id}", 10 + id) for id in PORT_IDS] + [(f"up{id}", f"w{id}", 50 + id) for id in UPLINKS]
        for inner, outer, index in (*pairs, (_UNDERLAY, "far", UNDERLAY_IFINDEX)):
            mtu = str(UNDERLAY_MTU if inner == _UNDERLAY else MTU)
            host.ip("link", "add", inner, "index", str(index), "mtu", mtu, "type", "veth", "peer", outer, "mtu", mtu,
                    "netns", ends.name)
            host.execute("sysctl", "-qw", f"net.ipv6.conf.{inner}.disable_ipv6={int(inner.startswith('p'))}")
            host.ip("link", "set", inner, "addrgenmode", "none", "up")
            ends.ip("link", "set", outer, "up")
        host.ip("link", "add", "vx0", "index", str(TUNNEL_IFINDEX), "mtu", str(MTU), "type", "vxlan", "external",
                "dstport", str(_VXLAN_PORT), "udp6zerocsumrx", "udp6zerocsumtx")
        host.execute("sysctl", "-qw", "net.ipv6.conf.vx0.disable_ipv6=1")
        host.ip("link", "set", "vx0", "up")
        self._route(host)
        self._attach(host, ends)

    def _route(self, host: Namespace) -> None:
        """Each uplink and the underlay lead anywhere, over a neighbour who is known."""
        for here in HERE:
            host.ip("addr", "add", f"{here}/{24 if here.version == 4 else 64}", "dev", _UNDERLAY,
                    *(("nodad",) if here.version == 6 else ()))
        for vtep in VTEPS:
            host.ip("neigh", "add", str(vtep), "lladdr", _NEIGHBOUR, "dev", _UNDERLAY, "nud", "permanent")
        for id in UPLINKS:
            for router in filter(None, ROUTERS):        # that rules name
                host.ip("neigh", "add", str(router), "lladdr", _NEIGHBOUR, "dev", f"up{id}", "nud", "permanent")
            host.ip("addr", "add", f"192.0.2.{id}/32", "dev", f"up{id}")
            host.ip("-6", "addr", "add", f"2001:db8:ffff::{id}/128", "dev", f"up{id}", "nodad")
            for version, next_hop in ((4, f"192.0.2.{100 + id}"), (6, f"2001:db8:ffff::{100 + id}")):
                host.ip("neigh", "add", next_hop, "lladdr", _NEIGHBOUR, "dev", f"up{id}", "nud", "permanent")
                # IPv6 takes the best default route of a table, whatever link is asked for: hence a table each.
                host.ip(f"-{version}", "route", "add", "default", "via", next_hop, "dev", f"up{id}", "onlink",
                        "table", str(100 + id))
                host.ip(f"-{version}", "rule", "add", "oif", f"up{id}", "table", str(100 + id))

    def _attach(self, host: Namespace, ends: Namespace) -> None:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        switch = self._stack.enter_context(host.call(lambda: Switch(folder)))
        hooks: list[tuple[int, Any, Program]] = [
            (TUNNEL_IFINDEX, "ingress", Program.OVERLAY_IN), (UNDERLAY_IFINDEX, "ingress", Program.UNDERLAY_IN)]
        for id in PORT_IDS:
            hooks += [(10 + id, "ingress", Program.PORT_OUT), (10 + id, "egress", Program.PORT_IN)]
        hooks += [(50 + id, "ingress", Program.UPLINK_IN) for id in UPLINKS]
        for ifindex, where, program in hooks:
            switch.attach(ifindex, where, self._datapath.program_fd(program), f"sluice_{program}")
        self._macs = {name: bytes.fromhex(host.link(name)["address"].replace(":", ""))
                      for name in (*(f"up{id}" for id in UPLINKS), _UNDERLAY)}
        for namespace, links in ((host, [f"p{id}" for id in PORT_IDS]),
                                 (ends, [*(f"e{id}" for id in PORT_IDS), *(f"w{id}" for id in UPLINKS), "far"])):
            for link in links:
                self._wires[link] = namespace.call(lambda link=link: _wire(link))   # type: ignore[misc]
                self._stack.callback(self._wires[link].close)


class WireDuel(Duel):
    """As far as one can see from the ends: not what the host's stack got, nor what MAC the next hop has."""

    def _expected(self, result: Result) -> Outcome:
        wanted = outcome_of(result)
        if isinstance(self._backend, WireBpf):
            self._backend.brief = result.verdict is Verdict.STACK
        match result.verdict:
            case Verdict.STACK:
                return Outcome(wanted.verdict, wanted.reason, 0, b"")
            case Verdict.REDIRECT_UPLINK:
                return Outcome(wanted.verdict, wanted.reason, wanted.target, wanted.frame[12:])
            case Verdict.REPLY if result.vtep is not None:
                return Outcome(Verdict.TUNNEL.value, wanted.reason, result.vni, wanted.frame)
            case Verdict.REPLY:
                return Outcome(Verdict.REDIRECT_PORT.value, wanted.reason, result.port, wanted.frame)
        return wanted


def _wire(link: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
    made.bind((link, 0x0003))
    made.setblocking(False)
    return made


def _received(wire: socket.socket) -> bytes | None:
    """The next frame that came in, if there is one; not what we sent, and not what IPv6 says about groups by itself."""
    while True:
        try:
            frame, address = wire.recvfrom(1 << 16)
        except BlockingIOError:
            return None
        group_report = frame[12:14] == b"\x86\xdd" and frame[20:21] == b"\0" and frame[62:63] == b"\x8f"
        if address[2] != socket.PACKET_OUTGOING and not group_report:
            return frame
