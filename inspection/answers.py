"""DNS messages, as far as policy needs them: what was asked, and which addresses the answer gives (RFC 1035)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from inspection.names import normal
from vfp.model import Address

__all__ = ["MAX_ADDRESSES", "Found", "Question", "addresses_of", "question_of"]

MAX_CHAIN = 16                              # aliases that are followed
MAX_ADDRESSES = 256                         # of one answer
_ASKED = {dns.rdatatype.A, dns.rdatatype.AAAA, dns.rdatatype.ANY}


@dataclass(frozen=True, slots=True)
class Question:
    """What identifies a question and its answer on one flow. `name` is in normal form."""

    id: int
    name: str
    type: int


@dataclass(frozen=True, slots=True)
class Found:
    """The addresses of a name, and for how long they may be kept: the least TTL on the way to them."""

    addresses: tuple[Address, ...]
    ttl_s: int


def question_of(message: bytes) -> tuple[Question, bool] | None:
    """The one question of a message, and whether the message is its answer; None: not such a message."""
    try:
        parsed = dns.message.from_wire(message, question_only=True, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return None
    if len(parsed.question) != 1 or parsed.question[0].rdclass != dns.rdataclass.IN or parsed.opcode():
        return None
    asked = parsed.question[0]
    return Question(parsed.id, _text(asked.name), int(asked.rdtype)), bool(parsed.flags & dns.flags.QR)


def addresses_of(message: bytes) -> Found:
    """Addresses that an answer has for the name that was asked: its own, or those at the end of its aliases.

    What the answer says of other names does not count, nor do addresses that no peer has: loopback, unspecified,
    link-local and multicast ones.
    """
    nothing = Found((), 0)
    try:
        parsed = dns.message.from_wire(message, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return nothing
    if parsed.rcode() or len(parsed.question) != 1 or parsed.question[0].rdtype not in _ASKED:
        return nothing
    aliases: dict[dns.name.Name, dns.rrset.RRset] = {}
    there: dict[dns.name.Name, list[dns.rrset.RRset]] = {}
    for given in parsed.answer:
        if given.rdclass != dns.rdataclass.IN:
            continue
        if given.rdtype == dns.rdatatype.CNAME:
            aliases.setdefault(given.name, given)
        elif given.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            there.setdefault(given.name, []).append(given)
    name, ttls = parsed.question[0].name, []
    for _ in range(MAX_CHAIN):
        if name in there or name not in aliases:
            break
        ttls.append(aliases[name].ttl)
        name = aliases[name][0].target
    found: dict[Address, None] = {}
    for given in there.get(name, []):
        ttls.append(given.ttl)
        for record in given:
            address = ip_address(record.address)
            if _is_a_peers(address):
                found[address] = None
    return Found(tuple(found)[:MAX_ADDRESSES], min(ttls)) if found else nothing


def _is_a_peers(address: IPv4Address | IPv6Address) -> bool:
    return not (address.is_loopback or address.is_unspecified or address.is_link_local or address.is_multicast
                or address == IPv4Address("255.255.255.255"))


def _text(name: dns.name.Name) -> str:
    return normal(name.to_text())
