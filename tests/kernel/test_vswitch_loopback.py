"""What lo needs as an uplink comes and goes, and what somebody else had set stays. In namespaces only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from vswitch_kit import Namespace, World, compile_bpf, world

from vfp.datapath.object import BpfObject
from vswitch import HookTaken

PASS = """
SEC("tc") int vsw_pass(struct __sk_buff *skb) { return TC_ACT_OK; }
"""
NAMES = ("route_localnet", "accept_local")


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    made = w.namespace("host")
    made.ip("link", "set", "lo", "up")
    return made


@pytest.fixture
def program(tmp_path: Path) -> Iterator[int]:
    with BpfObject.load(compile_bpf(PASS, tmp_path / "pass.o")) as loaded:
        yield loaded.programs["vsw_pass"].fd


def settings(host: Namespace) -> list[str]:
    return [host.execute("cat", f"/proc/sys/net/ipv4/conf/lo/{name}").strip() for name in NAMES]


def hooked(host: Namespace) -> list[str]:
    shown = json.loads(host.execute("tc", "-j", "filter", "show", "dev", "lo", "ingress", check=False) or "[]")
    return [one["options"]["bpf_name"] for one in shown if "bpf_name" in one.get("options", {})]


def qdiscs(host: Namespace) -> list[str]:
    return [one["kind"] for one in json.loads(host.execute("tc", "-j", "qdisc", "show", "dev", "lo"))]


def test_lo_is_opened_and_closed(w: World, host: Namespace, program: int) -> None:
    switch = w.switch(host)
    before = qdiscs(host)
    assert settings(host) == ["0", "0"]
    for _ in range(2):
        assert switch.open_loopback(program, "sluice_uplink_in") == host.link("lo")["ifindex"]
        assert (settings(host), hooked(host)) == (["1", "1"], ["sluice_uplink_in"])
    assert host.pings("127.0.0.1")
    assert w.switch(host).close_loopback()             # another process
    assert (settings(host), hooked(host), qdiscs(host)) == (["0", "0"], [], before)
    assert not switch.close_loopback()
    assert list(w.scratch.iterdir()) == [path for path in w.scratch.iterdir() if not path.name.startswith("loopback")]


def test_what_somebody_else_switched_on_stays(w: World, host: Namespace, program: int) -> None:
    switch = w.switch(host)
    host.execute("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/lo/route_localnet")
    host.execute("tc", "qdisc", "add", "dev", "lo", "clsact")
    switch.open_loopback(program, "sluice_uplink_in")
    switch.close_loopback()
    assert settings(host) == ["1", "0"]
    assert "clsact" in qdiscs(host)


def test_a_setting_that_was_taken_away_comes_back(w: World, host: Namespace, program: int) -> None:
    switch = w.switch(host)
    switch.open_loopback(program, "sluice_uplink_in")
    host.execute("sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/lo/accept_local")
    switch.open_loopback(program, "sluice_uplink_in")
    assert settings(host) == ["1", "1"]
    switch.close_loopback()
    assert settings(host) == ["0", "0"]


def test_a_record_that_was_cut_short_switches_nothing_off(w: World, host: Namespace, program: int) -> None:
    switch = w.switch(host)
    switch.open_loopback(program, "sluice_uplink_in")
    (record,) = (path for path in w.scratch.iterdir() if path.name.startswith("loopback"))
    record.write_text("{")
    switch.close_loopback()
    assert settings(host) == ["1", "1"]


def test_anothers_hook_is_an_error_before_any_setting(w: World, host: Namespace, program: int) -> None:
    switch = w.switch(host)
    host.execute("tc", "qdisc", "add", "dev", "lo", "ingress")
    with pytest.raises(HookTaken):
        switch.open_loopback(program, "sluice_uplink_in")
    assert settings(host) == ["0", "0"]
