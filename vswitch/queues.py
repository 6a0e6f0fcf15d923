"""Queues that hold bandwidth: HTB (tc-htb(8)) with a class for each limit and a short FIFO in each class.

The same tree is used in two places. On the shaper's first link it has a class for each port, whose number is the
minor of the class: what a port sends comes there with that class as its priority. On the link of a port whose incoming
traffic is capped there is one class, for everything.

    root 1:        HTB, what names no class goes to 1:fffe
      1:ffff       all that may leave; without a limit as fast as it comes
        1:fffe     what names no class: unlimited within that
        1:PORT     a limit, with a FIFO

HTB lets a packet pass as a whole and waits afterwards, so a segment that offloads made of many does not have to be cut,
and the rate is held whatever its size. A limit is changed in place: nothing that waits is lost, no flow notices. One
that goes is raised first, and goes when what waited has left. Only a tree that comes to a link or goes from it costs
what passes there in that moment (the kernel stops the link), so the engine must go another way then.

What is found is read from the kernel each time; a tree needs no owner's mark, for it is on links of ours only.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pyroute2.netlink import NLM_F_CREATE, NLM_F_REPLACE, nla, rtnl
from pyroute2.netlink.rtnl.tcmsg import sched_htb, tcmsg

from vswitch.errors import KernelRefused, LinkInvalid
from vswitch.links import Limit
from vswitch.netlink import Message, Netlink, Request
from vswitch.requests import Attributes, nested

ROOT = 0xFFFFFFFF  # TC_H_ROOT
HANDLE = 1 << 16
TRUNK, REST = 0xFFFF, 0xFFFE
MOST_CLASS = 0x7FFF

UNLIMITED_BPS = 400_000_000_000
LEAST_BPS = 8_000
ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel needs no table of transmission times
TICK_NS = 64  # PSCHED_TICKS2NS
QUANTUM_BYTES = 60_000  # who shares what is left over takes turns of this size, about one offloaded segment
BURST_S = 0.01  # a timer that is late by less loses nothing
LEAST_BURST_BYTES = 3_200
QUEUE_S = 0.1  # what may wait
LEAST_QUEUE_BYTES = 128 * 1024  # two of the largest segments
DRAIN_TRIES, DRAIN_PAUSE_S = 20, 0.005


@dataclass(frozen=True, slots=True)
class Shape:
    """A class of HTB as the kernel has it."""

    rate: int  # bytes a second
    ceil: int
    burst: int  # ticks
    cburst: int
    backlog: int  # bytes


class HtbOptions(nla):  # type: ignore[misc]
    """pyroute2's, without the two tables of 256 times that it computes for each class and no kernel since 3.8 reads."""

    nla_map = sched_htb.options.nla_map

    class htb_parms(nla):  # type: ignore[misc]  # noqa: D106
        fields = sched_htb.options.htb_parms.fields


class ClassMessage(tcmsg):  # type: ignore[misc]
    """A class of HTB."""

    nla_map = tuple((name, "HtbOptions" if name == "TCA_OPTIONS" else kind) for name, kind in tcmsg.nla_map)
    HtbOptions = HtbOptions


def ensure_classes(
    netlink: Netlink, ifindex: int, limits: Mapping[int, Limit], total_bps: int = 0, default: int = REST
) -> None:
    """Make a tree on this link with a class for each of the limits, and leave what other classes there are.

    Args:
        limits: by minor number of the class.
        total_bps: of all together; 0: no limit.
        default: the class of what names none.

    Raises:
        LinkInvalid: no such rate or class. KernelRefused: the kernel has no HTB.
    """
    for minor, limit in limits.items():
        _check(minor, limit)
    total = Limit(total_bps or UNLIMITED_BPS, total_bps or UNLIMITED_BPS)
    found = _classes(netlink, ifindex)
    if not found:
        # In one datagram: a tree without its trunk would look like none.
        netlink.run(_tree(ifindex, default), _class(ifindex, TRUNK, _shape(total)))
    wanted = {TRUNK: total, **limits}
    if default == REST:
        wanted[REST] = Limit(LEAST_BPS, total.ceil_bps)
    changes: list[Request] = []
    for minor, limit in wanted.items():
        shape = _shape(limit)
        there = found.get(minor)
        if there is None or (there.rate, there.ceil, there.burst, there.cburst) != (
                shape.rate, shape.ceil, shape.burst, shape.cburst):
            changes.append(_class(ifindex, minor, shape))
            if minor != TRUNK:
                changes.append(_fifo(ifindex, minor, limit))
    netlink.run_in_batches(changes)


def prune_classes(netlink: Netlink, ifindex: int, keep: Collection[int]) -> None:
    """Take out all other classes of a tree, each when what waits in it has left, but no later than 0.1 s from now.

    Raises:
        KernelRefused.
    """
    found = _classes(netlink, ifindex)
    going = found.keys() - {*keep, TRUNK, REST}
    _drain(netlink, ifindex, {minor for minor in going if found[minor].backlog})
    _run_each(netlink, [_class_delete(ifindex, minor) for minor in sorted(going)])


def remove_tree(netlink: Netlink, ifindex: int) -> None:
    """Take the whole tree off a link, likewise. Idempotent.

    Raises:
        KernelRefused.
    """
    found = _classes(netlink, ifindex)
    if not found:
        return
    _drain(netlink, ifindex, {minor for minor in found if found[minor].backlog})
    _run_each(netlink, [Request(f"remove the queues of link {ifindex}", rtnl.RTM_DELQDISC,
                                {"index": ifindex, "parent": ROOT, "handle": HANDLE}, [])])


