"""Places, ARP answers and the drops of the engine as a whole."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from reference_kit import (
    A_1,
    A_2,
    A_9,
    A_GATEWAY,
    GATEWAY_MAC,
    MAC_1,
    MAC_2,
    MAC_9,
    VNI,
    VTEP,
    arp,
    echo,
    host,
    layer,
    rule,
    show,
    tcp,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether

from vfp.model import Allow, Deny, Forward, Port, Rewrite
from vfp.reasons import DropReason
from vfp.reference import Engine, Hook, Result, Verdict
from vfp.reference.zones import zone_of


def go(data: bytes, engine: Engine | None = None) -> Result:
    return (engine or Engine(host())).process(Hook.PORT_OUT, 1, data, now_s=0.0)


def test_zones_are_kind_and_number() -> None:
    zones = [int(zone_of(hook, 5)) for hook in (Hook.PORT_OUT, Hook.OVERLAY_IN, Hook.UPLINK_IN, Hook.PORT_IN)]
    assert zones == [5, 1 << 24 | 5, 2 << 24 | 5, 3 << 24 | 5]
    with pytest.raises(ValueError, match="must be 0"):
        zone_of(Hook.PORT_OUT, 1 << 24)


def test_to_a_local_port_the_destination_mac_is_set_and_the_source_kept() -> None:
    result = go(tcp(A_1, A_2))
    assert result.frame == tcp(A_1, A_2, dst_mac=MAC_2)


def test_to_a_remote_the_frame_is_for_its_mac_and_its_vtep() -> None:
    result = go(echo(A_1, A_9))
    assert (result.verdict, result.vni, result.vtep) == (Verdict.TUNNEL, VNI, VTEP)
    assert result.frame == echo(A_1, A_9, dst_mac=MAC_9)


@pytest.mark.parametrize(("data", "reason"), [
    (b"x", DropReason.MALFORMED_ETHERNET),
    (bytes(Ether() / Dot1Q()), DropReason.VLAN_TAGGED),
    (arp(A_1, A_2)[:30], DropReason.MALFORMED_ARP),
    (tcp(A_1, A_2)[:30], DropReason.MALFORMED_IPV4),
    (tcp(A_1, A_2, frag=1), DropReason.FRAGMENT_UNKNOWN),
    (tcp(A_1, "10.1.0.50"), DropReason.NO_MAPPING),
    (tcp(A_1, A_GATEWAY), DropReason.NO_MAPPING),
])
def test_drops_have_their_reason_and_are_counted(data: bytes, reason: DropReason) -> None:
    engine = Engine(host())
    result = go(data, engine)
    assert (result.verdict, result.reason, result.frame, result.drop_port) == (Verdict.DROP, reason, data, 1)
    assert engine.drop_counts == {reason: 1}


def test_an_unknown_port_is_closed() -> None:
    engine = Engine(host())
    for hook in (Hook.PORT_OUT, Hook.PORT_IN):
        assert engine.process(hook, 77, tcp(A_1, A_2), now_s=0.0).reason is DropReason.UNKNOWN_PORT


def test_a_port_whose_layers_name_no_place_has_no_route() -> None:
    state = host()
    silent = replace(state, ports=(Port(1, "p1", 11, MAC_1, GATEWAY_MAC, ()),))
    assert go(tcp(A_1, A_2), Engine(silent)).reason is DropReason.NO_ROUTE


def test_without_a_tunnel_device_a_remote_has_no_route() -> None:
    assert go(tcp(A_1, A_9), Engine(replace(host(), tunnel_ifindex=0))).reason is DropReason.NO_ROUTE


def test_the_last_place_wins() -> None:
    elsewhere = replace(host().spaces[0], id=200, entries=((IPv4Address(A_2), host().spaces[0].entries[2][1]),))
    state = host(one=(layer("early", (rule(10, Forward(200)),)),))
    engine = Engine(replace(state, spaces=(*state.spaces, elsewhere)))
    assert go(tcp(A_1, A_2), engine).port == 2


# ARP.


@pytest.mark.parametrize(("target", "mac"), [(A_2, MAC_2), (A_9, MAC_9), (A_GATEWAY, GATEWAY_MAC)])
def test_arp_is_answered_from_the_space(target: str, mac: bytes) -> None:
    result = go(arp(A_1, target) + bytes(18))
    assert (result.verdict, result.port) == (Verdict.REPLY, 1)
    answer = show(result.frame)
    assert (answer.dst, answer.src) == (MAC_1.hex(":"), mac.hex(":"))
    assert (answer[ARP].op, answer[ARP].hwsrc, answer[ARP].psrc) == (2, mac.hex(":"), target)
    assert (answer[ARP].hwdst, answer[ARP].pdst) == (MAC_1.hex(":"), A_1)
    assert len(result.frame) == 60


@pytest.mark.parametrize("data", [
    arp(A_1, A_9, opcode=2),
    arp(A_1, "10.1.0.50"),
    arp(A_1, A_1),
    arp("0.0.0.0", A_1),
    arp("10.1.0.50", A_1),
], ids=["reply", "unknown", "announcement", "probe of its own address", "its own address"])
def test_arp_that_is_not_answered(data: bytes) -> None:
    assert go(data).reason is DropReason.ARP_UNANSWERED


def test_a_probe_of_a_taken_address_is_answered() -> None:
    assert go(arp("0.0.0.0", A_2)).verdict is Verdict.REPLY


def test_a_later_layer_may_still_deny_the_answer() -> None:
    state = host()
    port = state.ports[0]
    denied = replace(port, layers=(*port.layers, layer("last", (rule(10, Deny()),))))
    assert go(arp(A_1, A_9), Engine(replace(state, ports=(denied,)))).reason is DropReason.DENIED


def test_what_has_no_such_field_cannot_be_rewritten() -> None:
    for data, to in ((arp(A_1, A_2), Rewrite(src=IPv4Address(A_9))), (echo(A_1, A_2), Rewrite(dst_port=5))):
        engine = Engine(host(one=(layer("lb", (rule(10, to),)),)))
        assert go(data, engine).reason is DropReason.NAT_UNSUPPORTED


def test_allowing_layers_change_nothing() -> None:
    engine = Engine(host(one=(layer("acl", (rule(10, Allow()),)),)))
    assert go(tcp(A_1, A_2), engine).frame == go(tcp(A_1, A_2)).frame
