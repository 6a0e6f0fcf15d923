"""A dry run of the programs: what they would do with a packet, by BPF_PROG_TEST_RUN on the tables in use."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vfp.datapath.errors import DatapathError
from vfp.datapath.object import BpfObject
from vfp.layout import (
    FLOW_KEY,
    TRACE,
    PlaceKind,
    ZoneKind,
    pack,
    pack_address,
    zone,
)
from vfp.model import Address
from vfp.reasons import DropReason
from vfp.reference.packet import FlowTuple
from vfp.vteps import vtep_id, vtep_of

__all__ = ["Traced", "dry_run", "flow_key"]

SINCE = (6, 3)                              # test runs keep softirqs out, which use the same per-CPU scratch

_SK_BUFF_BYTES = 192
_CB_OFFSET = 48                             # of cb[0] in struct __sk_buff
_NO_LAYER = 0xFF


@dataclass(frozen=True, slots=True)
class Traced:
    """What would become of a packet. `target`: interface index of a port or uplink, or VNI."""

    place: PlaceKind                        # NONE: dropped
    reason: DropReason
    target: int
    vtep: Address | None                    # of a tunnel
    frame: bytes                            # as it would leave; as it came, if it was dropped
    hits: tuple[tuple[int, int], ...]       # (port id, rule cookie) of every rule that matched, in order
    cookie: int                             # of the rule that denied; 0: none
    port: int                               # whose layers dropped it; 0: none
    layer: int | None                       # index in the port's OUT order


def dry_run(loaded: BpfObject, kind: ZoneKind, number: int, frame: bytes, vtep: Address | None,
            vteps: Mapping[int, Address]) -> Traced:
    """Decide a frame as if it were the first of a flow; no table changes. One at a time. `vteps`: IPv6 ones by id.

    Raises:
        DatapathError: the kernel is older than `SINCE`.
    """
    release = os.uname().release
    if (found := re.match(r"(\d+)\.(\d+)", release)) and (int(found[1]), int(found[2])) < SINCE:
        raise DatapathError(f"dry run: Linux {release} lets packets of the same CPU in between; boot "
                            f"{'.'.join(map(str, SINCE))} or later")
    context = bytearray(_SK_BUFF_BYTES)
    struct.pack_into("=II", context, _CB_OFFSET, zone(kind, number), vtep_id(vtep) if vtep else 0)
    run = loaded.program("vfp_trace").test_run(frame, ctx=bytes(context))
    outer, place, reason, target = struct.unpack_from("=IIII", run.ctx, _CB_OFFSET + 4)
    met: Any = np.frombuffer(loaded.map("traced").lookup(bytes(4)) or b"", TRACE)[0]
    hits = tuple((int(hit["port"]), int(hit["cookie"])) for hit in met["hits"][: int(met["count"])])
    layer = int(met["layer"])
    tunnel = vtep_of(outer, vteps) if place == PlaceKind.TUNNEL else None
    return Traced(PlaceKind(place).of_model, DropReason(reason), target, tunnel, run.data, hits, int(met["cookie"]),
                  int(met["port"]), None if layer == _NO_LAYER else layer)


def flow_key(kind: ZoneKind, number: int, what: FlowTuple) -> bytes:
    """Key of a flow's entry."""
    return pack(FLOW_KEY, zone=zone(kind, number), family=what.family, protocol=what.protocol,
                src=pack_address(what.src), dst=pack_address(what.dst), sport=what.src_port, dport=what.dst_port,
                vlan=what.vlan)

