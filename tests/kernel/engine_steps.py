"""Generated histories of a host: frames in, answers to what left, policy changes, time; and what runs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from engine_frames import (
    ACK,
    FIN,
    ICMP,
    ICMPV6,
    RST,
    SCTP,
    SYN,
    TCP,
    UDP,
    ArpFrame,
    IpFrame,
    icmp_error,
    nd_frame,
    read_first,
    read_ip,
)
from engine_prefixes import targets
from engine_states import (
    ADDRESSES,
    ALL_MACS,
    BROADCAST,
    DYNAMIC_SET,
    EXITS,
    EXTERNAL,
    GATEWAY,
    GATEWAY_MAC,
    INSIDE,
    INSIDE_6,
    LOCALHOST,
    LOCALHOST_6,
    MACS,
    NAT_SPACE,
    PORT_IDS,
    PREFIXES,
    PREFIXES_6,
    PROTOCOLS,
    STATIC_SETS,
    TO_UPLINK,
    TRANSPORT_PORTS,
    UPLINK_MACS,
    UPLINKS,
    VNIS,
    VTEPS,
    WORLD,
    changes,
    four,
    guard,
    linked,
    members,
    pick,
    places_of,
    set_states,
    six,
    states,
    with_place,
)
from engine_switching import VLANS, WIRED, bridge_tail, switch_tail, switched, tagged
from hypothesis import strategies as st

from vfp.model import Address, EngineState, HostStack, LocalPort, Location, Mapping, Prefix, Remote
from vfp.reference import Engine, Hook, Result, Verdict
from vfp.reference.vlans import untagged
from vfp.reference.zones import zone_of

HOMES: tuple[Location, ...] = (
    *(LocalPort(number, MACS[number]) for number in PORT_IDS),
    *(Remote(vtep, vni, MACS[5]) for vtep in VTEPS for vni in VNIS),
    HostStack(GATEWAY_MAC),
)
INSPECTED, RELEASED = 1, 3                  # enum inspected
FLAGS = (SYN, SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK, FIN, 0)


@dataclass(frozen=True, slots=True)
class Send:
    """A frame enters."""

    hook: Hook
    number: int
    frame: bytes
    vtep: Address | None = None
    inspected: int = 0                      # back from user space: INSPECTED or RELEASED


@dataclass(frozen=True, slots=True)
class Return:
    """User space lets an earlier frame go on that it was shown, perhaps changed; or one that it never saw."""

    back: int
    release: bool
    change: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """An earlier frame once more; TCP with other flags, and perhaps from another port."""

    back: int
    tcp_flags: int
    source_port: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The receiver of an earlier frame answers; over the overlay perhaps from another host than the right one."""

    back: int
    tcp_flags: int
    other_vtep: bool = False
    stranger: str = ""                      # not who was asked, but another "port" or "address" of the world


@dataclass(frozen=True, slots=True)
class Continue:
    """A later fragment of an earlier frame, if that was a first one; `at` and `units` count 8 bytes."""

    back: int
    at: int
    units: int
    last: bool


@dataclass(frozen=True, slots=True)
class Complain:
    """The receiver of an earlier frame, or (`source`) someone on the way to it, sends an ICMP error about it."""

    back: int
    kind: int
    code: int
    quoted_bytes: int
    source: IPv4Address | None = None       # or its twin
    to: IPv4Address | None = None           # not who sent it


@dataclass(frozen=True, slots=True)
class Update:
    """The policy changes."""

    state: EngineState


@dataclass(frozen=True, slots=True)
class Rehome:
    """The policy changes where an earlier frame went: its destination is somewhere else, in every space."""

    back: int
    place: Location


