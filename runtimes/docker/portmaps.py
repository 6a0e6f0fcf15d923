"""Published ports, as Docker tells them and as an attachment has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from runtimes.docker.fields import rows
from runtimes.local import LocalError

PORTMAP = "com.docker.network.portmap"
MAX_PORT = 65535
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


@dataclass(frozen=True, slots=True)
class Published:
    """One `-p`: a port of the container, and by which ports of the host one may reach it."""

    protocol: str
    internal: int
    first: int                              # 0: any free one of the host
    last: int                               # above `first`: one of first to last
    address: str                            # "": all of the host's

    @property
    def choices(self) -> Sequence[int | str]:
        """External ports that will do, in order."""
        return range(self.first, self.last + 1) if self.first else ("auto",)

    def mapping(self, port: int | str, address: str = "") -> dict[str, Any]:
        """As the agent is asked for it."""
        where = address or self.address
        return {"protocol": self.protocol, "externalPort": port, "internalPort": self.internal,
                **({"externalAddress": where} if where else {})}


def published(options: Mapping[str, Any]) -> tuple[Published, ...] | None:
    """What Docker publishes, each once, in an order that does not depend on Docker's; None: it says nothing of it.

    Raises:
        LocalError: invalid.
    """
    if PORTMAP not in options:
        return None
    return tuple(sorted({_published(row) for row in rows(options, PORTMAP)},
                        key=lambda each: (each.protocol, each.internal, each.first, each.last, each.address)))


def _published(row: Mapping[str, Any]) -> Published:
    number = row.get("Proto")
    if number not in _PROTOCOLS:
        raise LocalError("invalid", "this protocol cannot be published", "-p", str(number),
                         f"use {', '.join(_PROTOCOLS.values())}")
    internal, first, last = (_port(row, field) for field in ("Port", "HostPort", "HostPortEnd"))
    address = str(row.get("HostIP") or "")
    try:
        # 0.0.0.0 and :: are all of their family, which the agent's words for it are, too.
        address = str(ip_address(address)) if address else ""
    except ValueError:
        raise LocalError("invalid", "not an address", "-p", address, "write it like 127.0.0.1:8080:80") from None
    return Published(_PROTOCOLS[number], internal, first, max(first, last), address)


def _port(row: Mapping[str, Any], field: str) -> int:
    value = row.get(field) or 0
    if not isinstance(value, int) or not 0 <= value <= MAX_PORT:
        raise LocalError("invalid", "not a port", field, str(value), f"use 0 to {MAX_PORT}")
    return value
