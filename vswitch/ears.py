"""Who listens on this host: the ports that its own sockets hold.

TCP and UDP by sock_diag(7), which walks the listeners alone: /proc/net/tcp takes a millisecond for each 30,000
buckets of the kernel's table of connections, be they empty or not. Where the kernel has no sock_diag, by /proc.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from pyroute2.netlink import NETLINK_SOCK_DIAG
from pyroute2.netlink.diag import SOCK_DIAG_BY_FAMILY, inet_diag_req

from vswitch.errors import KernelRefused
from vswitch.namespaces import Visitor
from vswitch.netlink import HEADER, Netlink, Request

__all__ = ["Ears", "Listener"]

Listener = tuple[str, str, int]             # protocol, address, port

TCP_LISTEN = 0x0A
UDP_UNCONNECTED = 0x07                      # TCP_CLOSE
_TABLES = (
    ("tcp", socket.AF_INET, socket.IPPROTO_TCP, TCP_LISTEN),
    ("tcp6", socket.AF_INET6, socket.IPPROTO_TCP, TCP_LISTEN),
    ("udp", socket.AF_INET, socket.IPPROTO_UDP, UDP_UNCONNECTED),
    ("udp6", socket.AF_INET6, socket.IPPROTO_UDP, UDP_UNCONNECTED),
)
_ANSWER = struct.Struct("=BBBB2s2s16s")     # struct inet_diag_msg, up to the source: in network byte order
_PROC = Path("/proc/thread-self/net")
_NOT_THERE = (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL)


class Ears:
    """Looks in the namespace that the visitor calls home. One thread at a time."""

    def __init__(self, visitor: Visitor) -> None:
        self._visitor = visitor
        self._diag: Netlink | None
        try:
            self._diag = visitor.at_home(lambda: Netlink(NETLINK_SOCK_DIAG))
        except OSError:                     # a kernel without it
            self._diag = None

    def close(self) -> None:
        """Close the socket."""
        if self._diag is not None:
            self._diag.close()

    def heard(self) -> list[Listener]:
        """Every listening socket, an address for each that one has; IPv4 ones in IPv6 as IPv4.

        Raises:
            PermissionDenied, KernelRefused.
        """
        found: list[Listener] = []
        for table in _TABLES:
            found += self._ask(*table)
        return found + self._visitor.at_home(lambda: list(_sctp(_PROC)))

    def _ask(self, table: str, family: int, protocol: int, state: int) -> list[Listener]:
        asked = Request(
            f"listening sockets of {table}", SOCK_DIAG_BY_FAMILY,
            {"sdiag_family": family, "sdiag_protocol": protocol, "idiag_states": 1 << state}, [], form=inet_diag_req)
        if self._diag is not None:
            try:
                return [_listener(table[:3], answer) for answer in self._diag.dump_raw(asked)]
            except KernelRefused as error:
                if error.code not in _NOT_THERE:
                    raise
        return self._visitor.at_home(lambda: list(_read(_PROC / table, table[:3], state)))


def _listener(protocol: str, answer: bytes) -> Listener:
    family, _state, _timer, _retransmits, port, _peer, source = _ANSWER.unpack_from(answer, HEADER.size)
    return protocol, _written(source[:4] if family == socket.AF_INET else source), int.from_bytes(port, "big")


@lru_cache(maxsize=1024)
def _written(packed: bytes) -> str:
    return _plain(ip_address(packed))


def _read(path: Path, protocol: str, wanted: int) -> Iterator[Listener]:
    """The same of a table in /proc (Documentation/networking/proc_net_tcp.rst)."""
    try:
        table = path.open()
    except FileNotFoundError:               # a kernel without IPv6
        return
    with table:
        next(table)
        for line in table:
            _number, local, _remote, state, _rest = line.split(maxsplit=4)
            if int(state, 16) == wanted:
                address, port = local.split(":")
                yield protocol, _address(address), int(port, 16)
            elif wanted == TCP_LISTEN:
                break                       # the kernel shows listeners first; connections may be many


def _address(text: str) -> str:
    """An address from 32-bit words in the host's byte order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    return _plain(ip_address(b"".join(socket.htonl(word).to_bytes(4, "big") for word in words)))


def _sctp(directory: Path) -> Iterator[Listener]:
    """One line an endpoint, which may have several addresses; without the module there is no table."""
    try:
        lines = (directory / "sctp" / "eps").read_text().splitlines()[1:]
    except (FileNotFoundError, NotADirectoryError):
        return
    for line in lines:
        _endpoint, _socket, _style, state, _bucket, port, _uid, _inode, *addresses = line.split()
        if int(state) == TCP_LISTEN:
            for address in addresses:
                yield "sctp", _plain(ip_address(address)), int(port)


def _plain(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
