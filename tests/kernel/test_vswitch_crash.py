"""A process that makes links is killed at any moment; the next one finds them and makes them right."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vswitch_kit import Namespace, World, compile_bpf, port, run, world

from vfp.datapath.object import BpfObject
from vswitch import BridgeLink, HookedProgram, Limit, PortLink, ShaperLink, Switch, TunnelLink, netlink

ROUNDS = 30
PORTS = 4
BRIDGE = BridgeLink("slb1", "sluice:bridge:uid", "02:99:00:00:00:01", ("10.99.0.1/24", "fd00:99::1/64"), 1400)
TUNNEL = TunnelLink("slvx0", "sluice:tunnel", ipv6=True)
SHAPER = ShaperLink("slq0", "slq1", "sluice:shaper")
CAP = Limit(1_000_000, 1_000_000)
NEIGHBOURS = {f"10.99.0.{number}": f"02:99:00:00:00:{number:02x}" for number in range(5, 5 + PORTS)}
NEIGHBOURS |= {f"fd00:99::{number}": f"02:99:00:00:00:{number:02x}" for number in range(5, 5 + PORTS)}
TAP = PortLink("vm0", "sluice:port:uid-vm:90", "", "", "02:99:00:00:00:90", (), (), 1400, "slb1", tap=True)
HANDED = PortLink("slp91", "sluice:port:uid-r:91", "", "slc91", "02:99:00:00:00:91", (), (), 1400, "slb1", handed=True)
RESERVED = (20000, 20100)
PROGRAM = 'SEC("tc") int vsw_pass(struct __sk_buff *skb) { return TC_ACT_OK; }'


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    return w.namespace("host")


@pytest.fixture
def ends(w: World) -> list[Namespace]:
    return [w.namespace(f"end{number}") for number in range(PORTS)]


def make_all(switch: Switch, ends: list[Namespace], program_fd: int) -> None:
    """All that a switch can make."""
    switch.ensure_bridge(BRIDGE)
    tunnel = switch.ensure_tunnel(TUNNEL)
    switch.attach(tunnel, "ingress", program_fd, "sluice_overlay_in")
    for number, end in enumerate(ends, start=5):
        addresses, gateways = (f"10.99.0.{number}/24", f"fd00:99::{number}/64"), ("10.99.0.1", "fd00:99::1")
        ifindex = switch.ensure_port(port(number, end, bridge="slb1", addresses=addresses, gateways=gateways))
        switch.attach(ifindex, "ingress", program_fd, "sluice_port_out")
        switch.attach(ifindex, "egress", program_fd, "sluice_port_in")
        if number == 5:
            switch.ensure_queue(ifindex, CAP)
    switch.attach(switch.ensure_port(TAP), "ingress", program_fd, "sluice_port_out")
    switch.ensure_port(HANDED, [HookedProgram("ingress", program_fd, "sluice_port_out")])
    switch.open_loopback(program_fd, "sluice_uplink_in")
    switch.set_neighbours("slb1", NEIGHBOURS)
    switch.reserve_ports([RESERVED])
    switch.ensure_classes(switch.ensure_shaper(SHAPER, [HookedProgram("ingress", program_fd, "sluice_in")]), {5: CAP})
    switch.set_listening(["lo"])


def remove_all(switch: Switch) -> None:
    for name in switch.owned():
        switch.remove(name)
    switch.close_loopback()
    switch.release_ports()
    switch.set_listening([])


def lo_settings(host: Namespace) -> list[str]:
    paths = [Path(f"/proc/sys/net/ipv4/conf/lo/{name}") for name in ("route_localnet", "accept_local")]
    return host.call(lambda: [path.read_text().strip() for path in paths])


def check_all(host: Namespace, ends: list[Namespace]) -> None:
    for number, end in enumerate(ends, start=5):
        here = host.link(f"slp{number}")
        assert here["ifalias"] == f"sluice:port:uid-{number}:{number}"
        assert (here["master"], here["mtu"]) == ("slb1", 1400)
        assert not here["linkinfo"]["info_slave_data"]["flood"]
        local = f"fe80::99:ff:fe00:{number}/64"
        assert set(end.addresses("eth0")) == {f"10.99.0.{number}/24", f"fd00:99::{number}/64", local}
        assert len(end.show("route", "show", "default")) == len(end.show("-6", "route", "show", "default")) == 1
        assert "clsact" in run("tc", "-n", host.name, "qdisc", "show", "dev", f"slp{number}")
    assert set(host.addresses("slb1")) == set(BRIDGE.addresses)
    tap = host.link("vm0")
    assert (tap["ifalias"], tap["master"], tap["linkinfo"]["info_data"]["persist"]) == (TAP.alias, "slb1", True)
    pair, far = host.link("slp91"), host.link("slc91")
    assert (pair["ifalias"], pair["master"], "UP" in pair["flags"]) == (HANDED.alias, "slb1", True)
    assert (far["address"], "UP" in far["flags"]) == (HANDED.mac, False)
    assert lo_settings(host) == ["1", "1"]
    assert host.link("slvx0")["ifalias"] == "sluice:tunnel"
    assert {"UP", "NOARP"} <= set(host.link("slq0")["flags"]) & set(host.link("slq1")["flags"])
    for link, handle in (("slq0", "1:5"), ("slp5", "1:1")):
        classes = run("tc", "-n", host.name, "class", "show", "dev", link)
        assert f"class htb {handle} parent 1:ffff leaf" in classes
    assert "sluice_in" in run("tc", "-n", host.name, "filter", "show", "dev", "slq1", "ingress")
    assert "PROMISC" in host.link("lo")["flags"]
    assert host.call(lambda: Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text()) == "20000-20100\n"


def check_none(w: World, host: Namespace, ends: list[Namespace]) -> None:
    assert [link["ifname"] for link in host.show("link", "show") if link["ifname"].startswith("sl")] == []
    assert not any(end.has("eth0") for end in ends)
    assert not host.has("vm0")
    assert lo_settings(host) == ["0", "0"]
    assert "clsact" not in run("tc", "-n", host.name, "qdisc", "show", "dev", "lo")
    assert host.call(lambda: Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text()) == "\n"
    assert [*w.scratch.glob("reserved-ports-*.json"), *w.scratch.glob("loopback-*.json")] == []
    assert "PROMISC" not in host.link("lo")["flags"]
    assert [*w.scratch.glob("listening-*.json")] == []


def test_death_after_any_datagram_is_mended(
    w: World, host: Namespace, ends: list[Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every change that is sent to the kernel in turn is the last one of its process."""

    class Died(BaseException):
        pass

    left = 0
    real = netlink.Netlink.run

    def run_some(self: netlink.Netlink, *requests: netlink.Request) -> None:
        nonlocal left
        if requests:
            if left == 0:
                raise Died
            left -= 1
        real(self, *requests)

    ends = ends[:1]
    with BpfObject.load(compile_bpf(PROGRAM, tmp_path / "pass.o")) as loaded:
        program = loaded.programs["vsw_pass"].fd
        survived = 0
        while True:
            left = survived
            finished = False
            with monkeypatch.context() as patched:
                patched.setattr(netlink.Netlink, "run", run_some)
                try:
                    make_all(w.switch(host), ends, program)
                    finished = True
                except Died:
                    pass
            again = w.switch(host)
            if survived % 2:                # one time mended, one time removed
                make_all(again, ends, program)
                check_all(host, ends)
            remove_all(again)
            check_none(w, host, ends)
            if finished:
                break
            survived += 1
        assert survived > 10


