"""Underlay addresses in 32 bits: an IPv4 one is itself, an IPv6 one has an id among what no IPv4 host can be.

So flows and places are no larger for IPv6, and IPv4 pays nothing. Two small maps lead from id to address and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address

from vfp.errors import CompileError
from vfp.layout import VTEP_NOBODY, pack_address
from vfp.model import Address

__all__ = ["check_vtep", "vtep_id", "vtep_of", "vtep_rows"]


def vtep_id(vtep: Address) -> int:
    """What stands for a VTEP in the kernel: more than `VTEP_NOBODY` if it is IPv6."""
    if isinstance(vtep, IPv4Address):
        return min(int(vtep), VTEP_NOBODY)
    digest = int.from_bytes(blake2b(vtep.packed, digest_size=8).digest(), "little")
    return VTEP_NOBODY + 1 + digest % (0xFFFFFFFF - VTEP_NOBODY)


def vtep_of(number: int, ipv6: Mapping[int, Address]) -> Address | None:
    """Inverse of `vtep_id`; None: an IPv6 one that is no longer among `ipv6`, which are by id."""
    return IPv4Address(number) if number < VTEP_NOBODY else ipv6.get(number)


def check_vtep(where: str, vtep: Address) -> None:
    """Raises `CompileError` for what no host can be."""
    if isinstance(vtep, IPv4Address) and not 0 < int(vtep) < VTEP_NOBODY:
        raise CompileError(f"{where}: VTEP {vtep} is no address of a host; give one below 224.0.0.0")
    if isinstance(vtep, IPv6Address) and (vtep.is_multicast or vtep.is_unspecified):
        raise CompileError(f"{where}: VTEP {vtep} is no address of a host; give a unicast one")


def vtep_rows(vteps: Iterable[Address]) -> dict[str, dict[bytes, bytes]]:
    """Rows of the maps that lead from id to address and back.

    Raises:
        CompileError: two addresses have one id.
    """
    by_id: dict[int, Address] = {}
    for vtep in vteps:
        if isinstance(vtep, IPv6Address) and (other := by_id.setdefault(vtep_id(vtep), vtep)) != vtep:
            raise CompileError(
                f"VTEPs {other} and {vtep} have one id in the kernel, {vtep_id(vtep):#x}; give one of the two hosts "
                f"another underlay address")
    rows = {number.to_bytes(4, "little"): pack_address(vtep) for number, vtep in by_id.items()}
    return {"vtep_addresses": rows, "vtep_ids": {address: number for number, address in rows.items()}}

