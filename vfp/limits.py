"""What a port may have, as fields of its record: packets a second, connections, queues."""

from __future__ import annotations

from typing import Any

import numpy as np

from vfp.errors import CompileError
from vfp.layout import RATE, PortFlag
from vfp.model import EngineState, Port, Rate

__all__ = ["RATE_SHIFT", "bucket", "check", "flags", "is_particular", "rates"]

RATE_SHIFT = 8                              # a bucket counts in 1/256 ns
MAX_PER_SECOND, MAX_BURST, MAX_CONNECTIONS = 1 << 31, 1 << 20, 1 << 31
MAX_SHAPED = 0xFFFF                         # the port is the minor number of a class (tc(8))


def check(state: EngineState) -> None:
    """Bounds of what the functions below take.

    Raises:
        CompileError: with what was found and what to do.
    """
    for port in state.ports:
        for name, rate in (("rate_out", port.rate_out), ("rate_in", port.rate_in)):
            if rate is not None and not 0 < rate.per_second <= MAX_PER_SECOND:
                raise CompileError(f"port {port.name}: {name} is {rate.per_second} packets a second; use "
                                   f"1..{MAX_PER_SECOND}")
            if rate is not None and not 0 < rate.burst <= MAX_BURST:
                raise CompileError(f"port {port.name}: {name} has a burst of {rate.burst} packets; use 1..{MAX_BURST}")
        if not 0 <= port.connections <= MAX_CONNECTIONS:
            raise CompileError(f"port {port.name}: connections is {port.connections}; use 1..{MAX_CONNECTIONS}, or 0: "
                               f"no limit")
        if port.shaped and port.id > MAX_SHAPED:
            raise CompileError(f"port {port.name}: id {port.id} is no class of a queue; give shaped ports ids up to "
                               f"{MAX_SHAPED}")


def flags(port: Port) -> int:
    """Bits of its record."""
    return (PortFlag.SHAPED * port.shaped | PortFlag.QUEUED * port.queued | PortFlag.RATE_OUT * bool(port.rate_out)
            | PortFlag.RATE_IN * bool(port.rate_in) | PortFlag.CAPPED * bool(port.connections))


def is_particular(port: Port) -> bool:
    """Whether its frames are looked at before they are parsed."""
    return port.shaped or port.rate_out is not None


def rates(port: Port) -> Any:
    """Both struct rate."""
    return np.array([bucket(port.rate_out), bucket(port.rate_in)], RATE)


def bucket(rate: Rate | None) -> tuple[int, int]:
    """What a packet costs, and how far the bucket may be ahead of the clock, in 1/256 ns."""
    if rate is None:
        return 0, 0
    cost = (10**9 << RATE_SHIFT) // rate.per_second
    return cost, (rate.burst - 1) * cost