@dataclass(frozen=True, slots=True)
class Wait:
    """Time passes, then the sweep runs."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Join:
    """Members come into the dynamic set, or get another end."""

    members: tuple[Prefix, ...]
    ttl_s: float | None                     # a very short one is over at once
    redecide: bool = True


@dataclass(frozen=True, slots=True)
class Leave:
    """Members leave the dynamic set, if they are in it."""

    members: tuple[Prefix, ...]
    redecide: bool = True


Step = Send | Return | Again | Answer | Continue | Complain | Update | Rehome | Join | Leave | Wait


@dataclass(frozen=True, slots=True)
class History:
    """A state and what happens under it."""

    state: EngineState
    steps: tuple[Step, ...]


def one_in(n: int) -> st.SearchStrategy[bool]:
    """True about once in `n`; false is the simpler value."""
    return pick((False,) * (n - 1) + (True,))


@st.composite
def _ipv4(draw: st.DrawFn, src: st.SearchStrategy[IPv4Address], dst: st.SearchStrategy[IPv4Address],
          src_mac: st.SearchStrategy[bytes], dst_mac: st.SearchStrategy[bytes]) -> IpFrame:
    return IpFrame(
        src_mac=draw(src_mac), dst_mac=draw(dst_mac), src=draw(src), dst=draw(dst),
        protocol=draw(pick((TCP, TCP, TCP, UDP, UDP, ICMP, *PROTOCOLS))),
        src_port=draw(pick(TRANSPORT_PORTS)), dst_port=draw(pick(TRANSPORT_PORTS)),
        tcp_flags=draw(pick(FLAGS)), icmp_type=draw(pick((8, 8, 8, 0, 3, 13))), icmp_code=draw(pick((0, 0, 1))),
        dscp=draw(pick((0, 0, 10, 46))), ttl=draw(pick((64, 64, 64, 2, 1, 0))),
        payload=draw(pick((b"", b"odd", b"payload!", bytes(24)))), udp_checksum=draw(pick((True, True, True, False))),
    )


@st.composite
def _odd(draw: st.DrawFn, frame: IpFrame) -> bytes:
    """Legal, but not what one sees every day: fragments, options, padding."""
    what = draw(pick(("first", "first", "later", "later", "later", "options", "padding", "fragment with options")))
    if what in ("first", "later", "fragment with options"):
        later = what == "later" or (what != "first" and draw(st.booleans()))
        frame = replace(
            frame, identification=draw(pick((1, 2))),
            fragment_offset=draw(pick((1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 11, 13, 15, 8190, 8191))) if later else 0,
            more_fragments=not later or draw(st.booleans()))
        if not draw(one_in(8)):             # as long as a fragment must be
            head = 0 if later else {TCP: 20, SCTP: 12}.get(frame.protocol, 8)
            units = draw(pick((1, 1, 2, 5))) if later else 4
            frame = replace(frame, payload=bytes(units * 8 - head % 8))
    if what in ("options", "fragment with options"):
        frame = replace(frame, options_words=draw(pick((1, 10))), extensions=draw(pick(_EXTENSIONS)),
                        fragment_header=draw(one_in(4)))
    if what == "padding":
        frame = replace(frame, padding=bytes(draw(pick((1, 18)))))
    return frame.build()


@st.composite
def _damaged(draw: st.DrawFn, frame: bytes) -> bytes:
    """Cut, flipped or replaced bytes; other ethertypes."""
    what = draw(pick(("cut", "cut", "flip", "flip", "field", "field", "ethertype", "noise")))
    if what == "cut":
        return frame[:draw(st.integers(15, len(frame)))]
    if what == "flip":
        data = bytearray(frame)
        for _ in range(draw(st.integers(1, 3))):
            data[draw(st.integers(12, min(len(data) - 1, 60)))] = draw(pick((0, 1, 4, 0x45, 0x4F, 0x60, 0x20, 0xFF)))
        return bytes(data)
    if what == "field":                     # those that lengths are read from, when there are no options
        at = draw(pick([where for where in (14, 16, 17, 20, 23, 38, 39, 46) if where < len(frame)]))
        return frame[:at] + bytes([draw(pick((0, 1, 6, 7, 17, 28, 0x40, 0x60, 0xF0)))]) + frame[at + 1:]
    if what == "ethertype":
        kind = draw(pick((0x8100, 0x88A8, 0x86DD, 0x88CC, 0x0806, 0x0800)))
        return frame[:12] + kind.to_bytes(2, "big") + frame[14:]
    return frame[:14] + draw(st.binary(min_size=1, max_size=60))


def _hostile(frame: bytes) -> st.SearchStrategy[bytes]:
    """Damaged frames, made as long as a kernel test run wants them: more than Ethernet, and the IP header whole."""
    shortest = {b"\x08\x00": 34, b"\x86\xdd": 54}
    return _damaged(frame).map(lambda data: data.ljust(shortest.get(data[12:14], 15), b"\0"))


@st.composite
def _arp(draw: st.DrawFn, number: int) -> bytes:
    mac = draw(pick((MACS[number], MACS[number], *ALL_MACS)))
    return ArpFrame(
        src_mac=mac, dst_mac=BROADCAST, opcode=draw(pick((1, 1, 1, 2, 6, 0x0101))),
        sender_mac=draw(pick((mac, mac, MACS[1]))),
        sender=draw(pick((INSIDE[number - 1], INSIDE[number - 1], *ADDRESSES))),
        target=draw(pick((*INSIDE, GATEWAY, WORLD[0]))), padding=bytes(draw(pick((0, 18)))),
    ).build()


@st.composite
def _nd(draw: st.DrawFn, number: int) -> bytes:
    mac = draw(pick((MACS[number], MACS[number], *ALL_MACS)))
    kind = draw(pick((135, 135, 135, 136)))
    source = draw(pick((*(INSIDE[number - 1],) * 6, IPv4Address(0), IPv4Address(0), *ADDRESSES)))
    target = six(draw(pick((*INSIDE, *INSIDE, GATEWAY, WORLD[0]))))
    group = IPv6Address(_SOLICITED_NODE | int(target) & 0xFFFFFF)
    given = draw(pick((mac, mac, mac, MACS[1])))
    option = bytes([1 if kind == 135 else 2, 1]) + given
    other = bytes((14, 1)) + bytes(6)
    options = [b"", option, option, option + other, other] if int(source) else [b"", b"", b"", other, option]
    if draw(one_in(10)):
        options = [option[:7], bytes(8), option * 9]
    to = (group,) * 6 + ((target, ALL_NODES) if int(source) else (target,))
    return nd_frame(
        mac, draw(pick((b"\x33\x33" + group.packed[12:], GATEWAY_MAC))), six(source), draw(pick(to)), kind=kind,
        flags=draw(pick((0, 0, 0x20, 0x60))), target=draw(pick((target,) * 12 + (ALL_NODES,))),
        hops=draw(pick((255,) * 15 + (64,))), options=draw(pick(options)))


_EXTENSIONS: tuple[tuple[tuple[int, bytes], ...], ...] = (
    ((0, bytes(7)),), ((60, bytes(7)),), ((60, b"\1" + bytes(14)), (43, bytes(7))),
    ((43, bytes((0, 0, 1)) + bytes(4)),),
    ((43, bytes((0, 4, 1)) + bytes(4)),), ((51, b"\4" + bytes(22)),), ((60, bytes(7)), (0, bytes(7))),
    ((0, bytes(7)), (60, bytes(7)), (43, bytes(7)), (51, b"\1" + bytes(10))), ((60, bytes(7)),) * 8,
    ((60, bytes(7)),) * 9, ((60, b"\xff" + bytes(6)),), ((44, bytes(7)),), ((44, bytes(7)), (44, bytes(7))),
)
_SOLICITED_NODE = int(IPv6Address("ff02::1:ff00:0"))
ALL_NODES = IPv6Address("ff02::1")


def _world(mapping: Mapping) -> st.SearchStrategy[Address]:
    if mapping.external.version == 6:
        return pick((*map(six, WORLD), LOCALHOST_6))
    return pick((*WORLD, LOCALHOST))


@st.composite
def _mapped(draw: st.DrawFn, mapping: Mapping, inside: int | None = None) -> Send:
    """From the world, or from a port of ours, to what a mapping offers there."""
    protocol = ICMP if mapping.protocol == ICMPV6 else mapping.protocol or draw(pick((*PROTOCOLS, TCP)))
    outside = mapping.external_port if mapping.protocol else draw(pick(TRANSPORT_PORTS))
    frame = IpFrame(
        src_mac=GATEWAY_MAC, dst_mac=BROADCAST, src=draw(_world(mapping)), dst=mapping.external,
        protocol=protocol, src_port=outside if protocol == ICMP else draw(pick(TRANSPORT_PORTS)), dst_port=outside,
        tcp_flags=draw(pick(FLAGS)), ttl=draw(pick((64, 64, 64, 1))))
    hook, number = Hook.UPLINK_IN, mapping.uplink
    if inside is not None:                  # an endpoint of ours, by the outside address
        hook, number = Hook.PORT_OUT, inside
        own = INSIDE[inside - 1]
        frame = replace(frame, src=six(own) if frame.src.version == 6 else own, src_mac=MACS[inside],
                        dst_mac=GATEWAY_MAC)
    data = draw(_odd(frame)) if draw(one_in(6)) else frame.build()
    return Send(hook, number, data)


@st.composite
def _to_prefix(draw: st.DrawFn, uplink: int, external: IPv6Address) -> Send:
    """From the world to an address in an external prefix."""
    frame = draw(_ipv4(pick(WORLD), pick(INSIDE), st.just(GATEWAY_MAC), pick(ALL_MACS)))
    frame = replace(frame, src=six(frame.src), dst=external)
    return Send(Hook.UPLINK_IN, uplink, draw(_odd(frame)) if draw(one_in(6)) else frame.build())


@st.composite
def _encapsulated(draw: st.DrawFn, state: EngineState) -> tuple[
        int, Address, st.SearchStrategy[IPv4Address], st.SearchStrategy[IPv4Address]]:
    """VNI, outer source, and inner addresses that a tunnel may bring, mostly those that the space knows."""
    number, vtep = draw(pick((*VNIS * 4, 300))), draw(pick(VTEPS))
    entries = [entry for space in state.spaces if space.id == number for entry in places_of(space)
               if isinstance(entry[0], IPv4Address)]
    remotes = [(four(address), place) for address, place in entries if isinstance(place, Remote)]
    locals_ = [four(address) for address, place in entries if isinstance(place, LocalPort)]
    if not remotes or not locals_ or draw(one_in(6)):
        return number, vtep, pick(INSIDE), pick(INSIDE)
    source, place = draw(pick(remotes))
    return number, vtep if draw(one_in(8)) else place.vtep, st.just(source), pick(locals_)


@st.composite
def sends(draw: st.DrawFn, state: EngineState) -> Send:
    """A frame at any hook, from and to addresses that mean something there; sometimes to ones that do not."""
    hook = draw(pick((Hook.PORT_OUT,) * 5 + (Hook.OVERLAY_IN, Hook.OVERLAY_IN, Hook.UPLINK_IN, Hook.PORT_IN)))
    number, vtep = draw(pick(linked(state) * 5 + (9, EXITS[0]))), None
    own = min(number, 4)
    anything = draw(one_in(10))
    every = pick(ADDRESSES)
    if hook is Hook.PORT_OUT:
        if state.mappings and number == own and draw(one_in(5)):
            return draw(_mapped(draw(pick(state.mappings)), own))
        src, dst = st.just(INSIDE[own - 1]), pick((*INSIDE, *INSIDE, GATEWAY, *WORLD, *EXTERNAL))
        macs = st.just(MACS[own]), pick((GATEWAY_MAC, *ALL_MACS))
    elif hook is Hook.PORT_IN:
        src, dst = pick((GATEWAY, *INSIDE)), st.just(INSIDE[own - 1])
        macs = st.just(GATEWAY_MAC), st.just(MACS[own])
    elif hook is Hook.OVERLAY_IN:
        number, vtep, src, dst = draw(_encapsulated(state))
        macs = pick(ALL_MACS), pick(ALL_MACS)
    else:
        number = draw(pick((*UPLINKS, *UPLINKS, 3)))
        src, dst = pick(WORLD), pick(EXTERNAL)
        macs = st.just(GATEWAY_MAC), pick(TO_UPLINK)
        if number == WIRED and any(space.wire for space in state.spaces) and draw(st.booleans()):
            src, dst, macs = pick((*WORLD, *INSIDE)), pick(INSIDE), (macs[0], pick((*TO_UPLINK, *ALL_MACS)))
        elif state.mappings and not draw(one_in(4)):
            return draw(_mapped(draw(pick(state.mappings))))
        if (seen := targets(state)) and not draw(one_in(4)):
            return draw(_to_prefix(*draw(pick(seen))))
    if anything:
        src, dst, macs = every, every, (pick(ALL_MACS), pick(ALL_MACS))
    if draw(one_in(8)):
        frame = draw(_nd(own)) if draw(st.booleans()) else draw(_arp(own))
    else:
        packet = draw(_ipv4(src, dst, *macs))
        if draw(one_in(3)):
            packet = replace(packet, src=six(packet.src), dst=six(packet.dst))
        frame = draw(_odd(packet)) if draw(one_in(6)) else packet.build()
    if draw(one_in(10)):
        frame = draw(_hostile(frame))
    if draw(one_in(12)):
        frame = tagged(frame, draw(pick((*VLANS, *VLANS, 0))))
    return Send(hook, number, frame, vtep)


@st.composite
def _first_fragment(draw: st.DrawFn, state: EngineState) -> Send | None:
    """A frame that anything may be a later fragment of: 6 units, if it is not TCP with options."""
    send = draw(sends(state))
    read = read_ip(send.frame)
    if read is None:
        return None
    head = {TCP: 20, SCTP: 12}.get(read.protocol, 8)
    whole = replace(read, src_mac=send.frame[6:12], dst_mac=send.frame[:6], identification=draw(pick((1, 2, 3))),
                    more_fragments=True, payload=bytes(48 - head))
    return replace(send, frame=whole.build())


@st.composite
def histories(draw: st.DrawFn, *, timed: bool = False, max_steps: int = 16) -> History:
    """A host and what happens on it. Only the reference can be told the time."""
    plain = draw(st.booleans())
    state = first = draw(states(plain))
    back = st.integers(0, 3)
    steps: list[Step] = []
    kinds = (["send"] * 6 + ["again"] * 3 + ["answer"] * 5 + ["complain"] * 2 + ["continue"] + ["update"] * 2
             + ["rehome"] * 2 + ["join"] * 2 + ["leave"] + ["return"] * 4 + ["wait"] * timed * 2)
    for _ in range(draw(st.integers(2, max_steps))):
        match draw(pick(kinds)):
            case "send":
                steps.append(draw(sends(state)))
            case "return":
                steps.append(Return(draw(pick((0, 0, 0, 1))), draw(one_in(4)), draw(one_in(8))))
            case "again":
                steps.append(Again(draw(back), draw(pick(FLAGS)), draw(st.none() | pick(TRANSPORT_PORTS))))
            case "answer":
                steps.append(Answer(draw(back), draw(pick(FLAGS)), draw(one_in(10))))
            case "continue":
                if not draw(one_in(3)) and (whole := draw(_first_fragment(state))) is not None:
                    steps.append(whole)
                steps.extend(
                    Continue(n, draw(pick((6, 6, 7, 8, 8, 10, 4, 1, 12))), draw(pick((1, 2, 2, 4))), draw(one_in(4)))
                    for n in range(draw(st.integers(1, 3))))
            case "complain":
                steps.append(Complain(
                    draw(back), draw(pick((3, 3, 11, 12, 5))), draw(pick((0, 3, 4))),
                    draw(pick((28, 28, 40, 200, 27, 19))),
                    draw(st.none() | pick((*WORLD, GATEWAY, INSIDE[0]))), draw(pick((None,) * 7 + (INSIDE[0],)))))
            case "rehome":
                steps.append(Rehome(draw(back), draw(pick(HOMES))))
            case "join":
                steps.append(Join(draw(members(4)), draw(pick((None, 1e-9, 1e6))), not draw(one_in(5))))
            case "leave":
                steps.append(Leave(draw(members(12)), not draw(one_in(5))))
            case "update":
                state = draw(changes(state, plain))
                steps.append(Update(state))
            case _:
                steps.append(Wait(draw(pick((0.5, 3.0, 31.0, 61.0, 241.0, 301.0, 7441.0)))))
    return History(first, tuple(steps))


@st.composite
def neighbours(draw: st.DrawFn) -> History:
    """A host whose endpoints look for each other, in ARP and in neighbour discovery."""
    state = draw(states(plain=True))
    numbers = draw(st.lists(pick(linked(state)), min_size=3, max_size=8))
    return History(state, tuple(
        Send(Hook.PORT_OUT, number, draw(_arp(number) if draw(one_in(4)) else _nd(number))) for number in numbers))


@st.composite
def _talk(draw: st.DrawFn, state: EngineState) -> Send:
    """An honest endpoint to another, or what the overlay brings to one."""
    number = draw(pick(linked(state)))
    hook, vtep, src, dst = Hook.PORT_OUT, None, INSIDE[number - 1], draw(pick(INSIDE[:5]))
    if draw(one_in(3)):
        hook = Hook.OVERLAY_IN
        number, vtep, source, destination = draw(_encapsulated(state))
        src, dst = draw(source), draw(destination)
    packet = IpFrame(
        src_mac=MACS[number] if hook is Hook.PORT_OUT else MACS[5], dst_mac=GATEWAY_MAC, src=src, dst=dst,
        protocol=draw(pick((TCP, UDP))), src_port=1000, dst_port=80, tcp_flags=SYN)
    if draw(one_in(3)):
        packet = replace(packet, src=six(src), dst=six(dst))
    if draw(one_in(5)):
        head = 20 if packet.protocol == TCP else 8
        packet = replace(packet, identification=draw(pick((1, 2, 3))), more_fragments=True, payload=bytes(48 - head))
    return Send(hook, number, packet.build(), vtep)


def _who() -> st.SearchStrategy[tuple[Prefix, ...]]:
    """Members that those who talk may be."""
    prefixes: tuple[Prefix, ...] = (
        *PREFIXES[1:3], *PREFIXES_6[1:3], *map(IPv4Network, INSIDE[:5]), *map(IPv6Network, INSIDE_6[:5]))
    return st.lists(pick(prefixes), min_size=1, max_size=5, unique=True).map(tuple)


@st.composite
def memberships(draw: st.DrawFn) -> History:
    """A few flows whose sets change under them."""
    state = draw(set_states())
    first = state
    back = st.integers(0, 2)
    steps: list[Step] = [Join(draw(_who()), draw(pick((None, 1e-9, 1e6))))] if draw(st.booleans()) else []
    steps += [draw(_talk(state)) for _ in range(draw(st.integers(1, 3)))]
    kinds = ["again"] * 2 + ["answer"] * 2 + ["join"] * 4 + ["leave"] + ["send", "static", "continue"]

    def again() -> Again:
        return Again(draw(back), draw(pick((SYN, ACK, ACK))), draw(pick((None, None, None, 80, 1001))))

    for _ in range(draw(st.integers(2, 9))):
        match kind := draw(pick(kinds)):
            case "send":
                steps.append(draw(_talk(state)))
            case "again":
                steps.append(again())
            case "answer":
                steps.append(Answer(draw(back), draw(pick((SYN | ACK, ACK)))))
            case "join":
                steps.append(Join(draw(_who()), draw(pick((None, 1e-9, 1e-9, 1e6))), not draw(one_in(4))))
            case "leave":
                steps.append(Leave(draw(_who()), not draw(one_in(4))))
            case "static":
                changed = draw(pick(STATIC_SETS))
                state = replace(state, sets=tuple(
                    replace(given, members=draw(_who())) if given.id == changed else given for given in state.sets))
                steps.append(Update(state))
            case _:
                steps.append(Continue(draw(back), draw(pick((6, 8))), 2, draw(st.booleans())))
        if kind in ("join", "leave", "static"):
            steps += [again() for _ in range(draw(st.integers(1, 2)))]
    return History(first, tuple(steps))


class Player:
    """Turns steps into frames: it remembers what the reference made of the ones before."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._past: list[tuple[Send, Result]] = []

    @property
    def past(self) -> list[tuple[Send, Result]]:
        """Every frame so far, and what the reference made of it."""
        return list(self._past)

    def play(self, send: Send, now_s: float) -> Result:
        """Take a frame through the reference."""
        if send.inspected:
            result = self._engine.inspected(zone_of(send.hook, send.number), send.frame,
                                            release=send.inspected == RELEASED, now_s=now_s)
            self._past.append((replace(send, inspected=0), result))
            return result
        result = self._engine.process(send.hook, send.number, send.frame, vtep=send.vtep, now_s=now_s)
        self._past.append((send, result))
        return result

    def frame_of(self, step: Send | Return | Again | Answer | Complain | Continue) -> Send | None:
        """What enters by a step; None when there is nothing to repeat or to answer."""
        if isinstance(step, Send):
            return step
        if not self._past:
            return None
        send, result = self._past[-1 - step.back % len(self._past)]
        if isinstance(step, Return):
            shown = [past for past in self._past if past[1].verdict is Verdict.INSPECT]
            if shown:
                send = shown[-1 - step.back % len(shown)][0]
            elif not step.change:
                return None
            frame = b"\6" * 12 + send.frame[12:-1] + bytes([send.frame[-1] ^ step.change])
            return replace(send, frame=frame, inspected=RELEASED if step.release else INSPECTED)
        if isinstance(step, Again):
            return replace(send, frame=_varied(send.frame, step))
        if isinstance(step, Answer) and step.stranger:
            out = [past for past in self._past[-64:] if past[1].verdict is Verdict.REDIRECT_UPLINK]
            send, result = out[-1 - step.back % len(out)] if out else (send, result)
        if isinstance(step, Continue):
            first = read_first(send.frame)
            return replace(send, frame=_continued(first, step)) if first else None
        return self._answer(send, result, step)

    def state_of(self, step: Rehome) -> EngineState:
        """The policy after a step that changes it."""
        state = self._engine.state
        packet = read_ip(self._past[-1 - step.back % len(self._past)][0].frame) if self._past else None
        if packet is None:
            return state
        spaces = tuple(
            with_place(space, packet.dst, step.place) if packet.dst in dict(places_of(space)) else space
            for space in state.spaces)
        return replace(state, spaces=spaces)

    def _answer(self, send: Send, result: Result, step: Answer | Complain) -> Send | None:
        left = read_ip(result.frame)
        if left is None or result.verdict in (Verdict.DROP, Verdict.REPLY):
            return None
        if isinstance(step, Answer):
            answer = left.answer(step.tcp_flags)
            if step.stranger and result.verdict is Verdict.REDIRECT_UPLINK:
                answer = _from_stranger(answer, step.stranger)
            return self._back(send, result, answer.build(), step.other_vtep)
        source, to = step.source, step.to
        if left.src.version == 6:
            source, to = source and six(source), to and six(to)
        return self._back(send, result, icmp_error(
            result.frame, source or left.dst, step.kind, step.code, step.quoted_bytes, to or left.src))

    def _back(self, send: Send, result: Result, frame: bytes, other_vtep: bool = False) -> Send | None:
        """A frame that comes from where an earlier one went, with its tag."""
        if vlan := untagged(send.frame)[1]:
            frame = tagged(frame, vlan)
        match result.verdict:
            case Verdict.REDIRECT_PORT:
                return Send(Hook.PORT_OUT, result.port, frame)
            case Verdict.REDIRECT_UPLINK | Verdict.REDIRECT_WIRE:
                return Send(Hook.UPLINK_IN, result.uplink, frame)
            case Verdict.TUNNEL:
                other = next(vtep for vtep in VTEPS if vtep != result.vtep)
                return Send(Hook.OVERLAY_IN, result.vni, frame, other if other_vtep else result.vtep)
            case _:
                if send.hook is Hook.PORT_OUT:
                    return Send(Hook.PORT_IN, send.number, frame)
                if send.hook is not Hook.PORT_IN:
                    return None
                # Whatever MAC the stack wrote to, the endpoint answers with its own.
                mac = next((port.mac for port in self._engine.state.ports if port.id == send.number), frame[6:12])
                return Send(Hook.PORT_OUT, send.number, frame[:6] + mac + frame[12:])


