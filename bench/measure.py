"""One reading each of throughput, latency and new connections, by the usual programs, between two namespaces."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.cpu import busy_ns
from bench.processes import CommandFailed, ended, inside, run, start

__all__ = [
    "HTTP_PORT", "IPERF_PORT", "TCP_PORT", "UDP_PORT", "MeasureError", "Pair", "missing_programs", "read_connections",
    "read_latency", "read_round_trips", "read_throughput", "servers",
]

PROGRAMS = {
    "iperf3": "iperf3", "sockperf": "sockperf", "wrk": "wrk", "nginx": "nginx-light", "ip": "iproute2",
    "iptables-restore": "iptables", "nft": "nftables", "setpriv": "util-linux", "tc": "iproute2",
}
HTTP_PORT, IPERF_PORT, TCP_PORT, UDP_PORT = 8000, 5201, 11111, 11112
_CONNECTIONS = 32
_READY_S = 5.0
_APART_S = 0.2                              # from the end of one sockperf to the beginning of the next
_RTT = 2.0                                  # sockperf says the latency of one way
_PERCENTILE = re.compile(r"percentile (50|99)\.000 =\s*([0-9.]+)")
_VALID = re.compile(r"\[Valid Duration\] RunTime=([0-9.]+) sec; SentMessages=\d+; ReceivedMessages=(\d+)")
_RATE = re.compile(r"(\d+) requests in ([0-9.]+)(ms|s|m),")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0}

_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_timeout 0; client_body_temp_path {folder}; proxy_temp_path {folder};
fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
server {{ listen {port} backlog=4096; location / {{ return 200 "ok"; }} }} }}
"""


class MeasureError(Exception):
    """A program is missing, failed, or said something that cannot be read."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two endpoints: `client` and `server` are namespaces, `address` is the server's.

    Attributes:
        entry: namespace and name of the link where the client's frames come in; None: the client's own is no veth.
        programs: namespaces whose links carry Sluice's programs.
        via: MAC that the client sends to; empty: the server's own.
        listen: the server's own address, where `address` is one that is translated to it.
    """

    client: str
    server: str
    address: str
    entry: tuple[str, str] | None = None
    programs: tuple[str, ...] = ()
    via: bytes = b""
    listen: str = ""


def missing_programs() -> list[str]:
    """Debian packages to install."""
    return sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})


@contextmanager
def servers(pair: Pair) -> Iterator[None]:
    """iperf3, sockperf and nginx at the server's side, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix=f"sluice-bench-{os.getpid()}-") as folder, ExitStack() as running:
        config, own = Path(folder) / "nginx.conf", pair.listen or pair.address
        config.write_text(_NGINX.format(folder=folder, port=HTTP_PORT))
        for command in (
            ("iperf3", "-s"), ("nginx", "-c", str(config), "-p", folder),
            ("sockperf", "server", "--tcp", "-i", own, "-p", str(TCP_PORT)),
            ("sockperf", "server", "-i", own, "-p", str(UDP_PORT)),
        ):
            running.enter_context(ended(start(pair.server, *command)))
        for port, sort in ((IPERF_PORT, "t"), (HTTP_PORT, "t"), (TCP_PORT, "t"), (UDP_PORT, "u")):
            _wait_listening(pair.server, port, sort)
        run(*inside(pair.client, "ping", "-c", "1", "-W", "2", pair.address))
        yield


def read_throughput(pair: Pair, seconds: float) -> dict[str, float]:
    """Received bits a second of one TCP stream (iperf3), in 10^9."""
    command = ("iperf3", "-c", pair.address, "-t", _whole(seconds), "-J")
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            out = json.loads(_ask(pair, *command, seconds=seconds))
            return {"tcp_gbps": float(out["end"]["sum_received"]["bits_per_second"]) / 1e9}
        except MeasureError as error:
            # The server serves one test at a time and may still be closing the one before.
            if "server is busy" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        except (KeyError, ValueError) as error:
            raise MeasureError(f"iperf3 in {pair.client}: {error}") from error


def read_latency(pair: Pair, seconds: float) -> dict[str, float]:
    """Round trips of 14 bytes, one after the other, over TCP and then UDP (sockperf ping-pong)."""
    # sockperf sleeps two seconds before it begins: UDP's sleep may as well be during TCP's test.
    with ThreadPoolExecutor() as pool:
        tcp = pool.submit(_ping_pong, pair, seconds, "tcp", ("--tcp", "-p", str(TCP_PORT)))
        time.sleep(seconds + _APART_S)
        udp = pool.submit(_ping_pong, pair, seconds, "udp", ("-p", str(UDP_PORT)))
        return {**tcp.result(), **udp.result()}


def read_round_trips(pairs: Sequence[Pair], seconds: float) -> list[dict[str, float] | MeasureError]:
    """The same for UDP only, of many in turn: while one is read, the next ones are asleep."""
    def read(pair: Pair) -> dict[str, float] | MeasureError:
        try:
            return _ping_pong(pair, seconds, "udp", ("-p", str(UDP_PORT)))
        except MeasureError as error:
            return error

    with ThreadPoolExecutor(max(1, len(pairs))) as pool:
        begun = []
        for pair in pairs:
            begun.append(pool.submit(read, pair))
            time.sleep(seconds + _APART_S)
        return [each.result() for each in begun]


def read_connections(pair: Pair, seconds: float) -> dict[str, float]:
    """HTTP requests a second, each on a TCP connection of its own (wrk against nginx), and processor time of each."""
    before = busy_ns()
    out = _ask(
        pair, "wrk", "-t", "1", "-c", str(_CONNECTIONS), "-d", f"{_whole(seconds)}s", "-H", "Connection: close",
        f"http://{pair.address}:{HTTP_PORT}/", seconds=seconds,
    )
    busy = busy_ns() - before
    found = _RATE.search(out)
    if found is None or "Non-2xx" in out:
        raise MeasureError(f"wrk in {pair.client}: {out[-500:]}")
    if not int(found[1]):
        raise MeasureError(f"not one request was answered in {_whole(seconds)} s")
    count = int(found[1])
    return {"crr_per_s": count / (float(found[2]) * _SECONDS[found[3]]), "crr_cpu_us": busy / count / 1e3}


def _ping_pong(pair: Pair, seconds: float, name: str, how: tuple[str, ...]) -> dict[str, float]:
    command = ("sockperf", "ping-pong", "-i", pair.address, *how, "-t", _whole(seconds), "-m", "14")
    out = _ask(pair, *command, seconds=seconds)
    valid, percentiles = _VALID.search(out), dict(_PERCENTILE.findall(out))
    if valid is None or set(percentiles) != {"50", "99"} or not float(valid[1]):
        raise MeasureError(f"sockperf in {pair.client}: {out[-500:]}")
    return {
        f"{name}_rr_per_s": int(valid[2]) / float(valid[1]),
        f"{name}_p50_us": _RTT * float(percentiles["50"]), f"{name}_p99_us": _RTT * float(percentiles["99"]),
    }


def _ask(pair: Pair, *command: str, seconds: float) -> str:
    try:
        return run(*inside(pair.client, *command), limit_s=seconds + 10)
    except CommandFailed as error:
        raise MeasureError(f"in {pair.client}: {error}") from error


def _whole(seconds: float) -> str:
    return str(max(1, round(seconds)))


def _wait_listening(namespace: str, port: int, sort: str) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if run(*inside(namespace, "ss", f"-Hln{sort}", f"sport = :{port}")):
            return
        time.sleep(0.02)
    raise MeasureError(f"nothing listens on port {port} in {namespace} after {_READY_S:g} s")
