"""One direction of a DNS connection over TCP: messages out of segments (RFC 7766), in a bounded way.

The receiver can act on a message only when its last byte has come. So a segment may pass as soon as the messages that
it completes were looked at, and nothing need be held back. A segment that leaves a gap is dropped, for its sender will
send it again, after the missing one. Bytes that were seen before pass: they were looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Stream"]

_SPACE = 1 << 32                            # of sequence numbers
_PREFIX = 2                                 # bytes of a message's length


@dataclass(slots=True)
class Stream:
    """What is known of one direction. `next`: the sequence number of the byte that must come next."""

    next: int
    _rest: bytearray = field(default_factory=bytearray)     # of a message that is not whole; under 64 KiB + 2

    def take(self, sequence: int, payload: bytes) -> list[bytes] | None:
        """The messages that this segment completes; None: it leaves a gap, and must not pass."""
        ahead = (sequence - self.next) % _SPACE
        if ahead and ahead < _SPACE // 2:
            return None
        seen = (self.next - sequence) % _SPACE
        fresh = payload[seen:]
        self.next = (self.next + len(fresh)) % _SPACE
        self._rest += fresh
        messages = []
        while len(self._rest) >= _PREFIX:
            length = int.from_bytes(self._rest[:_PREFIX], "big")
            if len(self._rest) < _PREFIX + length:
                break
            messages.append(bytes(self._rest[_PREFIX:_PREFIX + length]))
            del self._rest[:_PREFIX + length]
        return messages