def _from_stranger(answer: IpFrame, what: str) -> IpFrame:
    if what == "port":
        return replace(answer, src_port=answer.src_port ^ 1)
    return replace(answer, src=type(answer.src)(int(answer.src) ^ 0x40))


def _continued(first: IpFrame, step: Continue) -> bytes:
    return replace(first, fragment_offset=step.at, more_fragments=not step.last, payload=bytes(8 * step.units)).build()


def _varied(frame: bytes, step: Again) -> bytes:
    """A whole packet without options, with other flags and source port (and a checksum that no engine verifies)."""
    read = read_ip(frame)
    if read is None or frame[14] not in (0x45, 0x60) or read.protocol not in (TCP, UDP):
        return frame
    at = 54 if read.src.version == 6 else 34
    if step.source_port is not None:
        frame = frame[:at] + step.source_port.to_bytes(2, "big") + frame[at + 2:]
    if read.protocol == TCP and len(frame) >= at + 20:
        frame = frame[:at + 13] + bytes([step.tcp_flags]) + frame[at + 14:]
    return frame


def change_set(engine: Engine, step: Join | Leave, now_s: float) -> None:
    """Members come into the reference's dynamic set, or leave it."""
    if isinstance(step, Join):
        engine.add_members(DYNAMIC_SET, step.members, now_s, step.ttl_s, step.redecide)
    else:
        engine.remove_members(DYNAMIC_SET, step.members, step.redecide)


