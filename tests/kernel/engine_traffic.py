"""Traffic by chance: many frames and changes for one host, fast, from a seed; conversations, oddities and attacks.

Hypothesis draws policies well and packets slowly. Here a seeded generator makes the packets, from the values that the
policies of a storm name: addresses at the edge of a prefix, ports around a range.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

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
    UDPLITE,
    ArpFrame,
    IpFrame,
    nd_frame,
    read_ip,
)
from engine_hostile import damaged
from engine_prefixes import targets
from engine_states import (
    ADDRESSES,
    ALL_MACS,
    BROADCAST,
    EXITS,
    EXTERNAL,
    GATEWAY,
    GATEWAY_MAC,
    INSIDE,
    LOCALHOST,
    LOCALHOST_6,
    MACS,
    TO_UPLINK,
    TRANSPORT_PORTS,
    UPLINKS,
    VNIS,
    VTEPS,
    WORLD,
    four,
    linked,
    places_of,
    six,
)
from engine_steps import ALL_NODES, FLAGS, HOMES, Again, Answer, Complain, Continue, Rehome, Send, Step, Wait
from engine_switching import VLANS, WIRED, tagged

from vfp.model import Address, EngineState, LocalPort, Mapping, Pool, PortRange, Remote
from vfp.reference import Hook

PSH, URG, ECE, CWR = 0x08, 0x20, 0x40, 0x80
# Multiples of 0.7 s, so that no sum of them comes close to a limit (2, 30, 60, 240, 300, 7,440 s) from below.
WAITS_S = (0.7, 0.7, 3.5, 3.5, 31.5, 61.6, 241.5, 301.0, 7441.0)

# Who sends what, in order: `>` is who began. A dialogue loses, repeats and swaps some of it.
_HANDSHAKE = ((">", SYN), ("<", SYN | ACK), (">", ACK))
_TALK = ((">", PSH | ACK), ("<", ACK), ("<", PSH | ACK), (">", ACK))
_DIALOGUES: tuple[tuple[tuple[str, int], ...], ...] = (
    (*_HANDSHAKE, *_TALK, (">", FIN | ACK), ("<", ACK), ("<", FIN | ACK), (">", ACK)),
    (*_HANDSHAKE, *_TALK, ("<", FIN | ACK), (">", FIN | ACK), ("<", ACK), (">", SYN), ("<", SYN | ACK)),
    (*_HANDSHAKE, *_TALK, (">", RST | ACK), ("<", ACK), (">", SYN)),
    (*_HANDSHAKE, ("<", RST), (">", ACK)),
    ((">", SYN), (">", SYN), ("<", RST | ACK), (">", SYN), ("<", SYN | ACK), (">", ACK)),
    ((">", SYN), ("<", SYN), (">", SYN | ACK), ("<", SYN | ACK), *_TALK),
    ((">", SYN | ECE | CWR), ("<", SYN | ACK | ECE), (">", ACK), (">", PSH | ACK | CWR), ("<", ACK | ECE)),
    ((">", ACK), ("<", ACK), (">", FIN | ACK), ("<", FIN | ACK), (">", ACK)),
    ((">", SYN | FIN), ("<", SYN | ACK), (">", 0), ("<", FIN | SYN | RST), (">", URG | PSH | FIN)),
)


@dataclass(slots=True)
class _Datagram:
    """One that comes in pieces: which frame was its first, and the others: from, units of 8 bytes, whether the last."""

    first: int
    pieces: list[tuple[int, int, bool]]


class Vocabulary:
    """Values that policies name, and their neighbours."""

    def __init__(self, states: Iterable[EngineState]) -> None:
        self._addresses: set[Address] = set()
        self._ports: set[int] = set()
        for state in states:
            self._take(state)
        self.addresses = sorted(self._addresses, key=lambda address: (address.version, int(address)))
        self.ports = sorted(port for port in self._ports if 0 <= port <= 65535)

    def _take(self, value: Any) -> None:
        match value:
            case IPv4Address() | IPv6Address():
                self._addresses.add(value)
            case IPv4Network() | IPv6Network():
                low, high = int(value.network_address), int(value.broadcast_address)
                kind = type(value.network_address)
                last = (1 << value.max_prefixlen) - 1
                self._addresses |= {kind(n) for n in (low, high, max(0, low - 1), min(last, high + 1))}
            case PortRange(low, high):
                self._ports |= {low - 1, low, (low + high) // 2, high, high + 1}
            case tuple():
                for each in value:
                    self._take(each)
            case _ if is_dataclass(value):
                for field in fields(value):
                    if (inner := getattr(value, field.name)) is not None:
                        self._take(inner)


@dataclass(slots=True)
class _Dialogue:
    """A conversation under way: what is left to say, and which of the frames so far was each side's last."""

    script: list[tuple[str, int]]
    first: int
    last: int
    last_is_first_sides: bool = True


