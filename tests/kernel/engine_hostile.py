"""What an attacker or a broken driver makes of a frame: cut, flipped, tagged, blown up, with lengths that lie."""

from __future__ import annotations

import random
from collections.abc import Callable

LONGEST = 3500                              # that a kernel takes in a test run; longer ones go over a wire
_SHORTEST = {b"\x08\x00": 34, b"\x86\xdd": 54}
_INTERESTING = (0, 1, 4, 5, 6, 7, 8, 17, 20, 28, 40, 0x45, 0x46, 0x4F, 0x60, 0x20, 0x7F, 0x80, 0xF0, 0xFE, 0xFF)


def damaged(chance: random.Random, frame: bytes) -> bytes:
    """The frame after one mishap or two."""
    for _ in range(chance.choice((1, 1, 1, 2))):
        frame = mishap(chance, frame)
    return in_bounds(frame)


def mishap(chance: random.Random, frame: bytes) -> bytes:
    """The frame after one mishap, however long it is then."""
    return chance.choice(_MISHAPS)(chance, frame)


def in_bounds(frame: bytes) -> bytes:
    """As long as a kernel test run wants it: more than Ethernet, with the IP header whole; not over one page."""
    return frame[:LONGEST].ljust(_SHORTEST.get(frame[12:14], 15), b"\0")


def cut(chance: random.Random, frame: bytes) -> bytes:
    """It ends early."""
    return frame[:chance.randrange(15, max(16, len(frame)))]


def flip(chance: random.Random, frame: bytes) -> bytes:
    """Some bits are wrong, anywhere behind the MACs; more often in headers."""
    data = bytearray(frame)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        reach = len(data) if chance.random() < 0.2 else min(len(data), 94)
        data[chance.randrange(12, max(13, reach))] ^= 1 << chance.randrange(8)
    return bytes(data)


def overwrite(chance: random.Random, frame: bytes) -> bytes:
    """Some bytes are what parsers trip over."""
    data = bytearray(frame)
    for _ in range(chance.choice((1, 1, 2, 3))):
        data[chance.randrange(12, max(13, min(len(data), 94)))] = chance.choice(_INTERESTING)
    return bytes(data)


def lie(chance: random.Random, frame: bytes) -> bytes:
    """A field that says how long something is says something else."""
    six = frame[12:14] == b"\x86\xdd"
    start = 54 if six else 14 + (frame[14] & 0x0F) * 4 if len(frame) > 14 else 34
    fields = (18, 19, 20, 54, 55, 57) if six else (14, 16, 17, 20, 21, 23)
    behind = (start + 4, start + 5, start + 12, start + 13, start + 8, start + 10, start + 11, start + 30)
    at = chance.choice((*fields, *behind))
    if at >= len(frame):
        return frame
    near = (frame[at] + chance.choice((-8, -1, 1, 8, 0x10, -0x10))) & 0xFF
    return frame[:at] + bytes([chance.choice((near, near, chance.choice(_INTERESTING)))]) + frame[at + 1:]


def tag(chance: random.Random, frame: bytes) -> bytes:
    """One VLAN tag or two."""
    tags = b"".join(
        chance.choice((b"\x81\x00", b"\x88\xa8")) + chance.randrange(65536).to_bytes(2, "big")
        for _ in range(chance.choice((1, 1, 2))))
    return frame[:12] + tags + frame[12:]


def ethertype(chance: random.Random, frame: bytes) -> bytes:
    """The body is said to be something else."""
    kind = chance.choice((0x8100, 0x88A8, 0x86DD, 0x88CC, 0x0806, 0x0800, 0x0000, 0x05DC, 0x8847, 0x8864, 0x9100))
    return frame[:12] + kind.to_bytes(2, "big") + frame[14:]


def noise(chance: random.Random, frame: bytes) -> bytes:
    """Nothing behind the ethertype has a meaning."""
    return frame[:14] + chance.randbytes(chance.randrange(1, 200))


def plausible_noise(chance: random.Random, frame: bytes) -> bytes:
    """An IP header of right lengths over random bytes."""
    body = chance.randbytes(chance.randrange(0, 120))
    if frame[12:14] == b"\x86\xdd" and len(frame) >= 54:
        return frame[:18] + len(body).to_bytes(2, "big") + frame[20:54] + body
    if frame[12:14] == b"\x08\x00" and len(frame) >= 34:
        return frame[:14] + b"\x45" + frame[15:16] + (20 + len(body)).to_bytes(2, "big") + frame[18:34] + body
    return frame[:14] + body


def splice(chance: random.Random, frame: bytes) -> bytes:
    """A part of it comes twice, or not at all."""
    low = chance.randrange(14, max(15, len(frame)))
    high = chance.randrange(low, len(frame) + 1)
    return frame[:high] + frame[low:] if chance.random() < 0.5 else frame[:low] + frame[high:]


def tiny_fragment(chance: random.Random, frame: bytes) -> bytes:
    """A first fragment that ends before its transport header does, or soon after."""
    size = chance.choice((8, 8, 16, 16, 24, 40))
    if frame[12:15] == b"\x08\x00\x45" and len(frame) >= 42:
        return (frame[:16] + (20 + size).to_bytes(2, "big") + frame[18:20] + b"\x20\x00" + frame[22:34]
                + frame[34:34 + size].ljust(size, b"\0"))
    if frame[12:14] == b"\x86\xdd" and len(frame) >= 62:
        header = frame[20:21] + b"\0\0\1" + chance.choice((1, 2, 3)).to_bytes(4, "big")
        return (frame[:18] + (8 + size).to_bytes(2, "big") + b"\x2c" + frame[21:54] + header
                + frame[54:54 + size].ljust(size, b"\0"))
    return frame


def trailer(chance: random.Random, frame: bytes) -> bytes:
    """More bytes than the headers know of."""
    return frame + chance.randbytes(chance.choice((1, 2, 18, 46, 1500)))


_MISHAPS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    cut, cut, flip, flip, flip, overwrite, overwrite, lie, lie, lie, tag, ethertype, noise, plausible_noise,
    plausible_noise, splice, tiny_fragment, trailer)
