"""The page's way for newcomers: `sluice up`, the README's net.yaml, real packets; then Ctrl-C, and nothing is left.

The "host" is a namespace with a link to a "lan" namespace, so that the machine's own links stay out of it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINS = Path("/sys/fs/bpf/sluice-cli-up")
HOST, LAN, WEB, CLIENT = "cli-host", "cli-lan", "cli-web", "cli-client"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def inside(namespace: str, *command: str) -> list[str]:
    """`ip netns exec` would hide the BPF file system."""
    return ["nsenter", f"--net=/run/netns/{namespace}", *command]


def readme_net() -> str:
    """The first net.yaml of the README, for the namespaces of this test."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"),
                          re.MULTILINE | re.DOTALL)
    return block.replace("netns: web", f"netns: {WEB}").replace("netns: client", f"netns: {CLIENT}")


@pytest.fixture
def host() -> Iterator[None]:
    """A host with an uplink lan0 (172.16.9.10) into a LAN (172.16.9.1), and two empty namespaces on it."""
    made = []
    try:
        for name in (HOST, LAN, WEB, CLIENT):
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", HOST, "link", "add", "lan0", "type", "veth", "peer", "name", "lan0", "netns", LAN)
        for name, address in ((HOST, "172.16.9.10/24"), (LAN, "172.16.9.1/24")):
            ip("-n", name, "address", "add", address, "dev", "lan0")
            ip("-n", name, "link", "set", "lan0", "up")
        ip("-n", HOST, "route", "add", "default", "via", "172.16.9.1")
        yield
    finally:
        for name in made:
            ip("netns", "delete", name)


