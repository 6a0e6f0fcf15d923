"""Entries of the flow table by what they are, found before they are decoded."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import numpy as np
import pytest

from vfp.datapath.select import FlowFilter, select
from vfp.layout import FLOW, FLOW_KEY, State, ZoneKind, pack, pack_address, zone

ROWS: tuple[dict[str, Any], ...] = (
    {"kind": ZoneKind.PORT, "number": 1, "src": "10.0.0.1", "dst": "10.0.0.2", "ports": (1, 2), "seen": 50},
    {"kind": ZoneKind.PORT, "number": 2, "src": "10.0.0.2", "dst": "10.0.0.1", "ports": (1, 2), "sport": 80, "dport": 5,
     "seen": 40, "state": State.ASSURED},
    {"kind": ZoneKind.OVERLAY, "number": 1, "src": "10.9.0.1", "dst": "10.0.0.9", "ports": (0, 9), "protocol": 17,
     "seen": 30},
    {"kind": ZoneKind.HOST, "number": 9, "src": "fd00::1", "dst": "fd00::2", "protocol": 6, "seen": 20,
     "state": State.RST},
)


def table() -> tuple[Any, Any]:
    keys, flows = [], []
    for row in ROWS:
        src, dst = ip_address(row["src"]), ip_address(row["dst"])
        keys.append(pack(FLOW_KEY, zone=zone(row["kind"], row["number"]), family=src.version,
                         protocol=row.get("protocol", 6), sport=row.get("sport", 5), dport=row.get("dport", 80),
                         src=pack_address(src), dst=pack_address(dst)))
        flows.append(pack(FLOW, ports=row.get("ports", (0, 0)), seen_ns=row["seen"], state=int(row.get("state", 0))))
    rows = [np.frombuffer(b"".join(raw), np.uint8).reshape(len(ROWS), -1) for raw in (keys, flows)]
    return rows[0], rows[1]


@pytest.mark.parametrize(("wanted", "found"), [
    (FlowFilter(), (0, 1, 2, 3)),
    (FlowFilter(port=1), (0, 1)),
    (FlowFilter(port=9), (2, 3)),
    (FlowFilter(protocol=17), (2,)),
    (FlowFilter(transport_port=80), (0, 1, 2, 3)),
    (FlowFilter(transport_port=81), ()),
    (FlowFilter(address=ip_network("10.0.0.2/32")), (0, 1)),
    (FlowFilter(address=ip_network("10.0.0.8/29")), (2,)),
    (FlowFilter(address=ip_network("0.0.0.0/0")), (0, 1, 2)),
    (FlowFilter(address=ip_network("fd00::/64")), (3,)),
    (FlowFilter(state="new"), (2,)),
    (FlowFilter(state="opening"), (0,)),
    (FlowFilter(state="syn-received"), (1,)),
    (FlowFilter(state="reset"), (3,)),
    (FlowFilter(port=1, state="opening"), (0,)),
])
def test_only_what_fits_is_found(wanted: FlowFilter, found: tuple[int, ...]) -> None:
    keys, flows = table()
    selection = select(keys, flows, wanted)
    assert [int(np.flatnonzero((keys == key).all(axis=1))[0]) for key in selection.keys] == list(found)
    assert selection.total == len(found)


def test_of_too_many_those_used_last_are_kept() -> None:
    keys, flows = table()
    selection = select(keys, flows, replace(FlowFilter(), limit=2))
    assert (selection.keys.tolist(), selection.total) == (keys[:2].tolist(), 4)


def test_an_empty_table_has_nothing() -> None:
    keys, flows = table()
    assert select(keys[:0], flows[:0], FlowFilter(state="new", limit=1)).total == 0
