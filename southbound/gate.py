"""How many connections may be open that have not said who they are."""

from __future__ import annotations

from collections import Counter

__all__ = ["Gate", "Place"]

PER_ADDRESS = 32                            # so that one host alone cannot shut the others out


class Gate:
    """Counts connections that are not authenticated yet, in all and by source address."""

    def __init__(self, limit: int, per_address: int = PER_ADDRESS) -> None:
        self._limit = limit
        self._per_address = per_address
        self._inside: Counter[str] = Counter()

    def enter(self, address: str) -> Place | None:
        """A place for a connection from `address`; None when there is no room."""
        if self._inside.total() >= self._limit or self._inside[address] >= self._per_address:
            return None
        self._inside[address] += 1
        return Place(self, address)

    def __len__(self) -> int:
        return self._inside.total()

    def _leave(self, address: str) -> None:
        self._inside[address] -= 1
        self._inside += Counter()           # forgets addresses with nobody inside


class Place:
    """One connection's place inside the gate."""

    def __init__(self, gate: Gate, address: str) -> None:
        self._gate: Gate | None = gate
        self._address = address

    def leave(self) -> None:
        """Make room. Idempotent."""
        if self._gate is not None:
            self._gate._leave(self._address)
            self._gate = None
