"""The destination's side of translation: mappings of every kind, hairpins, the host's own sockets, taps."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from reference_kit import (
    EXTERNAL,
    GATEWAY_MAC,
    MAC_3,
    N_3,
    N_GATEWAY,
    NAT_SPACE,
    WORLD,
    deny_in,
    echo,
    frame,
    host,
    layer,
    recomputed,
    rule,
    show,
    tcp,
    udp,
    with_port,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from vfp.compile import Compiler
from vfp.errors import CompileError
from vfp.model import (
    Allow,
    Deny,
    EngineState,
    Filtering,
    Forward,
    Group,
    Hairpin,
    Layer,
    LocalPort,
    Mapping,
    Pool,
    Port,
    PortRange,
    Space,
    ToUplink,
    TranslateSource,
    Untranslate,
    Uplink,
)
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict

MAC_4, N_4 = bytes.fromhex("020000000004"), "192.168.0.4"
LOCALHOST = "127.0.0.1"


def mapping(protocol: int, outside: int, inside: int, *, external: IPv4Address = EXTERNAL, port: int = 3,
            internal: str = N_3, uplink: int = 1, name: str = "") -> Mapping:
    return Mapping(uplink, protocol, external, outside, port, IPv4Address(internal), inside, name)


def hairpin_port(number: int, mac: bytes, *more: Layer) -> Port:
    """A port of the NAT network that hairpins; what is not inside is translated and leaves by the uplink."""
    nat = Layer("nat", (
        Group("hairpin", (rule(10, Allow(), dst="192.168.0.0/24"), rule(20, Hairpin(1)))),
        Group("out", (rule(20, TranslateSource(1)),)),
    ), (Group("only", (rule(10, Untranslate()),)),), Deny(), Allow())
    vnet = layer("vnet", (rule(10, Forward(NAT_SPACE), dst="192.168.0.0/24"), rule(20, ToUplink(1))))
    return Port(number, f"p{number}", 10 + number, mac, GATEWAY_MAC, (*more, nat, vnet))


def pair(*mappings: Mapping, three: tuple[Layer, ...] = (), filtering: Filtering = Filtering.ENDPOINT_INDEPENDENT
         ) -> EngineState:
    """Ports 3 and 4 of one network, on a host whose lo is uplink 2."""
    state = with_port(host(), hairpin_port(3, MAC_3, *three))
    return replace(
        state, ports=(*state.ports, hairpin_port(4, MAC_4)), mappings=mappings,
        spaces=(Space(NAT_SPACE, ((IPv4Address(N_3), LocalPort(3, MAC_3)), (IPv4Address(N_4), LocalPort(4, MAC_4)))),),
        pools=(Pool(1, 1, (EXTERNAL,), PortRange(20000, 20009), filtering),
               Pool(2, 2, (IPv4Address(N_GATEWAY),), PortRange(30000, 30009))),
        uplinks=(Uplink(1, "lan0", 5), Uplink(2, "lo", 1, loopback=True)))


def out(engine: Engine, data: bytes, port: int = 3) -> Result:
    return engine.process(Hook.PORT_OUT, port, data, now_s=0.0)


def back(engine: Engine, data: bytes, uplink: int = 1) -> Result:
    return engine.process(Hook.UPLINK_IN, uplink, data, now_s=0.0)


# Mappings


def test_a_mapping_of_the_port_comes_before_that_of_the_address() -> None:
    engine = Engine(pair(mapping(0, 0, 0, port=4, internal=N_4), mapping(6, 8080, 80)))
    assert back(engine, tcp(WORLD, str(EXTERNAL), 1, 8080)).port == 3
    whole = back(engine, tcp(WORLD, str(EXTERNAL), 1, 8081))
    assert (whole.port, show(whole.frame)[IP].dst, show(whole.frame)[TCP].dport) == (4, N_4, 8081)
    assert whole.frame == recomputed(whole.frame)


@pytest.mark.parametrize("data", [
    frame(WORLD, str(EXTERNAL), Raw(b"generic"), proto=47), udp(WORLD, str(EXTERNAL)), echo(WORLD, str(EXTERNAL)),
    frame(WORLD, str(EXTERNAL), SCTP(sport=1, dport=2)), echo(WORLD, str(EXTERNAL), reply=True),
], ids=["gre", "udp", "echo", "sctp", "echo reply"])
def test_a_whole_address_takes_what_may_have_a_flow(data: bytes) -> None:
    there = back(Engine(pair(mapping(0, 0, 0))), data)
    assert (there.verdict, there.port) == (Verdict.REDIRECT_PORT, 3)
    assert there.frame[34:] == data[34:] or UDP in show(data)
    assert show(there.frame)[IP].dst == N_3


def test_other_icmp_of_a_whole_address_is_left_to_the_host() -> None:
    engine = Engine(pair(mapping(0, 0, 0)))
    assert back(engine, frame(WORLD, str(EXTERNAL), ICMP(type=13) / bytes(12))).verdict is Verdict.STACK


def test_an_echo_is_mapped_by_its_identifier_and_comes_back_with_it() -> None:
    engine = Engine(pair(mapping(1, 700, 7)))
    there = back(engine, echo(WORLD, str(EXTERNAL), 700))
    assert (there.port, show(there.frame)[ICMP].id) == (3, 7)
    answer = out(engine, echo(N_3, WORLD, 7, reply=True, src_mac=MAC_3))
    assert (answer.uplink, show(answer.frame)[ICMP].id, show(answer.frame)[IP].src) == (1, 700, str(EXTERNAL))
    assert answer.frame == recomputed(answer.frame)
    assert back(engine, echo(WORLD, str(EXTERNAL), 701)).verdict is Verdict.STACK


def test_hits_are_counted_by_name_whatever_the_layers_say() -> None:
    refused = (deny_in(dst_ports=PortRange(81, 81)),)
    engine = Engine(pair(mapping(6, 8080, 80, name="web"), mapping(6, 8081, 81, name="web"), three=refused))
    for outside in (8080, 8081, 8082):
        back(engine, tcp(WORLD, str(EXTERNAL), 1, outside))
    back(engine, tcp(WORLD, str(EXTERNAL), 1, 8080))        # of the flow that is there: no decision
    assert engine.mapping_hits == {"web": 2}


@pytest.mark.parametrize(("wrong", "says"), [
    (mapping(132, 80, 81), "SCTP's checksum"), (mapping(0, 80, 0), "has no ports"), (mapping(47, 0, 0), "protocol 47"),
    (mapping(58, 7, 7), "protocol 58 cannot be mapped in IPv4"), (mapping(6, 65536, 80), "out of range"),
    (Mapping(1, 6, EXTERNAL, 80, 3, IPv6Address("::2"), 80), "same family"),
])
def test_a_mapping_that_cannot_work_is_refused(wrong: Mapping, says: str) -> None:
    with pytest.raises(CompileError, match=says):
        Compiler().compile(pair(wrong), 64)


def test_mapped_holds_for_what_came_by_a_mapping_only() -> None:
    only = layer("acl", (), (rule(10, Allow(), mapped=True), rule(20, Deny(), name="no")))
    engine = Engine(pair(mapping(6, 8080, 80), three=(only,)))
    assert back(engine, tcp(WORLD, str(EXTERNAL), 1, 8080)).verdict is Verdict.REDIRECT_PORT
    assert out(engine, tcp(N_4, N_3, src_mac=MAC_4), 4).reason is DropReason.DENIED
    assert out(engine, tcp(N_4, str(EXTERNAL), dport=8080, src_mac=MAC_4), 4).port == 3


# Hairpins


def test_a_mapped_port_is_reached_from_inside_as_from_outside() -> None:
    engine = Engine(pair(mapping(6, 8080, 80)))
    there = out(engine, tcp(N_4, str(EXTERNAL), 20005, 8080, src_mac=MAC_4), 4)
    wanted = tcp(str(EXTERNAL), N_3, 20005, 80, ttl=63, src_mac=GATEWAY_MAC, dst_mac=MAC_3)
    assert (there.verdict, there.port, there.frame) == (Verdict.REDIRECT_PORT, 3, wanted)
    answer = out(engine, tcp(N_3, str(EXTERNAL), 80, 20005, "SA", src_mac=MAC_3))
    wanted = tcp(str(EXTERNAL), N_4, 8080, 20005, "SA", ttl=63, src_mac=GATEWAY_MAC, dst_mac=MAC_4)
    assert (answer.port, answer.frame) == (4, wanted)


def test_a_port_reaches_itself() -> None:
    engine = Engine(pair(mapping(6, 8080, 80)))
    there = out(engine, tcp(N_3, str(EXTERNAL), 20005, 8080))
    assert (there.port, show(there.frame)[IP].src) == (3, str(EXTERNAL))
    answer = out(engine, tcp(N_3, str(EXTERNAL), 80, 20005, "SA"))
    assert (answer.port, show(answer.frame)[TCP].sport) == (3, 8080)


def test_an_error_about_a_hairpin_tells_what_was_sent() -> None:
    engine = Engine(pair(mapping(6, 8080, 80)))
    there = out(engine, tcp(N_4, str(EXTERNAL), 20005, 8080, src_mac=MAC_4), 4)
    error = frame(N_3, str(EXTERNAL), ICMP(type=3, code=3) / there.frame[14:], src_mac=MAC_3)
    told = out(engine, error)
    assert told.port == 4
    seen = show(told.frame)
    assert (seen[IP].src, seen[IP].dst) == (str(EXTERNAL), N_4)
    assert (seen[IPerror].src, seen[IPerror].dst, seen[TCPerror].dport) == (N_4, str(EXTERNAL), 8080)


def test_a_removed_mapping_ends_its_hairpins() -> None:
    state = pair(mapping(6, 8080, 80))
    engine = Engine(state)
    out(engine, tcp(N_4, str(EXTERNAL), 20005, 8080, src_mac=MAC_4), 4)
    engine.update(replace(state, mappings=()))
    assert out(engine, tcp(N_3, str(EXTERNAL), 80, 20005, "SA")).reason is DropReason.FLOW_CHANGED
    assert out(engine, tcp(N_4, str(EXTERNAL), 20005, 8080, "A", src_mac=MAC_4), 4).verdict is Verdict.REDIRECT_UPLINK


def test_what_is_nobodys_goes_on_to_the_next_group() -> None:
    engine = Engine(pair(mapping(6, 8080, 80)))
    assert out(engine, tcp(N_4, str(EXTERNAL), 1, 8081, src_mac=MAC_4), 4).verdict is Verdict.REDIRECT_UPLINK
    assert out(engine, tcp(N_4, WORLD, 1, 8080, src_mac=MAC_4), 4).verdict is Verdict.REDIRECT_UPLINK


@pytest.mark.parametrize(("filtering", "first", "then"), [
    (Filtering.ENDPOINT_INDEPENDENT, DropReason.NONE, DropReason.NONE),
    (Filtering.ADDRESS, DropReason.NAT_FILTERED, DropReason.NONE),
    (Filtering.ADDRESS_PORT, DropReason.NAT_FILTERED, DropReason.NAT_FILTERED),
])
def test_a_binding_is_reached_as_its_filter_lets(filtering: Filtering, first: DropReason, then: DropReason) -> None:
    """The remote is the sender's own external side: who speaks to it from inside makes it a contact."""
    engine = Engine(pair(filtering=filtering))
    out(engine, udp(N_3, WORLD, 20003))
    out(engine, udp(N_4, WORLD, 20004, src_mac=MAC_4), 4)
    to_three, to_four = (udp(N_4, str(EXTERNAL), 20004, 20003, src_mac=MAC_4), udp(N_3, str(EXTERNAL), 20003, 20004))
    assert out(engine, to_three, 4).reason is first
    if first:
        out(engine, udp(N_3, str(EXTERNAL), 20003, 9))      # to an external side of ours: nobody has this one
        assert out(engine, to_three, 4).reason is then
    if not then:
        found = out(engine, to_three, 4)
        assert (found.port, show(found.frame)[IP].src, show(found.frame)[UDP].sport) == (3, str(EXTERNAL), 20004)
        assert out(engine, to_four).port == 4


