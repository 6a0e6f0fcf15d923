"""Addresses of the underlay, and the paths from them, as table contents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vfp.errors import CompileError
from vfp.layout import UNDERLAY, UNDERLAY_KEY, UNDERLAYS, pack, pack_address
from vfp.model import Address, EngineState, Port

__all__ = ["Tunnelling", "check_underlays", "compile_underlays", "numbers_of"]

_EMPTY = bytes(UNDERLAY.itemsize)


@dataclass(frozen=True, slots=True)
class Tunnelling:
    """`rows`: struct underlay by number, from 1. `settings`: what of struct settings is about outer headers."""

    rows: tuple[bytes, ...] = (_EMPTY,) * UNDERLAYS
    settings: dict[str, Any] = field(default_factory=lambda: {"tunnel_port": 0, "underlays": (0, 0)})


def check_underlays(state: EngineState) -> None:
    """Bounds of what `compile_underlays` takes.

    Raises:
        CompileError: with what was found and what to do.
    """
    if len(state.underlays) >= UNDERLAYS:
        raise CompileError(f"underlays: {len(state.underlays)} addresses, at most {UNDERLAYS - 1} are possible")
    addresses = [underlay.address for underlay in state.underlays]
    for underlay in state.underlays:
        which = f"underlay {underlay.address}"
        if addresses.count(underlay.address) > 1:
            raise CompileError(f"{which}: is given twice; give each address once")
        if not 0 <= underlay.mtu < 65536:
            raise CompileError(f"{which}: MTU {underlay.mtu} is out of range; use 1..65535, or 0: not known")
    if not 0 < state.tunnel_port < 65536:
        raise CompileError(f"tunnel_port {state.tunnel_port} is out of range; use 1..65535")
    for vtep, mtu in state.paths:
        if not 0 < mtu < 65536:
            raise CompileError(f"path to {vtep}: MTU {mtu} is out of range; use 1..65535")
    for port in state.ports:
        if not 0 <= port.mtu < 65536:
            raise CompileError(f"port {port.name}: MTU {port.mtu} is out of range; use 1..65535, or 0: not known")
        for vtep in port.vteps:
            if vtep not in addresses:
                raise CompileError(f"port {port.name}: vteps has {vtep}, which is no underlay of this host; give the "
                                   f"state an Underlay with this address")
        for name, given in (("vteps", port.vteps), ("gateways", port.gateways)):
            if len({address.version for address in given}) < len(given):
                raise CompileError(f"port {port.name}: {name} has several addresses of one family; give one of each")


def compile_underlays(state: EngineState) -> tuple[Tunnelling, dict[bytes, bytes]]:
    """Rows and settings, and the table from address to number."""
    rows, numbers = [_EMPTY] * UNDERLAYS, {}
    for number, underlay in enumerate(state.underlays, 1):
        address = pack_address(underlay.address)
        rows[number] = pack(UNDERLAY, address=address, ifindex=underlay.ifindex, mtu=underlay.mtu,
                            family=underlay.address.version)
        key = pack(UNDERLAY_KEY, address=address, family=underlay.address.version)
        numbers[key] = number.to_bytes(4, "little")
    takes_off = state.tunnel_ifindex and any(underlay.ifindex for underlay in state.underlays)
    sole = {version: _sole(state, version) for version in (4, 6)}
    return Tunnelling(tuple(rows), {
        "tunnel_port": state.tunnel_port if takes_off else 0, "underlays": (sole[4], sole[6]),
    }), numbers


def numbers_of(port: Port, state: EngineState) -> bytes:
    """The outer sources of what a port sends, of IPv4 and of IPv6; 0: the host's."""
    given = {vtep.version: vtep for vtep in port.vteps}
    return bytes(_number(given.get(version), state) for version in (4, 6))


def _number(address: Address | None, state: EngineState) -> int:
    return next((number for number, each in enumerate(state.underlays, 1) if each.address == address), 0)


def _sole(state: EngineState, version: int) -> int:
    """Of several, the kernel chooses by route."""
    theirs = [number for number, each in enumerate(state.underlays, 1) if each.address.version == version]
    return theirs[0] if len(theirs) == 1 else 0
