"""Open vSwitch with its datapath in user space, started by hand: the kernel may have none of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.ethtool import Offload, set_offload
from bench.measure import Pair
from bench.processes import CommandFailed, run
from bench.rules import USUAL, openflow
from bench.site import ENDPOINTS, OVERLAY_MTU, UNDERLAY, VNI, Site, endpoint, veth

__all__ = ["ovs_cross_host", "ovs_same_host"]

_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_PROGRAMS = ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl")
_BRIDGE = ("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail-mode=secure")
_START_S = 10.0


def ovs_same_host(site: Site, rules: int = USUAL) -> Pair:
    """Two veth pairs on a bridge of type netdev, with segmentation offload on and the rules as flows.

    Raises:
        CommandFailed: a package is missing, or the switch does not start here.
    """
    _check()
    host, a, b = site.namespace("h1"), site.namespace("a"), site.namespace("b")
    for number, namespace in enumerate((a, b)):
        veth(host, f"port{number}", namespace, "eth0")
        endpoint(namespace, number)
    configure, flows = _switch(site, host, segments=True)
    configure(*_BRIDGE, "--", "add-port", "br0", "port0", "--", "add-port", "br0", "port1")
    flows(text=openflow(rules))
    return Pair(a, b, ENDPOINTS[1], (host, "port0"))


def ovs_cross_host(site: Site, rules: int = USUAL) -> Pair:
    """On each host a bridge with the endpoint and a VXLAN port, and one that holds the underlay's link and address.

    In user space version 3.1 encapsulates only whole packets with whole checksums: the endpoints make them.

    Raises:
        CommandFailed: a package is missing, or the switch does not start here.
    """
    _check()
    hosts, endpoints = (site.namespace("h1"), site.namespace("h2")), (site.namespace("a"), site.namespace("b"))
    veth(hosts[0], "under0", hosts[1], "under0")
    for number, (host, namespace) in enumerate(zip(hosts, endpoints, strict=True)):
        veth(host, "port0", namespace, "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "mtu", str(OVERLAY_MTU))
        endpoint(namespace, number)
        configure, flows = _switch(site, host, segments=False)
        configure("add-br", "under", "--", "set", "bridge", "under", "datapath_type=netdev",
                  "--", "add-port", "under", "under0")
        run("ip", "-n", host, "addr", "add", f"{UNDERLAY[number]}/24", "dev", "under")
        run("ip", "-n", host, "link", "set", "under", "up")
        configure(*_BRIDGE, "--", "add-port", "br0", "port0", "--", "add-port", "br0", "vx0", "--",
                  "set", "interface", "vx0", "type=vxlan", f"options:remote_ip={UNDERLAY[1 - number]}",
                  f"options:local_ip={UNDERLAY[number]}", f"options:key={VNI}")
        flows(text=openflow(rules))
        for link_in, link in ((namespace, "eth0"), (host, "under")):
            for what in (Offload.SEND_CHECKSUM, Offload.TCP_SEGMENTATION, Offload.SEGMENTATION):
                set_offload(link_in, link, what, False)
    return Pair(*endpoints, ENDPOINTS[1])


def _check() -> None:
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing or not _SCHEMA.exists():
        raise CommandFailed(f"{', '.join(missing) or _SCHEMA} is not installed: apt-get install openvswitch-switch")


def _switch(site: Site, host: str, segments: bool) -> tuple[Callable[..., str], Callable[..., str]]:
    """ovsdb-server and ovs-vswitchd, with all their files in one folder; returns ovs-vsctl, and what sets br0's flows.

    `segments`: large segments go through whole; such a switch cannot encapsulate.
    """
    folder = site.folder()
    database, socket = folder / "conf.db", folder / "db.sock"
    quiet = ("--no-chdir", "-vconsole:off", "-vsyslog:off")
    where = ("env", f"OVS_RUNDIR={folder}", f"OVS_LOGDIR={folder}")
    run("ovsdb-tool", "create", str(database), str(_SCHEMA))
    site.daemon(host, *where, "ovsdb-server", str(database), f"--remote=punix:{socket}",
                f"--unixctl={folder}/ovsdb.ctl", *quiet, log=folder / "ovsdb.log")
    _wait(socket)
    configure = ("ovs-vsctl", "--timeout=10", "--no-wait", f"--db=unix:{socket}")
    run(*configure, "init")
    run(*configure, "set", "Open_vSwitch", ".", f"other_config:userspace-tso-enable={str(segments).lower()}")
    site.daemon(host, *where, "ovs-vswitchd", f"unix:{socket}", f"--unixctl={folder}/vswitchd.ctl", *quiet,
                f"--log-file={folder}/vswitchd.log", log=folder / "vswitchd.err")
    return (partial(run, "ovs-vsctl", "--timeout=10", f"--db=unix:{socket}"),
            partial(run, "ovs-ofctl", "-O", "OpenFlow13", "replace-flows", f"unix:{folder}/br0.mgmt", "-"))


def _wait(socket: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not socket.exists():
        if time.monotonic() > deadline:
            raise CommandFailed(f"ovsdb-server does not listen on {socket} after {_START_S:g} s")
        time.sleep(0.02)