def sends_of(player: Player, steps: tuple[Step, ...]) -> Iterator[Step]:
    """Steps with answers and repetitions made into frames; the caller must play each `Send` before the next."""
    for step in steps:
        if isinstance(step, Update | Wait | Join | Leave):
            yield step
        elif isinstance(step, Rehome):
            yield Update(player.state_of(step))
        elif (send := player.frame_of(step)) is not None:
            yield send


@st.composite
def on_segments(draw: st.DrawFn) -> History:
    """Few tuples and many MACs: ports that switch or are bridged, and a wire with neighbours."""
    state = draw(states(plain=True))
    numbers = tuple(port.id for port in state.ports if port.id in PORT_IDS)
    space = draw(pick((NAT_SPACE, VNIS[0])))
    tails = pick((switch_tail(space), switch_tail(space), switch_tail(NAT_SPACE), bridge_tail(space),
                  bridge_tail(NAT_SPACE, WORLD[0])))

    def changed(state: EngineState) -> EngineState:
        return replace(state, spaces=draw(switched(state.spaces, (*MACS.values(),), numbers, VTEPS[:1])))

    state = first = changed(replace(state, ports=tuple(
        replace(port, layers=((guard(port.id),) if draw(one_in(3)) else ()) + draw(tails))
        if port.id in numbers else port for port in state.ports)))
    groups = (BROADCAST, bytes.fromhex("01005e000001"), bytes.fromhex("333300000001"))
    steps: list[Step] = []
    for _ in range(draw(st.integers(3, 12))):
        kind = draw(pick(("send",) * 8 + ("answer",) * 4 + ("again", "complain", "update", "update")))
        if kind == "update":
            state = changed(state) if draw(st.booleans()) else draw(changes(state, plain=True))
            numbers = tuple(port.id for port in state.ports if port.id in PORT_IDS)
            steps.append(Update(state))
        elif kind == "answer":
            steps.append(Answer(draw(st.integers(0, 2)), draw(pick(FLAGS))))
        elif kind == "again":
            steps.append(Again(draw(st.integers(0, 2)), draw(pick(FLAGS))))
        elif kind == "complain":
            steps.append(Complain(draw(st.integers(0, 2)), 3, 3, 28, None, None))
        else:
            steps.append(draw(_framed(numbers, groups)))
    return History(first, tuple(steps))


