"""Prefix translations of generated hosts: rules and mappings, and what the world sends to."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

from hypothesis import strategies as st

from vfp.model import EngineState, PrefixMapping, TranslatePrefix
from vfp.reference.prefix import translate

_PAIRS = tuple((IPv6Network(internal), IPv6Network(external)) for internal, external in (
    ("2001:db8::/64", "fd00:1:2:3::/64"), ("2001:db8::/48", "fd00:1:2::/48"), ("2001:db8::/32", "fd00:1::/32"),
    ("2001:db8::/56", "fd00:1:2:300::/56"), ("2001:db8::/64", "2001:db8:ffff:ffff::/64"),
    ("2001:db8:0:0:0::/63", "dfff:0:0:0::/63")))
TRANSLATIONS = tuple(TranslatePrefix(internal, external) for internal, external in _PAIRS)
translations = st.sampled_from(TRANSLATIONS)


def prefix_mappings(uplinks: tuple[int, ...], spaces: tuple[int, ...]) -> st.SearchStrategy[tuple[PrefixMapping, ...]]:
    """Some have others in them: the longest counts."""
    one = st.builds(lambda uplink, pair, space: PrefixMapping(uplink, pair[1], pair[0], space),
                    st.sampled_from(uplinks), st.sampled_from(_PAIRS), st.sampled_from(spaces))
    return st.lists(one, max_size=3, unique_by=lambda mapping: (mapping.uplink, mapping.external)).map(tuple)


def targets(state: EngineState) -> list[tuple[int, IPv6Address]]:
    """Uplinks, and external addresses there: of what is inside, of what is not, and such as have no image."""
    found: list[tuple[int, IPv6Address]] = []
    for mapping in state.prefixes:
        first, last = mapping.external.network_address, mapping.external.broadcast_address
        places = (address for space in state.spaces if space.id == mapping.space for address, _ in space.entries)
        images = [translate(address, mapping.internal, mapping.external) for address in places
                  if isinstance(address, IPv6Address) and address in mapping.internal]
        odd = (first, last, IPv6Address(int(first) | 0xFFFF << 64), IPv6Address(int(first) | 0xFFFF << 48 | 5))
        found += [(mapping.uplink, address) for address in (*images * 3, *odd) if address is not None]
    return found
