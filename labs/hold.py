"""`probe hold PROTOCOL ADDRESS PORT --count N`: many flows at once to `probe serve`, kept, and asked again.

It opens N flows, each from a port of its own, and asks each once; then, on standard error, "held" with how many were
answered. On SIGTERM (`--at-once`: without waiting for it) it asks those again and prints a summary:

    answered, refused      of the first question
    again, changed, lost   of the second: same answer; another (the flow got another outside); none
    seen                   the distinct "ADDRESS PORT" under which the server saw the flows: `distinct` their number
    addresses              the distinct addresses of these
    low, high              the lowest and highest port of these
"""

from __future__ import annotations

import json
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable

REQUEST = b"GET / HTTP/1.1\r\nHost: hold\r\n\r\n"


def hold(protocol: str, address: str, port: int, count: int, timeout_s: float, source_port: int,
         at_once: bool = False) -> int:
    """Open, ask, wait for SIGTERM (unless `at_once`), ask again, tell."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    flows = [_opened(protocol, address, port, source_port + number if source_port else 0) for number in range(count)]
    first = ask(flows, timeout_s)
    sys.stderr.write(f"held {len(first)} of {count}\n")
    if not at_once:
        signal.sigwait([signal.SIGTERM])
    second = ask(first, timeout_s)
    again = sum(second.get(flow) == answer for flow, answer in first.items())
    seen = sorted({answer.partition(" answers ")[2] for answer in first.values()})
    ports = [int(text.split()[1]) for text in seen]
    json.dump({"answered": len(first), "refused": count - len(first), "again": again,
               "changed": len(second) - again, "lost": len(first) - len(second), "distinct": len(seen),
               "addresses": sorted({text.split()[0] for text in seen}),
               "low": min(ports, default=None), "high": max(ports, default=None)}, sys.stdout)
    return 0


def _opened(protocol: str, address: str, port: int, source_port: int) -> socket.socket:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    flow = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    flow.setblocking(False)
    if source_port:
        flow.bind(("", source_port))
    flow.connect_ex((address, port))
    return flow


def ask(flows: Iterable[socket.socket], timeout_s: float) -> dict[socket.socket, str]:
    """Ask all side by side; the answers, of those that come in time.."""
    waiting = {flow.fileno(): flow for flow in flows}
    unsent, answers, poll = dict(waiting), dict[socket.socket, str](), select.poll()
    for number in waiting:
        poll.register(number, select.POLLIN | select.POLLOUT)
    deadline = time.monotonic() + timeout_s
    while waiting and (left := deadline - time.monotonic()) > 0:
        for number, events in poll.poll(left * 1000):
            flow = waiting[number]
            try:
                if number in unsent and events & select.POLLOUT:
                    flow.send(REQUEST)
                    del unsent[number]
                    poll.modify(number, select.POLLIN)
                if events & (select.POLLIN | select.POLLERR | select.POLLHUP):
                    answers[flow] = flow.recv(4096).decode(errors="replace").splitlines()[-1]
                    del waiting[number]
                    poll.unregister(number)
            except (OSError, IndexError):
                del waiting[number]
                poll.unregister(number)
    return answers
