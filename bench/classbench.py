"""ClassBench filter sets and headers as engine rules and frames (Taylor and Turner, IEEE/ACM ToN 2007).

A rule line is `@src/len dst/len low : high low : high protocol/mask flags/mask`, ports as inclusive ranges; the first
line that matches wins. Flags are ignored. A header line has `src dst sport dport protocol` in its first five columns,
addresses as integers. Either file may be compressed with gzip.
"""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from pathlib import Path

from vfp.model import Allow, Match, PortRange, Rule

__all__ = ["FormatError", "Header", "frame", "perturbed", "read_headers", "read_rules"]

_LINE = re.compile(
    r"@(?P<src>[\d.]+/\d+)\s+(?P<dst>[\d.]+/\d+)\s+(?P<sport>\d+\s*:\s*\d+)\s+(?P<dport>\d+\s*:\s*\d+)\s+"
    r"(?P<protocol>0x[0-9a-fA-F]{1,2})/(?P<mask>0x[0-9a-fA-F]{1,2})(\s+0x[0-9a-fA-F]+/0x[0-9a-fA-F]+)?\s*$"
)
_ALLOW = Allow()
_MAX_PORT = 65535
_TCP, _UDP, _SCTP, _ICMP = 6, 17, 132, 1


class FormatError(ValueError):
    """A line that is not of the format: says which file, line, and what was found."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a header line asks about; addresses are integers."""

    src: int
    dst: int
    src_port: int
    dst_port: int
    protocol: int


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a file; a rule's priority is its line, from 0, and its name that number.

    Raises:
        FormatError: a line that is no rule.
    """
    return tuple(_rule(path, number, line) for number, line in enumerate(_lines(path)))


def read_headers(path: Path) -> list[Header]:
    """The headers of a file.

    Raises:
        FormatError: a line that does not begin with five integers in range.
    """
    return [_header(path, number, line) for number, line in enumerate(_lines(path))]


def perturbed(rules: tuple[Rule, ...], count: int) -> tuple[Rule, ...]:
    """`count` rules made of `rules`: round after round of them, each with the addresses of its prefixes moved.

    Round k adds k * 0x9E3779 to the bits that a prefix fixes (modulo their number; a copy of 10.0.0.0/8 is another
    /8), so shapes and overlaps within a round are those of the original and rounds seldom meet. Wildcards stay.
    Priorities are positions.
    """
    def moved(network: IPv4Network | None, by: int) -> IPv4Network | None:
        if network is None or not by:
            return network
        bits = network.prefixlen
        fixed = (int(network.network_address) >> (32 - bits)) + by * 0x9E3779
        return IPv4Network(((fixed % (1 << bits)) << (32 - bits), bits))

    out = []
    for position in range(count):
        rule, by = rules[position % len(rules)], position // len(rules)
        match = rule.match
        if by:
            src, dst = (moved(p, by) if isinstance(p, IPv4Network) else None for p in (match.src, match.dst))
            match = replace(match, src=src, dst=dst)
        out.append(replace(rule, priority=position, match=match, name=str(position)))
    return tuple(out)


def frame(header: Header) -> bytes:
    """An Ethernet frame with these headers: a TCP SYN, a UDP datagram, an ICMP echo, or 8 bytes of anything else."""
    ports = struct.pack(">HH", header.src_port, header.dst_port)
    if header.protocol == _TCP:
        payload = ports + struct.pack(">IIBBHHH", 1, 0, 0x50, 0x02, 8192, 0, 0)
    elif header.protocol == _UDP:
        payload = ports + struct.pack(">HH", 8, 0)
    elif header.protocol == _SCTP:
        payload = ports + bytes(8)
    elif header.protocol == _ICMP:
        payload = struct.pack(">BBHHH", 8, 0, 0, header.src_port, 1)
    else:
        payload = bytes(8)
    addresses = struct.pack(">II", header.src, header.dst)
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, header.protocol, 0) + addresses
    checksum = sum(struct.unpack(">10H", ip))
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    checksum = ~((checksum & 0xFFFF) + (checksum >> 16)) & 0xFFFF
    ip = ip[:10] + struct.pack(">H", checksum) + ip[12:]
    return bytes((2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0)) + ip + payload


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rt") if compressed else path.open() as text:
        for line in text:
            if line.strip():
                yield line.strip()


def _rule(path: Path, number: int, line: str) -> Rule:
    found = _LINE.match(line)
    try:
        if found is None:
            raise ValueError("not `@src/len dst/len low : high low : high protocol/mask flags/mask`")
        mask = int(found["mask"], 16)
        if mask not in (0, 0xFF):
            raise ValueError(f"protocol mask {found['mask']} is neither 0x00 nor 0xFF")
        match = Match(
            src=_prefix(found["src"]), dst=_prefix(found["dst"]),
            protocol=int(found["protocol"], 16) if mask else None,
            src_ports=_range(found["sport"]), dst_ports=_range(found["dport"]),
        )
    except ValueError as error:
        raise FormatError(f"{path}, line {number + 1}: {error}; found {line!r}") from None
    return Rule(number, match, _ALLOW, str(number))


def _prefix(text: str) -> IPv4Network | None:
    network = IPv4Network(text, strict=False)
    return network if network.prefixlen else None


def _range(text: str) -> PortRange | None:
    low, high = (int(end) for end in text.split(":"))
    if not 0 <= low <= high <= _MAX_PORT:
        raise ValueError(f"port range {text} is not within 0 : {_MAX_PORT}")
    return PortRange(low, high) if (low, high) != (0, _MAX_PORT) else None


def _header(path: Path, number: int, line: str) -> Header:
    try:
        src, dst, src_port, dst_port, protocol = (int(column) for column in line.split()[:5])
    except ValueError:
        raise FormatError(
            f"{path}, line {number + 1}: expected `src dst sport dport protocol` as integers; found {line!r}"
        ) from None
    if max(src, dst) > 0xFFFFFFFF or max(src_port, dst_port) > _MAX_PORT or protocol > 255 or min(
        src, dst, src_port, dst_port, protocol
    ) < 0:
        raise FormatError(f"{path}, line {number + 1}: a number is out of range; found {line!r}")
    return Header(src, dst, src_port, dst_port, protocol)
