"""Open vSwitch with its datapath in user space, started by hand: the kernel may have none of its own."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from bench.measure import Pair
from bench.processes import CommandFailed, run
from bench.rules import USUAL, openflow
from bench.site import ENDPOINTS, Site, endpoint, veth

__all__ = ["ovs_same_host"]

_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_PROGRAMS = ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl")
_START_S = 10.0


def ovs_same_host(site: Site, rules: int = USUAL) -> Pair:
    """Two veth pairs on a bridge of type netdev, with segmentation offload on and the rules as flows.

    Raises:
        CommandFailed: a package is missing, or the switch does not start here.
    """
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing or not _SCHEMA.exists():
        raise CommandFailed(f"{', '.join(missing) or _SCHEMA} is not installed: apt-get install openvswitch-switch")
    host, a, b = site.namespace("h1"), site.namespace("a"), site.namespace("b")
    for number, namespace in enumerate((a, b)):
        veth(host, f"port{number}", namespace, "eth0")
        endpoint(namespace, number)
    folder = site.folder()
    _switch(site, host, folder)
    database = f"unix:{folder}/db.sock"
    run("ovs-vsctl", "--timeout=10", f"--db={database}", "add-br", "br0", "--", "set", "bridge", "br0",
        "datapath_type=netdev", "fail-mode=secure", "--", "add-port", "br0", "port0", "--", "add-port", "br0", "port1")
    run("ovs-ofctl", "-O", "OpenFlow13", "replace-flows", f"unix:{folder}/br0.mgmt", "-", text=openflow(rules))
    return Pair(a, b, ENDPOINTS[1], (host, "port0"))


def _switch(site: Site, host: str, folder: Path) -> None:
    """ovsdb-server and ovs-vswitchd, with all their files in `folder`."""
    database, socket = folder / "conf.db", folder / "db.sock"
    quiet = ("--no-chdir", "-vconsole:off", "-vsyslog:off")
    where = ("env", f"OVS_RUNDIR={folder}", f"OVS_LOGDIR={folder}")
    run("ovsdb-tool", "create", str(database), str(_SCHEMA))
    site.daemon(host, *where, "ovsdb-server", str(database), f"--remote=punix:{socket}",
                f"--unixctl={folder}/ovsdb.ctl", *quiet, log=folder / "ovsdb.log")
    _wait(socket)
    configure = ("ovs-vsctl", "--timeout=10", "--no-wait", f"--db=unix:{socket}")
    run(*configure, "init")
    run(*configure, "set", "Open_vSwitch", ".", "other_config:userspace-tso-enable=true")
    site.daemon(host, *where, "ovs-vswitchd", f"unix:{socket}", f"--unixctl={folder}/vswitchd.ctl", *quiet,
                f"--log-file={folder}/vswitchd.log", log=folder / "vswitchd.err")


def _wait(socket: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not socket.exists():
        if time.monotonic() > deadline:
            raise CommandFailed(f"ovsdb-server does not listen on {socket} after {_START_S:g} s")
        time.sleep(0.02)
