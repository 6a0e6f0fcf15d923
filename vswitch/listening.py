"""Links that must hear more than what is meant for them: stations behind an uplink have MACs of their own.

A link has one switch for each, shared by all of user space (IFF_PROMISC, IFF_ALLMULTI), and remembers no owner; what a
program asks for as long as it runs (a capture) the kernel counts by itself. The switch outlives us, so that stations
are heard while no agent runs. Which ones we turned on is on record before it is done: what somebody else had turned on
stays. Who turns one on after us cannot be told from us.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from pyroute2.netlink import rtnl

from vswitch.errors import PermissionDenied
from vswitch.namespaces import Visitor
from vswitch.netlink import Netlink, Request
from vswitch.ownership import find_link
from vswitch.records import read_record, record_path, write_record

Hearing = Literal["everything", "groups"]
IFF: dict[Hearing, int] = {"everything": 0x100, "groups": 0x200}  # IFF_PROMISC, IFF_ALLMULTI


class Listening:
    """The switches of all links in one network namespace, the visitor's home."""

    def __init__(self, netlink: Netlink, visitor: Visitor, record_dir: Path) -> None:
        self._netlink = netlink
        self._visitor = visitor
        self._directory = record_dir

    def set(self, everything: Collection[str], groups: Collection[str] = ()) -> None:
        """Make exactly these links hear everything, or all group MACs; others of which we asked that no more.

        A link that is not there is passed over.

        Raises:
            PermissionDenied: the record cannot be written, or the link not be changed. KernelRefused.
        """
        path = self._visitor.at_home(lambda: record_path(self._directory, "listening"))
        ours = _read(path)
        wanted: set[tuple[Hearing, str]] = {("everything", name) for name in everything}
        wanted |= {("groups", name) for name in groups}
        if not wanted and not ours:
            return
        changes: list[Request] = []
        turned: set[tuple[Hearing, str]] = set()
        for what, name in sorted({*wanted, *ours}):
            link = find_link(self._netlink, name)
            if link is None:
                continue
            is_on = bool(link.flags & IFF[what])
            if (what, name) not in wanted:
                if is_on:
                    changes.append(_turn(name, link.ifindex, what, on=False))
            elif not is_on:
                changes.append(_turn(name, link.ifindex, what, on=True))
                turned.add((what, name))
        kept = {one for one in ours if one in wanted} | turned
        self._write(path, ours | turned)
        self._netlink.run(*changes)
        self._write(path, kept)

    def _write(self, path: Path, switches: Iterable[tuple[Hearing, str]]) -> None:
        switches = sorted(switches)
        if switches == sorted(_read(path)):
            return
        try:
            if switches:
                write_record(path, {what: [name for each, name in switches if each == what] for what in IFF})
            else:
                path.unlink(missing_ok=True)
        except PermissionError as error:
            raise PermissionDenied(f"write {error.filename or path}", error.strerror or "", "run as root") from None


def _read(path: Path) -> set[tuple[Hearing, str]]:
    record = read_record(path)
    found: set[tuple[Hearing, str]] = set()
    for what in IFF:
        names = record.get(what, [])
        found |= {(what, name) for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    return found


def _turn(name: str, ifindex: int, what: Hearing, *, on: bool) -> Request:
    fields = {"index": ifindex, "flags": IFF[what] if on else 0, "change": IFF[what]}
    return Request(f"make {name!r} hear {what}" if on else f"let {name!r} hear {what} no more",
                   rtnl.RTM_NEWLINK, fields, [])
