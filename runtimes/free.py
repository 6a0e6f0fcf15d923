"""A prefix that nothing on this host has, for a network whose prefix nobody says."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from runtimes.local import LocalError

_V4 = tuple(IPv4Network(each) for each in ("192.168.0.0/16", "172.16.0.0/12", "10.0.0.0/8"))
_LENGTH4, _LENGTH6 = 24, 64
_V6 = IPv6Network("fd00:51::/48")
_ROUTES = Path("/proc/self/net/route")


def free_prefix(version: int, taken: Iterable[IPv4Network | IPv6Network]) -> IPv4Network | IPv6Network:
    """The first prefix beside those.

    Raises:
        LocalError: exhausted.
    """
    used = list(taken)
    if version == 6:
        sixes = [each for each in used if isinstance(each, IPv6Network)]
        for six in _V6.subnets(new_prefix=_LENGTH6):
            if not any(six.overlaps(each) for each in sixes):
                return six
    else:
        fours = [each for each in (*used, *routed()) if isinstance(each, IPv4Network)]
        for whole in _V4:
            for four in whole.subnets(new_prefix=_LENGTH4):
                if not any(four.overlaps(each) for each in fours):
                    return four
    raise LocalError("exhausted", "no prefix is free", "subnet", "nothing", "add --subnet")


def routed(routes: Path = _ROUTES) -> list[IPv4Network]:
    """Where this host has routes to, but for the default route."""
    found = []
    for line in routes.read_text(encoding="ascii").splitlines()[1:]:
        words = line.split()
        address, mask = (int.from_bytes(bytes.fromhex(words[at])[::-1]) for at in (1, 7))
        if mask:
            found.append(ip_network((address, mask.bit_count())))
    return [each for each in found if isinstance(each, IPv4Network)]
