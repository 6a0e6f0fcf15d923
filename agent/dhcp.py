"""Addresses that endpoints get by DHCP (RFC 2131): seen on the wire, kept on disk, and over with their lease.

The guard of an endpoint with `dhcp` lets it send as the address that a server gave it, and no other. An address counts
when the server acknowledges it (DHCPACK) to the endpoint's MAC, in a transaction that the endpoint began, and lies in a
subnet of its network. It ends with its time, when the server takes it back (DHCPNAK), or the endpoint gives it back
(DHCPRELEASE) or refuses it (DHCPDECLINE). Frames are seen before the hooks: what is dropped there is seen, too, so
what an endpoint asks counts only with its own MAC.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network, NetmaskValueError
from pathlib import Path

import structlog

from southbound.durable import write_file

__all__ = ["Client", "DhcpMessage", "Lease", "Leases", "parse"]

_log = structlog.get_logger("agent")

_PAYLOAD = 14 + 20 + 8                      # the filter lets no IPv4 options pass
_OPTIONS = 236
_COOKIE = bytes((99, 130, 83, 99))
_REQUEST, _REPLY = 1, 2
DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE = 1, 2, 3, 4, 5, 6, 7
_PAD, _MASK, _REQUESTED, _LEASE, _TYPE, _SERVER, _END = 0, 1, 50, 51, 53, 54, 255
_FOREVER = 0xFFFFFFFF
_TRANSACTIONS = 8                           # of one endpoint, the latest


@dataclass(frozen=True, slots=True)
class DhcpMessage:
    """What counts here of a message; `yours` is the address that the server gives."""

    kind: int
    answer: bool
    transaction: int
    source_mac: bytes                       # of the frame
    client_mac: bytes
    yours: IPv4Address
    lease_s: int = 0
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Client:
    """An endpoint whose address comes by DHCP."""

    uid: str                                # PortGoal.id
    mac: bytes
    subnets: tuple[IPv4Network, ...]
    taken: frozenset[IPv4Address] = frozenset()     # gateways, and who else is in its network


@dataclass(frozen=True, slots=True)
class Lease:
    """An address and when it ends, in seconds of the epoch."""

    address: IPv4Interface
    until_s: float


def parse(frame: bytes) -> DhcpMessage | None:
    """The message in a frame; None if it is none, or one that is cut."""
    body = frame[_PAYLOAD:]
    if len(body) < _OPTIONS + 4 or body[1:3] != b"\1\6" or body[_OPTIONS : _OPTIONS + 4] != _COOKIE:
        return None
    options = _options(body[_OPTIONS + 4 :])
    kind = options.get(_TYPE, b"")
    if body[0] not in (_REQUEST, _REPLY) or len(kind) != 1:
        return None
    lease, mask = options.get(_LEASE, b""), options.get(_MASK, b"")
    return DhcpMessage(
        kind=kind[0], answer=body[0] == _REPLY, transaction=int.from_bytes(body[4:8], "big"),
        source_mac=frame[6:12], client_mac=body[28:34], yours=IPv4Address(body[16:20]),
        lease_s=int.from_bytes(lease, "big") if len(lease) == 4 else 0,
        mask=int.from_bytes(mask, "big") if len(mask) == 4 else 0xFFFFFFFF,
    )


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            break
        found.setdefault(data[at], data[at + 2 : at + 2 + data[at + 1]])
        at += 2 + data[at + 1]
    return found


class Leases:
    """All leases of this host. `path`: where they are kept; `clock`: seconds of the epoch.

    One thread at a time changes them; any may ask for the current ones.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._clients: dict[bytes, Client] = {}
        self._asked: dict[str, list[int]] = {}      # transactions by PortGoal.id, the latest last
        self._held = _load(path)

    def follow(self, clients: Iterable[Client]) -> None:
        """Who is here now; who is not has no lease any more."""
        self._clients = {client.mac: client for client in clients}
        uids = {client.uid for client in self._clients.values()}
        self._asked = {uid: asked for uid, asked in self._asked.items() if uid in uids}
        if not self._held.keys() <= uids:
            self._held = {uid: lease for uid, lease in self._held.items() if uid in uids}
            self._save()

    def current(self) -> dict[str, IPv4Interface]:
        """The address of each endpoint that has one, by PortGoal.id."""
        now_s = self._clock()
        return {uid: lease.address for uid, lease in self._held.items() if lease.until_s > now_s}

    def ends_in_s(self) -> float | None:
        """When the next lease ends; None: there is none."""
        ends = [lease.until_s for lease in self._held.values()]
        return max(0.0, min(ends) - self._clock()) if ends else None

    def expire(self) -> bool:
        """Forget what is over; whether there was any."""
        now_s = self._clock()
        over = [uid for uid, lease in self._held.items() if lease.until_s <= now_s]
        for uid in over:
            _log.info("dhcp lease over", port=uid, address=str(self._held[uid].address))
        if over:
            self._held = {uid: lease for uid, lease in self._held.items() if uid not in over}
            self._save()
        return bool(over)

    def see(self, message: DhcpMessage) -> bool:
        """Take notice of a message; whether some endpoint has another address now."""
        client = self._clients.get(message.client_mac)
        if client is None:
            return False
        if not message.answer:
            return message.source_mac == client.mac and self._asks(client, message)
        if message.transaction not in self._asked.get(client.uid, ()):
            return False
        if message.kind == NAK:
            return self._end(client, "the server refused it")
        return message.kind == ACK and message.lease_s > 0 and self._given(client, message)

    def _asks(self, client: Client, message: DhcpMessage) -> bool:
        if message.kind in (RELEASE, DECLINE):
            return self._end(client, "the endpoint gave it back")
        if message.kind in (DISCOVER, REQUEST):
            asked = [one for one in self._asked.get(client.uid, []) if one != message.transaction]
            self._asked[client.uid] = [*asked, message.transaction][-_TRANSACTIONS:]
        return False

    def _given(self, client: Client, message: DhcpMessage) -> bool:
        subnet = next((one for one in client.subnets if message.yours in one), None)
        if subnet is None or message.yours in client.taken:
            why = "is another's" if subnet is not None else "is in no subnet of its network"
            _log.warning("dhcp address refused", port=client.uid, address=str(message.yours), why=why)
            return False
        try:
            address = IPv4Interface(f"{message.yours}/{IPv4Address(message.mask)}")
        except (AddressValueError, NetmaskValueError):
            address = IPv4Interface(f"{message.yours}/{subnet.prefixlen}")
        forever = message.lease_s == _FOREVER
        until_s = self._clock() + (10 * 365 * 86400 if forever else message.lease_s)
        before = self._held.get(client.uid)
        self._held = {**self._held, client.uid: Lease(address, until_s)}
        self._save()
        if before is None or before.address != address:
            _log.info("dhcp lease", port=client.uid, address=str(address), seconds=message.lease_s)
            return True
        return False

    def _end(self, client: Client, why: str) -> bool:
        lease = self._held.get(client.uid)
        if lease is None:
            return False
        self._held = {uid: held for uid, held in self._held.items() if uid != client.uid}
        _log.info("dhcp lease ended", port=client.uid, address=str(lease.address), why=why)
        self._save()
        return True

    def _save(self) -> None:
        content = {uid: {"address": str(lease.address), "until": lease.until_s} for uid, lease in self._held.items()}
        write_file(self._path, json.dumps(content, indent=1, sort_keys=True).encode())


def _load(path: Path) -> dict[str, Lease]:
    """What was kept; nothing if it cannot be read: endpoints ask again."""
    try:
        content: Mapping[str, Mapping[str, str]] = json.loads(path.read_bytes())
        return {uid: Lease(IPv4Interface(one["address"]), float(one["until"])) for uid, one in content.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _log.error("leases unreadable; endpoints must ask again", path=str(path), why=repr(error))
        return {}