@st.composite
def _framed(draw: st.DrawFn, numbers: tuple[int, ...], groups: tuple[bytes, ...]) -> Send:
    """A frame from a port, a neighbour on the wire, or another host, to any MAC."""
    number = draw(pick(numbers))
    hook, own, vtep = draw(pick((Hook.PORT_OUT,) * 5 + (Hook.UPLINK_IN,) * 4 + (Hook.OVERLAY_IN,))), number, None
    to = draw(pick((*MACS.values(), *MACS.values(), *UPLINK_MACS.values(), UPLINK_MACS[WIRED], GATEWAY_MAC, *groups)))
    src, mac = INSIDE[own - 1], MACS[own]
    if hook is Hook.UPLINK_IN:
        number, src, mac = WIRED, draw(pick((*WORLD, *INSIDE[:4]))), draw(pick((MACS[5], MACS[6])))
    elif hook is Hook.OVERLAY_IN:
        number, vtep, src, mac = draw(pick(VNIS)), draw(pick(VTEPS)), draw(pick(INSIDE[4:6])), MACS[5]
    if draw(one_in(6)):
        frame = draw(_arp(own)) if draw(st.booleans()) else draw(_nd(own))
        frame = (frame[:6] if draw(st.booleans()) else to) + mac + frame[12:]
    else:
        packet = IpFrame(
            src_mac=mac, dst_mac=to, src=src, dst=draw(pick((*INSIDE[:4], WORLD[0]))),
            protocol=draw(pick((TCP, UDP, UDP, ICMP))), src_port=1000, dst_port=80, ttl=draw(pick((64, 64, 64, 1))))
        frame = (replace(packet, src=six(src), dst=six(packet.dst)) if draw(one_in(3)) else packet).build()
    if draw(one_in(6)):
        frame = tagged(frame, draw(pick(VLANS)))
    return Send(hook, number, frame, vtep)
