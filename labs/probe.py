"""Small programs that steps run inside a namespace: `probe NAME …` in a lab file, `python -m labs.probe NAME …`.

    udp-echo PORT --say WHO       answer every datagram with "WHO: " and what came
    udp-ask ADDRESS PORT          send a datagram, print the answer; exit 1 if none comes
    beat ADDRESS PORT             one TCP connection, an HTTP request every so often; on SIGTERM, a summary
    transfer ADDRESS              iperf3 at a fixed rate; at its end, what was sent again and what was lost
    send INTERFACE FRAME...       send crafted frames, each a scapy expression
    vxlan ADDRESS FRAME...        the same inside of VXLAN, by a UDP socket: what an impostor on the underlay can do
    serve PORT --say WHO          an HTTP and datagram server that says who it is and whom it sees (labs.serve)
    hold PROTOCOL ADDRESS PORT    many flows at once, asked again at the end (labs.hold)
    reach PORT ADDRESS...         many of these servers at once, by TCP, UDP and ping; who answered (labs.reach)
    rate ADDRESS                  iperf3's rate in bits of whole frames (labs.rate)
    vm TAP INTERFACE              a virtual machine's stand-in: joins a host's tap device and one here (labs.vm)

Times in summaries are CLOCK_MONOTONIC seconds, which all processes of a host share.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from labs.hold import hold
from labs.rate import rate
from labs.reach import PROTOCOLS, reach
from labs.serve import serve
from labs.vm import vm

ANSWER_BYTES = 65536


def udp_echo(port: int, say: str) -> int:
    """Answer datagrams until ended."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", port))
        while True:
            data, peer = server.recvfrom(ANSWER_BYTES)
            server.sendto(say.encode() + b": " + data, peer)


