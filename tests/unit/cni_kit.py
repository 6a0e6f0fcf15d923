"""Drives `sluice-cni` as the spec says a runtime does, and stands in for the agent behind it."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtimes.cni.install import install

Answer = Mapping[str, Any]


class FakeAgent:
    """A local socket that answers as it is told: an `ok`, an `error`, or nothing and the connection closed (None)."""

    def __init__(self, path: Path, answer: Callable[[dict[str, Any]], Answer | None]) -> None:
        self.path = path
        self.asked: list[dict[str, Any]] = []
        agent = self

        class Line(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while line := self.rfile.readline():
                    request = json.loads(line)
                    agent.asked.append(request)
                    said = answer(request)
                    if said is None:
                        return
                    self.wfile.write(json.dumps(said).encode() + b"\n")

        self._server = socketserver.ThreadingUnixStreamServer(str(path), Line)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        """As after kill -9: the socket's file stays."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> FakeAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Said:
    """What one call printed."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        assert self.status == 0, self.out + self.err
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def error(self) -> dict[str, Any]:
        """The error result; it has what the spec wants."""
        assert self.status != 0, self.out
        found: dict[str, Any] = json.loads(self.out)
        assert set(found) <= {"cniVersion", "code", "msg", "details"}
        assert type(found["code"]) is int
        assert found["msg"]
        assert "Traceback" not in self.err, self.err
        return found


@dataclass
class Runtime:
    """A runtime with one chain of plug-ins: ADD and CHECK in order, DEL backwards, the result before handed on."""

    plugins: Sequence[Mapping[str, Any]]
    folders: Sequence[Path]
    name: str = "red"
    version: str = "1.1.0"
    prefix: Sequence[str] = ()              # `nsenter`, to be on another host
    previous: dict[tuple[str, str], Any] = field(default_factory=dict)

    def add(self, container: str, netns: str, interface: str = "eth0", given: Mapping[str, Any] | None = None,
            arguments: str = "") -> Said:
        before, said = None, Said(1, "", "")
        for plugin in self.plugins:
            said = self.call("ADD", plugin, container, netns, interface, before, given, arguments)
            if said.status:
                return said
            before = said.result
        self.previous[container, interface] = before
        return said

    def check(self, container: str, netns: str, interface: str = "eth0") -> Said:
        said = Said(1, "", "")
        for plugin in self.plugins:
            said = self.call("CHECK", plugin, container, netns, interface, self.previous.get((container, interface)))
            if said.status:
                return said
        return said

    def delete(self, container: str, netns: str = "", interface: str = "eth0", known: bool = True) -> Said:
        said = Said(1, "", "")
        for plugin in reversed(self.plugins):
            before = self.previous.get((container, interface)) if known else None
            said = self.call("DEL", plugin, container, netns, interface, before)
            if said.status:
                return said
        self.previous.pop((container, interface), None)
        return said

    def gc(self, valid: Sequence[tuple[str, str]]) -> Said:
        extra = {"cni.dev/valid-attachments": [{"containerID": container, "ifname": name} for container, name in valid]}
        return self.call("GC", {**self.plugins[0], **extra})

    def status(self) -> Said:
        return self.call("STATUS", self.plugins[0])

    def call(self, command: str, plugin: Mapping[str, Any], container: str = "", netns: str = "", interface: str = "",
             before: Any = None, given: Mapping[str, Any] | None = None, arguments: str = "") -> Said:
        config = {**plugin, "cniVersion": self.version, "name": self.name}
        if before is not None:
            config["prevResult"] = before
        passed = {key: value for key, value in (given or {}).items() if plugin.get("capabilities", {}).get(key)}
        if passed:
            config["runtimeConfig"] = passed
        variables = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": interface,
                     "CNI_ARGS": arguments, "CNI_PATH": ":".join(map(str, self.folders))}
        return execute(self.program(plugin["type"]), json.dumps(config), variables, self.prefix)

    def program(self, kind: str) -> Path:
        """Where the plug-in is."""
        return next(folder / kind for folder in self.folders if (folder / kind).exists())


def execute(program: Path, text: str, variables: Mapping[str, str], prefix: Sequence[str] = ()) -> Said:
    """One process, in an environment that has nothing else but a path."""
    environment = {"PATH": os.environ["PATH"], **{name: value for name, value in variables.items() if value}}
    done = subprocess.run([*prefix, str(program)], input=text, capture_output=True, text=True, check=False, timeout=60,
                          env=environment)
    return Said(done.returncode, done.stdout, done.stderr)


def installed(folder: Path) -> Path:
    """`folder` with the launcher in it."""
    folder.mkdir(exist_ok=True)
    assert install(folder).parent == folder
    assert sys.version_info >= (3, 11)
    return folder
