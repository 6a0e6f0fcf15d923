"""Looking inside a running `sluice up`: traces beside the kernel, drops and flows as they go, captures of real packets.

The "host" is a namespace with a link to a "lan" namespace, as in test_system_up.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapNgReader, wrpcap

PINS = Path("/sys/fs/bpf/sluice-look")
HOST, LAN, WEB, CLIENT = "look-host", "look-lan", "look-web", "look-client"
WORLD = "172.16.8.1"

NET = f"""
apiVersion: sluice/v1
kind: Network
metadata: {{name: lan}}
spec: {{mode: nat, host: h1, subnets: [{{prefix: 192.168.240.0/24}}]}}
---
apiVersion: sluice/v1
kind: Endpoint
metadata: {{name: web}}
spec: {{network: lan, host: h1, netns: {WEB}}}
---
apiVersion: sluice/v1
kind: Endpoint
metadata: {{name: client}}
spec: {{network: lan, host: h1, netns: {CLIENT}}}
---
apiVersion: sluice/v1
kind: Policy
metadata: {{name: no-web}}
spec:
  network: lan
  appliesTo: {{endpoints: [web]}}
  rules:
  - {{name: others, direction: in, action: deny, protocol: tcp, ports: [81]}}
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def inside(namespace: str, *command: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{namespace}", *command]


class Site:
    """A host with `sluice up`, two endpoints and a policy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "SLUICE_API": f"unix:{folder}/api.sock"}
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                inside(HOST, sys.executable, "-m", "cli.main", "up", "--state", f"{folder}/state", "--api",
                       self.env["SLUICE_API"], "--pin-dir", str(PINS), "--name", "h1", "--purge",
                       "--socket", f"{folder}/agent.sock", "--docker", "none"),
                stdout=log, stderr=log)

    def declare(self) -> None:
        deadline = time.monotonic() + 30
        while "Sluice is up" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        self.sluice("apply", "-f", "-", text=NET)
        self.web = json.loads(self.sluice("get", "endpoint", "web", "-o", "json"))["status"]["address"]
        self.client = json.loads(self.sluice("get", "endpoint", "client", "-o", "json"))["status"]["address"]

    def run(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "cli.main", *arguments], input=text, capture_output=True,
                              text=True, timeout=60, env=self.env, check=False)

    def sluice(self, *arguments: str, text: str | None = None) -> str:
        done = self.run(*arguments, text=text)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr, self.log.read_text())
        return done.stdout

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen([sys.executable, "-m", "cli.main", *arguments], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, env=self.env) as process:
            try:
                yield process
            finally:
                process.kill()

    def trace(self, *arguments: str) -> dict[str, Any]:
        return dict(json.loads(self.sluice("trace", *arguments, "--live", "-o", "json")))

    def is_captured(self) -> bool:
        """Whether any port has the bit."""
        from vfp.datapath.map import BpfMap
        from vfp.layout import PORT, PortFlag

        with BpfMap.open_pin(PINS / "maps" / "ports") as ports:
            _, values = ports.lookup_all()
        return bool((values.reshape(-1).view(PORT)["flags"] & int(PortFlag.CAPTURE)).any())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(40) == 0, self.log.read_text()


def connects(namespace: str, address: str, port: int) -> None:
    """Try; whether it succeeds is not asked."""
    code = f"import socket; s = socket.socket(); s.settimeout(0.5); s.connect_ex(({address!r}, {port}))"
    subprocess.run(inside(namespace, sys.executable, "-c", code), check=True)


def pings(namespace: str, address: str) -> None:
    command = inside(namespace, "ping", "-c", "2", "-i", "0.2", "-W", "2", address)
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = []
    folder = tmp_path_factory.mktemp("look")
    try:
        for name in (HOST, LAN, WEB, CLIENT):
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", HOST, "link", "add", "lan0", "type", "veth", "peer", "name", "lan0", "netns", LAN)
        for name, address in ((HOST, "172.16.8.10/24"), (LAN, f"{WORLD}/24")):
            ip("-n", name, "address", "add", address, "dev", "lan0")
            ip("-n", name, "link", "set", "lan0", "up")
        ip("-n", HOST, "route", "add", "default", "via", WORLD)
        site = Site(folder)
        try:
            site.declare()
            yield site
        finally:
            site.stop()
    finally:
        for name in made:
            ip("netns", "delete", name)


def test_a_live_trace_agrees_wherever_the_packet_goes(site: Site) -> None:
    to_peer = site.trace("client", "web", "--port", "80")
    assert (to_peer["verdict"], to_peer["agrees"]) == ("forward", True)
    denied = site.trace("client", "web", "--port", "81", "--source-port", "5000")
    assert (denied["reason"], denied["agrees"]) == ("DENIED", True)
    assert denied["denied_by"]["rule"] == "others"
    world = site.trace("client", WORLD, "--port", "53", "--proto", "udp")
    assert (world["hops"][0]["leaves"]["to"], world["agrees"]) == ("uplink", True)
    assert world["hops"][0]["transposition"]["set"]["src"] == "172.16.8.10"
    spoofed = site.trace("client", WORLD, "--port", "53", "--source-address", "192.168.240.99")
    assert (spoofed["verdict"], spoofed["agrees"]) == ("drop", True)
    assert site.trace("client", "192.168.240.1", "--proto", "icmp")["agrees"]
    assert "kernel agrees" in site.sluice("trace", "client", "web", "--port", "80", "--live")


def test_a_live_trace_leaves_no_flow_no_binding_and_no_count(site: Site) -> None:
    def seen() -> tuple[str, str]:
        rules = json.loads(site.sluice("rules", "client", "-o", "json"))
        return json.dumps(rules), site.sluice("drops", "client", "-o", "json")

    before = seen()
    for port in ("4000", "81"):
        site.trace("client", WORLD, "--port", port, "--source-port", "3333")
        site.trace("client", "web", "--port", port, "--source-port", "3333")
    assert seen() == before
    assert json.loads(site.sluice("flows", "--port", "3333", "-o", "json"))["hosts"][0]["total"] == 0


def test_a_trace_shows_the_flow_and_the_port_that_it_holds(site: Site) -> None:
    pings(CLIENT, WORLD)
    flows = json.loads(site.sluice("flows", "client", "--proto", "icmp", "--address", WORLD, "-o", "json"))
    forward = next(row for row in flows["hosts"][0]["flows"] if row["direction"] == "forward")
    traced = site.trace("client", WORLD, "--proto", "icmp", "--icmp-id", str(forward["source_port"]))
    assert traced["agrees"]
    assert traced["hops"][0]["flow"]["packets"] >= 2
    assert site.trace("client", WORLD, "--proto", "icmp", "--icmp-id", "9")["hops"][0]["flow"] is None


def test_a_packet_of_a_file_is_traced(site: Site, tmp_path: Path) -> None:
    endpoint = json.loads(site.sluice("get", "endpoint", "client", "-o", "json"))["status"]
    frame = Ether(src=endpoint["mac"], dst="02:00:00:00:00:99") / IP(src=site.client, dst=site.web)
    wrpcap(str(tmp_path / "two.pcap"), [frame / ICMP(), frame / TCP(sport=1, dport=81, flags="S")])
    first = site.trace("client", "--pcap", f"{tmp_path}/two.pcap")
    assert (first["verdict"], first["agrees"]) == ("forward", True)
    second = site.trace("client", "--pcap", f"{tmp_path}/two.pcap", "--packet", "2")
    assert (second["reason"], second["packet"]["destination_port"], second["agrees"]) == ("DENIED", 81, True)
    third = site.run("trace", "client", "--pcap", f"{tmp_path}/two.pcap", "--packet", "3")
    assert third.returncode == 1
    assert "has 2 packets" in third.stderr


def test_drops_are_told_as_they_happen(site: Site) -> None:
    with site.running("drops", "web", "--watch", "-o", "json") as watch:
        assert watch.stdout is not None
        time.sleep(2)
        connects(CLIENT, site.web, 81)
        row = json.loads(watch.stdout.readline())
    assert (row["host"], row["reason"], row["layer"], row["rule"]) == ("h1", "DENIED", "acl", "others")
    assert f"{site.web}:81" in row["packet"]


LOGGED = """
apiVersion: sluice/v1
kind: Policy
metadata: {name: logged}
spec:
  network: lan
  priority: 10
  appliesTo: {endpoints: [web]}
  rules:
  - {name: told, direction: in, action: allow, protocol: tcp, ports: [90], log: true}
"""


def test_what_a_rule_logs_is_listed(site: Site) -> None:
    site.sluice("apply", "-f", "-", text=LOGGED)
    try:
        connects(CLIENT, site.web, 90)
        (answer,) = json.loads(site.sluice("logs", "web", "-o", "json"))["hosts"]
        assert "told" in site.sluice("logs", "web")
    finally:
        site.sluice("delete", "policy", "logged")
    (row,) = answer["logs"]
    assert (answer["total"], row["layer"], row["rule"]) == (1, "acl", "told")
    assert f"{site.web}:90" in row["packet"]


def test_flows_are_told_as_they_come(site: Site) -> None:
    with site.running("flows", "web", "--watch", "--interval", "0.3", "--port", "7") as watch:
        assert watch.stdout is not None
        time.sleep(2)
        connects(CLIENT, site.web, 7)       # refused by a RST: closed within two seconds
        first = watch.stdout.readline()
        assert "new" in first
        assert f"{site.web}:7" in first
        lines = [watch.stdout.readline()]
        while "ended" not in lines[-1]:
            lines.append(watch.stdout.readline())


def test_a_capture_has_both_ways_before_and_after_translation(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "client.pcap"
    with site.running("capture", "client", "-w", str(file)) as capture:
        deadline = time.monotonic() + 10
        while not site.is_captured():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        pings(CLIENT, WORLD)
        connects(CLIENT, site.web, 81)
        time.sleep(1)
        capture.send_signal(signal.SIGINT)
        assert capture.wait(10) == 0
        assert capture.stderr is not None
        assert " before" in capture.stderr.read()
    seen = []
    with RawPcapNgReader(str(file)) as reader:
        for data, about in reader:
            packet = Ether(data)
            if packet.haslayer(ICMP):
                name = about.ifname.decode() if isinstance(about.ifname, bytes) else about.ifname
                seen.append((name, about.direction, packet[IP].src, packet[IP].dst))
    assert b"dropped: DENIED" in file.read_bytes()
    read = subprocess.run(["tcpdump", "-n", "-r", str(file)], check=True, capture_output=True, text=True).stdout
    assert f"{site.client} > {WORLD}: ICMP echo request" in read
    assert ("default/client before", 2, site.client, WORLD) in seen
    assert ("default/client after", 2, "172.16.8.10", WORLD) in seen
    assert ("default/client before", 1, WORLD, "172.16.8.10") in seen
    assert ("default/client after", 1, WORLD, site.client) in seen
    wait_until_not(site)


def wait_until_not(site: Site, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while site.is_captured():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_killed_capture_ends_on_the_host_too(site: Site, tmp_path: Path) -> None:
    with site.running("capture", "client", "-w", f"{tmp_path}/x.pcap"):
        deadline = time.monotonic() + 10
        while not site.is_captured():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    wait_until_not(site, 15)


def test_a_capture_ends_by_count_and_by_time(site: Site, tmp_path: Path) -> None:
    with site.running("capture", "client", "-w", f"{tmp_path}/x.pcap", "--count", "3") as capture:
        time.sleep(2)
        pings(CLIENT, site.web)
        assert capture.wait(10) == 0
    began = time.monotonic()
    done = site.run("capture", "client", "-w", f"{tmp_path}/y.pcap", "--seconds", "1", "--before")
    assert done.returncode == 0
    assert "0 packets" in done.stderr
    assert time.monotonic() - began < 5


def test_what_cannot_be_captured_is_told(site: Site, tmp_path: Path) -> None:
    for arguments, words in (
        (("nobody", "-w", f"{tmp_path}/x.pcap"), ("nobody",)),
        (("client", "-w", f"{tmp_path}/absent/x.pcap"), ("-w", "cannot be written")),
    ):
        done = site.run("capture", *arguments)
        assert done.returncode == 1
        assert all(word in done.stderr for word in words), done.stderr
    assert not list(tmp_path.iterdir())