def _drain(netlink: Netlink, ifindex: int, going: set[int]) -> None:
    """Let what waits there leave at once."""
    open_wide = _shape(Limit(UNLIMITED_BPS, UNLIMITED_BPS))
    netlink.run_in_batches([_class(ifindex, minor, open_wide) for minor in sorted(going)])
    for _ in range(DRAIN_TRIES if going else 0):
        found = _classes(netlink, ifindex)
        if not any(found[minor].backlog for minor in going if minor in found):
            return
        time.sleep(DRAIN_PAUSE_S)


def _run_each(netlink: Netlink, requests: list[Request]) -> None:
    for request in requests:
        try:
            netlink.run(request)
        except KernelRefused as error:
            if error.code not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):  # gone, or with its link
                raise


def _check(minor: int, limit: Limit) -> None:
    if not 0 < minor <= MOST_CLASS:
        raise LinkInvalid("class", f"{minor}", f"give 1 to {MOST_CLASS}")
    if not 0 < limit.rate_bps <= limit.ceil_bps <= UNLIMITED_BPS or limit.burst_bytes < 0:
        raise LinkInvalid("limit", f"{limit}",
                          f"give 1 <= rate <= ceil <= {UNLIMITED_BPS} bit/s, and no negative burst")


def _shape(limit: Limit) -> Shape:
    rate, ceil = max(LEAST_BPS, limit.rate_bps) // 8, max(LEAST_BPS, limit.ceil_bps) // 8
    burst = limit.burst_bytes or max(int(ceil * BURST_S), LEAST_BURST_BYTES)
    return Shape(rate, ceil, _ticks(rate, burst), _ticks(ceil, burst), 0)


def _ticks(rate: int, size: int) -> int:
    """Time that so many bytes take, as the kernel counts it."""
    return min(max(1, size * 1_000_000_000 // rate // TICK_NS), (1 << 32) - 1)


def _classes(netlink: Netlink, ifindex: int) -> dict[int, Shape]:
    """By minor number; none where there is no tree."""
    request = Request(f"list classes of link {ifindex}", rtnl.RTM_GETTCLASS, {"index": ifindex}, [])
    try:
        messages = netlink.dump(request)
    except KernelRefused as error:
        if error.code == errno.ENODEV:
            return {}
        raise
    return {message["handle"] & 0xFFFF: _found(message) for message in messages
            if message.get_attr("TCA_KIND") == "htb" and message["handle"] >> 16 == HANDLE >> 16}


def _found(message: Message) -> Shape:
    options = message.get_attr("TCA_OPTIONS")
    parms = options.get_attr("TCA_HTB_PARMS")
    statistics = message.get_attr("TCA_STATS2")
    queue = statistics.get_attr("TCA_STATS_QUEUE") if statistics is not None else None
    return Shape(
        rate=options.get_attr("TCA_HTB_RATE64") or parms["rate"],
        ceil=options.get_attr("TCA_HTB_CEIL64") or parms["ceil"],
        burst=parms["buffer"], cburst=parms["cbuffer"],
        backlog=queue["backlog"] if queue is not None else 0,
    )


def _tree(ifindex: int, default: int) -> Request:
    init = {"version": 3, "rate2quantum": 10, "defcls": default, "debug": 0, "direct_pkts": 0}
    fields = {"index": ifindex, "parent": ROOT, "handle": HANDLE}
    options = nested([("TCA_HTB_INIT", init)])
    return Request(f"queues on link {ifindex}", rtnl.RTM_NEWQDISC, fields,
                   [("TCA_KIND", "htb"), ("TCA_OPTIONS", options)], NLM_F_CREATE | NLM_F_REPLACE)


def _class(ifindex: int, minor: int, shape: Shape) -> Request:
    """Make a class, or change it in place."""
    most = (1 << 32) - 1
    parms = {
        "rate": min(shape.rate, most), "ceil": min(shape.ceil, most), "buffer": shape.burst, "cbuffer": shape.cburst,
        "quantum": QUANTUM_BYTES, "rate___reserved": ETHERNET, "ceil___reserved": ETHERNET,
    }
    options: Attributes = [("TCA_HTB_PARMS", parms)]
    options += [("TCA_HTB_RATE64", shape.rate)] if shape.rate > most else []
    options += [("TCA_HTB_CEIL64", shape.ceil)] if shape.ceil > most else []
    parent = HANDLE if minor == TRUNK else HANDLE | TRUNK
    return Request(
        f"class 1:{minor:x} on link {ifindex}", rtnl.RTM_NEWTCLASS,
        {"index": ifindex, "parent": parent, "handle": HANDLE | minor},
        [("TCA_KIND", "htb"), ("TCA_OPTIONS", nested(options))], NLM_F_CREATE, ClassMessage)


def _fifo(ifindex: int, minor: int, limit: Limit) -> Request:
    """What waits in a class, or how much of it from now on."""
    size = max(int(limit.ceil_bps / 8 * QUEUE_S), LEAST_QUEUE_BYTES, 2 * limit.burst_bytes)
    return Request(
        f"queue of class 1:{minor:x} on link {ifindex}", rtnl.RTM_NEWQDISC,
        {"index": ifindex, "parent": HANDLE | minor, "handle": (minor | 1 << 15) << 16},
        [("TCA_KIND", "bfifo"), ("TCA_OPTIONS", min(size, (1 << 31) - 1).to_bytes(4, "little"))],
        NLM_F_CREATE | NLM_F_REPLACE)


def _class_delete(ifindex: int, minor: int) -> Request:
    return Request(f"remove class 1:{minor:x} of link {ifindex}", rtnl.RTM_DELTCLASS,
                   {"index": ifindex, "handle": HANDLE | minor}, [])

