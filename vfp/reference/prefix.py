"""IPv6-to-IPv6 network prefix translation (RFC 6296 3): stateless, one to one, and no checksum changes.

An address has no image if the word that would make up for the change is 0xFFFF: to add to it gives what adding to 0
gives, because one's complement cannot tell the two apart (3.2, 3.5).
"""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

ONES = 0xFFFF                               # the modulus of one's complement: 0xFFFF is 0
_IN_SUBNET = 48


def translate(address: IPv6Address, before: IPv6Network, after: IPv6Network) -> IPv6Address | None:
    """What an address in `before` is in `after`, of the same length; None: it cannot be mapped."""
    assert address in before
    words = _words(address)
    at = _adjusted_word(words, before.prefixlen)
    if at is None:
        return None
    kept = int(address) & int(before.hostmask)
    new = _words(IPv6Address(int(after.network_address) | kept))
    new[at] = (words[at] + sum(_words(before.network_address)) - sum(_words(after.network_address))) % ONES
    return IPv6Address(b"".join(word.to_bytes(2, "big") for word in new))


def _adjusted_word(words: list[int], length: int) -> int | None:
    """3.4: the subnet, if the prefix leaves one; 3.5: else the first of the interface identifier that can be."""
    places = (3,) if length <= _IN_SUBNET else (4, 5, 6, 7)
    return next((at for at in places if words[at] != ONES), None)


def _words(address: IPv6Address) -> list[int]:
    raw = address.packed
    return [int.from_bytes(raw[i:i + 2], "big") for i in range(0, 16, 2)]
