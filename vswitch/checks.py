"""Is a link description possible at all? Asked before anything is changed."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, NetmaskValueError

from vswitch.errors import LinkInvalid
from vswitch.links import OWNER_ALIAS

NAME_BYTES = 15  # IFNAMSIZ without the final zero
ALIAS_BYTES = 255  # IFALIASZ likewise
MTU_LEAST_BYTES, MTU_MOST_BYTES = 68, 65535  # RFC 791; ETH_MAX_MTU

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


def checked_interface(address: str) -> IPv4Interface:
    """An IPv4 address with its prefix length."""
    try:
        if "/" not in address:
            raise AddressValueError("no prefix length")
        return IPv4Interface(address)
    except (AddressValueError, NetmaskValueError) as error:
        raise LinkInvalid("address", f"{address!r} ({error})", "write it as 10.1.0.5/24") from None


def checked_address(address: str, field: str) -> IPv4Address:
    """An IPv4 address."""
    try:
        return IPv4Address(address)
    except AddressValueError as error:
        raise LinkInvalid(field, f"{address!r} ({error})", "write it as 10.1.0.1") from None
