"""Prefix translations (RFC 6296) as table contents: rows of rules, outwards, and of uplinks, inwards."""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import Any

from vfp.errors import CompileError
from vfp.layout import PREFIX, PREFIX_KEY, pack, pack_address
from vfp.model import EngineState, PrefixMapping, TranslatePrefix

__all__ = ["check_translation", "mapping_rows", "translation_row"]

MAX_LENGTH = 64
_UPLINK_BITS = 32


def check_translation(where: str, internal: Any, external: Any) -> None:
    """Refuse two prefixes that cannot be translated into each other.

    Raises:
        CompileError: says which and why.
    """
    for name, prefix in (("internal", internal), ("external", external)):
        if not isinstance(prefix, IPv6Network):
            raise CompileError(f"{where}: {name} prefix {prefix} is not IPv6; prefixes are translated in IPv6 only")
        if not 0 < prefix.prefixlen <= MAX_LENGTH:
            raise CompileError(
                f"{where}: {name} prefix {prefix} has length {prefix.prefixlen}; use 1..{MAX_LENGTH}, so that "
                f"a word can make up for the change (RFC 6296 3.5)"
            )
    if internal.prefixlen != external.prefixlen:
        raise CompileError(
            f"{where}: prefixes {internal} and {external} are not of one length; extend the shorter (RFC 6296 3.1)")


def translation_row(action: TranslatePrefix) -> bytes:
    """struct prefix of a rule's argument."""
    return _row(action.internal, action.external)


def mapping_rows(state: EngineState) -> dict[bytes, bytes]:
    """The map `prefixes`.

    Raises:
        CompileError: a mapping contradicts itself or another.
    """
    rows: dict[bytes, bytes] = {}
    for mapping in state.prefixes:
        where = f"prefix mapping {mapping.external}"
        check_translation(where, mapping.internal, mapping.external)
        key = _key(mapping)
        if key in rows:
            raise CompileError(f"{where}: given twice for uplink {mapping.uplink}; it can be only one internal prefix")
        rows[key] = _row(mapping.external, mapping.internal, mapping.space)
    return rows


def _key(mapping: PrefixMapping) -> bytes:
    return pack(PREFIX_KEY, length=_UPLINK_BITS + mapping.external.prefixlen, uplink=mapping.uplink,
                external=pack_address(mapping.external.network_address))


def _row(from_: IPv6Network, to: IPv6Network, space: int = 0) -> bytes:
    fields = {"from": pack_address(from_.network_address), "to": pack_address(to.network_address)}
    return pack(PREFIX, **fields, adjustment=_adjustment(from_, to), length=from_.prefixlen, space=space)


def _adjustment(from_: IPv6Network, to: IPv6Network) -> int:
    """RFC 6296 3.1: one's complement sum of the words of the one less that of the other."""
    total = _sum(from_) + (0xFFFF ^ _sum(to))
    return (total & 0xFFFF) + (total >> 16)


def _sum(prefix: IPv6Network) -> int:
    raw = prefix.network_address.packed
    total = sum(int.from_bytes(raw[i:i + 2], "big") for i in range(0, MAX_LENGTH // 8, 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total