class Up:
    """A running `sluice up`."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.api = f"unix:{folder}/api.sock"
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                inside(HOST, sys.executable, "-m", "cli.main", "up", "--state", f"{folder}/state", "--api", self.api,
                       "--pin-dir", str(PINS), "--name", "h1", "--socket", f"{folder}/agent.sock", "--docker", "none",
                       *more), stdout=log, stderr=log)

    def wait(self) -> None:
        deadline = time.monotonic() + 30
        while "Sluice is up" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def sluice(self, *arguments: str, text: str | None = None) -> str:
        done = subprocess.run([sys.executable, "-m", "cli.main", *arguments], input=text, capture_output=True,
                              text=True, timeout=60, env={**os.environ, "SLUICE_API": self.api}, check=False)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr, self.log.read_text())
        return done.stdout

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(40)


def pings(namespace: str, address: str) -> bool:
    done = subprocess.run(inside(namespace, "ping", "-c", "2", "-i", "0.2", "-W", "2", address), capture_output=True,
                          check=False)
    return done.returncode == 0


def ours() -> list[str]:
    """Links of Sluice on the host."""
    return [link["ifname"] for link in json.loads(ip("-j", "-n", HOST, "link", "show"))
            if link["ifname"].startswith("sl")]


def test_the_way_of_the_readme(host: None, tmp_path: Path) -> None:
    up = Up(tmp_path)
    try:
        up.wait()
        applied = up.sluice("apply", "-f", "-", text=readme_net())
        assert applied.count(" created") == 4
        rows = json.loads(up.sluice("get", "endpoints", "-o", "json"))
        assert {row["metadata"]["name"]: row["status"]["phase"] for row in rows} == {"web": "Ready", "client": "Ready"}
        (shown,) = json.loads(up.sluice("get", "hosts", "-o", "json"))
        assert shown["status"]["connected"]
        assert shown["status"]["declaredRevision"] == shown["status"]["appliedRevision"]
        web = next(row["status"]["address"] for row in rows if row["metadata"]["name"] == "web")

        assert pings(CLIENT, web)
        assert pings(CLIENT, "172.16.9.1")                          # the LAN, by the host's address
        assert "forwarded" in up.sluice("trace", "client", "web", "--port", "80")
        assert "icmp" in up.sluice("flows", "client")
        assert "guard" in up.sluice("rules", "client")
        up.sluice("drops")

        assert up.interrupt() == 0
        assert PINS.is_dir()                                        # the data path outlives its agent
        assert pings(CLIENT, web)

        up.log.write_text("")
        up = again = Up(tmp_path, "--purge")                        # and the next one takes it over
        again.wait()
        assert pings(CLIENT, web)
        assert again.interrupt() == 0
        assert not PINS.exists()
        assert ours() == []
    finally:
        if up.process.poll() is None:
            up.interrupt()
        subprocess.run(inside(HOST, sys.executable, "-m", "cli.main", "agent", "purge", "--state",
                              f"{tmp_path}/state/agent", "--pin-dir", str(PINS)), check=True, capture_output=True)


def test_what_a_host_cannot_do_is_told_by_apply(host: None, tmp_path: Path) -> None:
    up = Up(tmp_path, "--purge")
    try:
        up.wait()
        missing = readme_net().replace(f"netns: {WEB}", "netns: cli-absent")
        done = subprocess.run([sys.executable, "-m", "cli.main", "apply", "-f", "-", "--api", up.api], input=missing,
                              capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "endpoint default/web: not programmed" in done.stderr
        assert "ip netns add cli-absent" in done.stderr
        assert "default/client" not in done.stderr
        ip("netns", "add", "cli-absent")                            # the agent notices by itself
        try:
            deadline = time.monotonic() + 15
            while json.loads(up.sluice("get", "endpoint", "web", "-o", "json"))["status"]["phase"] != "Ready":
                assert time.monotonic() < deadline
                time.sleep(0.2)
        finally:
            ip("netns", "delete", "cli-absent")
    finally:
        up.interrupt()


def test_apply_waits_for_what_heals(host: None, tmp_path: Path) -> None:
    up = Up(tmp_path, "--purge")
    try:
        up.wait()
        late = readme_net().replace(f"netns: {WEB}", "netns: cli-late")
        command = [sys.executable, "-m", "cli.main", "apply", "-f", "-", "--api", up.api, "--wait", "20"]
        apply = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 text=True)
        assert apply.stdin is not None
        apply.stdin.write(late)
        apply.stdin.close()
        try:
            deadline = time.monotonic() + 15
            while '"Failed"' not in up.sluice("get", "endpoints", "-o", "json"):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert apply.poll() is None
            ip("netns", "add", "cli-late")
            apply.wait(20)
            assert apply.returncode == 0, apply.stderr and apply.stderr.read()
            assert json.loads(up.sluice("get", "endpoint", "web", "-o", "json"))["status"]["phase"] == "Ready"
        finally:
            apply.kill()
            apply.wait()
            for pipe in (apply.stdout, apply.stderr):
                assert pipe is not None
                pipe.close()
            subprocess.run(["ip", "netns", "delete", "cli-late"], capture_output=True, check=False)
    finally:
        up.interrupt()


def test_a_killed_up_takes_its_daemons_along(host: None, tmp_path: Path) -> None:
    up = Up(tmp_path)
    up.wait()
    up.process.kill()
    up.process.wait()
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and _daemons(tmp_path):
        time.sleep(0.1)
    assert _daemons(tmp_path) == []
    subprocess.run(inside(HOST, sys.executable, "-m", "cli.main", "agent", "purge", "--state",
                          f"{tmp_path}/state/agent", "--pin-dir", str(PINS)), check=True, capture_output=True)


def test_a_second_up_is_refused(host: None, tmp_path: Path) -> None:
    up = Up(tmp_path)
    try:
        up.wait()
        second = Up(tmp_path)
        assert second.process.wait(30) == 1
        assert "answers there already" in up.log.read_text()
        assert up.process.poll() is None
    finally:
        up.interrupt()
        subprocess.run(inside(HOST, sys.executable, "-m", "cli.main", "agent", "purge", "--state",
                              f"{tmp_path}/state/agent", "--pin-dir", str(PINS)), check=True, capture_output=True)


def _daemons(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line and int(entry.name) != os.getpid():
                found.append(line)
    return found
