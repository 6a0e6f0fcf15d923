"""Attachments whose runtime let go of them without a word: how they are known, and that they are in nobody's way.

A runtime that was killed need not say what became of its containers. libnetwork, when it starts, forgets their
endpoints before it has loaded the drivers, and gives their addresses and ports to the next container at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.attachment import Attachment, Mapped
from agent.attachment_files import Files
from agent.host import Host

__all__ = ["BACK_S", "GRACE_S", "TAKE_S", "Lost"]

GRACE_S = 5.0                               # for a daemon that restarts, to speak first
BACK_S = 20.0                               # what it said it took may be here: before it does, and after the container
TAKE_S = 120.0                              # until a runtime must have taken what was made for it
WAY_S = 1.0                                 # in which the kernel removes a link with its namespace


class Lost:
    """Those of one host."""

    def __init__(self, host: Host, files: Files) -> None:
        self._host = host
        self._files = files

    def leaving(self) -> Iterator[tuple[Attachment, float, str]]:
        """What may go, how long it may stay, and why."""
        for each in self._files.attachments.all():
            if self._is_gone(each):
                yield each, GRACE_S, "its link or namespace is gone"
            elif self._is_back(each):
                yield each, BACK_S, "its runtime put it back, or never took it"
            elif each.place.handed and not each.taken and each.state == "up":
                yield each, TAKE_S, "its runtime did not take it"

    async def in_the_way(self, wanted: Attachment, mappings: Sequence[Mapped]) -> list[Attachment]:
        """What of the same runtime is lost and has the name, an address, the MAC or a port that is wanted now."""
        found = [each for each in self._files.attachments.all()
                 if each.runtime == wanted.runtime and each.uid != wanted.uid and _meet(each, wanted, mappings)]
        handed = [each for each in found if each.taken]
        try:
            async with asyncio.timeout(WAY_S):
                while not all(map(self._is_lost, handed)):
                    await self._host.moved.wait()
        except TimeoutError:
            pass
        return [each for each in found if self._is_lost(each) or _is_forgotten(each, wanted)]

    def _is_lost(self, attachment: Attachment) -> bool:
        return self._is_gone(attachment) or self._is_back(attachment)

    def _is_gone(self, attachment: Attachment) -> bool:
        gone = self._host.outcome.gone if self._host.outcome is not None else frozenset()
        return attachment.uid in gone and (attachment.runtime != "attach" or bool(attachment.place.pid))

    def _is_back(self, attachment: Attachment) -> bool:
        return self._host.outcome is not None and attachment.uid in self._host.outcome.back


def _is_forgotten(known: Attachment, wanted: Attachment) -> bool:
    """Never taken, and its runtime gives the address to another: it was not told of the end of what it asked for."""
    return known.place.handed and not known.taken and known.state == "up" and _share(known, wanted)


def _share(known: Attachment, wanted: Attachment) -> bool:
    """Whether both have an address; a runtime gives one to one at a time."""
    return (known.tenant, known.network) == (wanted.tenant, wanted.network) and bool(
        _bare(known.addresses) & _bare(wanted.addresses))


def _meet(known: Attachment, wanted: Attachment, mappings: Sequence[Mapped]) -> bool:
    """Whether both cannot be."""
    if known.tenant == wanted.tenant and known.name == wanted.name:
        return True
    if _share(known, wanted) or (known.mac and (known.tenant, known.network, known.mac) == (
            wanted.tenant, wanted.network, wanted.mac)):
        return True
    return any(_same_port(one.spec, other.spec) for one in known.mappings for other in mappings)


def _bare(addresses: Sequence[str]) -> set[str]:
    return {address.partition("/")[0] for address in addresses}


def _same_port(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whatever the addresses are: what is lost is in nobody's way by going too soon."""
    port = str(one.get("externalPort"))
    return port not in ("auto", "None") and (one.get("protocol"), port) == (
        other.get("protocol"), str(other.get("externalPort")))
