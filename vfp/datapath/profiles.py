"""Timeouts of ports in the kernel: ports with equal ones share a row of the map, and 0 is the engine's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vfp.compile import CompiledPort
from vfp.datapath.map import BpfMap
from vfp.errors import TableFull
from vfp.layout import PORT, TIMEOUTS, pack
from vfp.timeouts import Timeouts, nanoseconds

__all__ = ["Plan", "TimeoutProfiles"]

_OWN = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a state wants: rows by number, and its ports with those numbers in their records."""

    rows: dict[int, bytes]
    ports: dict[int, CompiledPort]
    uses_own: bool


class TimeoutProfiles:
    """The map `timeouts`. A row that no port has is free; it keeps its content, which a sweep may be reading."""

    def __init__(self, profiles: BpfMap, ports: BpfMap, own: Timeouts) -> None:
        """Take over what ports refer to; `own` is the engine's from now on."""
        self._map = profiles
        self.set_own(own)
        self._own_used = True                           # perhaps: by ports that have none
        _, records = ports.lookup_all()
        numbers = np.unique(np.ascontiguousarray(records).reshape(-1).view(PORT)["timeouts"])
        self._held = {profiles.lookup(_u32(int(number))) or b"": int(number) for number in numbers if number != _OWN}
        self._last = max(self._held.values(), default=_OWN)

    def set_own(self, own: Timeouts) -> None:
        """The engine's own, for flows whose ports have none."""
        self._own = pack(TIMEOUTS, **nanoseconds(own))
        self._map.update(_u32(_OWN), self._own)

    def plan(self, ports: Mapping[int, CompiledPort]) -> Plan:
        """Give each content that is wanted a number: the one that it has, or one that nobody had of late.

        Raises:
            TableFull: there are not so many numbers.
        """
        wanted = dict.fromkeys(port.timeouts for port in ports.values() if port.timeouts is not None)
        new = [content for content in wanted if content not in self._held]
        room = self._map.max_entries - 1
        taken = set(self._held.values())
        free = [number for i in range(room if new else 0) if (number := (self._last + i) % room + 1) not in taken]
        if len(new) > len(free):
            raise TableFull(
                f"table timeouts: {len(wanted)} different ones of ports wanted, of {room} rows {len(free)} are free "
                f"beside those of the policy in force; let more ports share theirs, or raise Limits.timeouts"
            )
        numbers = {**self._held, **dict(zip(new, free, strict=False))}
        return Plan(
            {numbers[content]: content for content in wanted},
            {id: _numbered(port, numbers) for id, port in ports.items()},
            uses_own=not ports or any(port.timeouts is None for port in ports.values()),
        )

    def write(self, plan: Plan) -> None:
        """Have the rows of a plan beside those in use, before any port refers to them."""
        self._own_used |= plan.uses_own
        for number, content in plan.rows.items():
            if content not in self._held:
                self._map.update(_u32(number), content)
                self._held[content] = number
                self._last = number

    def settle(self, plan: Plan) -> None:
        """All ports have their numbers: rows that are not in the plan are free."""
        self._held = {content: number for number, content in plan.rows.items()}
        self._own_used = plan.uses_own

    def shortest(self) -> dict[str, int]:
        """The fields of struct settings that say when the queues of closed pairs are looked at: the least in use."""
        rows = np.frombuffer(b"".join((*self._held, self._own) if self._own_used else self._held), TIMEOUTS)
        return {f"reap_{name}_ns": int(rows[f"tcp_{name}_ns"].min()) for name in ("time_wait", "reset")}


def _numbered(port: CompiledPort, numbers: Mapping[bytes, int]) -> CompiledPort:
    if port.timeouts is None:
        return port
    record: Any = np.frombuffer(port.record, PORT).copy()
    record["timeouts"] = numbers[port.timeouts]
    return replace(port, record=record.tobytes())


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")
