"""One host as seen from the controller: what it has, what is on its way, what it must still be told. No I/O.

    unknown ──full sync──▶ in flight ──ack──▶ current ◀─┐
                              ▲                │ change │ ack
                              └──── delta ─────┘────────┘

One message is in flight at a time; changes meanwhile gather in `pending` and go out together. A host that comes
back at the revision that it acknowledged, or at the one in flight, goes on from there; any other gets a full sync.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from controller.planner import Goals, Patch
from southbound.messages import Ack, Delta, FullSync, Key, ObjectStatus


@dataclass(frozen=True, slots=True)
class Flight:
    """A message that is not acknowledged yet. `patch` None: a full sync."""

    revision: int
    patch: Patch | None


@dataclass(slots=True)
class Link:
    """State of one host. `revision` 0: what it has is not known."""

    host: str
    connected: bool = False
    revision: int = 0                       # acknowledged
    synced: bool = False                    # what it has at `revision` is what we know; else a full sync is due
    flight: Flight | None = None
    pending: Patch = field(default_factory=dict)
    objects: dict[Key, ObjectStatus] = field(default_factory=dict)
    failed: dict[Key, ObjectStatus] = field(default_factory=dict)       # those of them with an error
    trouble: str = ""                       # why the goal state cannot be sent
    confirmed: bool = False                 # it acknowledged something since it connected

    def applied(self, store_revision: int) -> int:
        """The revision that the host shows: the store's own when nothing is left to tell it."""
        return store_revision if self.up_to_date else self.revision

    @property
    def up_to_date(self) -> bool:
        """Whether it is connected and has acknowledged everything that concerns it."""
        return (self.connected and self.confirmed and self.synced and self.flight is None
                and not self.pending)

    def behind(self, store_revision: int) -> bool:
        """Whether it is connected and has not acknowledged what concerns it up to a revision.

        What a host says of itself when it connects is what it has on disk; its kernel may not be so far.
        """
        return self.connected and not self.up_to_date and (not self.confirmed or self.revision < store_revision)

    def awaits(self, key: Key) -> bool:
        """Whether an object's present goal has not been acknowledged."""
        if not self.synced or (self.flight and self.flight.patch is None):
            return True
        return key in self.pending or bool(self.flight and self.flight.patch and key in self.flight.patch)

    def add(self, patch: Patch) -> None:
        """More to tell."""
        self.pending.update(patch)

    def connect(self, revision: int) -> None:
        """The host came (back) and says it is at `revision`."""
        self.connected, self.confirmed, self.trouble = True, False, ""
        flight, self.flight = self.flight, None
        if self.synced and flight is not None and flight.revision == revision:
            self.revision = revision        # it was applied, only the acknowledgement was lost
        elif self.synced and self.revision == revision:
            if flight is not None:
                self.pending = {**(flight.patch or {}), **self.pending}
        else:
            self.synced, self.revision = False, revision

    def disconnect(self) -> None:
        """The host went away; it goes on with what it has. A full sync under way may or may not have arrived."""
        self.connected = False
        if self.flight is not None and self.flight.patch is None:
            self.synced, self.flight = False, None

    def next_message(self, revision: int, goals: Callable[[], Goals]) -> FullSync | Delta | None:
        """What to send now; it is in flight from here on. None: nothing, or the last one is not acknowledged."""
        if not self.connected or self.flight is not None:
            return None
        if not self.synced:
            self.flight, self.pending = Flight(revision, None), {}
            return FullSync(revision, tuple(goals().values()))
        if not self.pending and self.confirmed:
            return None
        self.flight, self.pending = Flight(revision, self.pending), {}
        patch = self.flight.patch or {}     # empty: it only brings the host to our revision
        return Delta(self.revision, revision,
                     tuple(goal for goal in patch.values() if goal is not None),
                     tuple(key for key, goal in patch.items() if goal is None))

    def unsent(self, reason: str) -> None:
        """The message in flight could not be sent at all; a full sync is due with the next change."""
        self.flight, self.synced, self.trouble = None, False, reason

    def resync(self) -> None:
        """The host asks for everything."""
        self.flight, self.synced = None, False

    def acknowledge(self, ack: Ack) -> set[Key]:
        """Take an acknowledgement or a later report; returns the objects whose state may show differently now."""
        told = {(status.kind, status.id): status for status in ack.objects}
        changed = {key for key in told.keys() | self.objects.keys() if told.get(key) != self.objects.get(key)}
        if self.flight is not None and ack.revision == self.flight.revision:
            changed |= (told if self.flight.patch is None else self.flight.patch).keys()
            self.flight, self.synced, self.confirmed = None, True, True
            self.revision, self.trouble = ack.revision, ""
        elif ack.revision != self.revision:
            return set()                    # of a revision that something newer has overtaken
        self.objects = told
        self.failed = {key: status for key, status in told.items() if status.error}
        return changed


__all__ = ["Flight", "Link"]