def test_a_mapping_comes_before_a_binding() -> None:
    engine = Engine(pair(mapping(17, 20003, 53)))
    out(engine, udp(N_4, WORLD, 20003, src_mac=MAC_4), 4)
    assert out(engine, udp(N_4, str(EXTERNAL), 20009, 20003, src_mac=MAC_4), 4).port == 3


# The host's own sockets


def local_in() -> Layer:
    """What came from 127.0.0.1 is told an address that an endpoint can answer."""
    return layer("host", (), (rule(10, TranslateSource(2), src="127.0.0.0/8"),))


def test_localhost_reaches_a_mapping_and_has_its_answer() -> None:
    engine = Engine(pair(mapping(6, 8080, 80, external=IPv4Address(LOCALHOST), uplink=2), three=(local_in(),)))
    zero = bytes(6)
    there = back(engine, tcp(LOCALHOST, LOCALHOST, 30005, 8080, src_mac=zero, dst_mac=zero), 2)
    assert there.frame == tcp(N_GATEWAY, N_3, 30005, 80, ttl=63, src_mac=GATEWAY_MAC, dst_mac=MAC_3)
    answer = out(engine, tcp(N_3, N_GATEWAY, 80, 30005, "SA"))
    assert (answer.verdict, answer.uplink) == (Verdict.REDIRECT_UPLINK, 2)
    assert answer.frame == tcp(LOCALHOST, LOCALHOST, 8080, 30005, "SA", ttl=63, src_mac=zero, dst_mac=zero)


@pytest.mark.parametrize("source", [LOCALHOST, "127.9.9.9"])
def test_nobody_on_a_wire_is_localhost(source: str) -> None:
    engine = Engine(pair(mapping(6, 8080, 80)))
    assert back(engine, tcp(source, str(EXTERNAL), 1, 8080)).verdict is Verdict.STACK


def test_the_source_is_translated_inwards_only_from_an_uplink() -> None:
    every = layer("host", (), (rule(10, TranslateSource(2)),))
    engine = Engine(pair(three=(every,)))
    assert out(engine, tcp(N_4, N_3, src_mac=MAC_4), 4).reason is DropReason.NAT_UNSUPPORTED
    stack = engine.process(Hook.PORT_IN, 3, tcp(N_GATEWAY, N_3), now_s=0.0)
    assert stack.reason is DropReason.NAT_UNSUPPORTED


def test_a_change_of_the_way_to_the_host_or_of_a_tap_is_decided_again() -> None:
    state = pair()
    engine = Engine(state)
    assert engine.update(replace(state, uplinks=(state.uplinks[0], Uplink(2, "lo", 1)))) == {1, 2, 3, 4}
    assert engine.update(with_port(engine.state, replace(engine.state.ports[2], tap=True))) == {3}
