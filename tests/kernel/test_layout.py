"""The Python twins of C structs and enums have the same fields at the same places: a mismatch fails the build."""

from __future__ import annotations

import numpy as np
import pytest

from vfp import layout
from vfp.datapath.btf import check_dtype, enum_values, struct_layout
from vfp.datapath.engine import OBJECT
from vfp.reasons import DropReason


@pytest.mark.parametrize("name", layout.STRUCTS)
def test_struct_has_the_layout_of_its_c_twin(name: str) -> None:
    assert check_dtype(struct_layout(OBJECT, name), layout.STRUCTS[name]) == []


@pytest.mark.parametrize(
    ("c_name", "prefix", "twin"),
    [
        ("drop_reason", "", DropReason),
        ("zone_kind", "ZONE_", layout.ZoneKind),
        ("place", "PLACE_", layout.PlaceKind),
        ("flow_state", "STATE_", layout.State),
        ("rule_condition", "IF_", layout.If),
        ("rule_action", "ACTION_", layout.ActionCode),
        ("location_kind", "LOCATION_", layout.LocationKind),
        ("packet_kind", "KIND_", layout.Kind),
        ("flow_flags", "FLOW_", layout.FlowFlag),
        ("port_flags", "PORT_", layout.PortFlag),
        ("rule_flags", "RULE_", layout.RuleFlag),
        ("event_kind", "EVENT_", layout.EventKind),
        ("capture_stage", "CAPTURE_", layout.CaptureStage),
        ("ring", "RING_", layout.Ring),
    ],
)
def test_enum_has_the_values_of_its_c_twin(c_name: str, prefix: str, twin: type) -> None:
    in_c = {name.removeprefix(prefix): value for name, value in enum_values(OBJECT, c_name).items()}
    for count in ("DROP_REASONS", "RINGS"):
        in_c.pop(count, None)
    assert in_c == {member.name: member.value for member in twin}  # type: ignore[attr-defined]


def test_bounds_are_those_of_the_c_arrays() -> None:
    program = struct_layout(OBJECT, "program")
    group = struct_layout(OBJECT, "group")
    assert program.fields["out"][1] == np.dtype(layout.STAGE).itemsize * layout.MAX_STAGES
    assert group.fields["tuples"][1] == np.dtype(layout.TUPLE).itemsize * layout.MAX_TUPLES
