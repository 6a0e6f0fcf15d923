"""Pools of source translation as the kernel's tables have them."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2s

import numpy as np

from vfp.errors import CompileError
from vfp.layout import HELD_KEY, POOL, POOL_ADDRESSES, Filter, PoolFlag, pack, pack_address
from vfp.model import EngineState, Filtering, Pool

__all__ = ["MAX_BLOCK", "check_pools", "compile_pools"]

MAX_BLOCK = 4096
_TCP, _UDP, _ECHO = 6, 17, {4: 1, 6: 58}
_FILTERS = {
    Filtering.ENDPOINT_INDEPENDENT: Filter.NOBODY, Filtering.ADDRESS: Filter.ADDRESS,
    Filtering.ADDRESS_PORT: Filter.ADDRESS_PORT,
}


def check_pools(state: EngineState) -> None:
    """Raises `CompileError` if a pool contradicts itself."""
    for pool in state.pools:
        what = f"pool {pool.id}"
        low, high = pool.ports.low, pool.ports.high
        if not 1 <= len(pool.addresses) <= POOL_ADDRESSES:
            raise CompileError(f"{what}: {len(pool.addresses)} addresses; give 1 to {POOL_ADDRESSES}")
        if len({address.version for address in pool.addresses}) > 1:
            raise CompileError(f"{what}: addresses are of both families; make a pool for each")
        if len(set(pool.addresses)) < len(pool.addresses):
            raise CompileError(f"{what}: an address is given twice")
        if not 0 <= low <= high <= 65535:
            raise CompileError(f"{what}: ports {low}-{high} are no range; use 0 <= low <= high <= 65535")
        if pool.block and not (0 < pool.block <= min(MAX_BLOCK, high - low + 1)):
            raise CompileError(
                f"{what}: block {pool.block}; use 0 for none, or 1 to {MAX_BLOCK} and no more than the range "
                f"{low}-{high} has")
        if not 0 <= pool.quota < 1 << 32:
            raise CompileError(f"{what}: quota {pool.quota}; use 0 for no limit, or the number of bindings of a port")
        for protocol, port in pool.held:
            if not (0 <= protocol <= 255 and 0 <= port <= 65535):
                raise CompileError(f"{what}: held ({protocol}, {port}) is no protocol and port")


def compile_pools(pools: Iterable[Pool]) -> dict[str, dict[bytes, bytes]]:
    """Wanted contents of the maps `pools` and `held`."""
    pools = list(pools)
    return {
        "pools": {pool.id.to_bytes(4, "little"): _pool(pool) for pool in pools},
        "held": {
            pack(HELD_KEY, pool=pool.id, port=port, protocol=protocol): b"\1"
            for pool in pools for protocol, port in pool.held
        },
    }


def _pool(pool: Pool) -> bytes:
    held = {(protocol, port) for protocol, port in pool.held}
    family = pool.addresses[0].version
    inside = [protocol for protocol, port in held if pool.ports.low <= port <= pool.ports.high]
    raw = b"".join(map(pack_address, pool.addresses)).ljust(16 * POOL_ADDRESSES, b"\0")
    flags = (PoolFlag.LOG if pool.log else 0) | (PoolFlag.HOLDS if held else 0)
    value = np.zeros((), POOL)
    value["addresses"] = np.frombuffer(raw, np.uint8).reshape(POOL_ADDRESSES, 16)
    for name, given in {
        "uplink": pool.uplink, "range": _range(pool), "quota": pool.quota, "low": pool.ports.low,
        "high": pool.ports.high, "block": pool.block, "held_tcp": inside.count(_TCP), "held_udp": inside.count(_UDP),
        "held_echo": inside.count(_ECHO[family]), "family": family, "count": len(pool.addresses),
        "filtering": _FILTERS[pool.filtering], "flags": flags,
    }.items():
        value[name] = given
    return value.tobytes()


def _range(pool: Pool) -> int:
    """The ports that a pool may give, as a number: counts are kept by it, so that pools may share an address."""
    given = repr((pool.ports.low, pool.ports.high, sorted(set(pool.held))))
    return int.from_bytes(blake2s(given.encode(), digest_size=4).digest(), "little")
