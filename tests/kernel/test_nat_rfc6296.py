"""RFC 6296, IPv6-to-IPv6 network prefix translation: in both engines (docs/nat.md has the table)."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network

import pytest
from nat_rfc_kit import A, Bpf, Host, Prefixes, Reference, state
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6TimeExceeded, IPv6
from scapy.packet import Packet, Raw

from vfp.reasons import DropReason

WORLD, ROUTER = "2001:db8:ffff::7", "2001:db8:ffff::1"
# (internal, external, an address inside, as the world sees it). The first is RFC 6296's own, of its appendix B.
KNOWN = [
    ("fd01:203:405::/48", "2001:db8:1::/48", "fd01:203:405:1::1234", "2001:db8:1:d550::1234"),
    ("fd01:203:405::/48", "2001:db8:1::/48", "fd01:203:405:ffff::5", None),
    ("fd00:1:2:3::/64", "2001:db8:9:7::/64", "fd00:1:2:3:aaaa:bbbb:cccc:dddd", ""),
    ("fd00:1:2:3::/64", "2001:db8:9:7::/64", "fd00:1:2:3:ffff:bbbb:cccc:dddd", ""),
    ("fd00:1:2:3::/64", "2001:db8:9:7::/64", "fd00:1:2:3:ffff:ffff:ffff:ffff", None),
    ("fd00:1:2:3::/60", "2001:db8:9:70::/60", "fd00:1:2:9:1::1", ""),
]


@pytest.fixture(scope="module", params=[Reference, Bpf], ids=["reference", "bpf"])
def backend(request: pytest.FixtureRequest) -> Iterator[Reference | Bpf]:
    made = request.param()
    yield made
    if isinstance(made, Bpf):
        made.close()


def _load(backend: Reference | Bpf, internal: str, external: str, inside: str) -> Host:
    prefixes = Prefixes(IPv6Network(internal, strict=False), IPv6Network(external, strict=False), IPv6Address(inside))
    return Host(backend).load(state(prefix=prefixes))


def _sum(address: str) -> int:
    """The ones' complement sum of the address's words, 0 and 0xFFFF being one number."""
    return sum(int(IPv6Address(address)) >> shift & 0xFFFF for shift in range(0, 128, 16)) % 0xFFFF


def _transports() -> list[Packet]:
    return [UDP(sport=5000, dport=53) / b"12345678", TCP(sport=5000, dport=80), ICMPv6EchoRequest(id=7) / b"ping"]


@pytest.mark.parametrize(("internal", "external", "inside", "outside"), KNOWN)
def test_3_1_the_address_changes_and_no_checksum_does(
        backend: Reference | Bpf, internal: str, external: str, inside: str, outside: str | None) -> None:
    host = _load(backend, internal, external, inside)
    for transport in _transports():
        sent = host.out(IPv6(src=inside, dst=WORLD) / transport, A)
        if outside is None:                 # 3.1 and 3.5: no word is left that may be changed
            assert (sent.verdict, sent.reason) == ("drop", DropReason.NAT_UNSUPPORTED)
            continue
        seen = sent.packet[IPv6].src
        assert sent.verdict == "redirect_uplink"
        assert IPv6Address(seen) in IPv6Network(external, strict=False)
        assert not outside or seen == outside
        assert _sum(seen) == _sum(inside)
        assert bytes(sent.packet[IPv6].payload) == bytes(IPv6(bytes(IPv6(src=inside, dst=WORLD) / transport)).payload)


@pytest.mark.parametrize(("internal", "external", "inside", "outside"), [each for each in KNOWN if each[3] is not None])
def test_3_2_back_is_the_inverse_and_needs_nothing_to_have_gone_out(
        backend: Reference | Bpf, internal: str, external: str, inside: str, outside: str) -> None:
    seen = _load(backend, internal, external, inside).out(
        IPv6(src=inside, dst=WORLD) / UDP(sport=5000, dport=53), A).packet[IPv6].src
    host = _load(backend, internal, external, inside)           # which knows no flow
    came = host.back(IPv6(src=WORLD, dst=seen) / UDP(sport=999, dport=5000) / b"unasked.")
    assert (came.verdict, came.target, came.packet[IPv6].dst) == ("redirect_port", 3, inside)
    answered = host.out(IPv6(src=inside, dst=WORLD) / UDP(sport=5000, dport=999), A)
    assert answered.packet[IPv6].src == seen


def test_ports_and_identifiers_stay(backend: Reference | Bpf) -> None:
    host = _load(backend, *KNOWN[0][:3])
    for transport in _transports():
        sent = host.out(IPv6(src=KNOWN[0][2], dst=WORLD) / transport, A)
        assert sent.packet[IPv6].payload.fields.get("sport", 5000) == 5000
    reply = host.back(IPv6(src=WORLD, dst=KNOWN[0][3]) / ICMPv6EchoReply(id=7) / b"ping")
    assert (reply.target, reply.packet[ICMPv6EchoReply].id) == (3, 7)


def test_4_an_error_from_outside_is_about_what_was_sent_inside(backend: Reference | Bpf) -> None:
    inside, outside = KNOWN[0][2], KNOWN[0][3]
    host = _load(backend, *KNOWN[0][:3])
    sent = host.out(IPv6(src=inside, dst=WORLD) / UDP(sport=5000, dport=53) / b"12345678", A)
    about = bytes(sent.packet[IPv6])
    told = host.back(IPv6(src=ROUTER, dst=outside) / ICMPv6TimeExceeded() / Raw(about))
    assert (told.verdict, told.target, told.packet[IPv6].dst) == ("redirect_port", 3, inside)
    assert IPv6(told.frame[14 + 40 + 8:]).src == inside


def test_no_state_is_shared_between_endpoints_or_lost_with_time(backend: Reference | Bpf) -> None:
    host = _load(backend, *KNOWN[0][:3])
    first = host.out(IPv6(src=KNOWN[0][2], dst=WORLD) / UDP(sport=5000, dport=53), A).packet[IPv6].src
    host.idle(100_000)
    assert not host.backend.flows()
    assert host.out(IPv6(src=KNOWN[0][2], dst=WORLD) / UDP(sport=5001, dport=53), A).packet[IPv6].src == first
