"""The programs of ports: each has two, and one word of the host's settings says which of them are in force."""

from __future__ import annotations

from collections.abc import KeysView
from typing import NamedTuple

import numpy as np

from vfp.compile import CompiledPort, Tables
from vfp.datapath.capture import Capturing
from vfp.datapath.object import BpfObject
from vfp.layout import PORT, PROGRAM, USAGE, PortFlag, pack

__all__ = ["PortPrograms"]


class PortPrograms:
    """The tables `programs` and `ports`. `turn`: what is in force."""

    def __init__(self, loaded: BpfObject, capturing: Capturing, turn: int) -> None:
        self.turn = turn
        self._programs = loaded.map("programs")
        self._ports = loaded.map("ports")
        self._usages = loaded.map("usages")
        self._capturing = capturing
        self._written = {
            int.from_bytes(key, "little"): _Turns(value[: PROGRAM.itemsize], value[PROGRAM.itemsize :])
            for key, value in self._programs.items()
        }

    @property
    def ids(self) -> KeysView[int]:
        """Every port that has a program."""
        return self._written.keys()

    def has(self, port: CompiledPort) -> bool:
        """Whether a port's program is in force, and its record is as policy has it."""
        program = self._in_force(port.id)
        if not _generation(program) or program[4:] != port.program[4:]:
            return False
        return self._record(port.id) == program[:4] + port.record[4:]

    def is_another(self, port: CompiledPort) -> bool:
        """Whether the port that has the id now is not this one: another link, or another endpoint behind it."""
        if not _generation(self._in_force(port.id)):
            return False
        now, wanted = np.frombuffer(self._record(port.id), PORT)[0], np.frombuffer(port.record, PORT)[0]
        return bool(now["ifindex"] != wanted["ifindex"] or (now["mac"] != wanted["mac"]).any())

    def are_newly_capped(self, tables: Tables) -> bool:
        """Whether a port that is there gets a limit of connections, and may have some already."""
        capped = PortFlag.CAPPED
        return any(
            np.frombuffer(port.record, PORT)[0]["flags"] & capped
            and not np.frombuffer(self._record(port.id), PORT)[0]["flags"] & capped
            for port in tables.ports.values() if _generation(self._in_force(port.id)))

    def prepare(self, tables: Tables, stale: set[int]) -> None:
        """Have in each port's other turn what is to come into force; what is in force stays as it is."""
        for port_id in sorted(self._written.keys() | tables.ports.keys()):
            port = tables.ports.get(port_id)
            now = coming = self._in_force(port_id)
            if port is None:
                coming = bytes(PROGRAM.itemsize)
            elif port_id in stale:
                generation = _u32(self._next_generation(port_id))
                coming = generation + port.program[4:]
                if not _generation(now):    # a flow may not go to a port without a record
                    self._write_record(port_id, generation + port.record[4:], generation)
            turns = _Turns(coming, now) if self.turn else _Turns(now, coming)
            if self._written.get(port_id) != turns:
                self._programs.update(_u32(port_id), b"".join(turns))
                self._written[port_id] = turns

    def raise_generations(self, tables: Tables, stale: set[int]) -> None:
        """Flows that were decided before must decide again."""
        for port_id in self._written:
            port = tables.ports.get(port_id)
            if port is None:
                gone = pack(PORT, generation=self._next_generation(port_id))
                self._ports.update(_u32(port_id), gone[:_BORN] + self._born(port_id) + gone[_BORN + 4 :])
            elif port_id in stale:
                self._write_record(port_id, self._in_force(port_id)[:4] + port.record[4:])

    def drop(self, port_id: int) -> None:
        """The port is gone."""
        self._programs.delete(_u32(port_id))
        del self._written[port_id]

    def groups_used(self) -> set[int]:
        """Ids of all groups that programs in force refer to. The other turn's are written before it comes again."""
        used: set[int] = set()
        for raw in map(self._in_force, self._written):
            program = np.frombuffer(raw, PROGRAM)[0]
            used.update(program["out"]["group"][: int(program["out_count"])].tolist())
            used.update(program["in"]["group"][: int(program["in_count"])].tolist())
        return used - {0}

    def _record(self, port_id: int) -> bytes:
        """A port's record as policy has it."""
        record = self._capturing.without(self._ports.lookup(_u32(port_id)) or bytes(PORT.itemsize))
        return record[:_BORN] + bytes(4) + record[_BORN + 4 :]

    def _write_record(self, port_id: int, record: bytes, born: bytes | None = None) -> None:
        """Who looks at the port's packets goes on to. `born`: the id is this port's from that generation on."""
        if born is not None:                    # what a former port has used up is not its own
            self._usages.update(_u32(port_id), bytes(USAGE.itemsize))
        record = record[:_BORN] + (born or self._born(port_id)) + record[_BORN + 4 :]
        self._ports.update(_u32(port_id), self._capturing.marked(port_id, record))

    def _born(self, port_id: int) -> bytes:
        """It outlives the port: what a former one has left is nobody's, whether or not there is one now."""
        return (self._ports.lookup(_u32(port_id)) or bytes(PORT.itemsize))[_BORN : _BORN + 4]

    def _in_force(self, port_id: int) -> bytes:
        """The port's struct program of this turn; all zero: none."""
        return self._written.get(port_id, _NO_TURNS)[self.turn]

    def _next_generation(self, port_id: int) -> int:
        """One that no flow has: nobody decided by a program of it."""
        record = self._ports.lookup(_u32(port_id)) or bytes(4)
        return max(map(_generation, (record, *self._written.get(port_id, _NO_TURNS)))) % 0xFFFFFFFF + 1      # never 0


_BORN = PORT.fields["born"][1] if PORT.fields else 0


class _Turns(NamedTuple):
    """struct programs: what a port does when it is the turn of the one or the other."""

    even: bytes
    odd: bytes


_NO_TURNS = _Turns(bytes(PROGRAM.itemsize), bytes(PROGRAM.itemsize))


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _generation(raw: bytes) -> int:
    """Of a struct port or a struct program."""
    return int.from_bytes(raw[:4], "little")