def test_sigkill_at_any_time_is_mended(w: World, host: Namespace, ends: list[Namespace], tmp_path: Path) -> None:
    """A child makes and removes everything over and over; it is killed some thirty times."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    program = compile_bpf(PROGRAM, tmp_path / "pass.o")
    child_text = f"""
import sys
sys.path[:0] = {[str(Path.cwd()), str(Path(__file__).parent)]!r}
from pathlib import Path
from test_vswitch_crash import BpfObject, Namespace, Switch, make_all, remove_all
ends = [Namespace(name) for name in {[end.name for end in ends]!r}]
with BpfObject.load(Path({str(program)!r})) as loaded, Switch(Path({str(w.scratch)!r})) as switch:
    print("ready", flush=True)
    while True:
        make_all(switch, ends, loaded.programs["vsw_pass"].fd)
        remove_all(switch)
"""
    with BpfObject.load(program) as loaded:
        for _ in range(ROUNDS):
            command = ["nsenter", f"--net=/run/netns/{host.name}", sys.executable, "-c", child_text]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                assert child.stderr is not None
                ready = child.stdout.readline()
                assert ready == "ready\n", child.stderr.read()
                time.sleep(dice.random() * 0.3)
                os.kill(child.pid, signal.SIGKILL)
                _out, said = child.communicate()
                assert said == ""
            again = w.switch(host)
            make_all(again, ends, loaded.programs["vsw_pass"].fd)
            check_all(host, ends)
            if dice.random() < 0.5:
                remove_all(again)
                check_none(w, host, ends)
        remove_all(w.switch(host))
        check_none(w, host, ends)
