"""BPF programs at TC: clsact and a direct-action filter (tc-bpf(8)).

Our filter is known by its name, `sluice_...`. Whether the clsact qdisc is ours as well is written in the
filter's handle, so that it is known after a crash too: qdisc and filter are made by one datagram, and the
qdisc leaves with the last filter if we brought it. A program is replaced under the same handle and priority:
every packet meets the old one or the new one.
"""

from __future__ import annotations

import errno
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL, rtnl
from pyroute2.netlink.rtnl.tcmsg.sched_bpf import TCA_BPF_FLAG_ACT_DIRECT

from vswitch.errors import HookTaken, KernelRefused, LinkInvalid, LinkMissing
from vswitch.links import Where
from vswitch.netlink import Message, Netlink, Request
from vswitch.ownership import found_link
from vswitch.requests import link_dump

NAME_PREFIX = "sluice_"
NAME_BYTES = 255  # CLS_BPF_NAME_LEN without the final zero

CLSACT = 0xFFFFFFF1  # TC_H_CLSACT
CLSACT_HANDLE = 0xFFFF0000
PARENT: dict[Where, int] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}

# Early, yet not first: an administrator can put a filter before ours.
PRIORITY = 50
HANDLE_QDISC_FOUND = 0x51
HANDLE_QDISC_MADE = 0x52
INFO = PRIORITY << 16 | socket.htons(0x0003)  # any protocol: ETH_P_ALL

