"""Prefix translation (RFC 6296): the algorithm, and how it goes through the engine."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from vfp.compile import Compiler
from vfp.errors import CompileError
from vfp.layout import PREFIX
from vfp.model import (
    Allow,
    EngineState,
    Group,
    Layer,
    LocalPort,
    Match,
    Port,
    PrefixMapping,
    Rule,
    Space,
    ToUplink,
    TranslatePrefix,
    Untranslate,
    Uplink,
)
from vfp.prefixes import translation_row
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict
from vfp.reference.prefix import translate

LENGTHS = st.one_of(st.integers(1, 64), st.sampled_from((32, 47, 48, 49, 56, 60, 63, 64)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[IPv6Network, IPv6Network]:
    """Two prefixes of one length, words of all ones and all zeros among them."""
    length = draw(LENGTHS)
    word = st.one_of(st.integers(0, 0xFFFF), st.sampled_from((0, 1, 0xFFFE, 0xFFFF)))

    def prefix() -> IPv6Network:
        value = int("".join(f"{draw(word):04x}" for _ in range(8)), 16)
        return IPv6Network((value >> (128 - length) << (128 - length), length))

    return prefix(), prefix()


def of(prefix: IPv6Network, rest: int) -> IPv6Address:
    """An address in a prefix."""
    return IPv6Address(int(prefix.network_address) | rest & int(prefix.hostmask))


rests = st.one_of(st.integers(0, 2**128 - 1), st.integers(0, 7).map(lambda words: (1 << 16 * words) - 1),
                  st.lists(st.sampled_from((0, 1, 0xFFFF)), min_size=8, max_size=8).map(
                      lambda words: int("".join(f"{word:04x}" for word in words), 16)))


def ones_sum(address: IPv6Address) -> int:
    """Sum of the words in one's complement: what any checksum over the address sees."""
    return sum(int.from_bytes(address.packed[i:i + 2], "big") for i in range(0, 16, 2)) % 0xFFFF


def test_the_example_of_the_rfc() -> None:
    """RFC 6296 3.6: adjustment 0xD54F, so subnet 1 becomes 0xD550."""
    internal, external = IPv6Network("fd01:203:405::/48"), IPv6Network("2001:db8:1::/48")
    inside, outside = IPv6Address("fd01:203:405:1::1234"), IPv6Address("2001:db8:1:d550::1234")
    assert translate(inside, internal, external) == outside
    assert translate(outside, external, internal) == inside
    row = translation_row(TranslatePrefix(internal, external))
    assert row[PREFIX.fields["adjustment"][1]:][:2] == b"\xd5\x4f"  # type: ignore[index]


@given(pairs(), rests)
def test_to_and_fro_is_the_identity_and_no_checksum_changes(
    pair: tuple[IPv6Network, IPv6Network], rest: int
) -> None:
    internal, external = pair
    inside = of(internal, rest)
    outside = translate(inside, internal, external)
    assume(outside is not None)
    assert outside is not None
    assert outside in external
    assert ones_sum(outside) == ones_sum(inside)
    assert translate(outside, external, internal) == inside


@given(pairs(), rests)
def test_an_address_has_no_image_only_if_no_word_can_make_up_for_the_change(
    pair: tuple[IPv6Network, IPv6Network], rest: int
) -> None:
    internal, external = pair
    words = [int.from_bytes(of(internal, rest).packed[i:i + 2], "big") for i in range(0, 16, 2)]
    hopeless = words[3] == 0xFFFF if internal.prefixlen <= 48 else words[4:] == [0xFFFF] * 4
    assert (translate(of(internal, rest), internal, external) is None) == hopeless


# Through the engine.

INTERNAL, EXTERNAL = IPv6Network("fd00:250::/64"), IPv6Network("2001:db8:1:2::/64")
INSIDE, WORLD = IPv6Address("fd00:250::5"), "2001:db8:ffff::7"
OUTSIDE = translate(INSIDE, INTERNAL, EXTERNAL)
MAC, GATEWAY_MAC, ROUTER = b"\2\0\0\0\0\1", b"\2\0\0\0\0\xfe", b"\2\0\0\0\0\xaa"


def host(mapping: PrefixMapping | None = None, allow_in: bool = True) -> EngineState:
    nat = Layer("nat", (Group("nat", (Rule(0, Match(), TranslatePrefix(INTERNAL, EXTERNAL), "prefix"),)),),
                (Group("nat", (Rule(0, Match(), Untranslate(), "back"),)),) if allow_in else (),
                default_in=Allow())
    vnet = Layer("vnet", (Group("vnet", (Rule(0, Match(), ToUplink(1), "out"),)),), (), default_in=Allow())
    return EngineState(
        ports=(Port(1, "p1", 11, MAC, GATEWAY_MAC, (nat, vnet)),), uplinks=(Uplink(1, "up", 51),),
        spaces=(Space(7, ((INSIDE, LocalPort(1, MAC)),)),),
        prefixes=(mapping or PrefixMapping(1, EXTERNAL, INTERNAL, 7),))


def ip(src: object, dst: object, body: Packet) -> bytes:
    own = str(src) == str(INSIDE)
    return bytes(Ether(src=MAC if own else ROUTER, dst=GATEWAY_MAC) / IPv6(src=str(src), dst=str(dst)) / body)


def out(engine: Engine, body: Packet, src: object = INSIDE) -> Result:
    return engine.process(Hook.PORT_OUT, 1, ip(src, WORLD, body), now_s=0.0)


def back(engine: Engine, body: Packet, dst: object = OUTSIDE, uplink: int = 1) -> Result:
    return engine.process(Hook.UPLINK_IN, uplink, ip(WORLD, dst, body), now_s=0.0)


