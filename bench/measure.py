"""One reading each of throughput, latency and new connections, by the usual programs, between two namespaces."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = {"iperf3": "iperf3", "qperf": "qperf", "wrk": "wrk", "nginx": "nginx-light", "ip": "iproute2"}
HTTP_PORT = 8000
_READY_S = 5.0
_LATENCY = re.compile(r"latency\s*=\s*([0-9.,]+)\s*(ns|us|ms)")
_SCALE_US = {"ns": 1e-3, "us": 1.0, "ms": 1e3}
_RATE = re.compile(r"Requests/sec:\s*([0-9.]+)")

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
    """Two endpoints: `client` and `server` are namespaces, `address` is the server's."""

    client: str
    server: str
    address: str


def missing_programs() -> list[str]:
    """Debian packages to install."""
    return [package for program, package in PROGRAMS.items() if shutil.which(program) is None]


def inside(namespace: str, *command: str) -> list[str]:
    """`command` run in a network namespace; the mounts stay the machine's."""
    return ["nsenter", f"--net=/run/netns/{namespace}", *command]


@contextmanager
def servers(pair: Pair) -> Iterator[None]:
    """iperf3, qperf and nginx at the server's side, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
        config = Path(folder) / "nginx.conf"
        config.write_text(_NGINX.format(folder=folder, port=HTTP_PORT))
        commands = (["iperf3", "-s"], ["qperf"], ["nginx", "-c", str(config), "-p", folder])
        running = [
            subprocess.Popen(inside(pair.server, *command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for command in commands
        ]
        try:
            for port in (5201, 19765, HTTP_PORT):
                _wait_listening(pair.server, port)
            yield
        finally:
            for process in running:
                process.terminate()
            for process in running:
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def tcp_gbps(pair: Pair, seconds: float) -> float:
    """Received bits a second of one TCP stream (iperf3), in 10^9."""
    command = ("iperf3", "-c", pair.address, "-t", str(max(1, round(seconds))), "-J")
    deadline = time.monotonic() + _READY_S
    while True:
        out = _run(pair, *command, limit_s=seconds + 10)
        # The server serves one test at a time and may still be closing the one before.
        if "server is busy" not in out or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    try:
        return float(json.loads(out)["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (KeyError, ValueError) as error:
        raise MeasureError(f"iperf3 in {pair.client}: {error}: {out[-500:]}") from error


def rr_us(pair: Pair, seconds: float) -> float:
    """Round trip of one byte over TCP, µs: twice what qperf calls tcp_lat."""
    command = ("qperf", pair.address, "-t", str(max(1, round(seconds))), "tcp_lat")
    out = _run(pair, *command, limit_s=seconds + 10)
    found = _LATENCY.search(out)
    if found is None:
        raise MeasureError(f"qperf in {pair.client}: no latency in {out!r}")
    return 2 * float(found[1].replace(",", "")) * _SCALE_US[found[2]]


def crr_per_s(pair: Pair, seconds: float) -> float:
    """HTTP requests a second, each on a TCP connection of its own (wrk against nginx)."""
    out = _run(
        pair, "wrk", "-t", "1", "-c", "32", "-d", f"{max(1, round(seconds))}s", "-H", "Connection: close",
        f"http://{pair.address}:{HTTP_PORT}/", limit_s=seconds + 10,
    )
    found = _RATE.search(out)
    if found is None or "Non-2xx" in out:
        raise MeasureError(f"wrk in {pair.client}: {out[-500:]}")
    return float(found[1])


METRICS: dict[str, Callable[[Pair, float], float]] = {"tcp_gbps": tcp_gbps, "rr_us": rr_us, "crr_per_s": crr_per_s}


def _run(pair: Pair, *command: str, limit_s: float) -> str:
    try:
        done = subprocess.run(
            inside(pair.client, *command), capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"{command[0]} in {pair.client}: no end after {limit_s} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout)[-500:]
        raise MeasureError(f"{command[0]} in {pair.client}: exit {done.returncode}: {said}")
    return done.stdout


def _wait_listening(namespace: str, port: int) -> None:
    deadline = time.monotonic() + _READY_S
    filters: Sequence[str] = ("ss", "-Hltn", f"sport = :{port}")
    while time.monotonic() < deadline:
        if subprocess.run(inside(namespace, *filters), capture_output=True, check=True).stdout:
            return
        time.sleep(0.02)
    raise MeasureError(f"nothing listens on port {port} in {namespace} after {_READY_S} s")
