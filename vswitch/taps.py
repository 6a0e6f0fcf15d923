"""Tap devices: the ports of virtual machines (Documentation/networking/tuntap.rst).

A tap is persistent, so that it is there before the machine is and after it went. It becomes so last, when it has its
marks: one whose making was cut short goes with the process that made it. Only root, or who may administer the network,
can be the machine behind it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from vswitch.errors import InterfaceTaken, KernelRefused, LinkMissing, PermissionDenied
from vswitch.links import OWNER_ALIAS
from vswitch.namespaces import Visitor
from vswitch.netlink import Netlink
from vswitch.ownership import Found, find_own_link, number
from vswitch.requests import LINK_GROUP, link_delete, link_set

DEVICE = "/dev/net/tun"
TUNSETIFF, TUNSETPERSIST, TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
# With the header that carries checksum and segmentation offloads (virtio_net_hdr), without the one of old.
IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL = 0x0002, 0x0100, 0x1000, 0x4000, 0x8000
REQUEST = struct.Struct("16sH22x")  # struct ifreq
ROOT = 0

IFLA_TUN_TYPE, IFLA_TUN_PERSIST, IFLA_TUN_MULTI_QUEUE, IFLA_TUN_NUM_QUEUES = 3, 6, 7, 8


def ensure_tap(netlink: Netlink, visitor: Visitor, name: str, alias: str, queues: int = 1) -> Found:
    """Make the device, or adopt the one of this very port.

    With more than one queue the machine opens it as often as it wants queues, each time with IFF_MULTI_QUEUE; without,
    once. Which of the two is settled when the device is made, so it is made anew, while no machine has it open.

    Raises:
        InterfaceTaken: somebody else's device, or another port's, has the name; or a machine has it open that would
            lose it. LinkMissing: no tap devices here.
        PermissionDenied, KernelRefused.
    """
    found = find_own_link(netlink, name, "tun")
    if found is not None and not (number(found.data.get(IFLA_TUN_PERSIST, b"")) and found.alias):
        netlink.run(link_delete(found.ifindex))  # unfinished, and somebody keeps it from going by itself
        found = None
    many = queues > 1
    if found is not None and found.alias == alias and bool(number(found.data.get(IFLA_TUN_MULTI_QUEUE, b""))) != many:
        if number(found.data.get(IFLA_TUN_NUM_QUEUES, b"")):
            raise InterfaceTaken(f"tap {name!r} with {queues} queues", "a machine has it open in the other way",
                                 "stop the machine; the device is then made anew")
        netlink.run(link_delete(found.ifindex))
        found = None
    if found is None:
        visitor.at_home(lambda: _make(name, alias, many))
        found = find_own_link(netlink, name, "tun")
        if found is None:
            raise LinkMissing(f"tap {name!r}", "it vanished right after it was made", "see what removes it")
    if found.alias != alias or number(found.data.get(IFLA_TUN_TYPE, b"")) != IFF_TAP:
        whose = found.alias.removeprefix(OWNER_ALIAS)
        raise InterfaceTaken(f"tap {name!r}", f"it is that of another of our ports ({whose})",
                             "choose another tap name for the endpoint, or remove the other")
    return found


def _make(name: str, alias: str, many: bool) -> None:
    """Runs at home: the device appears in the namespace of the thread that opens it."""
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, OSError) as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PermissionDenied(f"open {DEVICE}", error.strerror or "", "run as root") from None
        raise LinkMissing(f"tap {name!r}", f"{DEVICE}: {error.strerror}", "load the module: modprobe tun") from None
    try:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL | (IFF_MULTI_QUEUE if many else 0)
        _control(name, device, TUNSETIFF, REQUEST.pack(name.encode(), flags))
        with Netlink() as here:
            attributes: list[tuple[str, object]] = [("IFLA_IFALIAS", alias), ("IFLA_GROUP", LINK_GROUP)]
            here.run(link_set(f"mark tap {name!r}", name=name, attributes=attributes))
        _control(name, device, TUNSETOWNER, ROOT)
        _control(name, device, TUNSETPERSIST, 1)
    finally:
        os.close(device)


def _control(name: str, device: int, what: int, argument: bytes | int) -> None:
    try:
        fcntl.ioctl(device, what, argument)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            todo = "run as root or give the process CAP_NET_ADMIN"
            raise PermissionDenied(f"make tap {name!r}", error.strerror or "", todo) from None
        if error.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL) and what == TUNSETIFF:
            raise InterfaceTaken(f"tap {name!r}", "the name belongs to a device that Sluice did not make",
                                 f"rename or remove {name!r}, or choose another tap name") from None
        code = error.errno or 0
        raise KernelRefused(f"make tap {name!r}", error.strerror or "", "see the kernel log", code) from None
