"""Programs at TC hooks: attached, replaced without a gap, and taken off, beside those of others."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from vswitch_kit import Namespace, World, compile_bpf, port, run, world

from vfp.datapath.object import BpfObject
from vswitch import HookedProgram, HookTaken, LinkInvalid, LinkMissing, Switch, Where

PROGRAMS = """
SEC("tc") int vsw_drop(struct __sk_buff *skb) { return TC_ACT_SHOT; }
SEC("tc") int vsw_drop_too(struct __sk_buff *skb) { skb->mark = 7; return TC_ACT_SHOT; }
SEC("tc") int vsw_pass(struct __sk_buff *skb) { return TC_ACT_OK; }
"""


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    return w.namespace("host")


@pytest.fixture
def endpoint(w: World) -> Namespace:
    return w.namespace("end")


@pytest.fixture
def switch(w: World, host: Namespace) -> Switch:
    return w.switch(host)


@pytest.fixture
def ifindex(switch: Switch, endpoint: Namespace) -> int:
    return switch.ensure_port(port(5, endpoint))


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[dict[str, int]]:
    with BpfObject.load(compile_bpf(PROGRAMS, tmp_path / "programs.o")) as loaded:
        yield {name: program.fd for name, program in loaded.programs.items()}


def filters(host: Namespace, where: Where) -> list[dict[str, Any]]:
    shown = json.loads(run("tc", "-n", host.name, "-j", "filter", "show", "dev", "slp5", where) or "[]")
    return [cast("dict[str, Any]", one) for one in shown if one.get("options")]


def foreign_filter(host: Namespace, priority: int) -> None:
    match = ("u32", "match", "u32", "0", "0", "flowid", ":1")
    run("tc", "-n", host.name, "filter", "add", "dev", "slp5", "ingress", "pref", str(priority), *match)


def qdiscs(host: Namespace) -> str:
    return run("tc", "-n", host.name, "qdisc", "show", "dev", "slp5")


def test_new_port_is_hooked_before_it_carries_anything(
    switch: Switch, host: Namespace, endpoint: Namespace, programs: dict[str, int]
) -> None:
    new = port(6, endpoint)
    good = HookedProgram("ingress", programs["vsw_pass"], "sluice_port")
    with pytest.raises(LinkInvalid):
        switch.ensure_port(new, (good, HookedProgram("egress", -1, "sluice_port")))
    (link,) = json.loads(run("ip", "-n", host.name, "-j", "link", "show", "dev", "slp6"))
    assert "UP" not in link["flags"]
    switch.ensure_port(new, (good, HookedProgram("egress", programs["vsw_pass"], "sluice_port")))
    (link,) = json.loads(run("ip", "-n", host.name, "-j", "link", "show", "dev", "slp6"))
    assert "UP" in link["flags"]


@pytest.mark.parametrize("where", ["ingress", "egress"])
def test_program_is_attached_once(
    switch: Switch, host: Namespace, ifindex: int, programs: dict[str, int], where: Where
) -> None:
    for _ in range(2):
        switch.attach(ifindex, where, programs["vsw_pass"], "sluice_port")
    (found,) = filters(host, where)
    assert found["kind"] == "bpf"
    assert found["pref"] == 50
    assert found["options"]["bpf_name"] == "sluice_port"
    assert found["options"]["direct-action"]
    assert "clsact" in qdiscs(host)


def test_second_call_changes_nothing(switch: Switch, host: Namespace, ifindex: int, programs: dict[str, int]) -> None:
    switch.attach(ifindex, "ingress", programs["vsw_pass"], "sluice_port")
    process = _monitor(host)
    switch.attach(ifindex, "ingress", programs["vsw_pass"], "sluice_port")
    switch.detach(ifindex, "egress")
    assert _seen(process) == ""


def test_other_program_replaces_under_the_same_handle(
    switch: Switch, host: Namespace, ifindex: int, programs: dict[str, int]
) -> None:
    switch.attach(ifindex, "ingress", programs["vsw_pass"], "sluice_port")
    (before,) = filters(host, "ingress")
    switch.attach(ifindex, "ingress", programs["vsw_drop"], "sluice_port_2")
    (after,) = filters(host, "ingress")
    assert (after["pref"], after["options"]["handle"]) == (before["pref"], before["options"]["handle"])
    assert after["options"]["bpf_name"] == "sluice_port_2"
    assert after["options"]["prog"]["id"] != before["options"]["prog"]["id"]


def test_program_decides(switch: Switch, endpoint: Namespace, host: Namespace, ifindex: int,
                         programs: dict[str, int]) -> None:
    host.ip("address", "add", "10.99.0.1/24", "dev", "slp5")
    assert endpoint.pings("10.99.0.1")
    switch.attach(ifindex, "ingress", programs["vsw_drop"], "sluice_port")
    assert not endpoint.pings("10.99.0.1", count=1)
    switch.attach(ifindex, "ingress", programs["vsw_pass"], "sluice_port")
    assert endpoint.pings("10.99.0.1")
    switch.attach(ifindex, "egress", programs["vsw_drop"], "sluice_port")
    assert not endpoint.pings("10.99.0.1", count=1)
    switch.detach(ifindex, "egress")
    assert endpoint.pings("10.99.0.1")


def test_replacement_has_no_gap(switch: Switch, endpoint: Namespace, host: Namespace, ifindex: int,
                                programs: dict[str, int]) -> None:
    """Two programs that both drop, swapped under a stream of packets: not one packet gets through."""
    host.ip("address", "add", "10.99.0.1/24", "dev", "slp5")
    endpoint.ip("neighbour", "add", "10.99.0.1", "lladdr", host.link("slp5")["address"], "dev", "eth0")

    def listen() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind(("10.99.0.1", 9999))
        opened.settimeout(0.3)
        return opened

    heard, sender = host.call(listen), endpoint.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    stop = threading.Event()
    sent = 0

    def flood() -> None:
        nonlocal sent
        while not stop.is_set():
            sender.sendto(b"x", ("10.99.0.1", 9999))
            sent += 1

    with heard, sender:
        sender.sendto(b"x", ("10.99.0.1", 9999))
        assert heard.recv(10) == b"x"                          # the way is open without a program
        switch.attach(ifindex, "ingress", programs["vsw_drop"], "sluice_port")
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for number in range(200):
                name = "vsw_drop" if number % 2 else "vsw_drop_too"
                switch.attach(ifindex, "ingress", programs[name], "sluice_port")
        finally:
            stop.set()
            thread.join()
        assert sent > 1000
        with pytest.raises(TimeoutError):
            heard.recv(10)


def test_qdisc_that_we_brought_leaves_with_the_last_filter(
    switch: Switch, host: Namespace, ifindex: int, programs: dict[str, int]
) -> None:
    switch.attach(ifindex, "ingress", programs["vsw_pass"], "sluice_in")
    switch.attach(ifindex, "egress", programs["vsw_pass"], "sluice_out")
    switch.detach(ifindex, "ingress")
    switch.detach(ifindex, "ingress")
    assert "clsact" in qdiscs(host)
    assert len(filters(host, "egress")) == 1
    switch.detach(ifindex, "egress")
    switch.detach(ifindex, "egress")
    assert "clsact" not in qdiscs(host)


def test_another_process_knows_the_filter_and_the_qdisc(
    w: World, switch: Switch, host: Namespace, ifindex: int, programs: dict[str, int]
) -> None:
    switch.attach(ifindex, "ingress", programs["vsw_pass"], "sluice_in")
    w.switch(host).detach(ifindex, "ingress")
    assert filters(host, "ingress") == []
    assert "clsact" not in qdiscs(host)


def test_qdisc_of_another_stays(switch: Switch, host: Namespace, ifindex: int, programs: dict[str, int]) -> None:
    run("tc", "-n", host.name, "qdisc", "add", "dev", "slp5", "clsact")
    switch.attach(ifindex, "ingress", programs["vsw_pass"], "sluice_in")
    switch.detach(ifindex, "ingress")
    assert "clsact" in qdiscs(host)


def test_filter_of_another_stays(switch: Switch, host: Namespace, ifindex: int, programs: dict[str, int]) -> None:
    switch.attach(ifindex, "ingress", programs["vsw_pass"], "sluice_in")
    foreign_filter(host, priority=7)
    switch.attach(ifindex, "ingress", programs["vsw_drop"], "sluice_in")
    switch.detach(ifindex, "ingress")
    assert {found["kind"] for found in filters(host, "ingress")} == {"u32"}
    assert "clsact" in qdiscs(host)


def test_foreign_filter_at_our_priority_is_named_and_left(
    switch: Switch, host: Namespace, ifindex: int, programs: dict[str, int]
) -> None:
    run("tc", "-n", host.name, "qdisc", "add", "dev", "slp5", "clsact")
    foreign_filter(host, priority=50)
    with pytest.raises(HookTaken, match="50"):
        switch.attach(ifindex, "ingress", programs["vsw_pass"], "sluice_in")
    assert {found["kind"] for found in filters(host, "ingress")} == {"u32"}


def test_foreign_ingress_qdisc_is_named_and_left(
    switch: Switch, host: Namespace, ifindex: int, programs: dict[str, int]
) -> None:
    run("tc", "-n", host.name, "qdisc", "add", "dev", "slp5", "ingress")
    with pytest.raises(HookTaken, match="ingress"):
        switch.attach(ifindex, "ingress", programs["vsw_pass"], "sluice_in")
    assert "qdisc ingress" in qdiscs(host)


def test_missing_link_and_wrong_descriptor_are_named(switch: Switch, host: Namespace, ifindex: int,
                                                     programs: dict[str, int]) -> None:
    with pytest.raises(LinkMissing):
        switch.attach(9999, "ingress", programs["vsw_pass"], "sluice_in")
    with pytest.raises(LinkInvalid, match="sluice_"):
        switch.attach(ifindex, "ingress", programs["vsw_pass"], "theirs")
    with pytest.raises(LinkInvalid, match="not a BPF program"):
        switch.attach(ifindex, "ingress", 9999, "sluice_in")
    with Path(os.devnull).open() as other, pytest.raises(LinkInvalid, match="not a BPF program"):
        switch.attach(ifindex, "ingress", other.fileno(), "sluice_in")
    switch.detach(9999, "ingress")
    assert "clsact" not in qdiscs(host)


def _monitor(host: Namespace) -> Any:
    process = subprocess.Popen(["tc", "-n", host.name, "monitor"], stdout=subprocess.PIPE, text=True)
    time.sleep(0.3)
    return process


def _seen(process: Any) -> str:
    time.sleep(0.2)
    process.terminate()
    return str(process.communicate()[0])
