"""How large packets get to other hosts: asked of the kernel when it may have changed, remembered in between.

It may have changed when links or routes did, when a router said "too big", and when what a router said is forgotten.
`agent.host` knows of all three and says so by `stale`; new hosts are asked about as they come.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

import structlog

from agent.goals import Goals
from agent.observed import UnderlayState
from agent.seams import SwitchSeam
from southbound.messages import NetworkGoal, RemotesGoal
from vfp.model import Address
from vswitch.errors import VSwitchError
from vswitch.links import PathState, UplinkState

__all__ = ["Paths", "underlays_of", "vteps_of"]

_log = structlog.get_logger("agent")


def underlays_of(switch: SwitchSeam, goals: Goals) -> tuple[tuple[UnderlayState, ...], str]:
    """Those of this host's VTEP addresses that a link has, in the order declared; and what is wrong with the others."""
    wanted = goals.host.underlays or tuple(filter(None, (goals.host.underlay,)))
    if not wanted:
        return (), ""
    try:
        found = switch.underlays(wanted)
    except VSwitchError as error:
        return (), str(error)
    missing = [text for text in wanted if text not in found]
    why = (f"underlay address {', '.join(missing)}: no interface of this host has it; give it to one, or correct"
           " spec.underlay of the host") if missing else ""
    return tuple(UnderlayState(ip_address(text), UplinkState(one.ifindex, one.name, (), one.mtu_bytes, ""))
                 for text, one in found.items()), why


def vteps_of(goals: Goals) -> set[str]:
    """Underlay addresses of all hosts that ours may send to."""
    return set(_vteps(goals))


def _vteps(goals: Goals) -> Iterator[str]:
    for goal in goals.objects.values():
        match goal:
            case RemotesGoal():
                yield from goal.vteps
            case NetworkGoal():
                for route in goal.routes:
                    if not route.here:
                        yield from route.vteps
                if goal.flood is not None:
                    yield from goal.flood.vteps


class Paths:
    """What is known of the paths to other hosts."""

    def __init__(self, switch: SwitchSeam) -> None:
        self._switch = switch
        self._known: dict[str, PathState | None] = {}   # None: there was no route
        self._expires_s = 0.0                           # of the monotonic clock; 0: nothing does
        self._stale = False

    def stale(self) -> None:
        """What is known may be wrong. From any thread."""
        self._stale = True

    def expires_in_s(self) -> float | None:
        """When something that a router said is forgotten; None: never."""
        return max(0.0, self._expires_s - time.monotonic()) if self._expires_s else None

    def narrow(self, goals: Goals, underlays: Iterable[UnderlayState]) -> tuple[tuple[Address, int], ...]:
        """(VTEP, bytes) of the paths that take less than any of our own links of their family."""
        widths: dict[int, int] = {}
        for one in underlays:
            version = one.address.version
            widths[version] = min(one.link.mtu_bytes, widths.get(version, one.link.mtu_bytes))
        wanted = vteps_of(goals) if widths else set()
        if self._stale:
            self._stale = False
            self._known, self._expires_s = {}, 0.0
        self._known = {vtep: path for vtep, path in self._known.items() if vtep in wanted}
        unknown = wanted - self._known.keys()
        if unknown:
            self._ask(unknown)
        found = []
        for vtep, path in self._known.items():
            if path is not None and path.mtu_bytes < widths.get(6 if ":" in vtep else 4, 0):
                found.append((ip_address(vtep), path.mtu_bytes))
        return tuple(sorted(found, key=lambda one: (one[0].version, int(one[0]))))

    def _ask(self, unknown: set[str]) -> None:
        try:
            told = self._switch.paths(sorted(unknown))
        except VSwitchError as error:
            _log.error("paths to other hosts unknown", error=str(error))
            return
        self._known |= dict.fromkeys(unknown)
        self._known |= told
        now_s = time.monotonic()
        ends = [now_s + path.expires_s for path in told.values() if path.expires_s]
        self._expires_s = min([*ends, *filter(None, (self._expires_s,))], default=0.0)
