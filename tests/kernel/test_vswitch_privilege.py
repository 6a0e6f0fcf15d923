"""Without privilege every call says so, and looking is still allowed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from vswitch_kit import World, port, world

CHILD = """
import json, os, sys
import vswitch, vswitch_kit
from vswitch import *

end = vswitch_kit.Namespace(sys.argv[1])
said = {}
with Switch(vswitch_kit.Path(sys.argv[2])) as switch:
    tunnel = TunnelLink("slvx0", "sluice:tunnel")
    bridge = BridgeLink("slb1", "sluice:b", "02:99:00:00:00:01", ("10.99.0.1/24",), 1400)
    made = switch.ensure_port(vswitch_kit.port(5, end))        # everything is imported now
    switch.facts()
    os.setgroups([])
    os.setuid(65534)
    for name, call in {
        "tunnel": lambda: switch.ensure_tunnel(tunnel),
        "bridge": lambda: switch.ensure_bridge(bridge),
        "port": lambda: switch.ensure_port(vswitch_kit.port(5, end)),
        "remove": lambda: switch.remove("slp5"),
        "reserve": lambda: switch.reserve_ports([(1000, 1001)]),
    }.items():
        try:
            call()
        except PermissionDenied as error:
            said[name] = str(error)
    said["owned"] = sorted(switch.owned())
print(json.dumps(said))
"""


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def test_missing_privilege_is_named(w: World, tmp_path: Path) -> None:
    host, end = w.namespace("host"), w.namespace("end")
    paths = f"import sys; sys.path[:0] = {[str(Path.cwd()), str(Path(__file__).parent)]!r}\n"
    command = ["nsenter", f"--net=/run/netns/{host.name}", sys.executable, "-c", paths + CHILD, end.name, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.pop("owned") == ["slp5"]
    assert set(said) == {"tunnel", "bridge", "port", "remove", "reserve"}
    assert all("root" in text or "CAP_" in text for text in said.values())
    assert end.addresses("eth0") == list(port(5, end).addresses)
