"""The doctor's questions about VXLAN: each trap is named, with what it costs and what to do."""

from __future__ import annotations

import socket

import pytest

from cli.checks_overlay import WANTED, drops_by_default, features_of, firewall, headroom, offloads, udp_port

GOOD = {feature: (True, True) for feature, _ in WANTED}


def test_a_card_that_does_all_is_fine() -> None:
    (one,) = offloads("eth0", "mlx5_core", GOOD)
    assert one.state == "ok"


def test_what_is_off_costs_and_says_how_to_turn_it_on() -> None:
    (one,) = offloads("eth0", "ice", GOOD | {"tx-udp_tnl-segmentation": (False, True)})
    assert (one.state, one.todo) == ("absent", "ethtool -K eth0 tx-udp_tnl-segmentation on")
    assert "cut by the CPU" in one.cost
    (one,) = offloads("eth0", "virtio_net", GOOD | {"rx-udp_tunnel-port-offload": (False, False)})
    assert ("cannot be on" in one.found, one.todo) == (True, "")
    other = {"tx-checksum-ip-generic": (False, False), "tx-checksum-ipv4": (True, True)}
    (one,) = offloads("eth0", "igb", GOOD | other)
    assert one.state == "ok"


def test_known_bugs_and_lro_are_named() -> None:
    (one,) = offloads("eth0", "vmxnet3", GOOD)
    assert (one.state, "VMware" in one.cost, "eth0" in one.todo) == ("absent", True, True)
    assert [one.state for one in offloads("eth0", "ice", GOOD | {"rx-lro": (True, True)})] == ["ok", "absent"]
    assert next(offloads("eth0", "", {})).state == "unknown"


def test_headroom() -> None:
    assert "1450 over IPv4, 1430 over IPv6" in headroom("eth0", 1500).found
    assert (headroom("eth0", 9000).state, headroom("eth0", 1300).state) == ("ok", "absent")


def test_a_taken_port_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        port = taken.getsockname()[1]
        one = udp_port(False, port)
        assert (one.state, "vxlanPort" in one.todo) == ("absent", True)
        assert udp_port(True, port).state == "ok"
    assert udp_port(False, port).state == "ok"


@pytest.mark.parametrize(("ruleset", "state"), [
    (None, "ok"), ("", "ok"), ('{"nftables": [{"chain": {"hook": "input", "policy": "drop"}}]}', "absent"),
    ('{"nftables": [{"chain": {"hook": "input", "policy": "drop"}}, {"rule": {"expr": [4789]}}]}', "ok"),
    ('{"nftables": [{"chain": {"hook": "forward", "policy": "drop"}}]}', "ok"),
    ("*filter\n:INPUT DROP [0:0]\nCOMMIT\n", "absent"),
    ("*filter\n:INPUT DROP [0:0]\n-A INPUT -p udp --dport 4789 -j ACCEPT\nCOMMIT\n", "ok"),
    ("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", "ok"), ("{broken", "ok")])
def test_a_firewall_that_drops_is_named(ruleset: str | None, state: str) -> None:
    assert firewall(ruleset).state == state
    assert drops_by_default(ruleset or "") in (True, False)


def test_features_are_read_from_the_kernel() -> None:
    _driver, active = features_of("lo")
    assert active["rx-gro"][0] in (True, False)
    assert "tx-udp_tnl-segmentation" in active
    assert features_of("no-such-link") == ("", {})
