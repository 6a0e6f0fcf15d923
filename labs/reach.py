"""`probe reach PORT ADDRESS...`: asks many `probe serve` at once, by TCP, UDP and ping, and tells who answered.

ADDRESS is one, several with commas between, or a range (10.1.0.11-10.1.0.20). Each is asked once by each protocol,
without a second try: what is lost is silent. Summary:

    answered     how many (address, protocol) were answered
    expected     how many were asked
    who          the distinct names of those who answered, in order
    wrong        with `--name`: answers of somebody else
    seen         the distinct addresses under which the servers saw us
    silent       "PROTOCOL ADDRESS" of those that were not answered, refusals and ICMP errors among them
"""

from __future__ import annotations

import json
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

REQUEST = b"GET / HTTP/1.1\r\nHost: reach\r\n\r\n"
ECHO_REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}
ICMP_HEADER = struct.Struct("!BBHHH")       # type, code, checksum (the kernel's), identifier (the kernel's), sequence
PROTOCOLS = ("tcp", "udp", "icmp")


@dataclass(frozen=True, slots=True)
class Asked:
    """One question on its way."""

    protocol: str
    address: str
    flow: socket.socket


def reach(port: int, addresses: Sequence[str], protocols: Sequence[str], timeout_s: float, name: str = "") -> int:
    """Ask all at once; status 0 whatever the answers are: the summary is to be judged."""
    asked, silent = [], []
    addresses = [address for text in addresses for address in _spread(text)]
    for address in addresses:
        for protocol in protocols:
            try:
                asked.append(Asked(protocol, address, _opened(protocol, address, port)))
            except OSError:                 # no route: nothing was sent
                silent.append(f"{protocol} {address}")
    answers = _collect(asked, timeout_s)
    silent += [f"{one.protocol} {one.address}" for one in asked if one not in answers]
    said = [found.groups() for text in answers.values() if (found := re.search(r"(\S+) answers (\S+) \d+", text))]
    json.dump({"answered": len(answers), "expected": len(addresses) * len(protocols),
               "who": sorted({who for who, _ in said}), "seen": sorted({seen for _, seen in said}),
               "wrong": sorted({who for who, _ in said if name and not re.fullmatch(name, who)}),
               "silent": silent}, sys.stdout)
    return 0


def _spread(text: str) -> Iterator[str]:
    for part in filter(None, re.split("[ ,]+", text)):
        begin, _, end = part.partition("-")
        first, last = ip_address(begin), ip_address(end or begin)
        yield from (str(type(first)(number)) for number in range(int(first), int(last) + 1))


def _opened(protocol: str, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    icmp = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
    flow = (socket.socket(family, socket.SOCK_DGRAM, icmp) if protocol == "icmp" else
            socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM))
    flow.setblocking(False)
    with suppress(BlockingIOError):         # TCP: on its way
        flow.connect((address, port))
    return flow


def _question(one: Asked) -> bytes:
    if one.protocol != "icmp":
        return REQUEST
    return ICMP_HEADER.pack(ECHO_REQUEST[one.flow.family], 0, 0, 0, 1) + b"reach"


def _collect(asked: Sequence[Asked], timeout_s: float) -> dict[Asked, str]:
    waiting = {one.flow.fileno(): one for one in asked}
    unsent, answers, poll = set(waiting), dict[Asked, str](), select.poll()
    for number in waiting:
        poll.register(number, select.POLLIN | select.POLLOUT)
    deadline = time.monotonic() + timeout_s
    while waiting and (left := deadline - time.monotonic()) > 0:
        for number, events in poll.poll(left * 1000):
            one, done = waiting[number], False
            try:
                if number in unsent and events & select.POLLOUT:
                    one.flow.send(_question(one))
                    unsent.discard(number)
                    poll.modify(number, select.POLLIN)
                elif events:
                    done = True
                    if answer := one.flow.recv(4096):
                        answers[one] = answer.decode(errors="replace")
            except OSError:
                done = True
            if done:
                del waiting[number]
                poll.unregister(number)
    return answers
