"""Captures: tcpdump writes them, scapy decodes them, conditions on frames judge them.

Every frame counts. Frames whose headers are the same but for lengths, checksums, sequence numbers and the
like are of one *kind*; scapy decodes one of each kind, so that a transfer of 100 MB takes no time to judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labs.errors import StepFailed
from labs.schema import Captured, Frames
from labs.values import fill

SNAP_BYTES = 256
VXLAN_PORTS = (4789, 8472)
_IPV4, _IPV6, _UDP, _ICMPV6 = b"\x08\x00\x45", b"\x86\xdd", 17, 58


@dataclass(frozen=True, slots=True)
class Kind:
    """What frames of one kind have in common. `inner_*` equal the outer ones when nothing is encapsulated."""

    text: str
    outer_arp: bool
    outer_broadcast: bool
    vni: int | None
    vxlan_port: int | None
    arp: bool
    broadcast: bool
    source: str                             # IP source or ARP sender; empty: neither
    macs: tuple[str, str]                   # destination, source
    protocol: str                           # tcp, udp, icmp (of both families), or empty
    dscp: int | None
    outer_dscp: int | None
    raw: bytes


def command(interface: str, target: Path, filter_: str) -> list[str]:
    """tcpdump with buffers that hold a burst, and each frame on disk as soon as it comes."""
    words = ["tcpdump", "-i", interface, "-w", str(target), "-s", str(SNAP_BYTES), "-B", "32768", "-U",
             "--immediate-mode", "-n", "-Z", "root"]
    return [*words, *([filter_] if filter_ else [])]


def size_bytes(path: Path) -> int:
    """Size of a capture file so far."""
    return path.stat().st_size if path.exists() else 0


def read(path: Path) -> Counter[bytes]:
    """Frames of a capture file by what is the same in all frames of a kind.

    Raises:
        StepFailed: not a capture.
    """
    from scapy.utils import RawPcapReader  # scapy takes a quarter of a second to import

    kinds: dict[bytes, bytes] = {}
    counts: Counter[bytes] = Counter()
    try:
        with RawPcapReader(str(path)) as frames:
            for frame, _ in frames:
                key = _key(frame)
                counts[kinds.setdefault(key, frame)] += 1
    except Exception as error:
        raise StepFailed(f"cannot read the capture {path}: {error}") from error
    return counts


def _key(frame: bytes) -> bytes:
    """Header bytes without length, id, checksum, source port. A frame of another shape is its own kind."""
    outer, protocol, at = _network(frame)
    if not outer or len(frame) < at + 8:
        return frame
    if protocol != _UDP or int.from_bytes(frame[at + 2:at + 4], "big") not in VXLAN_PORTS or len(frame) < at + 50:
        # Transport that is not VXLAN: the payload may be what is looked for, so that it stays.
        return outer + frame[at + 2:at + 4] + frame[at + 8:]
    tunnel = outer + frame[at + 2:at + 4] + frame[at + 8:at + 16]
    inner, _, _ = _network(frame[at + 16:])
    return tunnel + (inner or frame[at + 16:])


def _network(frame: bytes) -> tuple[bytes, int, int]:
    """What all IP frames of a kind have the same up to their transport, the protocol, where that begins."""
    if frame[12:15] == _IPV4 and len(frame) >= 34:
        return frame[:16] + frame[20:24] + frame[26:34], frame[23], 34
    if frame[12:14] == _IPV6 and len(frame) >= 54:
        return frame[:15] + bytes([frame[15] & 0xF0]) + frame[20:54], frame[20], 54
    return b"", 0, 0


def decode(frame: bytes) -> Kind:
    """One frame, decoded by scapy."""
    from scapy.config import conf

    conf.ipv6_enabled = False               # or it looks for the routes of this machine
    from scapy.layers.inet import UDP
    from scapy.layers.l2 import ARP, Ether
    from scapy.layers.vxlan import VXLAN

    outer = Ether(frame)
    tunnel = outer.getlayer(VXLAN)
    inner = tunnel.getlayer(Ether) if tunnel is not None and tunnel.getlayer(Ether) is not None else outer
    udp = outer.getlayer(UDP) if tunnel is not None else None
    source, dscp, protocol = _told(inner)
    text = inner.summary()
    if tunnel is not None:
        text = f"{outer.payload.src} > {outer.payload.dst} VXLAN VNI {tunnel.vni}: {text}"
    return Kind(text, outer.haslayer(ARP) == 1 and outer.type == 0x0806, _group(str(outer.dst)),
                None if tunnel is None else int(tunnel.vni), None if udp is None else int(udp.dport),
                bool(inner.haslayer(ARP)), _group(str(inner.dst)), source, (str(inner.dst), str(inner.src)),
                protocol, dscp, _told(outer)[1], frame)


def _told(frame: Any) -> tuple[str, int | None, str]:
    """Source (of ARP: the sender), DSCP, and protocol of a decoded frame."""
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import ARP

    if frame.haslayer(ARP):
        return str(frame[ARP].psrc), None, ""
    packet = frame.payload
    if not isinstance(packet, IP | IPv6):
        return "", None, ""
    dscp = (packet.tos if isinstance(packet, IP) else packet.tc) >> 2
    protocol = next((name for name, layer in (("tcp", TCP), ("udp", UDP), ("icmp", ICMP))
                     if packet.haslayer(layer)), "")
    if isinstance(packet, IPv6) and not protocol and packet.nh == _ICMPV6:
        protocol = "icmp"
    return str(packet.src), dscp, protocol


def _group(mac: str) -> bool:
    return bool(int(mac[:2], 16) & 1)


def judge(counts: Mapping[bytes, int], wanted: Captured, names: Mapping[str, Any]) -> dict[str, Any]:
    """Check all frames; returns what can be saved: frames, kinds, summary.

    Raises:
        StepFailed: a condition does not hold; the offending frames are in the details.
    """
    kinds = [(decode(frame), count) for frame, count in counts.items()]
    every = [_filled(condition, names) for condition in wanted.every]
    none = [_filled(condition, names) for condition in wanted.none]
    if every:
        if not kinds:
            raise StepFailed("no frame was captured, so that `every` says nothing")
        _refuse("is none of what may be there",
                [(kind, n) for kind, n in kinds if not any(_fits(kind, condition) for condition in every)])
    for condition in none:
        _refuse(f"must not be there ({_shown(condition)})",
                [(kind, n) for kind, n in kinds if _fits(kind, condition)])
    for condition in (_filled(condition, names) for condition in wanted.some):
        if not any(_fits(kind, condition) for kind, _ in kinds):
            raise StepFailed(f"no frame is {_shown(condition)}", _listing(kinds))
    return {"frames": sum(counts.values()), "kinds": len(kinds), "summary": _summary(kinds)}


def _filled(condition: Frames, names: Mapping[str, Any]) -> dict[str, Any]:
    """The given conditions; a list that a name stands for inside a list is spread."""
    filled = {}
    for field in condition.model_fields_set:
        value = fill(getattr(condition, field), names)
        if isinstance(value, list):
            value = [part for item in value for part in (item if isinstance(item, list) else [item])]
        filled[field] = value
    return filled


def _fits(kind: Kind, condition: Mapping[str, Any]) -> bool:
    for field, wanted in condition.items():
        match field:
            case "vnis":
                holds = kind.vni is not None and kind.vni in [int(vni) for vni in wanted]
            case "sources":
                holds = kind.source in wanted
            case "macs":
                holds = set(kind.macs) <= {str(mac).lower() for mac in wanted}
            case "mac":
                holds = str(wanted).lower() in kind.macs
            case "payload":
                holds = str(wanted).encode() in kind.raw
            case _:
                holds = getattr(kind, field) == wanted
        if not holds:
            return False
    return True


def _refuse(why: str, found: list[tuple[Kind, int]]) -> None:
    if found:
        total = sum(count for _, count in found)
        raise StepFailed(f"{total} frames, such as: {found[0][0].text}: {why}", _listing(found))


def _listing(kinds: Iterable[tuple[Kind, int]]) -> str:
    lines = [f"{count:7} x {kind.text}" for kind, count in sorted(kinds, key=lambda item: -item[1])]
    return "\n".join(lines[:20]) or "(no frame was captured)"


def _summary(kinds: Iterable[tuple[Kind, int]]) -> str:
    totals: Counter[str] = Counter()
    for kind, count in kinds:
        if kind.vni is not None:
            totals[f"VXLAN VNI {kind.vni}"] += count
        else:
            totals["ARP" if kind.outer_arp else kind.protocol.upper() or "other"] += count
    return ", ".join(f"{count} {what}" for what, count in sorted(totals.items())) or "nothing"


def _shown(condition: Mapping[str, Any]) -> str:
    return ", ".join(f"{field} {value}" for field, value in condition.items())
