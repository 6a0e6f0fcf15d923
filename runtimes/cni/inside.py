"""What a container's namespace has: the link, its MAC, its addresses, by plain netlink. For CHECK."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_interface
from typing import Any

CLONE_NEWNET = 0x40000000
RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE = 16, 18, 20, 22, 24, 26
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFLA_ADDRESS, IFLA_IFNAME, IFA_ADDRESS, IFA_LOCAL = 1, 3, 1, 2
RTA_OIF, RTA_GATEWAY = 4, 5
IFF_UP = 1
_HEADER = struct.Struct("=IHHII")
_LINK, _ADDRESS, _ROUTE = struct.Struct("=BxHiII"), struct.Struct("=BBBBi"), struct.Struct("=BBBBBBBBI")

_Row = tuple[tuple[int, ...], dict[int, bytes]]


def compare(netns: str, interface: str, mac: str, addresses: Sequence[str], found: dict[str, Any]) -> list[str]:
    """What is not as it was added; `found` is the agent's attachment. More addresses or routes are others' business.

    This process enters the namespace and stays there.
    """
    fault = _enter(netns)
    if fault:
        return [f"CNI_NETNS: {netns}: {fault}"]
    links = [row for row in _dump(RTM_GETLINK, RTM_NEWLINK, _LINK)
             if row[1].get(IFLA_IFNAME, b"").rstrip(b"\0").decode() == interface]
    if not links:
        return [f"interface {interface} is not in {netns}"]
    wrong = []
    (_, _, index, flags, _), attributes = links[0]
    seen = attributes.get(IFLA_ADDRESS, b"").hex(":")
    if not flags & IFF_UP:
        wrong.append(f"interface {interface} is down")
    for source, expected in (("prevResult", mac.lower()), ("the endpoint", found["mac"])):
        if expected and seen != expected:
            wrong.append(f"interface {interface} has MAC {seen}, and {source} {expected}")
    have = {_text(attributes.get(IFA_LOCAL, attributes.get(IFA_ADDRESS, b"")), head[1])
            for head, attributes in _dump(RTM_GETADDR, RTM_NEWADDR, _ADDRESS) if head[4] == index}
    wanted = {str(ip_interface(each)) for each in (*addresses, *found["addresses"])}
    wrong += [f"interface {interface} lacks address {each}" for each in sorted(wanted - have)]
    routes = {str(ip_address(attributes[RTA_GATEWAY])) for head, attributes in _dump(RTM_GETROUTE, RTM_NEWROUTE, _ROUTE)
              if head[1] == 0 and RTA_GATEWAY in attributes and attributes.get(RTA_OIF) == struct.pack("=I", index)}
    wrong += [f"no default route by {each} at {interface}" for each in found.get("gateways") or ()
              if str(ip_address(each)) not in routes]
    return wrong


def _enter(netns: str) -> str:
    """Why it cannot; empty: done."""
    try:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.strerror or str(error)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
            return os.strerror(ctypes.get_errno())
    finally:
        os.close(descriptor)
    return ""


def _dump(asked: int, kind: int, head: struct.Struct) -> Iterator[_Row]:
    """Rows of one table: the fixed header, and attributes by number."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as connection:
        connection.settimeout(2.0)
        body = bytes(head.size)
        connection.send(_HEADER.pack(_HEADER.size + len(body), asked, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
        while True:
            data = connection.recv(1 << 17)
            while data:
                length, got, *_ = _HEADER.unpack_from(data)
                if got in (NLMSG_DONE, NLMSG_ERROR):
                    return
                if got == kind:
                    start = _HEADER.size
                    yield head.unpack_from(data, start), _attributes(data[start + head.size:length])
                data = data[-(-length // 4) * 4:]


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[-(-length // 4) * 4:]
    return found


def _text(address: bytes, length: int) -> str:
    return f"{ip_address(address)}/{length}" if len(address) in (4, 16) else ""
