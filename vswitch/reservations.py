"""Ports that the host's own sockets must not pick: net.ipv4.ip_local_reserved_ports, shared with others.

The setting is one set of ports without owners. What is ours in it is on record, written before the setting grows and
after it shrank, so that a crash leaves the record too wide and never too narrow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vswitch.errors import LinkInvalid, PermissionDenied
from vswitch.namespaces import Visitor
from vswitch.records import read_record, record_path, write_record

SETTING = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")

_RANGES = re.compile(r"(\d+(-\d+)?(,\d+(-\d+)?)*)?")


@dataclass(frozen=True, slots=True)
class Record:
    """What we know of the setting: `ours` we put there; `others`, of these, was there before."""

    ours: frozenset[int] = frozenset()
    others: frozenset[int] = frozenset()


def parse_ranges(text: str) -> frozenset[int]:
    """The ports of "8080,20000-20010".

    Raises:
        ValueError: not of this form.
    """
    text = text.strip()
    if not _RANGES.fullmatch(text):
        raise ValueError(f"not a list of ports: {text!r}")
    ports: set[int] = set()
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        ports.update(range(int(low), int(high or low) + 1))
    return frozenset(ports)


def format_ranges(ports: Iterable[int]) -> str:
    """The inverse of `parse_ranges`, as short as can be."""
    ranges: list[list[int]] = []
    for port in sorted(ports):
        if ranges and ranges[-1][1] == port - 1:
            ranges[-1][1] = port
        else:
            ranges.append([port, port])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in ranges)


class Reservations:
    """The setting of one network namespace, the visitor's home."""

    def __init__(self, visitor: Visitor, record_dir: Path) -> None:
        self._visitor = visitor
        self._directory = record_dir

    def reserve(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Reserve exactly these inclusive ranges, beside those of others.

        Raises:
            LinkInvalid: no such range. PermissionDenied: the setting or the record cannot be written.
        """
        wanted: set[int] = set()
        for low, high in ranges:
            if not 0 < low <= high < 1 << 16:
                raise LinkInvalid("range of ports to reserve", f"{low}-{high}", "give low <= high within 1 to 65535")
            wanted.update(range(low, high + 1))
        self._visitor.at_home(lambda: self._set(frozenset(wanted)))

    def release(self) -> None:
        """Give ours back. Idempotent.

        Raises:
            PermissionDenied: the setting or the record cannot be written.
        """
        self._visitor.at_home(lambda: self._set(frozenset()))

    def _set(self, wanted: frozenset[int]) -> None:
        path = record_path(self._directory, "reserved-ports")
        record = _read_record(path)
        current = parse_ranges(SETTING.read_text())
        others = (current - record.ours) | (record.others & current)
        if wanted == record.ours and current == others | wanted:
            return
        try:
            if wanted or record.ours:
                _write_record(path, Record(record.ours | wanted, others))
            if current != others | wanted:
                SETTING.write_text(format_ranges(others | wanted) + "\n")
            if wanted:
                _write_record(path, Record(wanted, others & wanted))
            else:
                path.unlink(missing_ok=True)
        except PermissionError as error:
            raise PermissionDenied(f"write {error.filename or SETTING}", error.strerror or "", "run as root") from None


def _read_record(path: Path) -> Record:
    record = read_record(path)
    try:
        return Record(parse_ranges(record["ours"]), parse_ranges(record["others"]))
    except (ValueError, KeyError, TypeError):
        return Record()  # none, or cut short: then nothing was reserved after it


def _write_record(path: Path, record: Record) -> None:
    write_record(path, {"ours": format_ranges(record.ours), "others": format_ranges(record.others)})