TCA_BPF_ID = 11  # not in pyroute2's map


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter as found at a hook."""

    handle: int
    info: int  # priority and protocol
    kind: str
    name: str
    program: int  # BPF program id; 0: not told
    direct: bool

    @property
    def is_ours(self) -> bool:
        """Whether Sluice attached it."""
        return self.kind == "bpf" and self.name.startswith(NAME_PREFIX)


def attach(netlink: Netlink, ifindex: int, where: Where, program_fd: int, name: str) -> None:
    """Run the program at a hook of a link, in place of any other of ours there.

    Raises:
        LinkMissing: no such link. HookTaken: somebody else's filter or qdisc is in the way.
        LinkInvalid: the name is not ours, or the descriptor no program. PermissionDenied, KernelRefused.
    """
    if not name.startswith(NAME_PREFIX) or len(name.encode()) > NAME_BYTES:
        raise LinkInvalid("name of the filter", f"{name!r}", f"start it with {NAME_PREFIX!r}")
    program = program_id(program_fd)
    here = _filters(netlink, ifindex, where)
    ours = [found for found in here if found.is_ours]
    current = next((found for found in ours if found.info == INFO), None)
    if current == Filter(current.handle if current else 0, INFO, "bpf", name, program, True) and len(ours) == 1:
        return
    requests: list[Request] = []
    if current is not None:
        handle = current.handle
    else:
        made = _qdisc_missing(netlink, ifindex)
        if made:
            requests.append(_qdisc_request(ifindex, rtnl.RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL))
        brought = made or any(
            found.is_ours and found.handle == HANDLE_QDISC_MADE for found in _filters(netlink, ifindex, _other(where))
        )
        handle = HANDLE_QDISC_MADE if brought else HANDLE_QDISC_FOUND
        if any(found.info == INFO and (found.kind != "bpf" or found.handle == handle) for found in here):
            raise HookTaken(
                f"attach {name!r} at {where} of link {ifindex}",
                f"another filter has priority {PRIORITY}",
                "give that one another priority",
            )
    requests.append(_filter_request(ifindex, where, handle, program_fd, name))
    try:
        netlink.run(*requests)
    except KernelRefused as error:
        if len(requests) > 1:  # leave no qdisc behind for a program that was refused
            _drop_empty_qdisc(netlink, ifindex)
        if error.code == errno.ENODEV:
            raise LinkMissing(error.asked, error.found, "attach after the link was made") from None
        raise
    netlink.run(*(_filter_delete(ifindex, where, found) for found in ours if found.info != INFO))


def detach(netlink: Netlink, ifindex: int, where: Where) -> bool:
    """Take our filter off a hook, and the qdisc with it if we brought it and nobody uses it; whether there was one.

    Raises:
        PermissionDenied, KernelRefused.
    """
    ours = [found for found in _filters(netlink, ifindex, where) if found.is_ours]
    try:
        netlink.run(*(_filter_delete(ifindex, where, found) for found in ours))
    except KernelRefused as error:
        if error.code not in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
            raise
        if _filters(netlink, ifindex, where):
            raise
    if any(found.handle == HANDLE_QDISC_MADE for found in ours):
        _drop_empty_qdisc(netlink, ifindex)
    return bool(ours)


def hooked(netlink: Netlink) -> dict[str, int]:
    """Links that are not ours and have a filter of ours at their ingress: name and ifindex.

    Raises:
        PermissionDenied, KernelRefused.
    """
    others = (link for link in map(found_link, netlink.dump(link_dump())) if not link.is_ours)
    return {link.name: link.ifindex for link in others
            if any(found.is_ours for found in _filters(netlink, link.ifindex, "ingress"))}


def program_id(program_fd: int) -> int:
    """The kernel's number of a loaded BPF program.

    Raises:
        LinkInvalid: the descriptor is closed, or not of a program.
    """
    try:
        text = Path(f"/proc/self/fdinfo/{program_fd}").read_text()
    except OSError:
        text = ""
    match = re.search(r"^prog_id:\s*(\d+)$", text, re.MULTILINE)
    if match is None:
        raise LinkInvalid("program_fd", f"descriptor {program_fd} is not a BPF program", "pass Datapath.program_fd()")
    return int(match[1])


def _other(where: Where) -> Where:
    return "egress" if where == "ingress" else "ingress"


def _filters(netlink: Netlink, ifindex: int, where: Where) -> list[Filter]:
    request = Request(
        f"list filters at {where} of link {ifindex}",
        rtnl.RTM_GETTFILTER,
        {"index": ifindex, "parent": PARENT[where]},
        [],
    )
    try:
        messages = netlink.dump(request)
    except KernelRefused as error:
        if error.code in (errno.ENODEV, errno.ENOENT, errno.EINVAL):  # no link, or no qdisc
            return []
        raise
    # One message a chain or priority describes no filter; it has handle 0.
    return [_found_filter(message) for message in messages if message["handle"]]


def _found_filter(message: Message) -> Filter:
    kind = message.get_attr("TCA_KIND") or ""
    options = message.get_attr("TCA_OPTIONS")
    known: dict[str, object] = {}
    program = 0
    if kind == "bpf" and options is not None:
        for name, value in options["attrs"]:
            if name == "UNKNOWN" and value["header"]["type"] == TCA_BPF_ID:
                program = int.from_bytes(value.data[value.offset + 4 : value.offset + 8], "little")
            known[name] = value
    flags = known.get("TCA_BPF_FLAGS")
    return Filter(
        handle=message["handle"],
        info=message["info"],
        kind=kind,
        name=str(known.get("TCA_BPF_NAME") or ""),
        program=program,
        direct=isinstance(flags, int) and bool(flags & TCA_BPF_FLAG_ACT_DIRECT),
    )


def _qdisc(netlink: Netlink, ifindex: int) -> str:
    """Kind of the qdisc at the ingress hook: "clsact", "ingress", or "" for none.

    The kernel answers this question by a notification, which the asker gets only with NLM_F_ECHO; and not at all of a
    link that had a clsact qdisc once: then only the acknowledgement comes.
    """
    asked, fields = f"look at the qdisc of link {ifindex}", {"index": ifindex, "parent": CLSACT}
    message = netlink.get(Request(asked, rtnl.RTM_GETQDISC, fields, [], NLM_F_ECHO | NLM_F_ACK))
    return "" if message is None else message.get_attr("TCA_KIND") or ""


def _qdisc_missing(netlink: Netlink, ifindex: int) -> bool:
    kind = _qdisc(netlink, ifindex)
    if kind not in ("", "clsact"):
        raise HookTaken(
            f"clsact qdisc on link {ifindex}",
            f"a qdisc of kind {kind!r} is there",
            f"remove it: tc qdisc del dev IF {kind}",
        )
    return not kind


def _qdisc_request(ifindex: int, kind: int, flags: int) -> Request:
    fields = {"index": ifindex, "parent": CLSACT, "handle": CLSACT_HANDLE}
    return Request(f"clsact qdisc on link {ifindex}", kind, fields, [("TCA_KIND", "clsact")], flags)


def _filter_request(ifindex: int, where: Where, handle: int, program_fd: int, name: str) -> Request:
    options = [("TCA_BPF_FD", program_fd), ("TCA_BPF_NAME", name), ("TCA_BPF_FLAGS", TCA_BPF_FLAG_ACT_DIRECT)]
    fields = {"index": ifindex, "parent": PARENT[where], "handle": handle, "info": INFO}
    return Request(
        f"attach {name!r} at {where} of link {ifindex}",
        rtnl.RTM_NEWTFILTER,
        fields,
        [("TCA_KIND", "bpf"), ("TCA_OPTIONS", {"attrs": options})],
        NLM_F_CREATE,
    )


def _filter_delete(ifindex: int, where: Where, found: Filter) -> Request:
    fields = {"index": ifindex, "parent": PARENT[where], "handle": found.handle, "info": found.info}
    return Request(
        f"detach {found.name!r} from {where} of link {ifindex}",
        rtnl.RTM_DELTFILTER,
        fields,
        [("TCA_KIND", "bpf")],
    )


def _drop_empty_qdisc(netlink: Netlink, ifindex: int) -> None:
    if any(_filters(netlink, ifindex, where) for where in PARENT) or _qdisc(netlink, ifindex) != "clsact":
        return
    netlink.run(_qdisc_request(ifindex, rtnl.RTM_DELQDISC, 0))
