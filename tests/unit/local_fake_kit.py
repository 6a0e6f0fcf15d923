"""An agent's local socket that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Answer = Callable[[str, dict[str, Any]], dict[str, Any]]


class Refuses(Exception):
    """Raised by an answer: the agent's error, with these fields."""

    def __init__(self, code: str, message: str, field: str = "", found: str = "", todo: str = "") -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "field": field, "found": found, "todo": todo}


class HangsUp(Exception):
    """Raised by an answer: the connection ends without one."""


class LocalAgent:
    """`asked`: (operation, arguments) in order."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def reply(self, line: bytes) -> bytes:
        request = json.loads(line)
        op = request.pop("op")
        self.asked.append((op, request))
        try:
            return json.dumps({"ok": self.answer(op, request)}).encode() + b"\n"
        except Refuses as refusal:
            return json.dumps({"error": refusal.error}).encode() + b"\n"


@contextmanager
def local_agent(path: Path, answer: Answer) -> Iterator[LocalAgent]:
    """One that listens while in the `with` block."""
    agent = LocalAgent(path, answer)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            try:
                for line in self.rfile:
                    self.wfile.write(agent.reply(line))
            except HangsUp:
                return

    path.unlink(missing_ok=True)
    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield agent
        finally:
            server.shutdown()
            thread.join()


def attachment(op: str, asked: dict[str, Any]) -> dict[str, Any]:
    """What an agent answers to an attach that it likes, in a network 10.1.0.0/24 with mode nat."""
    addresses = [f"{each}/24" for each in asked.get("addresses", ["10.1.0.5"])]
    place = asked.get("netns") or (f"/proc/{asked['pid']}/ns/net" if "pid" in asked else "")
    return {
        "runtime": asked["runtime"], "id": asked["id"], "scope": asked.get("scope", ""), "uid": "uid-1",
        "name": asked.get("name", "attach-0123456789ab"), "tenant": asked.get("tenant", "default"),
        "network": asked["network"], "mode": "nat", "addresses": addresses, "gateways": ["10.1.0.1"],
        "mac": asked.get("mac", "02:00:00:00:00:05"), "mtu": 1500,
        "interface": asked.get("tap") or asked.get("interface", "eth0"), "netns": place, "hostInterface": "slp1",
        "farInterface": "", "labels": asked.get("labels", {}), "mappings": asked.get("mappings", []),
        "existing": False, "leased": False,
    }
