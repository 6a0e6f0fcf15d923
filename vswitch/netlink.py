"""A blocking netlink socket that sends several requests as one datagram.

pyroute2 encodes and decodes the messages; its own `IPRoute` is not used, for three reasons. Since 0.9 it is a
wrapper around an asyncio core: it cannot be called where a loop runs, and opens one more loop and socket for
every thread that calls it (pyroute2 issues 1342, 1319). It forks a child for every socket in another
namespace. And it sends one request a datagram, where we need several: the kernel works off a datagram without
returning to us, so that SIGKILL cannot fall between making a link and marking it as ours.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from pyroute2.netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    rtnl,
)
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

from vswitch.errors import KernelRefused, PermissionDenied

SOL_NETLINK = 270
NETLINK_CAP_ACK = 10  # errors come without our own request
NETLINK_EXT_ACK = 11  # errors come with a sentence of the kernel
NETLINK_GET_STRICT_CHK = 12  # dumps filter in the kernel

NLMSGERR_ATTR_MSG = 1
ATTRIBUTE = struct.Struct("=HH")  # length, type
NESTED_OR_SWAPPED = 0x8000 | 0x4000
HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
RECEIVE_BYTES = 1 << 18
ANSWER_WITHIN_S = 10.0
DUMP_TRIES = 5
BATCH = 64  # answers to one datagram must fit the socket's receive buffer

Message = Any  # a pyroute2 nlmsg: a mapping of fields, with get_attr(); of a link its bytes
MESSAGES: dict[int, type[Any]] = MarshalRtnl.msg_map


@dataclass(frozen=True, slots=True)
class Request:
    """One netlink request; `asked` says it in words, for errors."""

    asked: str
    type: int
    fields: dict[str, int]
    attributes: list[tuple[str, Any]]
    flags: int = 0
    form: Callable[[], Any] | None = None  # of the message, where it is not pyroute2's own

    def encode(self, sequence: int, flags: int) -> bytes:
        """The message on the wire, padded to 4 bytes."""
        known = _plain(self)
        if known is not None:
            data = bytearray(known)
            HEADER.pack_into(data, 0, len(data), self.type, NLM_F_REQUEST | self.flags | flags, sequence, 0)
            return bytes(data)
        return self.encode_anew(sequence, flags)

    def encode_anew(self, sequence: int, flags: int) -> bytes:
        """The same, by pyroute2."""
        message = (self.form or MESSAGES[self.type])()
        message["header"]["type"] = self.type
        message["header"]["flags"] = NLM_F_REQUEST | self.flags | flags
        message["header"]["sequence_number"] = sequence
        for name, value in self.fields.items():
            message[name] = value
        message["attrs"] = self.attributes
        message.encode()
        data = bytes(message.data)
        return data + bytes(-len(data) % 4)


def _plain(request: Request) -> bytes | None:
    """The message of a request that is asked again and again, without its header; None: it is not such a one."""
    if request.form is not None or any(isinstance(value, list | dict) for _, value in request.attributes):
        return None
    return _encoded(request.type, tuple(request.fields.items()), tuple(request.attributes))


@lru_cache(maxsize=1024)
def _encoded(kind: int, fields: tuple[tuple[str, int], ...], attributes: tuple[tuple[str, Any], ...]) -> bytes:
    return Request("", kind, dict(fields), list(attributes)).encode_anew(0, 0)


class Netlink:
    """A netlink socket in the namespace of the thread that opened it. One thread at a time may use it.

    `protocol`: whom it asks; without, rtnetlink.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        try:
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            self._socket.settimeout(ANSWER_WITHIN_S)
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def run(self, *requests: Request) -> None:
        """Send all requests as one datagram and wait for every answer. The kernel tries each, even after one failed.

        Raises:
            PermissionDenied, KernelRefused: of the first request that failed.
        """
        if not requests:
            return
        waiting: dict[int, Request] = {}
        datagram = bytearray()
        for request in requests:
            self._sequence += 1
            waiting[self._sequence] = request
            datagram += request.encode(self._sequence, NLM_F_ACK)
        self._socket.send(datagram)
        failures: dict[int, KernelRefused | PermissionDenied] = {}
        while waiting:
            for kind, flags, sequence, data in self._receive():
                if kind == NLMSG_ERROR and sequence in waiting:
                    request = waiting.pop(sequence)
                    failure = _failure(request, data, flags)
                    if failure is not None:
                        failures[sequence] = failure
        if failures:
            raise failures[min(failures)]

    def run_in_batches(self, requests: list[Request]) -> None:
        """Like `run`, for any number of requests, in datagrams of a bounded size."""
        for first in range(0, len(requests), BATCH):
            self.run(*requests[first : first + BATCH])

    def get(self, request: Request) -> Message | None:
        """The one object that is asked for; None if the kernel has none.

        Raises:
            PermissionDenied, KernelRefused: any other answer.
        """
        self._sequence += 1
        wanted = self._sequence
        self._socket.send(request.encode(wanted, 0))
        while True:
            for kind, flags, sequence, data in self._receive():
                if sequence != wanted:
                    continue
                if kind == NLMSG_ERROR:
                    failure = _failure(request, data, flags)
                    if isinstance(failure, KernelRefused) and failure.code in (errno.ENODEV, errno.ENOENT):
                        return None
                    if failure is not None:
                        raise failure
                    return None
                return _decode(kind, data)

    def ask_many(self, kind: int, bodies: Sequence[bytes]) -> list[bytes | None]:
        """Raw answers to many questions of one type, each without header; None where the kernel refused to answer.

        Raises:
            KernelRefused: it did not answer at all.
        """
        answers: list[bytes | None] = [None] * len(bodies)
        for first in range(0, len(bodies), BATCH):
            waiting: dict[int, int] = {}
            datagram = bytearray()
            for place in range(first, min(first + BATCH, len(bodies))):
                self._sequence += 1
                waiting[self._sequence] = place
                body = bodies[place]
                datagram += HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST, self._sequence, 0)
                datagram += body + bytes(-len(body) % 4)
            self._socket.send(datagram)
            while waiting:
                for found, _flags, sequence, data in self._receive():
                    at = waiting.pop(sequence, None)
                    if at is not None and found != NLMSG_ERROR:
                        answers[at] = data
        return answers

    def dump(self, request: Request) -> list[Message]:
        """Every object that fits; asked again when the kernel says that the set changed meanwhile.

        Raises:
            PermissionDenied, KernelRefused: the kernel's answer.
        """
        return [_decode(kind, data) for kind, data in self._dump(request)]

    def dump_raw(self, request: Request) -> list[bytes]:
        """The same, each as the bytes of its message."""
        return [data for _kind, data in self._dump(request)]

    def _dump(self, request: Request) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        for _ in range(DUMP_TRIES):
            found, whole = self._dump_once(request)
            if whole:
                break
        return found

    def _dump_once(self, request: Request) -> tuple[list[tuple[int, bytes]], bool]:
        self._sequence += 1
        wanted = self._sequence
        self._socket.send(request.encode(wanted, NLM_F_DUMP))
        found: list[tuple[int, bytes]] = []
        whole = True
        while True:
            for kind, flags, sequence, data in self._receive():
                if sequence != wanted:
                    continue
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind == NLMSG_ERROR:
                    failure = _failure(request, data, flags)
                    if failure is not None:
                        raise failure
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    return found, whole
                found.append((kind, data))

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """(type, flags, sequence, whole message) of every message in the next datagram."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except TimeoutError:
            found = f"no answer in {ANSWER_WITHIN_S:.0f} s"
            raise KernelRefused("netlink request", found, "see the kernel log", errno.ETIMEDOUT) from None
        offset = 0
        while offset + HEADER.size <= len(data):
            length, kind, flags, sequence, _port = HEADER.unpack_from(data, offset)
            if length < HEADER.size:
                return
            yield kind, flags, sequence, data[offset : offset + length]
            offset += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in a piece of a message, by number; of one that comes twice the last."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size:
            break
        found[kind & ~NESTED_OR_SWAPPED] = data[offset + ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


def _decode(kind: int, data: bytes) -> Message:
    if kind == rtnl.RTM_NEWLINK:
        return data
    message = MESSAGES[kind](data)
    message.decode()
    return message


def _failure(request: Request, data: bytes, flags: int) -> KernelRefused | PermissionDenied | None:
    """The exception for an NLMSG_ERROR message; None if it is an acknowledgement."""
    (code,) = struct.unpack_from("=i", data, HEADER.size)
    if code == 0:
        return None
    code = -code
    found = f"{errno.errorcode.get(code, code)} ({os.strerror(code)})"
    sentence = _kernel_sentence(data)
    if sentence:
        found += f", {sentence}"
    if code in (errno.EPERM, errno.EACCES):
        return PermissionDenied(request.asked, found, "run as root or give the process CAP_NET_ADMIN")
    return KernelRefused(request.asked, found, "see what the kernel says of it", code)


def _kernel_sentence(data: bytes) -> str:
    """NLMSGERR_ATTR_MSG; attributes follow the error code and the (capped) header of the request."""
    told = attributes(data[HEADER.size + 4 + HEADER.size :])
    return told.get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")
