"""Which entries of the flow table somebody wants to see, found before they are decoded: the table may have millions."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import numpy as np
import numpy.typing as npt

from vfp.datapath.records import FlowRecord, flow_state
from vfp.layout import FLOW, FLOW_KEY, ZONE_SHIFT, ZoneKind

__all__ = ["STATES", "FlowFilter", "FlowPage", "select"]

STATES = ("new", "opening", "syn-received", "established", "fin-wait", "time-wait", "reset")

_U8 = npt.NDArray[np.uint8]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """What must hold for an entry. None, 0 or empty: anything."""

    port: int = 0                           # id: it sends, receives, or the entry is in its zone
    address: IPv4Network | IPv6Network | None = None    # of source or destination
    protocol: int | None = None
    transport_port: int = 0                 # source or destination
    state: str = ""
    limit: int = 0


@dataclass(frozen=True, slots=True)
class FlowPage:
    """Entries, and how many there would be without a limit."""

    flows: list[FlowRecord]
    total: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows of the table that are wanted, and how many there would be without a limit."""

    keys: _U8
    values: _U8
    total: int


def select(keys: _U8, values: _U8, wanted: FlowFilter) -> Selection:
    """The rows for which `wanted` holds; if there are too many, those that were used last."""
    key_rows = np.ascontiguousarray(keys).reshape(-1).view(FLOW_KEY)
    flow_rows = np.ascontiguousarray(values).reshape(-1).view(FLOW)
    chosen = np.flatnonzero(_fits(key_rows, flow_rows, wanted))
    total = len(chosen)
    if wanted.limit and total > wanted.limit:
        last = np.argsort(flow_rows["seen_ns"][chosen])[-wanted.limit:]
        chosen = chosen[np.sort(last)]
    return Selection(keys[chosen], values[chosen], total)


def _fits(keys: npt.NDArray[Any], flows: npt.NDArray[Any], wanted: FlowFilter) -> _Mask:
    mask = np.ones(len(keys), np.bool_)
    if wanted.protocol is not None:
        mask &= keys["protocol"] == wanted.protocol
    if wanted.transport_port:
        mask &= (keys["sport"] == wanted.transport_port) | (keys["dport"] == wanted.transport_port)
    if wanted.port:
        kinds, numbers = keys["zone"] >> ZONE_SHIFT, keys["zone"] & ((1 << ZONE_SHIFT) - 1)
        in_zone = np.isin(kinds, (int(ZoneKind.PORT), int(ZoneKind.HOST))) & (numbers == wanted.port)
        mask &= in_zone | (flows["ports"] == wanted.port).any(axis=1)
    if wanted.address is not None:
        mask &= (keys["family"] == wanted.address.version) & (
            _within(keys["src"], wanted.address) | _within(keys["dst"], wanted.address))
    if wanted.state:
        names = {(state, protocol): flow_state(state, protocol) for state, protocol in
                 {(int(s), int(p)) for s, p in zip(flows["state"], keys["protocol"], strict=True)}}
        fitting = {what for what, name in names.items() if name == wanted.state}
        codes = flows["state"].astype(np.uint32) << 8 | keys["protocol"]
        mask &= np.isin(codes, [state << 8 | protocol for state, protocol in fitting])
    return mask


def _within(addresses: npt.NDArray[Any], prefix: IPv4Network | IPv6Network) -> _Mask:
    size = prefix.max_prefixlen // 8
    mask = np.frombuffer(prefix.netmask.packed, np.uint8)
    wanted = np.frombuffer(prefix.network_address.packed, np.uint8)
    return np.asarray(((addresses[:, :size] & mask) == wanted).all(axis=1))
