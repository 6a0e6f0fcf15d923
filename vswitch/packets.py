"""Packet sockets that wake us for what we wait for and nothing else (packet(7)): the kernel filters by a program.

Filters are classic BPF (Documentation/networking/filter.rst). Each opens in the namespace of the thread that calls.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Sequence

SO_ATTACH_FILTER = 26
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
ETH_P_ALL, ETH_P_IP, ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
SO_MARK = 36

LOAD_BYTE, LOAD_HALF = 0x30, 0x28  # at an offset of the packet
LOAD_BYTE_X, LOAD_HALF_X, LOAD_HEADER_X = 0x50, 0x48, 0xB1  # at X; X = 4 * (low nibble of the byte there)
EQUAL, RETURN = 0x15, 0x06
WHOLE = 0x40000

DEST_UNREACHABLE, FRAGMENTATION_NEEDED, PACKET_TOO_BIG = 3, 4, 2
ROUTER_SOLICITATION = 133
UDP, ICMPV6 = 17, 58
BUFFER_BYTES = 1 << 18

Test = tuple[int, int, int]  # how to load, from where, what it must equal


def open_too_big(udp_port: int, version: int) -> socket.socket:
    """What routers say is "too big" of UDP packets to this port (RFC 1191, RFC 8201), in IPv4 or IPv6.

    Raises:
        OSError: not allowed to, or the kernel does not have the family.
    """
    if version == 4:
        return _raw(socket.AF_INET, socket.IPPROTO_ICMP, [
            (LOAD_HEADER_X, 0, -1), (LOAD_BYTE_X, 0, DEST_UNREACHABLE), (LOAD_BYTE_X, 1, FRAGMENTATION_NEEDED),
            (LOAD_BYTE_X, 17, UDP), (LOAD_HALF_X, 30, udp_port)])
    return _raw(socket.AF_INET6, socket.IPPROTO_ICMPV6, [
        (LOAD_BYTE, 0, PACKET_TOO_BIG), (LOAD_BYTE, 14, UDP), (LOAD_HALF, 50, udp_port)])


def open_dhcp(ifindex: int, *, answers: bool) -> socket.socket:
    """What comes in by a link for DHCP (RFC 2131) over IPv4 without options: what servers answer, or what clients ask.

    Raises:
        OSError: not allowed to, or no such link.
    """
    source, target = (67, 68) if answers else (68, 67)
    return _packet(ifindex, [
        (LOAD_HALF, 12, ETH_P_IP), (LOAD_BYTE, 14, 0x45), (LOAD_BYTE, 23, UDP), (LOAD_HALF, 34, source),
        (LOAD_HALF, 36, target)])


def open_solicitations(ifindex: int) -> socket.socket:
    """Router solicitations (RFC 4861) that come in by a link.

    Raises:
        OSError: not allowed to, or no such link.
    """
    return _packet(ifindex, [
        (LOAD_HALF, 12, ETH_P_IPV6), (LOAD_BYTE, 20, ICMPV6), (LOAD_BYTE, 54, ROUTER_SOLICITATION)])


def open_sender(mark: int = 0) -> socket.socket:
    """A socket that sends frames by any link, and gets none; hooks see the mark.

    Raises:
        OSError: not allowed to.
    """
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    if mark:
        opened.setsockopt(socket.SOL_SOCKET, SO_MARK, mark.to_bytes(4, sys.byteorder))
    return opened


def _packet(ifindex: int, tests: Sequence[Test]) -> socket.socket:
    """A socket on one link. With ETH_P_ALL it sees a frame before the hooks at the ingress do."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        _attach(opened, tests)
        opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        opened.bind((socket.if_indextoname(ifindex), ETH_P_ALL))
    except BaseException:
        opened.close()
        raise
    return opened


def _raw(family: int, protocol: int, tests: Sequence[Test]) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        _attach(opened, tests)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    except BaseException:
        opened.close()
        raise
    return opened


def _attach(opened: socket.socket, tests: Sequence[Test]) -> None:
    """All must hold. What came before the filter was there is thrown away."""
    program = bytearray()
    steps = sum(1 if value < 0 else 2 for _, _, value in tests)
    at = 0
    for load, offset, value in tests:
        program += struct.pack("=HBBI", load, 0, 0, offset)
        at += 1
        if value >= 0:
            program += struct.pack("=HBBI", EQUAL, 0, steps - at, value)  # else to the last instruction
            at += 1
    program += struct.pack("=HBBI", RETURN, 0, 0, WHOLE) + struct.pack("=HBBI", RETURN, 0, 0, 0)
    code = ctypes.create_string_buffer(bytes(program), len(program))
    header = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    opened.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, header)
    try:
        while True:
            opened.recv(1)
    except BlockingIOError:
        pass
