"""What ports may send and get, as queues of the host's links: who needs which, and in which order they come and go.

A queue is there before the engine sends anything to it, and goes after the engine has stopped: a tree that comes to a
link or goes from it costs what passes there in that moment. With guarantees all ports share a tree whose rate is the
uplink's, less what outer headers take of it; without, each has its cap and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.qos import SHAPER_LINKS, Shape
from agent.seams import DatapathSeam, SwitchSeam
from vfp.datapath.engine import Hook
from vswitch.errors import VSwitchError
from vswitch.links import OWNER_ALIAS, HookedProgram, Limit, OwnedLink, ShaperLink

__all__ = ["SHAPER", "Bandwidth", "limits", "total_bps"]

SHAPER = ShaperLink(*SHAPER_LINKS, f"{OWNER_ALIAS}shaper")
UPLINK_PART = 0.95                          # the rest is for outer headers: 50 bytes of a frame of 1,500 and more
LEAST_BPS = 1_000_000                       # for who is guaranteed nothing


def total_bps(uplink_bps: int, shapes: Iterable[Shape]) -> int:
    """What all may send together; 0: no limit, for nobody is guaranteed anything."""
    return int(uplink_bps * UPLINK_PART) if any(shape.minimum_bps for shape in shapes) else 0


def limits(uplink_bps: int, shapes: Iterable[Shape]) -> dict[int, Limit]:
    """The class of each shaped port, by its number."""
    shaped = [shape for shape in shapes if shape.shaped]
    total = total_bps(uplink_bps, shaped)
    if not total:
        return {shape.port: Limit(shape.egress_bps, shape.egress_bps, shape.egress_burst_bytes) for shape in shaped}
    left = max(0, total - sum(shape.minimum_bps for shape in shaped))
    others = sum(1 for shape in shaped if not shape.minimum_bps)
    little = min(LEAST_BPS, left // (others + 1)) or 1
    found = {}
    for shape in shaped:
        most = min(total, shape.egress_bps or total)
        found[shape.port] = Limit(min(most, shape.minimum_bps or little), most, shape.egress_burst_bytes)
    return found


class Bandwidth:
    """The queues of one host, by difference to what this process left; the kernel is asked when that may be wrong."""

    def __init__(self, switch: SwitchSeam, datapath: DatapathSeam) -> None:
        self._switch = switch
        self._datapath = datapath
        self._shaper: tuple[int, int, dict[int, Limit]] | None = None   # ifindex, total, classes
        self._queued: dict[int, Limit] = {}                             # by ifindex of the port's link
        self._looked = False                # whether links without a queue were made sure to have none

    def prepare(
        self, shapes: Mapping[int, Shape], uplink_bps: int, owned: Mapping[str, OwnedLink], mend: bool
    ) -> dict[int, str]:
        """Before the engine uses them: what must be there, is. Port number and reason of each that failed."""
        wanted = limits(uplink_bps, shapes.values())
        failed: dict[int, str] = {}
        if wanted:
            failed |= self._prepare_shaper(wanted, total_bps(uplink_bps, shapes.values()), owned, mend)
        for shape in shapes.values():
            link = owned.get(shape.host_interface)
            if not shape.queued or link is None:
                continue
            limit = Limit(shape.ingress_bps, shape.ingress_bps, shape.ingress_burst_bytes)
            if mend or self._queued.get(link.ifindex) != limit:
                try:
                    self._switch.ensure_queue(link.ifindex, limit)
                    self._queued[link.ifindex] = limit
                except VSwitchError as error:
                    failed[shape.port] = str(error)
        return failed

    def _prepare_shaper(
        self, wanted: dict[int, Limit], total: int, owned: Mapping[str, OwnedLink], mend: bool
    ) -> dict[int, str]:
        before = self._shaper
        whole = all(name in owned for name in SHAPER_LINKS)
        if not mend and whole and before == (owned[SHAPER_LINKS[0]].ifindex, total, wanted):
            return {}
        try:
            ifindex = owned[SHAPER_LINKS[0]].ifindex if whole else 0
            if mend or before is None or before[0] != ifindex:
                hook = Hook.SHAPED_IN
                program = HookedProgram("ingress", self._datapath.program_fd(hook), f"sluice_{hook.value}")
                ifindex = self._switch.ensure_shaper(SHAPER, (program,))
            there = before[2] if before is not None and not mend and before[:2] == (ifindex, total) else {}
            news = {number: limit for number, limit in wanted.items() if there.get(number) != limit}
            self._shaper = None
            self._switch.ensure_classes(ifindex, news, total)
            self._shaper = (ifindex, total, {**there, **wanted})
        except VSwitchError as error:
            return dict.fromkeys(wanted, str(error))
        return {}

    def tidy(self, shapes: Mapping[int, Shape], owned: Mapping[str, OwnedLink], general: list[str]) -> None:
        """After the engine has stopped to use them: what must not be there, is not. The shaper's links stay."""
        keep = {shape.port for shape in shapes.values() if shape.shaped}
        shaper = owned.get(SHAPER_LINKS[0])
        if shaper is not None and (self._shaper is None or self._shaper[2].keys() != keep):
            try:
                self._switch.prune_classes(shaper.ifindex, keep)
                if self._shaper is not None:
                    kept = {number: limit for number, limit in self._shaper[2].items() if number in keep}
                    self._shaper = (*self._shaper[:2], kept)
            except VSwitchError as error:
                general.append(f"queues of the shaper: {error}")
        queued = {shape.host_interface for shape in shapes.values() if shape.queued}
        going = {link.ifindex for name, link in owned.items() if name not in queued
                 and (link.ifindex in self._queued or (not self._looked and link.kind in ("veth", "tun")))
                 and name not in SHAPER_LINKS}
        try:
            for ifindex in sorted(going):
                self._switch.remove_queue(ifindex)
            self._looked = True
        except VSwitchError as error:
            general.append(f"queues of ports: {error}")
        there = {link.ifindex for link in owned.values()} - going
        self._queued = {ifindex: limit for ifindex, limit in self._queued.items() if ifindex in there}