def summed(frame: bytes) -> bool:
    """Scapy computes the checksum that the frame has."""
    fresh = Ether(frame)
    for layer in (TCP, UDP):
        if layer in fresh:
            del fresh[layer].chksum
    if ICMPv6EchoRequest in fresh:
        del fresh[ICMPv6EchoRequest].cksum
    return bytes(fresh) == frame


@pytest.mark.parametrize("body", [TCP(sport=5, dport=80), UDP(sport=5, dport=53) / Raw(b"hi"), ICMPv6EchoRequest(id=7)])
def test_the_source_changes_and_nothing_else_does(body: Packet) -> None:
    engine = Engine(host())
    there = out(engine, body)
    assert (there.verdict, there.uplink) == (Verdict.REDIRECT_UPLINK, 1)
    seen, sent = Ether(there.frame)[IPv6], Ether(ip(INSIDE, WORLD, body))[IPv6]
    assert seen.src == str(OUTSIDE)
    assert bytes(seen.payload) == bytes(sent.payload), "the checksum too"
    assert summed(there.frame)
    assert engine.bindings.live() == []


def test_the_world_may_begin() -> None:
    engine = Engine(host())
    there = back(engine, TCP(sport=9, dport=80))
    assert (there.verdict, there.port) == (Verdict.REDIRECT_PORT, 1)
    assert Ether(there.frame)[IPv6].dst == str(INSIDE)
    answer = engine.process(Hook.PORT_OUT, 1, ip(INSIDE, WORLD, TCP(sport=80, dport=9, flags="SA")), now_s=0.0)
    assert Ether(answer.frame)[IPv6].src == str(OUTSIDE)
    assert len(engine.flows(0.0)) == 2


def test_an_answer_is_of_the_flow_that_went_out() -> None:
    engine = Engine(host())
    out(engine, ICMPv6EchoRequest(id=7))
    there = back(engine, ICMPv6EchoReply(id=7))
    assert (there.verdict, Ether(there.frame)[IPv6].dst) == (Verdict.REDIRECT_PORT, str(INSIDE))
    assert len(engine.flows(0.0)) == 2


def test_without_untranslate_the_endpoint_sees_its_external_address() -> None:
    there = back(Engine(host(allow_in=False)), TCP(sport=9, dport=80))
    assert (there.verdict, Ether(there.frame)[IPv6].dst) == (Verdict.REDIRECT_PORT, str(OUTSIDE))


def test_an_error_quotes_what_the_endpoint_had_sent() -> None:
    engine = Engine(host())
    there = out(engine, UDP(sport=5, dport=53) / Raw(b"payload"))
    error = back(engine, ICMPv6PacketTooBig(mtu=1280) / Raw(bytes(Ether(there.frame)[IPv6])))
    seen = Ether(error.frame)[IPv6]
    assert (error.verdict, seen.dst) == (Verdict.REDIRECT_PORT, str(INSIDE))
    assert bytes(seen[ICMPv6PacketTooBig].payload)[8:24] == INSIDE.packed
    checksum = seen[ICMPv6PacketTooBig].cksum
    del seen[ICMPv6PacketTooBig].cksum
    assert IPv6(bytes(seen))[ICMPv6PacketTooBig].cksum == checksum


@pytest.mark.parametrize(("body", "src"), [
    (TCP(), "fd00:251::5"), (TCP(), "fd00:250::ffff:ffff:ffff:ffff"),
    (ICMPv6PacketTooBig() / Raw(bytes(IPv6(src=WORLD, dst=str(INSIDE)) / UDP())), INSIDE),
], ids=["not in the prefix", "no word left", "an error about nothing"])
def test_what_has_no_image_is_dropped(body: Packet, src: object) -> None:
    assert out(Engine(host()), body, src).reason is DropReason.NAT_UNSUPPORTED


@pytest.mark.parametrize(("dst", "uplink"), [
    (OUTSIDE, 2), (EXTERNAL[6], 1), ("2001:db8:1:3::5", 1), ("2001:db8:1:2:ffff:ffff:ffff:ffff", 1),
], ids=["another uplink", "nobody there", "another prefix", "no image"])
def test_what_is_not_ours_is_left_to_the_stack(dst: object, uplink: int) -> None:
    assert back(Engine(host()), TCP(), dst, uplink).verdict is Verdict.STACK


def test_the_longest_prefix_counts_and_its_end_ends_its_flows() -> None:
    wide = PrefixMapping(1, IPv6Network("2001:db8:1::/48"), IPv6Network("fd00:9::/48"), 7)
    state = host()
    engine = Engine(replace(state, prefixes=(wide, *state.prefixes)))
    assert back(engine, TCP(sport=9, dport=80)).verdict is Verdict.REDIRECT_PORT
    engine.update(replace(state, prefixes=(wide,)))
    assert back(engine, TCP(sport=9, dport=80, flags="A")).reason is DropReason.NO_MAPPING


@pytest.mark.parametrize(("internal", "external", "words"), [
    ("fd00:250::/64", "2001:db8::/56", "not of one length; extend the shorter"),
    ("fd00:250::/65", "2001:db8::/65", r"length 65; use 1\.\.64"),
    ("::/0", "::/0", r"length 0; use 1\.\.64"),
])
def test_prefixes_that_cannot_be_translated_are_refused(internal: str, external: str, words: str) -> None:
    mapping = PrefixMapping(1, IPv6Network(external), IPv6Network(internal), 7)
    with pytest.raises(CompileError, match=words):
        Compiler().compile(host(mapping), 64)


def test_one_external_prefix_has_one_internal_one() -> None:
    state = host()
    with pytest.raises(CompileError, match="given twice for uplink 1"):
        Compiler().compile(replace(state, prefixes=(*state.prefixes, PrefixMapping(1, EXTERNAL, INTERNAL, 8))), 64)