def udp_ask(address: str, port: int, timeout_s: float, source_port: int = 0) -> int:
    """Send a datagram and print what comes back."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        if client.family == socket.AF_INET6:
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)   # IPv4's port of this number is another's
        client.bind(("", source_port))
        try:
            client.connect((address, port))
            client.send(b"hello")
            sys.stdout.write(client.recv(ANSWER_BYTES).decode(errors="replace") + "\n")
        except OSError as error:
            sys.stderr.write(f"no answer from {address}:{port}: {error}\n")
            return 1
    return 0


class Ended(Exception):
    """SIGTERM came."""


def beat(address: str, port: int, interval_s: float) -> int:
    """Ask over one connection that is never opened again; print when answers came, and the longest pause.

    Summary: `answers`, `first`, `last` (answer), `ended`, `longest_pause_s` (between answers), `error`.
    """
    def end(number: int, frame: FrameType | None) -> None:
        raise Ended

    signal.signal(signal.SIGTERM, end)
    request = f"GET / HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
    times: list[float] = []
    error = ""
    try:
        with socket.create_connection((address, port), 5) as connection:
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sys.stderr.write("connected\n")
            while True:
                connection.sendall(request)
                if not connection.recv(ANSWER_BYTES):
                    error = "the other side closed the connection"
                    break
                times.append(time.monotonic())
                time.sleep(interval_s)
    except Ended:
        pass
    except OSError as failure:
        error = str(failure)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    json.dump({"answers": len(times), "first": times[0] if times else None, "last": times[-1] if times else None,
               "ended": time.monotonic(), "longest_pause_s": max(pauses, default=None), "error": error},
              sys.stdout)
    return 0


def transfer(address: str, seconds: int, rate: str) -> int:
    """Send by TCP with iperf3 and print: bytes, retransmits, duplicates, lost, slowest_interval_bytes.

    `duplicates` are the segments that the receiver says it has got twice (RFC 2883): the sender was too impatient,
    nothing was lost. `lost` are the other retransmissions. On a busy machine the former happen without any loss.
    """
    before = _duplicates()
    done = subprocess.run(["iperf3", "-c", address, "-t", str(seconds), "-b", rate, "-J"], capture_output=True,
                          text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr or done.stdout)
        return 1
    result = json.loads(done.stdout)
    retransmits = result["end"]["sum_sent"]["retransmits"]
    duplicates = _duplicates() - before
    json.dump({"bytes": result["end"]["sum_received"]["bytes"], "retransmits": retransmits,
               "duplicates": duplicates, "lost": max(0, retransmits - duplicates),
               "slowest_interval_bytes": min(each["sum"]["bytes"] for each in result["intervals"])}, sys.stdout)
    return 0


def _duplicates() -> int:
    """Segments reported as received twice in this network namespace: TcpExtTCPDSACKRecvSegs of netstat."""
    names, values = (line.split() for line in Path("/proc/self/net/netstat").read_text().splitlines()[:2])
    return int(dict(zip(names, values, strict=True)).get("TCPDSACKRecvSegs", 0))


def send(interface: str, expressions: Sequence[str], count: int, pause_s: float) -> int:
    """Send frames that scapy builds from expressions such as `Ether(dst="…")/IP(dst="…")/UDP(dport=9)/"text"`."""
    frames = built(expressions)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((interface, 0))
        for _ in range(count):
            for frame in frames:
                wire.send(frame)
            if pause_s:
                time.sleep(pause_s)
    sys.stdout.write(f"{len(frames) * count} frames sent\n")
    return 0


def send_vxlan(address: str, expressions: Sequence[str], vni: int, port: int, count: int) -> int:
    """Send frames in VXLAN (RFC 7348), from a port of the range that VTEPs use."""
    frames = built(expressions)
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as underlay:
        for _ in range(count):
            for frame in frames:
                underlay.sendto(struct.pack("!II", 1 << 27, vni << 8) + frame, (address, port))
    sys.stdout.write(f"{len(frames) * count} frames sent in VNI {vni}\n")
    return 0


def built(expressions: Sequence[str]) -> list[bytes]:
    """Frames of scapy expressions."""
    from scapy.config import conf

    conf.ipv6_enabled = False
    from scapy.layers import dhcp, inet, inet6, l2, vxlan
    from scapy.packet import Raw

    words = {**vars(l2), **vars(dhcp), **vars(inet), **vars(inet6), **vars(vxlan), "Raw": Raw}
    # A lab file runs commands as root anyway; its frames need no fence around them.
    return [bytes(eval(text, words)) for text in expressions]


def main(arguments: Sequence[str]) -> int:
    """Run the probe that the arguments name."""
    parser = argparse.ArgumentParser(prog="probe")
    probes = parser.add_subparsers(dest="probe", required=True)
    one = probes.add_parser("udp-echo")
    one.add_argument("port", type=int)
    one.add_argument("--say", default="echo")
    one = probes.add_parser("udp-ask")
    one.add_argument("address")
    one.add_argument("port", type=int)
    one.add_argument("--timeout", type=float, default=1.0)
    one.add_argument("--source-port", type=int, default=0)
    one = probes.add_parser("beat")
    one.add_argument("address")
    one.add_argument("port", type=int)
    one.add_argument("--interval", type=float, default=0.02)
    one = probes.add_parser("transfer")
    one.add_argument("address")
    one.add_argument("--seconds", type=int, default=2)
    one.add_argument("--rate", default="500M")
    one = probes.add_parser("send")
    one.add_argument("interface")
    one.add_argument("frames", nargs="+")
    one.add_argument("--count", type=int, default=1)
    one.add_argument("--pause", type=float, default=0, help="seconds, after each round")
    one = probes.add_parser("vxlan")
    one.add_argument("address", help="of the VTEP")
    one.add_argument("frames", nargs="+")
    one.add_argument("--vni", type=int, required=True)
    one.add_argument("--port", type=int, default=4789)
    one.add_argument("--count", type=int, default=1)
    one = probes.add_parser("serve")
    one.add_argument("port", type=int)
    one.add_argument("--say", default="serve")
    one.add_argument("--greet", nargs=2, metavar=("ADDRESS", "PORT"))
    one = probes.add_parser("hold")
    one.add_argument("protocol", choices=("tcp", "udp"))
    one.add_argument("address")
    one.add_argument("port", type=int)
    one.add_argument("--count", type=int, default=1)
    one.add_argument("--timeout", type=float, default=1.0)
    one.add_argument("--source-port", type=int, default=0, help="of the first; the next ones count upwards")
    one.add_argument("--at-once", action="store_true", help="ask again without waiting for SIGTERM")
    one = probes.add_parser("rate")
    one.add_argument("address")
    one.add_argument("--port", type=int, default=5201)
    one.add_argument("--seconds", type=int, default=2)
    one.add_argument("--udp", default="", help="datagrams, at this rate: 100M")
    one.add_argument("--streams", type=int, default=1)
    one.add_argument("--reverse", action="store_true", help="the server sends")
    one = probes.add_parser("reach")
    one.add_argument("port", type=int)
    one.add_argument("addresses", nargs="+", metavar="ADDRESS")
    one.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS)
    one.add_argument("--timeout", type=float, default=2.0)
    one.add_argument("--name", default="", help="regular expression: who may answer")
    one = probes.add_parser("vm")
    one.add_argument("tap", help="tap device of the host, in the namespace of --host")
    one.add_argument("interface", help="the machine's own interface")
    one.add_argument("--host", required=True, help="network namespace of the host")
    one.add_argument("--mac", required=True)
    one.add_argument("--mtu", type=int, default=1500)
    one.add_argument("--address", action="append", default=[], help="with prefix length")
    one.add_argument("--gateway", action="append", default=[])
    given = parser.parse_args(arguments)
    match given.probe:
        case "udp-echo":
            return udp_echo(given.port, given.say)
        case "udp-ask":
            return udp_ask(given.address, given.port, given.timeout, given.source_port)
        case "beat":
            return beat(given.address, given.port, given.interval)
        case "transfer":
            return transfer(given.address, given.seconds, given.rate)
        case "serve":
            greet = (given.greet[0], int(given.greet[1])) if given.greet else None
            return serve(given.port, given.say, greet)
        case "hold":
            return hold(given.protocol, given.address, given.port, given.count, given.timeout, given.source_port,
                        given.at_once)
        case "rate":
            return rate(given.address, given.port, given.seconds, given.udp, given.streams, given.reverse)
        case "reach":
            return reach(given.port, given.addresses, given.protocols, given.timeout, given.name)
        case "vxlan":
            return send_vxlan(given.address, given.frames, given.vni, given.port, given.count)
        case "vm":
            return vm(given.tap, given.interface, given.host, given.mac, given.mtu, given.address, given.gateway)
        case _:
            return send(given.interface, given.frames, given.count, given.pause)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
