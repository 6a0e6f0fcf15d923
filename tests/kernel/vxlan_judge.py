"""tshark as judge of frames on the underlay: what another implementation reads in them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from scapy.utils import PcapReader, PcapWriter

CAPTURES = Path("/work/shared/data/pcap")
_FIELDS = (
    "frame.protocols", "udp.srcport", "udp.dstport", "vxlan.flags", "vxlan.vni", "ip.src", "ip.dst", "ipv6.src",
    "ipv6.dst", "eth.src", "eth.dst", "ip.dsfield.dscp", "ip.dsfield.ecn", "ipv6.tclass.dscp", "ipv6.tclass.ecn",
    "udp.checksum", "udp.checksum.status", "ip.checksum.status", "ip.flags.df", "_ws.malformed", "ip.ttl", "ipv6.hlim",
)
_CHECK = ("udp.check_checksum", "ip.check_checksum", "tcp.check_checksum")


@dataclass(frozen=True, slots=True)
class Read:
    """One frame by field; of each field all values, outer first."""

    fields: dict[str, tuple[str, ...]]

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return self.fields[name]


def read(path: Path, port: int = 4789) -> list[Read]:
    """Every frame of a capture, with checksums verified."""
    if shutil.which("tshark") is None:
        pytest.fail("no tshark: apt-get install tshark")
    options = [word for name in _CHECK for word in ("-o", f"{name}:TRUE")]
    fields = [word for name in _FIELDS for word in ("-e", name)]
    done = subprocess.run(
        ["tshark", "-n", "-r", str(path), *options, "-d", f"udp.port=={port},vxlan", "-T", "fields", "-E",
         "occurrence=a", "-E", "aggregator=;", "-E", "separator=/t", *fields],
        capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = []
    for line in done.stdout.splitlines():
        cells = line.split("\t")
        found.append(Read({name: tuple(cell.split(";")) if cell else ()
                           for name, cell in zip(_FIELDS, cells, strict=True)}))
    return found


def judged(frames: Sequence[bytes], scratch: Path, port: int = 4789) -> list[Read]:
    """Frames as tshark reads them."""
    path = scratch / "judged.pcap"
    with PcapWriter(str(path), linktype=1) as out:
        for frame in frames:
            out.write(frame)
    return read(path, port)


def captured(name: str) -> list[bytes]:
    """The Ethernet frames of one of the shared captures."""
    with PcapReader(str(CAPTURES / name)) as reader:
        return [bytes(packet.original) if packet.original else bytes(packet) for packet in reader]


def outer_bytes(frame: bytes) -> int:
    """How many bytes come before the inner frame: Ethernet, IPv4 without options or IPv6, UDP, VXLAN."""
    return 70 if frame[12:14] == b"\x86\xdd" else 50
