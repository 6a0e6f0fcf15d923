"""The controller as a process: unix socket and TCP, the client, kill and restart, one at a time."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from controller_kit import WORLD, document, endpoint, host, overlay

from controller.client import ApiError, Client, ClientError, Reference, Unreachable, kind_of

RUN = """
import sys
from pathlib import Path
from controller.app import Config, run
run(Config(Path(sys.argv[1]), "unix:" + sys.argv[2], sys.argv[3], "127.0.0.1:0"))
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Process:
    def __init__(self, folder: Path, listen: str = "") -> None:
        self.path = folder / "api.sock"
        self.api = f"unix:{self.path}"
        self.command = [sys.executable, "-W", "error", "-c", RUN, str(folder / "state"), str(self.path), listen]
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                self.log.append(line)
                if "controller ready" in line:
                    self.ready.set()
        self.ready.set()

    def wait_ready(self) -> None:
        assert self.ready.wait(15)
        assert self.process.poll() is None, "".join(self.log)

    def end(self, which: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(which)             # does nothing if it has ended
        status = self.process.wait(10)
        self.reader.join(5)
        return status


@contextmanager
def controller(folder: Path, listen: str = "") -> Iterator[Process]:
    process = Process(folder, listen)
    try:
        process.wait_ready()
        yield process
    finally:
        process.end()


def test_the_client_does_it_all_over_the_unix_socket(tmp_path: Path) -> None:
    with controller(tmp_path) as process, Client(process.api) as client:
        assert stat.S_IMODE(process.path.stat().st_mode) == 0o600
        written = client.apply(WORLD, wait_s=1)
        assert [i["result"] for i in written.items] == ["created"] * len(WORLD)
        assert client.get("Endpoint", "a")["status"]["address"] == "10.1.0.5"
        assert [n["metadata"]["name"] for n in client.list("Network")] == ["blue", "office", "red"]
        assert client.list("Endpoint", tenant="default", labels="app=web")[0]["metadata"]["name"] == "web"
        with pytest.raises(ApiError) as refused:
            client.apply([overlay("x", "10.1.0.5/24"), endpoint("y", "red", address="10.9.9.9")])
        assert refused.value.status == 422
        assert [(p.field, p.found) for p in refused.value.problems] == [
            ("spec.subnets[0].prefix", "10.1.0.5/24"), ("spec.address", "10.9.9.9")]
        assert "Network default/x: spec.subnets[0].prefix: '10.1.0.5/24' has host bits set; write 10.1.0.0/24" in str(
            refused.value)
        revision = client.get("Network", "red")["metadata"]["revision"]
        with pytest.raises(ApiError) as outdated:
            client.put(overlay("red", mtu=1400), if_match=revision + 5)
        assert (outdated.value.status, outdated.value.code) == (412, "outdated")
        client.put(overlay("red", mtu=1400), if_match=revision)
        watched = client.watch("Network", since=written.revision)
        first = next(watched)
        assert (first["type"], first["name"], first["resource"]["spec"]["mtu"]) == ("put", "red", 1400)
        watched.close()
        assert client.create_token("h9").startswith("sluice1.")
        assert client.delete("StaticMapping", "www").items[0]["result"] == "deleted"
        with pytest.raises(ApiError) as missing:
            client.delete("StaticMapping", "www")
        assert missing.value.status == 404
        client.delete_all([Reference(d["kind"], d["metadata"]["name"],
                                     "" if d["kind"] == "Host" else "default") for d in WORLD], missing_ok=True)
        assert client.list("Host") == []
        assert client.health()["status"] == "ok"
        assert client.version()["api"] == "sluice/v1"
    assert not process.path.exists()


def test_a_listing_longer_than_a_page_is_whole(tmp_path: Path) -> None:
    with controller(tmp_path) as process, Client(process.api) as client:
        client.apply([document("Tenant", f"t{i}", {}) for i in range(1100)])
        assert len(client.list("Tenant")) == 1101


def test_tcp_needs_the_bearer_token(tmp_path: Path) -> None:
    port = free_port()
    with controller(tmp_path, f"127.0.0.1:{port}"):
        file = tmp_path / "state" / "api-token"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        with Client(f"http://127.0.0.1:{port}", token=file.read_text().strip()) as client:
            assert client.health()["status"] == "ok"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
            answer = httpx.get(f"http://127.0.0.1:{port}/v1/hosts", headers=headers)
            assert answer.status_code == 401
        with Client(f"http://127.0.0.1:{port}", token="wrong") as client, pytest.raises(ApiError) as refused:
            client.list("Host")
        assert "SLUICE_API_TOKEN" in refused.value.problems[0].todo


def test_after_a_kill_it_starts_again_with_everything(tmp_path: Path) -> None:
    with controller(tmp_path) as process, Client(process.api) as client:
        written = client.apply(WORLD)
        before = [client.list(kind) for kind in ("Network", "Endpoint", "StaticMapping")]
        store = client.version()["store"]
        process.end(signal.SIGKILL)
        assert process.path.is_socket()             # left behind, and no obstacle
        with pytest.raises(Unreachable, match="no answer from the controller"):
            client.health()
    with controller(tmp_path) as process, Client(process.api) as client:
        assert [client.list(kind) for kind in ("Network", "Endpoint", "StaticMapping")] == before
        assert (client.version()["store"], client.version()["revision"]) == (store, written.revision)
        assert process.end() == 0
        assert not any("Warning" in line or "Traceback" in line for line in process.log), process.log


def test_sigterm_ends_it_in_order_also_under_a_watch(tmp_path: Path) -> None:
    with controller(tmp_path) as process, Client(process.api) as client:
        watched = client.watch()
        assert next(watched)["type"] == "bookmark"
        began = time.monotonic()
        assert process.end() == 0
        assert time.monotonic() - began < 5
        assert list(watched) == []
        assert not any("Traceback" in line for line in process.log), process.log


def test_a_second_controller_is_refused_by_folder_and_by_socket(tmp_path: Path) -> None:
    with controller(tmp_path) as process:
        second = Process(tmp_path)
        assert second.process.wait(15) != 0
        second.end()
        assert "another controller uses" in "".join(second.log)
        (tmp_path / "other").mkdir()
        command = [*process.command[:-3], str(tmp_path / "other" / "state"), str(process.path), ""]
        third = subprocess.run(command, capture_output=True, text=True, timeout=15)
        assert third.returncode != 0
        assert "another controller answers at" in third.stderr
        with Client(process.api) as client:
            assert client.health()["status"] == "ok"
    (tmp_path / "api.sock").write_text("not a socket")
    fourth = Process(tmp_path)
    assert fourth.process.wait(15) != 0
    fourth.end()
    assert "is not a socket" in "".join(fourth.log)
    assert (tmp_path / "api.sock").read_text() == "not a socket"


def test_no_controller_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_API", f"unix:{tmp_path}/none.sock")
    with Client() as client, pytest.raises(Unreachable, match="sluice up"):
        client.apply([host("h1")])
    with pytest.raises(ClientError, match="neither unix:/path nor http"):
        Client("ftp://x")


@pytest.mark.parametrize(("word", "kind"), [("net", "Network"), ("networks", "Network"), ("Policy", "Policy"),
                                            ("policies", "Policy"), ("static", "StaticMapping"), ("", None),
                                            ("x", None)])
def test_kinds_by_word(word: str, kind: Any) -> None:
    if kind is None:
        with pytest.raises(ClientError, match="unknown kind"):
            kind_of(word)
    else:
        assert kind_of(word) == kind
