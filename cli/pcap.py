"""Packets in files: one read from a pcap or pcapng file, many written as pcapng.

What is written is pcapng whatever the file is called: classic pcap has no interface, direction or comment of a packet.
Source: draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cli.problems import problem

ETHERNET = 1                                # LINKTYPE_ETHERNET
BEFORE, AFTER = 0, 1                        # interfaces of a file we write
INBOUND, OUTBOUND = 1, 2

_SECTION, _INTERFACE, _PACKET, _STATISTICS = 0x0A0D0D0A, 1, 6, 5
_BYTE_ORDER = 0x1A2B3C4D
_COMMENT, _NAME, _RESOLUTION, _APPLICATION, _FLAGS, _DROPPED = 1, 2, 9, 4, 2, 5
_NANOSECONDS = 9


@dataclass(frozen=True, slots=True)
class Frame:
    """One Ethernet frame of a file. Bytes that were not captured are zeros: only headers decide."""

    data: bytes
    captured: int


def read_frame(path: Path, number: int) -> Frame:
    """Packet `number`, from 1, of a file.

    Raises:
        Problem: no such file or packet, not a capture, or not of Ethernet frames.
    """
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapReader  # scapy takes a quarter of a second to import

    seen = 0
    try:
        with path.open("rb") as stream, RawPcapReader(stream) as reader:
            for data, about in reader:
                seen += 1
                if seen < number:
                    continue
                link = getattr(about, "linktype", None) or getattr(reader, "linktype", ETHERNET)
                if link != ETHERNET:
                    raise problem("--pcap", "its packets are no Ethernet frames", f"{path}: link type {link}",
                                  "capture on one interface, not on `any`")
                length = getattr(about, "wirelen", None) or len(data)
                return Frame(bytes(data).ljust(length, b"\0"), len(data))
    except OSError as error:
        raise problem("--pcap", "cannot be read", f"{path}: {error.strerror or error}") from None
    except (Scapy_Exception, EOFError, struct.error, ValueError) as error:
        raise problem("--pcap", "is no pcap or pcapng file", f"{path}: {error or 'it ends too early'}",
                      "write one with `sluice capture -w` or `tcpdump -w`") from None
    if not seen:
        raise problem("--pcap", "has no packets", str(path), "capture some first")
    raise problem("--packet", f"the file has {seen} packet{'s' if seen != 1 else ''}", str(number),
                  f"give a number from 1 to {seen}")


class CaptureWriter:
    """Writes a pcapng file with two interfaces: packets of an endpoint before and after transposition."""

    def __init__(self, stream: BinaryIO, endpoint: str, snap_bytes: int) -> None:
        self._stream = stream
        head = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1) + _options((_APPLICATION, b"sluice capture"))
        self._write(_SECTION, head)
        for stage in ("before", "after"):
            self._write(_INTERFACE, struct.pack("<HHI", ETHERNET, 0, snap_bytes) + _options(
                (_NAME, f"{endpoint} {stage}".encode()), (_RESOLUTION, bytes((_NANOSECONDS,)))))

    def packet(self, interface: int, time_ns: int, data: bytes, length: int, direction: int, comment: str = "") -> None:
        """One packet; `length` is what it had, `data` what was captured of it."""
        options = [(_FLAGS, struct.pack("<I", direction))] + ([(_COMMENT, comment.encode())] if comment else [])
        head = struct.pack("<IIIII", interface, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), length)
        self._write(_PACKET, head + _padded(data) + _options(*options))

    def statistics(self, time_ns: int, lost: int) -> None:
        """Last: how many packets are missing."""
        for interface in (BEFORE, AFTER):
            head = struct.pack("<III", interface, time_ns >> 32, time_ns & 0xFFFFFFFF)
            self._write(_STATISTICS, head + _options((_DROPPED, struct.pack("<Q", lost))))

    def flush(self) -> None:
        """Let readers see what was written."""
        self._stream.flush()

    def _write(self, kind: int, body: bytes) -> None:
        length = struct.pack("<I", len(body) + 12)
        self._stream.write(struct.pack("<I", kind) + length + body + length)


def _options(*options: tuple[int, bytes]) -> bytes:
    each = [struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options]
    return b"".join(each) + struct.pack("<HH", 0, 0)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
