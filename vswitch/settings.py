"""Settings of the kernel under /proc/sys, in the namespace of the thread that asks."""

from __future__ import annotations

import errno
from pathlib import Path

from vswitch.errors import KernelRefused, PermissionDenied

IPV4 = Path("/proc/sys/net/ipv4/conf")
IPV6 = Path("/proc/sys/net/ipv6/conf")

# Of a link with IPv6 addresses of ours: those, and nothing that a router or the link itself makes up. They are ours
# alone, so nobody is asked whether they are taken (RFC 4862 section 5.4).
_IPV6_ON = {
    "accept_ra": "0", "autoconf": "0", "router_solicitations": "0", "accept_dad": "0", "dad_transmits": "0",
}
FROM_THE_MAC, NONE = "0", "1"  # of addr_gen_mode: how a link-local address is made (RFC 4291 appendix A)


def get_setting(path: Path) -> str | None:
    """Its value; None where the kernel has none such."""
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def set_setting(path: Path, value: str) -> bool:
    """Write a setting that is another; whether the kernel has it.

    Raises:
        PermissionDenied: not allowed to, or /proc/sys is read-only.
    """
    found = get_setting(path)
    if found is None:
        return False
    if found != value:
        try:
            path.write_text(value)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            todo = "run as root with a writable /proc/sys"
            raise PermissionDenied(f"write {path}", error.strerror or "", todo) from None
    return True


def disable_ipv6(interface: str) -> None:
    """Keep IPv6 off a link: no link-local address, no router solicitations. A kernel without IPv6 needs nothing."""
    set_setting(IPV6 / interface / "disable_ipv6", "1")


def enable_ipv6(interface: str, link_local: bool, *, accept_ra: bool = False, slaac: bool = False) -> None:
    """Let a link have the IPv6 addresses that it is given, and no other; `link_local`: that one as well.

    Args:
        accept_ra: it may learn routes from router advertisements, and ask for these.
        slaac: and make addresses by them (RFC 4862).

    Raises:
        KernelRefused: the kernel has no IPv6.
    """
    directory = IPV6 / interface
    learned = {"accept_ra": "2", "router_solicitations": "-1"} if accept_ra else {}    # 2: routers listen, too
    made = {"autoconf": "1"} if accept_ra and slaac else {}
    for name, value in {**_IPV6_ON, **learned, **made}.items():
        set_setting(directory / name, value)
    set_setting(directory / "addr_gen_mode", FROM_THE_MAC if link_local else NONE)
    if not set_setting(directory / "disable_ipv6", "0"):
        raise KernelRefused(f"IPv6 on {interface!r}", "the kernel has no IPv6",
                            "boot without ipv6.disable=1, or use IPv4 alone", errno.EAFNOSUPPORT)


def has_ipv6(interface: str) -> bool:
    """Whether IPv6 is on there."""
    return get_setting(IPV6 / interface / "disable_ipv6") == "0"
