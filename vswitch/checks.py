"""Is a link description possible at all? Asked before anything is changed."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface

from vswitch.errors import LinkInvalid
from vswitch.links import OWNER_ALIAS

NAME_BYTES = 15  # IFNAMSIZ without the final zero
ALIAS_BYTES = 255  # IFALIASZ likewise
MTU_LEAST_BYTES, MTU_MOST_BYTES = 68, 65535  # RFC 791; ETH_MAX_MTU
IPV6_MTU_LEAST_BYTES = 1280  # RFC 8200 section 5; the kernel takes IPv6 off a link with less

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


def check_name(name: str, field: str) -> None:
    """Raise LinkInvalid unless the kernel would take it (dev_valid_name)."""
    wrong = not name or len(name.encode()) > NAME_BYTES or name in (".", "..") or re.search(r"[/:%\s\0]", name)
    if wrong:
        raise LinkInvalid(field, f"{name!r}", f"give 1 to {NAME_BYTES} bytes without '/', ':', '%' or white space")


def check_alias(alias: str) -> None:
    """Raise LinkInvalid unless it marks a link as ours."""
    if not alias.startswith(OWNER_ALIAS) or len(alias.encode()) > ALIAS_BYTES:
        raise LinkInvalid("alias", f"{alias!r}", f"start it with {OWNER_ALIAS!r}, at most {ALIAS_BYTES} bytes")


def checked_mac(mac: str) -> str:
    """The MAC in lower case; raises LinkInvalid unless it can be an interface's."""
    if not _MAC.fullmatch(mac):
        raise LinkInvalid("mac", f"{mac!r}", "write it as 02:00:00:00:00:01")
    if int(mac[:2], 16) & 1 or not mac.strip("0:"):
        raise LinkInvalid("mac", f"{mac!r}", "give a unicast address that is not zero")
    return mac.lower()


def check_mtu(mtu_bytes: int) -> None:
    """Raise LinkInvalid unless IPv4 over Ethernet can have it."""
    if not MTU_LEAST_BYTES <= mtu_bytes <= MTU_MOST_BYTES:
        raise LinkInvalid("mtu_bytes", str(mtu_bytes), f"give {MTU_LEAST_BYTES} to {MTU_MOST_BYTES}")


def checked_interface(address: str) -> Interface:
    """An address with its prefix length."""
    try:
        if "/" not in address:
            raise ValueError("no prefix length")
        found = ip_interface(address)
        if found.ip.is_multicast or found.ip.is_unspecified:
            raise ValueError("no unicast address")
    except ValueError as error:
        raise LinkInvalid("address", f"{address!r} ({error})", "write it as 10.1.0.5/24 or fd00::5/64") from None
    return found


def checked_interfaces(addresses: Iterable[str], mtu_bytes: int) -> list[Interface]:
    """The addresses of one link; each once, and IPv6 only where the link can carry it."""
    found = [checked_interface(address) for address in addresses]
    twice = next((one for one in found if [each.ip for each in found].count(one.ip) > 1), None)
    if twice is not None:
        raise LinkInvalid("addresses", f"{twice.ip} is there twice", "leave one out")
    if mtu_bytes < IPV6_MTU_LEAST_BYTES and any(one.version == 6 for one in found):
        todo = f"give {IPV6_MTU_LEAST_BYTES} or more, or no IPv6 address"
        raise LinkInvalid("mtu_bytes", f"{mtu_bytes}, with an IPv6 address", todo)
    return found


def checked_gateways(gateways: Iterable[str]) -> list[Address]:
    """At most one gateway of each family."""
    found = [checked_address(gateway, "gateway") for gateway in gateways]
    if len({gateway.version for gateway in found}) != len(found):
        raise LinkInvalid("gateways", ", ".join(map(str, found)), "give at most one of each family")
    return found


def checked_address(address: str, field: str) -> Address:
    """An address."""
    try:
        return ip_address(address)
    except ValueError as error:
        raise LinkInvalid(field, f"{address!r} ({error})", "write it as 10.1.0.1 or fd00::1") from None


def family_of(address: Address | Interface) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
