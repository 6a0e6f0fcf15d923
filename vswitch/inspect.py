"""The way to user space and back: two veth pairs into a namespace of our own that routes one to the other.

    host                      namespace                              host
    sl-ins0 ────────▶ in0  ──NFQUEUE──▶ routed ──▶ out0 ────────▶ sl-ins1

What the engine sends out of `sl-ins0` comes back in by `sl-ins1`, unless user space keeps it. The namespace has no
address, one default route, and no neighbours to ask for: `out0` has no ARP. Its packet filter has one table, `raw`,
which hands each packet to the queue that its mark names, and drops what names none; NFQUEUE drops what nobody listens
for, or lets it by where the mark says so (`--queue-bypass`). nftables' own queue statement would do, but is missing in
more kernels than iptables' target, so the tools of iptables are tried one after the other, legacy ones first.

The namespace is named after the host's own, by inode: a restarted process finds it, and hosts in namespaces of one
machine do not meet. Nothing but its two links is in the host.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pyroute2.netlink import NLM_F_CREATE, NLM_F_REPLACE, rtnl
from pyroute2.netlink.rtnl.ifinfmsg import IFF_NOARP

from vswitch.errors import InspectUnsupported, KernelRefused, NamespaceMissing
from vswitch.hooks import attach
from vswitch.links import OWNER_ALIAS, Detour, InspectPrograms
from vswitch.namespaces import NAMED, Visitor, open_namespace
from vswitch.netlink import Netlink, Request
from vswitch.ownership import Found, find_link, find_own_link
from vswitch.requests import (
    RT_SCOPE_LINK,
    RT_TABLE_MAIN,
    RTN_UNICAST,
    RTPROT_STATIC,
    link_delete,
    link_new,
    link_set,
    nsid_get,
    veth_peer,
)
from vswitch.settings import disable_ipv6

TO_LINK, FROM_LINK = "sl-ins0", "sl-ins1"
INSIDE = {TO_LINK: "in0", FROM_LINK: "out0"}
MTU_BYTES = 65535
NAMESPACE_PREFIX = "sluice-inspect-"

# Twin of vfp/bpf/inspect.h: where queue and "fail open" are in the mark.
QUEUE_SHIFT, FAIL_OPEN, SELECTOR = 26, 1 << 30, 0x7C000000
QUEUES = 16

TOOLS = ("iptables-legacy-restore", "iptables-nft-restore")
TOOL_WITHIN_S = 10.0
LOOPBACK = 1

_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/in0/rp_filter": "0",
    "net/ipv4/conf/all/accept_local": "1",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv6/conf/in0/addr_gen_mode": "1",     # no address: it has nobody to talk to
    "net/ipv6/conf/out0/addr_gen_mode": "1",
    "net/ipv6/conf/in0/accept_ra": "0",
    "net/ipv6/conf/out0/accept_ra": "0",
}


def namespace_name(visitor: Visitor) -> str:
    """The name that the inspect namespace of this host has, or would have."""
    return f"{NAMESPACE_PREFIX}{visitor.home_inode()}"


def ensure_inspection(
    netlink: Netlink, visitor: Visitor, programs: InspectPrograms, queues: Sequence[int]
) -> Detour:
    """Make or mend namespace, links, programs and packet filter.

    Raises:
        InspectUnsupported: the kernel or the tools of iptables cannot queue packets. InterfaceTaken, HookTaken,
            NamespaceMissing, PermissionDenied, KernelRefused.
    """
    name = namespace_name(visitor)
    _make_namespace(name)
    with open_namespace(name) as namespace:
        pairs = {host: _ensure_pair(netlink, visitor, namespace, host) for host in INSIDE}
        visitor.visit(namespace, partial(_mend_inside, programs, tuple(queues)))
        for host in INSIDE:
            visitor.at_home(partial(disable_ipv6, host))
        attach(netlink, pairs[FROM_LINK].ifindex, "ingress", programs.inspected_fd, "sluice_inspected")
        # Of each pair the end that sends comes up last: it is then ready at once. The first end of a pair to come up is
        # so only when the kernel gets round to tell it of its carrier, up to a second later; till then what it sends
        # is lost.
        for host in (FROM_LINK, TO_LINK):
            if not pairs[host].is_up:
                netlink.run(link_set(f"bring up {host!r}", ifindex=pairs[host].ifindex, up=True))
        visitor.visit(namespace, _open_way_out)
        return Detour(pairs[TO_LINK].ifindex, NAMED / name, os.fstat(namespace).st_ino)


def remove_inspection(netlink: Netlink, visitor: Visitor) -> bool:
    """Remove the links and the namespace; whether there was any of it."""
    found = False
    for host in INSIDE:
        link = find_link(netlink, host)
        if link is not None and link.is_ours:
            found = True
            _remove(netlink, link)
    name = namespace_name(visitor)
    if (NAMED / name).exists():
        found = True
        _run(["ip", "netns", "delete", name], f"remove namespace {name}")
    return found


def _make_namespace(name: str) -> None:
    """A file without a namespace behind it is what a crash, or `ip netns` cut short, leaves."""
    try:
        with open_namespace(name):
            return
    except NamespaceMissing:
        if (NAMED / name).exists():
            _run(["ip", "netns", "delete", name], f"remove namespace {name}")
    _run(["ip", "netns", "add", name], f"make namespace {name}")


def _run(command: list[str], asked: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TOOL_WITHIN_S)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise KernelRefused(asked, said, "see what it says; it needs root", done.returncode)


def _ensure_pair(netlink: Netlink, visitor: Visitor, namespace: int, name: str) -> Found:
    found = find_own_link(netlink, name, "veth")
    if found is not None and not _is_whole(netlink, visitor, namespace, found):
        _remove(netlink, found)
        found = None
    if found is None:
        peer = veth_peer(namespace, INSIDE[name], _mac(name), MTU_BYTES)
        netlink.run(
            link_new(name, "veth", peer, MTU_BYTES),
            link_set(f"mark link {name!r}", name=name, attributes=[("IFLA_IFALIAS", _alias(name))]),
        )
        found = find_own_link(netlink, name, "veth")
        if found is None:
            raise NamespaceMissing(f"link {name!r}", "it vanished right after it was made", "see what removes it")
    changes: list[tuple[str, object]] = []
    if found.alias != _alias(name):
        changes.append(("IFLA_IFALIAS", _alias(name)))
    if found.mtu_bytes != MTU_BYTES:
        changes.append(("IFLA_MTU", MTU_BYTES))
    if changes:
        netlink.run(link_set(f"set up {name!r}", ifindex=found.ifindex, attributes=changes))
    return found


def _is_whole(netlink: Netlink, visitor: Visitor, namespace: int, host: Found) -> bool:
    """Whether the far end is where it should be, under its name."""
    message = netlink.get(nsid_get(namespace))
    number = None if message is None else message.get_attr("NETNSA_NSID")
    if number is None or host.peer_nsid != number:
        return False

    def far_is_there() -> bool:
        with Netlink() as inside:
            far = find_link(inside, INSIDE[host.name])
            return far is not None and (far.ifindex, far.peer_ifindex) == (host.peer_ifindex, host.ifindex)

    return visitor.visit(namespace, far_is_there)


def _remove(netlink: Netlink, link: Found) -> None:
    netlink.run(link_delete(link.ifindex))


def _alias(name: str) -> str:
    return f"{OWNER_ALIAS}inspect:{name[-1]}"


def _mac(name: str) -> str:
    return f"06:00:00:00:01:0{name[-1]}"


def _mend_inside(programs: InspectPrograms, queues: tuple[int, ...]) -> None:
    """Runs inside. The packet filter is there before the links are up: nothing slips by it."""
    for path, value in _SYSCTLS.items():
        _set_sysctl(Path("/proc/sys") / path, value)
    for family in ("", "6"):
        if family and not Path("/proc/sys/net/ipv6").exists():
            continue
        _filter(family, queues)
    with Netlink() as inside:
        first, second = (find_link(inside, name) for name in INSIDE.values())
        if first is None or second is None:
            raise NamespaceMissing("links of the inspect namespace", "one vanished", "see what removes them")
        attach(inside, first.ifindex, "ingress", programs.inspect_in_fd, "sluice_inspect_in")
        attach(inside, first.ifindex, "egress", programs.inspect_out_fd, "sluice_inspect_out")
        attach(inside, second.ifindex, "egress", programs.inspect_out_fd, "sluice_inspect_out")
        inside.run(_no_arp(second.ifindex))
        inside.run(*(link_set("bring up a link", ifindex=i, up=True) for i in (LOOPBACK, first.ifindex)))


def _open_way_out() -> None:
    """Runs inside."""
    with Netlink() as inside:
        out = find_link(inside, INSIDE[FROM_LINK])
        if out is None:
            raise NamespaceMissing("links of the inspect namespace", "one vanished", "see what removes them")
        inside.run(link_set("bring up out0", ifindex=out.ifindex, up=True))
        inside.run(_default_route(socket.AF_INET, out.ifindex))
        if Path("/proc/sys/net/ipv6").exists():
            inside.run(_default_route(socket.AF_INET6, out.ifindex))


def _set_sysctl(path: Path, value: str) -> None:
    """A kernel without IPv6 has no such file, and needs none."""
    if path.exists() and path.read_text().strip() != value:
        path.write_text(value)


def _no_arp(ifindex: int) -> Request:
    return Request(
        "no ARP on out0", rtnl.RTM_NEWLINK, {"index": ifindex, "flags": IFF_NOARP, "change": IFF_NOARP}, []
    )


def _default_route(family: int, ifindex: int) -> Request:
    fields = {
        "family": family, "table": RT_TABLE_MAIN, "proto": RTPROT_STATIC, "type": RTN_UNICAST,
        "scope": RT_SCOPE_LINK if family == socket.AF_INET else 0,
    }
    return Request("default route of the inspect namespace", rtnl.RTM_NEWROUTE, fields, [("RTA_OIF", ifindex)],
                   NLM_F_CREATE | NLM_F_REPLACE)


def rules(queues: Sequence[int]) -> str:
    """The whole `raw` table, as iptables-restore takes it: all or nothing."""
    lines = ["*raw", ":PREROUTING ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]"]
    for queue in queues:
        for bypass in (0, FAIL_OPEN):
            mark = f"-m mark --mark {queue << QUEUE_SHIFT | bypass:#x}/{SELECTOR:#x}"
            option = " --queue-bypass" if bypass else ""
            lines.append(f"-A PREROUTING -i in0 {mark} -j NFQUEUE --queue-num {queue}{option}")
    return "\n".join((*lines, "-A PREROUTING -j DROP", "COMMIT", ""))


def _filter(family: str, queues: Sequence[int]) -> str:
    """Set the table of one family in the namespace of this thread; the tool that could."""
    said = []
    for tool in (name.replace("ip", f"ip{family}", 1) for name in TOOLS):
        if not shutil.which(tool):
            said.append(f"no {tool}")
            continue
        done = subprocess.run([tool, "-w", "5"], input=rules(queues), capture_output=True, text=True, check=False,
                              timeout=TOOL_WITHIN_S)
        if done.returncode == 0:
            return tool
        said.append(f"{tool}: {' '.join(done.stderr.split()) or done.returncode}")
    raise InspectUnsupported(
        "hand packets to user space", "; ".join(said),
        "install iptables, and use a kernel with CONFIG_NETFILTER_XT_TARGET_NFQUEUE and CONFIG_IP_NF_RAW",
    )
