"""Switched spaces for generated policies: stations, wires, flooding, and how ports that use them send."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import strategies as st

from vfp.model import (
    Action,
    Allow,
    AnswerArp,
    Deny,
    Flooding,
    Forward,
    Group,
    Layer,
    Match,
    Rate,
    Rule,
    Space,
    Switch,
    ToUplink,
    Wire,
)

WIRED = 1                                   # the uplink that never leads to the host's own sockets
ROUTERS = (None, IPv4Address("203.0.113.1"), IPv6Address("2001:db8::203.0.113.1"))
UNBOUND = Rate(1 << 31, 1)                  # no time that a test could meet

VLANS = (5, 6)

pick = st.sampled_from


def tagged(frame: bytes, vlan: int) -> bytes:
    """A frame with an 802.1Q tag of some priority."""
    return frame[:12] + (0x8100_2000 | vlan).to_bytes(4, "big") + frame[12:]


def switch_actions(spaces: tuple[int, ...], uplinks: tuple[int, ...]) -> st.SearchStrategy[Action]:
    """What OUT rules may say of all this."""
    return st.one_of(
        st.builds(Switch, pick(spaces)), st.builds(AnswerArp, pick(spaces), st.just(True)),
        st.builds(ToUplink, pick(uplinks), st.booleans(), pick(ROUTERS)))


def switch_tail(space: int) -> tuple[Layer, ...]:
    """A machine on a segment."""
    return (Layer("vnet", (Group("vnet", (Rule(0, Match(), Switch(space), "switch"),)),), (), Deny(), Allow()),)


def bridge_tail(space: int, via: IPv4Address | None = None) -> tuple[Layer, ...]:
    """On the host's segment, in the host's name; `via`: everything by one router."""
    inside = () if via else (
        Rule(2, Match(dst=IPv4Network("10.1.0.0/30")), Forward(space), "inside"),
        Rule(3, Match(dst=IPv6Network("2001:db8::a01:0/126")), Forward(space), "inside 6"))
    return (Layer("vnet", (Group("vnet", (
        Rule(0, Match(ethertype=0x0806), AnswerArp(space, proxy=True), "arp"),
        Rule(1, Match(protocol=58, icmp_type=135), AnswerArp(space, proxy=True), "nd"),
        *inside,
        Rule(4, Match(ethertype=0x86DD), ToUplink(WIRED, bridged=True, via=ROUTERS[2] if via else None), "out 6"),
        Rule(5, Match(), ToUplink(WIRED, bridged=True, via=via), "out"),
    )),), (), Deny(), Allow()),)


@st.composite
def switched(draw: st.DrawFn, spaces: tuple[Space, ...], macs: tuple[bytes, ...], ports: tuple[int, ...],
             vteps: tuple[IPv4Address, ...]) -> tuple[Space, ...]:
    """Spaces that got stations, wires and flooding, without contradiction: a MAC is at one place of all."""
    wires = draw(st.permutations([None, Wire(WIRED), Wire(WIRED, proxy=True)]))
    if draw(pick((False, False, True))):
        wires = [Wire(WIRED), Wire(WIRED), None]
    held: dict[int, list[tuple[bytes, int]]] = {}
    for mac in macs:
        own = macs.index(mac) + 1
        held.setdefault(draw(st.integers(0, len(spaces))), []).append(
            (mac, own if own in ports and draw(pick((True, True, True, False))) else draw(pick(ports))))
    out = []
    for number, space in enumerate(spaces):
        floods = draw(pick((None, UNBOUND)))
        out.append(replace(
            space, stations=tuple(held.get(number, ())), wire=wires[number % len(wires)],
            flooding=floods and Flooding(floods, space.id & 0xFFFFFF, draw(pick(((), vteps))))))
    return tuple(out)
