"""`probe vm`: what a hypervisor does with a virtual machine's NIC, without the machine.

    host's namespace                      the machine's namespace
    tap device, as Sluice made it ─fd─ this process ─fd─ tap device, called e.g. eth0

Frames go from one descriptor to the other with their virtio-net header, so that, as with vhost and a real guest,
checksums may be partial and TCP segments large (IFF_VNET_HDR, TUNSETOFFLOAD: linux/if_tun.h).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 0x01, 0x02, 0x04
VNET_HEADER_BYTES = 10                      # struct virtio_net_hdr
FRAME_BYTES = VNET_HEADER_BYTES + 14 + 65536
LOOK_S = 0.02
BURST = 64                                  # frames of one side before the other has its turn

_libc = ctypes.CDLL(None, use_errno=True)   # os.setns exists since Python 3.12 only


def vm(tap: str, interface: str, host: str, mac: str, mtu: int, addresses: Sequence[str],
       gateways: Sequence[str]) -> int:
    """Join the host's `tap`, when it is there, to a new tap device `interface` here, and carry frames until ended."""
    inner = open_tap(interface)
    _ip("link", "set", interface, "address", mac, "mtu", str(mtu), "up")
    for address in addresses:
        _ip("address", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))
    for gateway in gateways:
        _ip("route", "add", "default", "via", gateway)
    sys.stderr.write(f"{interface} waits for {tap} of {host}\n")
    outer = _open_in(host, tap)
    sys.stderr.write(f"{interface} is joined to {tap} of {host}\n")
    carry(inner, outer)
    return 0


def open_tap(name: str) -> int:
    """A descriptor of the tap device `name` in this namespace, made if it is not there."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    fcntl.ioctl(descriptor, TUNSETIFF, request)
    fcntl.ioctl(descriptor, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
    fcntl.ioctl(descriptor, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    return descriptor


def _open_in(namespace: str, tap: str) -> int:
    """The tap device of another namespace, as soon as it is there. On a thread, which alone enters that namespace."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_entered, namespace, tap).result()


def _entered(namespace: str, tap: str) -> int:
    other = os.open(NETNS / namespace, os.O_RDONLY | os.O_CLOEXEC)
    if _libc.setns(other, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter namespace {namespace}")
    os.close(other)
    while True:
        if tap in (name for _, name in socket.if_nameindex()):
            try:
                return open_tap(tap)        # if it were not there, this would make it
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
        time.sleep(LOOK_S)


def carry(inner: int, outer: int) -> None:
    """Copy frames both ways, for ever. What the other side has no room for is lost, as on a wire."""
    poll, across = select.poll(), {inner: outer, outer: inner}
    for descriptor in across:
        poll.register(descriptor, select.POLLIN)
    while True:
        for source, events in poll.poll():
            if not events & select.POLLIN:
                time.sleep(0.01)            # the device is down, or gone: EIO, POLLERR
                continue
            for _ in range(BURST):
                try:
                    frame = os.read(source, FRAME_BYTES)
                except OSError:
                    break
                try:
                    os.write(across[source], frame)
                except OSError:
                    continue


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