class Traffic:
    """An endless source of steps. The same seed and states give the same steps, if the host answers the same."""

    def __init__(self, seed: int, states: tuple[EngineState, ...]) -> None:
        self._chance = random.Random(seed)
        self._words = Vocabulary(states)
        self._dialogues: list[_Dialogue] = []
        self._datagrams: list[_Datagram] = []
        self._families = self._chance.choice(((4,), (6,), (4, 6), (4, 6)))
        self._wildness = self._chance.choice((0.0, 0.03, 0.1, 0.3))

    def step(self, state: EngineState, sent: int) -> Step:
        """What happens next on a host with this policy, after `sent` frames."""
        chance = self._chance
        point = chance.random()
        # Whose last line did not come, because there was nothing to answer, has no more to say.
        self._dialogues = [dialogue for dialogue in self._dialogues if dialogue.last < sent]
        if sent and point < 0.45 and self._dialogues:
            return self._converse(chance.choice(self._dialogues), sent)
        if sent and point < 0.52 and self._datagrams:
            return self._continue(chance.choice(self._datagrams), sent)
        if not sent or point < 0.72:
            send = self._send(state)
            if chance.random() < 0.1 and (first := read_ip(send.frame)) is not None:
                return self._begin(send, first, sent)
            if len(self._dialogues) < 6 and chance.random() < 0.6:
                script = list(chance.choice(_DIALOGUES))[1:]
                if chance.random() < 0.2:
                    chance.shuffle(script)
                self._dialogues.append(_Dialogue(script, sent, sent))
            return send
        back = chance.randrange(min(sent, 24))
        if point < 0.78:
            return Again(back, chance.choice(FLAGS), chance.choice((None, None, self._port())))
        if point < 0.86:
            stranger = chance.choice(("", "port", "address", "address"))
            return Answer(back, chance.choice(FLAGS), chance.random() < 0.1, stranger)
        if point < 0.90:
            return Continue(min(back, 3), chance.choice((6, 6, 7, 8, 8, 10, 4, 1, 12)), chance.choice((1, 2, 2, 4)),
                            chance.random() < 0.25)
        if point < 0.96:
            return Complain(
                back, chance.choice((3, 3, 11, 12, 5)), chance.choice((0, 1, 3, 4)),
                chance.choice((28, 28, 40, 200, 27, 19, 48, 68)),
                chance.choice((None, *WORLD, GATEWAY, INSIDE[0])), chance.choice((None,) * 7 + (INSIDE[0],)))
        if point < 0.97:
            return Rehome(back, chance.choice(HOMES))
        return Wait(chance.choice(WAITS_S))

    def spoil(self, send: Send) -> Send:
        """The frame as it is, or what an attacker or a broken driver makes of it."""
        if self._chance.random() >= self._wildness:
            return send
        return replace(send, frame=damaged(self._chance, send.frame))

    def _converse(self, dialogue: _Dialogue, sent: int) -> Step:
        """The next line. It is an answer to what left, as the engine wrote it, or said again as it was first."""
        chance = self._chance
        side, flags = dialogue.script.pop(0)
        if not dialogue.script:
            self._dialogues.remove(dialogue)
        if chance.random() < 0.05:          # lost on the way here
            side = ">"
        forward = side == ">"
        if forward and (dialogue.last_is_first_sides or chance.random() < 0.5):
            step: Step = Again(sent - 1 - dialogue.first, flags)
        elif forward == dialogue.last_is_first_sides:
            # The other side has not spoken since: its answer is again to what it got last.
            step = Again(sent - 1 - dialogue.last, flags)
        else:
            step = Answer(sent - 1 - dialogue.last, flags, stranger=chance.choice(("",) * 8 + ("port", "address")))
        dialogue.last, dialogue.last_is_first_sides = sent, forward
        return step

    def _begin(self, send: Send, whole: IpFrame, sent: int) -> Send:
        """A first fragment of 6 units. The others follow: in order or not, with holes, over each other, without end."""
        chance = self._chance
        at, pieces = 6, []
        for _ in range(chance.randrange(1, 7)):
            units = chance.choice((1, 1, 2, 4))
            pieces.append((at, units, False))
            at += units
        pieces[-1] = (*pieces[-1][:2], chance.random() < 0.8)
        for mishap in chance.choices(("none", "shuffle", "drop", "again", "shift", "early", "shuffle"), k=2):
            index = chance.randrange(len(pieces))
            piece = pieces[index]
            if mishap == "shuffle":
                chance.shuffle(pieces)
            elif mishap == "drop" and len(pieces) > 1:
                pieces.remove(piece)
            elif mishap == "again":
                pieces.append(piece)
            elif mishap == "shift":
                pieces[index] = (max(0, piece[0] + chance.choice((-2, -1, 1))), piece[1], piece[2])
            elif mishap == "early":
                pieces[index] = (*piece[:2], not piece[2])
        self._datagrams = [*self._datagrams[-3:], _Datagram(sent, pieces)]
        head = {TCP: 20, SCTP: 12}.get(whole.protocol, 8)
        first = replace(whole, src_mac=send.frame[6:12], dst_mac=send.frame[:6], more_fragments=True,
                        identification=chance.choice((1, 2, 3, sent)), payload=bytes(48 - head))
        return replace(send, frame=first.build())

    def _continue(self, datagram: _Datagram, sent: int) -> Step:
        at, units, last = datagram.pieces.pop(0)
        if not datagram.pieces:
            self._datagrams.remove(datagram)
        return Continue(sent - 1 - datagram.first, at, units, last)

    # Frames

    def _port(self) -> int:
        chance = self._chance
        return chance.choice(TRANSPORT_PORTS) if chance.random() < 0.5 or not self._words.ports else chance.choice(
            self._words.ports)

    def _address(self, family: int) -> Address:
        chance = self._chance
        if self._words.addresses and chance.random() < 0.5:
            address = chance.choice(self._words.addresses)
            if address.version == family:
                return address
        return self._twin(chance.choice(ADDRESSES), family)

    def _twin(self, address: Address, family: int) -> Address:
        return six(four(address)) if family == 6 else four(address)

    def _send(self, state: EngineState) -> Send:
        chance = self._chance
        if chance.random() < 0.04:
            return self._to_gateway(state)
        hook = chance.choice((Hook.PORT_OUT,) * 5 + (Hook.OVERLAY_IN, Hook.OVERLAY_IN, Hook.UPLINK_IN, Hook.PORT_IN))
        number = chance.choice(linked(state) * 5 + (9, EXITS[0]))
        vtep: Address | None = None
        family, own = chance.choice(self._families), min(number, 4)
        protocol = chance.choice((TCP, TCP, TCP, UDP, UDP, ICMP, 47, SCTP, UDPLITE, chance.randrange(256)))
        ports = self._port(), self._port()
        src: Address
        dst: Address
        if hook is Hook.PORT_OUT:
            if chance.random() < 0.12:
                return Send(hook, number, self._asks(own))
            src, dst = INSIDE[own - 1], chance.choice((*INSIDE, *INSIDE, GATEWAY, *WORLD * 4, *EXTERNAL))
            macs = MACS[own], chance.choice((GATEWAY_MAC, *ALL_MACS))
            if state.mappings and chance.random() < 0.15:
                family, protocol, dst, ports = self._to_mapped(chance.choice(state.mappings), protocol, ports)
            elif state.pools and chance.random() < 0.12:
                family, protocol, dst, ports = self._to_bound(chance.choice(state.pools), ports)
        elif hook is Hook.PORT_IN:
            src, dst = chance.choice((GATEWAY, *INSIDE)), INSIDE[own - 1]
            macs = GATEWAY_MAC, MACS[own]
        elif hook is Hook.OVERLAY_IN:
            number, vtep, src, dst = self._encapsulated(state)
            macs = chance.choice(ALL_MACS), chance.choice(ALL_MACS)
        else:
            number = chance.choice((*UPLINKS, *UPLINKS, 3))
            src, dst, macs = chance.choice(WORLD), chance.choice(EXTERNAL), (GATEWAY_MAC, chance.choice(TO_UPLINK))
            wired = number == WIRED and any(space.wire for space in state.spaces)
            if wired and chance.random() < 0.4:
                if chance.random() < 0.2:
                    return Send(hook, number, self._asks(own))
                src, dst, macs = chance.choice((*WORLD, *INSIDE)), chance.choice(INSIDE), (
                    GATEWAY_MAC, chance.choice((*TO_UPLINK, *ALL_MACS)))
            elif state.mappings and chance.random() < 0.75:
                mapping = chance.choice(state.mappings)
                number = mapping.uplink
                family, protocol, dst, ports = self._to_mapped(mapping, protocol, ports)
                local = any(uplink.loopback for uplink in state.uplinks if uplink.id == number)
                if chance.random() < (0.6 if local else 0.05):
                    src = LOCALHOST
            elif (seen := targets(state)) and chance.random() < 0.4:
                number, dst = chance.choice(seen)
                family = 6
            elif state.pools and chance.random() < 0.7:     # to who is behind a binding
                pool = chance.choice(state.pools)
                number = pool.uplink
                family, protocol, dst, ports = self._to_bound(pool, ports)
        src = LOCALHOST_6 if src == LOCALHOST and family == 6 else self._twin(src, family)
        dst = dst if dst.version == family else self._twin(dst, family)
        if chance.random() < 0.1:
            src, macs = self._address(family), (chance.choice(ALL_MACS), chance.choice(ALL_MACS))
        if chance.random() < 0.15:
            dst = self._address(family)
        frame = self._ip(macs, src, dst, protocol, ports)
        if chance.random() < 0.06:
            frame = tagged(frame, chance.choice(VLANS))
        return Send(hook, number, frame, vtep)

    def _to_mapped(self, mapping: Mapping, protocol: int, ports: tuple[int, int]
                   ) -> tuple[int, int, Address, tuple[int, int]]:
        """Family, protocol, destination and ports that a mapping is for."""
        if mapping.protocol in (ICMP, ICMPV6):
            ports = mapping.external_port, 0
        elif mapping.protocol:
            ports = ports[0], mapping.external_port
        return mapping.external.version, mapping.protocol or protocol, mapping.external, ports

    def _to_bound(self, pool: Pool, ports: tuple[int, int]) -> tuple[int, int, Address, tuple[int, int]]:
        """Family, protocol, destination and ports that a binding of a pool is likely to have outside."""
        chance, low = self._chance, pool.ports.low
        dst = chance.choice(pool.addresses)
        ports = ports[0], chance.choice((low, low + 1, min(low + 2, pool.ports.high), ports[1]))
        return dst.version, chance.choice((TCP, UDP, UDP, SCTP)), dst, ports

    def _encapsulated(self, state: EngineState) -> tuple[int, Address, Address, Address]:
        """VNI, outer source and inner addresses, mostly those that the space knows."""
        chance = self._chance
        number, vtep = chance.choice((*VNIS * 4, 300)), chance.choice(VTEPS)
        entries = [entry for space in state.spaces if space.id == number for entry in places_of(space)]
        remotes = [(address, place) for address, place in entries if isinstance(place, Remote)]
        locals_ = [address for address, place in entries if isinstance(place, LocalPort)]
        if not remotes or not locals_ or chance.random() < 0.15:
            return number, vtep, chance.choice(INSIDE), chance.choice(INSIDE)
        source, place = chance.choice(remotes)
        vtep = vtep if chance.random() < 0.1 else place.vtep
        point = chance.random()
        if point < 0.15:                    # to who has moved, or by a route
            return number, vtep, source, chance.choice((*(address for address, _ in remotes), *WORLD))
        return number, vtep, chance.choice(WORLD) if point < 0.2 else source, chance.choice(locals_)

    def _to_gateway(self, state: EngineState) -> Send:
        """An echo request to it, or a question for it or another, from an endpoint or over the overlay."""
        chance, asks = self._chance, self._chance.random() < 0.5
        family, target = chance.choice(self._families), chance.choice((GATEWAY, GATEWAY, *INSIDE[:4]))
        if chance.random() < 0.5:
            hook, number, vtep, mac = Hook.PORT_OUT, chance.choice(linked(state)), None, b""
            own = min(number, 4)
            src, mac = self._twin(INSIDE[own - 1], family), MACS[own]
        else:
            hook, mac = Hook.OVERLAY_IN, MACS[5]
            number, vtep, src, _ = self._encapsulated(state)
            family = src.version
        if not asks:
            frame = IpFrame(mac, GATEWAY_MAC, src, self._twin(target, family), ICMP, self._port(),
                            icmp_type=chance.choice((8, 8, 8, 8, 0, 13)), ttl=chance.choice((64, 255, 1)),
                            payload=chance.choice((b"", b"ping", b"odd", bytes(1400))),
                            options_words=chance.choice((0,) * 9 + (1,)))
            return Send(hook, number, frame.build(), vtep)
        if isinstance(src, IPv4Address):
            sender = chance.choice((mac, mac, mac, MACS[1]))
            return Send(hook, number, ArpFrame(
                mac, BROADCAST, chance.choice((1, 1, 1, 1, 2)), sender, src, target).build(), vtep)
        asked = six(target)
        return Send(hook, number, nd_frame(
            mac, b"\x33\x33" + asked.packed[12:], src, IPv6Address(_SOLICITED_NODE | int(asked) & 0xFFFFFF),
            kind=135, flags=0, target=asked, options=b"\x01\x01" + mac), vtep)

    def _ip(self, macs: tuple[bytes, bytes], src: Address, dst: Address, protocol: int,
            ports: tuple[int, int]) -> bytes:
        chance = self._chance
        if protocol in (ICMP, ICMPV6) and chance.random() < 0.8:
            protocol = ICMP
        frame = IpFrame(
            src_mac=macs[0], dst_mac=macs[1], src=src, dst=dst, protocol=protocol, src_port=ports[0],
            dst_port=ports[1], tcp_flags=chance.choice(FLAGS) if chance.random() < 0.9 else chance.randrange(256),
            icmp_type=chance.choice((8, 8, 8, 0, 3, 13)), icmp_code=chance.choice((0, 0, 1)),
            dscp=chance.choice((0, 0, 10, 46, chance.randrange(64))), ttl=chance.choice((64, 64, 64, 64, 255, 2, 1, 0)),
            identification=chance.choice((1, 2, 3)), udp_checksum=chance.random() < 0.8,
            payload=chance.choice((b"", b"odd", b"payload!", bytes(24), chance.randbytes(chance.randrange(64)))),
        )
        what = chance.random()
        if what < 0.10:
            frame = self._fragment(frame)
        elif what < 0.16:
            frame = replace(frame, options_words=chance.randrange(11), extensions=self._extensions(),
                            fragment_header=chance.random() < 0.2)
        elif what < 0.18:
            frame = replace(frame, padding=bytes(chance.randrange(1, 47)))
        elif what < 0.22:
            frame = replace(frame, payload=chance.randbytes(chance.randrange(1400, 3300)))
        return frame.build()

    def _fragment(self, frame: IpFrame) -> IpFrame:
        chance = self._chance
        later = chance.random() < 0.5
        head = 0 if later else {TCP: 20, SCTP: 12}.get(frame.protocol, 8)
        payload = bytes(chance.choice((1, 1, 2, 5, 6)) * 8 + (0 if later else 24) - head % 8)
        if chance.random() < 0.1:
            payload = payload[:-3]
        if not later and chance.random() < 0.6:
            payload = bytes(48 - head)      # what `Continue` goes on from
        return replace(
            frame, payload=payload, more_fragments=not later or chance.random() < 0.5,
            fragment_offset=chance.choice((1, 2, 4, 6, 6, 6, 7, 8, 9, 11, 13, 8190, 8191)) if later else 0,
            options_words=chance.choice((0, 0, 0, 1, 10)),
            extensions=self._extensions() if chance.random() < 0.2 else ())

    def _extensions(self) -> tuple[tuple[int, bytes], ...]:
        """A chain of extension headers, as RFC 8200 wants them, or as nobody does."""
        chance = self._chance
        chain = []
        for _ in range(chance.choice((0, 1, 1, 2, 3, 7, 8, 9))):
            kind = chance.choice((60, 60, 43, 51, 0 if not chain else 60, chance.choice((0, 44, 50, 59, 135, 139))))
            words = chance.choice((0, 0, 0, 1, 2))
            if kind == 51:
                chain.append((kind, bytes([words * 2]) + bytes(6 + 8 * words)))
                continue
            body = bytearray(bytes([words]) + bytes(6 + 8 * words))
            if kind == 43:
                body[1], body[2] = chance.choice((0, 2, 4)), chance.choice((0, 0, 1))
            if chance.random() < 0.03:
                body[0] = chance.choice((255, words + 1))
            chain.append((kind, bytes(body)))
        return tuple(chain)

    def _asks(self, number: int) -> bytes:
        """ARP or neighbour discovery from a port."""
        chance = self._chance
        mac = chance.choice((MACS[number], MACS[number], MACS[number], *ALL_MACS))
        source = chance.choice((INSIDE[number - 1],) * 6 + (IPv4Address(0), *ADDRESSES))
        target = chance.choice((*INSIDE, *INSIDE, GATEWAY, WORLD[0]))
        given = chance.choice((mac, mac, mac, MACS[1]))
        if chance.random() < 0.4:
            return ArpFrame(
                src_mac=mac, dst_mac=BROADCAST, opcode=chance.choice((1, 1, 1, 2, 6, 0x0101)), sender_mac=given,
                sender=source, target=target, padding=bytes(chance.choice((0, 18)))).build()
        wanted, kind = six(target), chance.choice((135, 135, 135, 136))
        group = IPv6Address(_SOLICITED_NODE | int(wanted) & 0xFFFFFF)
        option = bytes([1 if kind == 135 else 2, 1]) + given
        other = bytes((14, 1)) + bytes(6)
        options = (b"", option, option, option + other, other) if int(source) else (b"", b"", other, option)
        if chance.random() < 0.1:
            options = (option[:7], bytes(8), option * 9, option[:1] + b"\2" + option[2:])
        to = chance.choice((group,) * 6 + ((wanted, ALL_NODES) if int(source) else (wanted,)))
        return nd_frame(
            mac, chance.choice((b"\x33\x33" + group.packed[12:], GATEWAY_MAC)), six(source), to, kind=kind,
            flags=chance.choice((0, 0, 0x20, 0x60)), target=chance.choice((wanted,) * 12 + (ALL_NODES,)),
            hops=chance.choice((255,) * 15 + (64,)), options=chance.choice(options))


_SOLICITED_NODE = int(IPv6Address("ff02::1:ff00:0"))
