"""Generated engine states and changes of them, drawn from a universe so small that things meet."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from engine_prefixes import prefix_mappings, translations
from engine_switching import bridge_tail, switch_actions, switch_tail, switched
from hypothesis import strategies as st

from vfp.model import (
    Action,
    Address,
    AddressSet,
    Allow,
    AnswerArp,
    Deny,
    Direction,
    EngineState,
    Filtering,
    Forward,
    Group,
    Hairpin,
    HostStack,
    Inspect,
    Layer,
    LocalPort,
    Location,
    Log,
    Mapping,
    Mark,
    Match,
    Meter,
    Mirror,
    Modifier,
    Pass,
    Pool,
    Port,
    PortRange,
    Prefix,
    Reject,
    Remote,
    RemoteBlock,
    Rewrite,
    Route,
    Rule,
    Space,
    ToUplink,
    TranslatePrefix,
    TranslateSource,
    Underlay,
    Untranslate,
    Uplink,
    Virtual,
)
from vfp.reference.index import Index
from vfp.timeouts import Timeouts

PORT_IDS = (1, 2, 3, 4)
EXITS = (7, 8)                              # ways out: of a VNI each
VNIS = (100, 200)
NAT_SPACE = 1 << 24
SPACES = (*VNIS, NAT_SPACE)
UPLINKS = (1, 2)
POOLS = (1, 2)
TUNNEL_IFINDEX = 99
INSPECT_IFINDEX = 98
UNDERLAY_IFINDEX = 70

INSIDE = tuple(IPv4Address(f"10.1.0.{n}") for n in range(1, 7))
GATEWAY = IPv4Address("10.1.0.254")
EXTERNAL = (IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2"))
EXTERNAL_6 = IPv6Address("2001:db8::198.51.100.1")
MORE_6 = IPv6Address("2001:db8::198.51.100.2")
WORLD = (IPv4Address("203.0.113.1"), IPv4Address("203.0.113.2"))
LOCALHOST, LOCALHOST_6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
ADDRESSES = (*INSIDE, GATEWAY, *EXTERNAL, *WORLD, IPv4Address(0))
VTEPS: tuple[Address, ...] = (
    IPv4Address("172.31.0.2"), IPv4Address("172.31.0.3"), IPv6Address("2001:db8:31::2"))
HERE: tuple[Address, ...] = (
    IPv4Address("172.31.0.1"), IPv4Address("172.31.0.9"),
    IPv6Address("2001:db8:31::1"), IPv6Address("2001:db8:31::9"))
PREFIXES = tuple(IPv4Network(text) for text in (
    "0.0.0.0/0", "10.1.0.0/24", "10.1.0.0/30", "10.1.0.4/30", "198.51.100.0/24", "203.0.113.0/24", "203.0.113.1/32",
    "10.1.0.1/32", "10.1.0.2/32", "10.1.0.3/32", "0.0.0.0/32"))

_SIX = int(IPv6Address("2001:db8::"))


def six(address: IPv4Address) -> IPv6Address:
    """The IPv6 twin of an address of this universe."""
    return IPv6Address(_SIX | int(address)) if int(address) else IPv6Address(0)


def four(address: Address) -> IPv4Address:
    """The IPv4 twin."""
    return address if isinstance(address, IPv4Address) else IPv4Address(int(address) & 0xFFFFFFFF)


def _six_prefix(prefix: IPv4Network) -> IPv6Network:
    return IPv6Network((six(prefix.network_address), 96 + prefix.prefixlen if prefix.prefixlen else 0))


INSIDE_6 = tuple(six(address) for address in INSIDE)
PREFIXES_6 = tuple(_six_prefix(prefix) for prefix in PREFIXES)
MACS = {number: bytes.fromhex(f"02000000000{number}") for number in (*PORT_IDS, 5, 6, *EXITS)}
UPLINK_MACS = {number: bytes.fromhex(f"0200000000f{number}") for number in UPLINKS}
GATEWAY_MAC = bytes.fromhex("0200000000fe")
BROADCAST = b"\xff" * 6
ALL_MACS = (*MACS.values(), GATEWAY_MAC, BROADCAST)
TO_UPLINK = (*UPLINK_MACS.values(),) * 4 + ALL_MACS

TRANSPORT_PORTS = (0, 53, 80, 1000, 1001, 8080, 20000, 20001, 20003, 65535)
RANGES = tuple(PortRange(low, high) for low, high in (
    (80, 80), (53, 80), (1000, 1001), (0, 65535), (20000, 20003), (1001, 8080), (65535, 65535)))
PROTOCOLS = (1, 6, 17, 47, 132, 136)
PROTOCOLS_6 = (58, 50, 59)
ETHERTYPES = (0x0800, 0x0806, 0x86DD)
STATIC_SETS, DYNAMIC_SET = (1, 2), 3
TIMEOUTS = (                                # none is a sum of waits, which are multiples of 0.7 s
    Timeouts(2, 2, 45, 2, 1, 4, 0.25, 1, 200, 2, 40),
    Timeouts(20, 290, 8000, 50, 250, 40, 50, 4, 2, 75, 0.25),
)
FLAG_TESTS = ((0x12, 0x02), (0x10, 0x10), (0x04, 0x04), (0x02, 0x00), (0, 0))

pick = st.sampled_from


_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "ethertype": pick(ETHERTYPES),
    "src_mac": pick(ALL_MACS),
    "dst_mac": pick(ALL_MACS),
    "src": pick((*PREFIXES, *PREFIXES_6)),
    "dst": pick((*PREFIXES, *PREFIXES_6)),
    "protocol": pick((*PROTOCOLS, *PROTOCOLS_6, 0, 2)),
    "src_ports": pick(RANGES),
    "dst_ports": pick(RANGES),
    "icmp_type": pick((0, 8, 3, 13, 128, 129, 1, 2, 135, 136)),
    "icmp_code": pick((0, 1)),
    "tcp_flags": pick(FLAG_TESTS),
    "dscp": pick((0, 10, 46)),
    "src_set": pick((*STATIC_SETS, DYNAMIC_SET)),
    "dst_set": pick((*STATIC_SETS, DYNAMIC_SET)),
    "vni": pick(VNIS),
    "fragment": st.booleans(),
    "mapped": st.booleans(),
    "arp_sender_is_source": st.just(True),
    "nd_sender_is_source": st.just(True),
}


@st.composite
def matches(draw: st.DrawFn) -> Match:
    """Conditions: mostly one or two, so that they often hold."""
    names = draw(st.lists(pick(sorted(_FIELDS)), max_size=3, unique=True))
    return Match(**{name: draw(_FIELDS[name]) for name in names})


_MATCHES = matches()

rewrites = st.builds(
    Rewrite,
    src=st.none() | pick((*INSIDE[:4], *INSIDE_6[:4])),
    dst=st.none() | pick((*INSIDE[:4], WORLD[0], *INSIDE_6[:4])),
    src_port=st.none() | pick((1001, 20001)),
    dst_port=st.none() | pick((80, 8080)),
)


modifiers = st.one_of(
    st.builds(Mark, pick((0, 10, 46, 63))),
    st.builds(Meter, pick((1, 2, 0xFFFFFFFF))),
    st.builds(Log, pick((0, 0, 1, 2, 3))),
    st.builds(Mirror, pick((*PORT_IDS, 9))),
)
inspections = st.builds(Inspect, st.sampled_from((0, 1)), st.booleans())


watched = st.builds(lambda protocol, out, in_: Layer(
    "watch", *((Group("watch", (Rule(0, Match(protocol=protocol), action, "watch"),)),) for action in (out, in_)),
    Allow(), Allow(),
), pick((6, 6, 17, 1)), inspections, inspections)


@cache                                      # a strategy that is made anew is validated anew
def actions(direction: Direction) -> st.SearchStrategy[Action]:
    """Actions that are legal in a direction; those that only pass a packet on come more often."""
    common: list[st.SearchStrategy[Action]] = [
        st.just(Allow()), st.just(Allow()), st.just(Allow()), st.just(Pass()), st.just(Pass()), st.just(Deny()),
        rewrites, modifiers, modifiers, inspections, st.just(Reject()),
    ]
    if direction is Direction.IN:
        return st.one_of(*common, st.just(Untranslate()), st.builds(TranslateSource, pick(POOLS)))
    return st.one_of(
        *common,
        st.builds(TranslateSource, pick(POOLS)),
        translations,
        st.builds(Hairpin, pick(POOLS)),
        st.builds(Forward, pick(SPACES)),
        st.builds(ToUplink, pick((*UPLINKS, 3))),
        st.builds(AnswerArp, pick(SPACES)),
        switch_actions(SPACES, (*UPLINKS, 3)),
    )


@st.composite
def small_groups(draw: st.DrawFn, direction: Direction) -> Group:
    """A few rules of distinct priorities."""
    priorities = draw(st.lists(st.integers(0, 40), max_size=4, unique=True))
    rules = tuple(draw(rules_of(priority, direction)) for priority in priorities)
    return Group(draw(pick(("a", "b", "c"))), rules)


@st.composite
def rules_of(draw: st.DrawFn, priority: int, direction: Direction) -> Rule:
    """A rule with flags that are legal for it."""
    match, action = draw(_MATCHES), draw(actions(direction))
    flags, value = match.tcp_flags or (0, 0)
    opens = match.protocol in (None, 6) and not (value ^ 0x02) & flags & 0x12
    return Rule(
        priority, match, action, f"r{priority}", draw(pick((True, True, False))),
        terminating=not isinstance(action, Modifier) or draw(st.booleans()),
        syn_only=opens and draw(pick((False,) * 7 + (True,))))


@st.composite
def large_groups(draw: st.DrawFn) -> Group:
    """So many rules of so many shapes that the compiler must search by masks, and merge some."""
    chance = random.Random(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(33, 90))

    def prefix() -> IPv4Network | None:
        address = chance.choice((*INSIDE, *WORLD, *EXTERNAL))
        length = chance.choice((None, 0, 8, 16, 24, 27, 28, 29, 30, 31, 32))
        return None if length is None else IPv4Network((int(address) >> (32 - length) << (32 - length), length))

    def ports() -> PortRange | None:
        low = chance.choice(TRANSPORT_PORTS)
        return chance.choice((None, None, PortRange(low, low), PortRange(low, 65535)))

    rules = []
    for number in range(count):
        match = Match(
            ethertype=chance.choice((None, None, 0x0800)), src=prefix(), dst=prefix(), src_ports=ports(),
            protocol=chance.choice((None, 6, 17)), dst_ports=ports(),
            src_set=chance.choice((None,) * 9 + (1, 2, 3)), dst_set=chance.choice((None,) * 9 + (1, 2, 3)))
        action = chance.choice((Pass(), Pass(), Pass(), Allow(), Deny()))
        rules.append(Rule(number * 3, match, action, f"n{number}", chance.random() < 0.8))
    chance.shuffle(rules)
    return Group("large", tuple(rules))


@cache
def groups(direction: Direction) -> st.SearchStrategy[Group]:
    """Mostly small ones."""
    small = small_groups(direction)
    return st.one_of(small, small, small, large_groups())


defaults = pick((Allow(),) * 7 + (Deny(),))


@st.composite
def layers(draw: st.DrawFn, name: str) -> Layer:
    """Groups of distinct names each way."""
    out = draw(st.lists(groups(Direction.OUT), max_size=2, unique_by=lambda group: group.name))
    in_ = draw(st.lists(groups(Direction.IN), max_size=2, unique_by=lambda group: group.name))
    return Layer(name, tuple(out), tuple(in_), draw(defaults), draw(defaults))


def guard(number: int) -> Layer:
    """Only as itself: what keeps random packets honest, and a realistic first layer."""
    own, own_6 = IPv4Network(INSIDE[number - 1]), IPv6Network(INSIDE_6[number - 1])
    return Layer("guard", (Group("guard", (
        Rule(0, Match(ethertype=0x0800, src_mac=MACS[number], src=own), Allow(), "ip"),
        Rule(1, Match(ethertype=0x0806, src_mac=MACS[number], src=own, arp_sender_is_source=True), Allow(), "arp"),
        Rule(2, Match(ethertype=0x86DD, src_mac=MACS[number], protocol=58, icmp_type=135, nd_sender_is_source=True),
             Allow(), "asks"),
        Rule(3, Match(ethertype=0x86DD, src_mac=MACS[number], protocol=58, icmp_type=136, src=own_6,
                      nd_sender_is_source=True), Allow(), "tells"),
        Rule(4, Match(protocol=58, icmp_type=136), Deny(), "lies"),
        Rule(5, Match(ethertype=0x86DD, src_mac=MACS[number], src=own_6), Allow(), "ipv6"),
    )),), (), Deny(), Allow())


def overlay_tail(vni: int) -> tuple[Layer, ...]:
    """Where packets of an overlay port go."""
    return (Layer("vnet", (Group("vnet", (
        Rule(0, Match(ethertype=0x0806), AnswerArp(vni), "arp"),
        Rule(1, Match(dst=IPv4Network("10.1.0.0/24")), Forward(vni), "forward"),
        Rule(2, Match(protocol=58, icmp_type=135), AnswerArp(vni), "nd"),
        Rule(3, Match(dst=PREFIXES_6[1]), Forward(vni), "forward 6"),
    )),), (), Deny(), Allow()),)


def nat_tail(pool: int, uplink: int, prefix: TranslatePrefix | None = None) -> tuple[Layer, ...]:
    """Where packets of a NAT port go, and what translates them."""
    inside = IPv4Network("10.1.0.0/24")
    return (
        Layer("host", (), (Group("host", (
            Rule(0, Match(src=IPv4Network(LOCALHOST)), TranslateSource(pool), "host"),
            Rule(1, Match(src=IPv6Network(LOCALHOST_6)), TranslateSource(pool), "host 6"),
        )),), Allow(), Allow()),
        Layer("nat", (Group("nat", (
            Rule(0, Match(ethertype=0x0806), Allow(), "arp"),
            Rule(1, Match(dst=inside), Allow(), "inside"),
            Rule(3, Match(protocol=58, icmp_type=135), Allow(), "nd"),
            Rule(4, Match(dst=PREFIXES_6[1]), Allow(), "inside 6"),
            Rule(5, Match(), Hairpin(pool), "hairpin"),
        )), Group("out", (
            *((Rule(0, Match(src=prefix.internal), prefix, "prefix"),) if prefix else ()),
            Rule(1, Match(), TranslateSource(pool), "translate"),
        ))), (Group("nat", (Rule(0, Match(), Untranslate(), "untranslate"),)),), Deny(), Allow()),
        Layer("vnet", (Group("vnet", (
            Rule(0, Match(ethertype=0x0806), AnswerArp(NAT_SPACE), "arp"),
            Rule(1, Match(dst=inside), Forward(NAT_SPACE), "forward"),
            Rule(2, Match(protocol=58, icmp_type=135), AnswerArp(NAT_SPACE), "nd"),
            Rule(3, Match(dst=PREFIXES_6[1]), Forward(NAT_SPACE), "forward 6"),
            Rule(4, Match(), ToUplink(uplink), "out"),
        )),), (), Deny(), Allow()),
    )


@st.composite
def extra_layers(draw: st.DrawFn, name: str) -> Layer:
    """What few packets escape: a rule that asks for something beside forwarding, or now and then rejects."""
    asks = st.one_of(*[modifiers] * 7, st.just(Reject()))
    wide = st.just(Match()) | pick((Match(protocol=6), Match(ethertype=0x0800), Match(dst_ports=RANGES[0])))
    out, in_ = (Group("ask", (Rule(0, draw(wide), draw(asks), way),)) for way in ("out", "in"))
    return Layer(name, (out,), (in_,), Allow(), Allow())


@st.composite
def ports(draw: st.DrawFn, number: int, plain: bool = False) -> Port:
    """A port as features would build it, with layers of anything in between; now and then without any sense.

    A plain one has no layers in between, so that its packets get through.
    """
    own = () if plain else draw(pick((("l0",), ("l1",), ("l0", "l1"))))
    middle = tuple(draw(layers(name)) for name in own)
    tails = (*(overlay_tail(vni) for vni in VNIS), nat_tail(1, 1), nat_tail(2, 2),
             nat_tail(1, 1, draw(translations)), draw(pick((switch_tail(NAT_SPACE), switch_tail(VNIS[0])))),
             bridge_tail(NAT_SPACE, draw(pick((None, None, WORLD[0])))))
    tail = draw(pick(tails if plain else (*tails, ())))
    head = (guard(number),) if draw(st.booleans()) else ()
    if draw(pick((False, False, False, True))):
        middle = (*middle, draw(watched))
    asks = tuple(draw(extra_layers(name)) for name in draw(pick(((), (), (), ("x0",), ("x0", "x1")))))
    strict = draw(pick((False,) * 7 + (True,)))
    tap = draw(pick((False, False, True)))
    return Port(number, f"p{number}", 10 + number, MACS[number], GATEWAY_MAC, head + asks + middle + tail, strict,
                draw(pick((None, None, *TIMEOUTS))), tap, draw(pick(((), (), (GATEWAY,), (GATEWAY, six(GATEWAY))))),
                draw(pick((0, 0, 0, 576, 1400))), queued=draw(pick((False, False, True))),
                connections=draw(pick((0,) * 9 + (1, 2, 3))), vlans=draw(pick(((), (5,), (5, 6)))))


@st.composite
def places(draw: st.DrawFn, address: IPv4Address) -> Location:
    """Addresses 1 to 4 are mostly the port of that number, 5 and 6 remote, the gateway virtual or the host's."""
    number = int(address) & 0xFF
    remote = Remote(draw(pick(VTEPS)), draw(pick(VNIS)), MACS.get(number, MACS[5]))
    if number in PORT_IDS:
        own, other = LocalPort(number, MACS[number]), LocalPort(draw(pick(PORT_IDS)), MACS[number])
        return draw(pick((own, own, own, other, remote, remote)))
    if number in (5, 6):
        return draw(pick((remote, remote, remote, LocalPort(draw(pick(PORT_IDS)), MACS[number]))))
    return draw(pick((Virtual(GATEWAY_MAC), HostStack(GATEWAY_MAC))))


@st.composite
def exits(draw: st.DrawFn, id: int, vni: int) -> Port:
    """A way out: its layers translate, or now and then do anything."""
    middle = (draw(layers("l0")),) if draw(pick((False, False, True))) else ()
    tail = draw(pick((nat_tail(1, 1), nat_tail(2, 2), nat_tail(1, 1, draw(translations)), overlay_tail(vni),
                      _exit_tail(2, 1, vni), _exit_tail(1, 2, vni))))
    strict = draw(pick((False,) * 7 + (True,)))
    return Port(id, f"exit{id}", 0, MACS[id], GATEWAY_MAC, middle + tail, strict, draw(pick((None, None, *TIMEOUTS))),
                connections=draw(pick((0,) * 9 + (1, 2))), exit_of=vni)


def _exit_tail(pool: int, uplink: int, vni: int) -> tuple[Layer, ...]:
    """Out by an uplink, but for what is in the space, which goes back there."""
    tail = nat_tail(pool, uplink)
    rules = tail[-1].groups_out[0].rules
    return (*tail[:-1], Layer("vnet", (Group("vnet", tuple(
        replace(rule, action=Forward(vni)) if isinstance(rule.action, Forward) else rule for rule in rules)),),
        (), Deny(), Allow()))


@st.composite
def routes(draw: st.DrawFn, space: int, ports: tuple[Port, ...]) -> tuple[Route, ...]:
    """To the world, and to some of what is inside, if it has no place."""
    ways: list[Remote | LocalPort] = [Remote(vtep, space if space in VNIS else VNIS[0], MACS[6]) for vtep in VTEPS]
    ways += [LocalPort(port.id, port.mac) for port in ports if port.exit_of == space] * 3
    made = []
    for prefix in draw(st.lists(pick((*PREFIXES[:7], *PREFIXES_6[:7])), max_size=4, unique=True)):
        hops = INSIDE_6 if prefix.version == 6 else INSIDE
        made.append(Route(prefix, draw(pick((*ways, *hops[:2], hops[4])))))
    return tuple(made)


@st.composite
def spaces(draw: st.DrawFn, id: int) -> Space:
    """Most of the inside addresses have a place."""
    there = [address for address in (*INSIDE, GATEWAY) if draw(pick((True, True, True, False)))]
    entries = []
    for address in there:
        place = draw(places(address))
        if isinstance(place, Remote) and id in VNIS and draw(pick((True, True, False))):
            place = replace(place, vni=id)
        entries += [(address, place), (six(address), place)]
    return blocked(Space(id, tuple(entries))) if draw(st.booleans()) else Space(id, tuple(entries))


def blocked(space: Space) -> Space:
    """The same, with its remote places in blocks."""
    remotes: dict[tuple[Address, int, int], list[tuple[Address, bytes]]] = {}
    for address, place in space.entries:
        if isinstance(place, Remote):
            remotes.setdefault((place.vtep, place.vni, address.version), []).append((address, place.mac))
    blocks = tuple(
        RemoteBlock(*who, b"".join(address.packed for address, _ in those), b"".join(mac for _, mac in those))
        for who, those in remotes.items())
    others = tuple(entry for entry in space.entries if not isinstance(entry[1], Remote))
    return replace(space, entries=others, blocks=(*space.blocks, *blocks))


def places_of(space: Space) -> list[tuple[Address, Location]]:
    """Every address that a space has an entry for, be it in a block."""
    found = Index(EngineState(spaces=(space,))).places()
    return [(address, place) for (_, address), place in found.items()]


def with_place(space: Space, address: Address, place: Location | None) -> Space:
    """The space with another place of an address; None: with none."""
    entries = [entry for entry in space.entries if entry[0] != address]
    blocks = []
    for block in space.blocks:
        rest = [(each, there) for each, there in places_of(Space(space.id, blocks=(block,))) if each != address]
        macs = b"".join(there.mac for _, there in rest)
        blocks.append(replace(block, addresses=b"".join(each.packed for each, _ in rest), macs=macs))
    if place is not None:
        entries.append((address, place))
    return replace(space, entries=tuple(entries), blocks=tuple(block for block in blocks if block.macs))


_ANYONE = Filtering.ENDPOINT_INDEPENDENT
_HELD = ((1, 20000), (6, 20001), (6, 20003), (17, 20000), (58, 20002), (132, 1000))
_TERMS = (
    (_ANYONE, 0, 0, ()), (_ANYONE, 0, 0, ()), (_ANYONE, 0, 0, ()), (Filtering.ADDRESS, 0, 0, ()),
    (Filtering.ADDRESS_PORT, 0, 0, ()), (Filtering.ADDRESS_PORT, 3, 0, ()), (_ANYONE, 0, 1, ()),
    (_ANYONE, 0, 0, _HELD), (Filtering.ADDRESS, 2, 3, ()), (_ANYONE, 1, 0, ()),
    (_ANYONE, 3, 0, _HELD), (_ANYONE, 16, 2, ()),
)


def pools(id: int) -> st.SearchStrategy[Pool]:
    """Small enough to run out."""
    ranges = pick((PortRange(20001, 20001), PortRange(20002, 20003), PortRange(20000, 20003), PortRange(20000, 20099)))
    addresses = pick(((EXTERNAL[0],), (EXTERNAL[1],), EXTERNAL, EXTERNAL[::-1], (EXTERNAL_6,), (EXTERNAL_6, MORE_6)))
    def pool(uplink: int, given: tuple[Address, ...], ports: PortRange,
             terms: tuple[Filtering, int, int, tuple[tuple[int, int], ...]]) -> Pool:
        filtering, block, quota, held = terms
        block = min(block, ports.high - ports.low + 1)
        return Pool(id, uplink, given, ports, filtering, block, quota, held, log=id == 1)

    return st.builds(pool, pick(UPLINKS), addresses, ranges, pick(_TERMS))


def mappings(ports: tuple[int, ...]) -> st.SearchStrategy[tuple[Mapping, ...]]:
    """Fixed inbound translations to ports that exist."""
    return st.lists(_mapping(ports), max_size=5, unique_by=lambda m: (m.uplink, m.protocol, m.external, m.external_port)
                    ).map(tuple)


@st.composite
def _mapping(draw: st.DrawFn, ports: tuple[int, ...]) -> Mapping:
    """TCP and UDP mostly; SCTP by the same port, ICMP by identifier, and whole addresses."""
    six = draw(pick((False, False, True)))
    protocol = draw(pick((6, 6, 17, 17, 132, 58 if six else 1, 0)))
    outside = draw(pick((80, 8080, 20000))) if protocol else 0
    inside = draw(pick((80, 53))) if protocol not in (0, 132) else outside
    return Mapping(
        uplink=draw(pick(UPLINKS)), protocol=protocol, external=EXTERNAL_6 if six else draw(pick(EXTERNAL)),
        external_port=outside, port=draw(pick(ports)), internal=draw(pick(INSIDE_6 if six else INSIDE)),
        internal_port=inside, name=draw(pick(("", "m1", "m2"))))


MEMBERS: tuple[Prefix, ...] = (*PREFIXES[1:], *PREFIXES_6[1:], *map(IPv4Network, INSIDE), *map(IPv6Network, INSIDE_6))


def members(most: int = 5) -> st.SearchStrategy[tuple[Prefix, ...]]:
    """Prefixes of several lengths and both families; now and then everything."""
    every = (*MEMBERS, *MEMBERS, PREFIXES[0], PREFIXES_6[0])
    return st.lists(pick(every), max_size=most, unique=True).map(tuple)


@st.composite
def sets(draw: st.DrawFn) -> tuple[AddressSet, ...]:
    """All that rules may name."""
    static = tuple(AddressSet(id, f"s{id}", draw(members())) for id in STATIC_SETS)
    return (*static, AddressSet(DYNAMIC_SET, "dynamic", dynamic=True))


def linked(state: EngineState) -> tuple[int, ...]:
    """Ports that have a link."""
    return tuple(port.id for port in state.ports if port.exit_of is None)


def uplink(id: int, loopback: bool = False, mtu: int = 0) -> Uplink:
    """An uplink by its id."""
    return Uplink(id, f"up{id}", 50 + id, loopback, mtu, UPLINK_MACS[id])


@st.composite
def _uplinks(draw: st.DrawFn) -> tuple[Uplink, ...]:
    """Now and then the second leads to the host's own sockets. Some packets are too big for some."""
    mtus = pick((0, 576, 1400, 1400, 1500, 1500))
    return uplink(1, mtu=draw(mtus)), uplink(2, draw(pick((False, False, True))), draw(mtus))


@st.composite
def states(draw: st.DrawFn, plain: bool = False) -> EngineState:
    """A whole host."""
    ids = draw(pick(((1, 2, 3, 4), (1, 2, 3), (2, 3, 4), (1, 2))))
    ways = tuple(draw(exits(id, vni)) for id, vni in zip(EXITS, VNIS, strict=True) if draw(pick((False, True))))
    made = tuple(draw(spaces(id)) for id in SPACES)
    if draw(pick((False, True))):
        made = tuple(replace(space, routes=draw(routes(space.id, ways))) for space in made)
    if draw(pick((True, True, False))):
        made = draw(switched(made, (*MACS.values(),), ids, VTEPS))
    return draw(over_underlays(EngineState(
        ports=(*(draw(ports(number, plain)) for number in ids), *ways),
        spaces=made,
        pools=tuple(draw(pools(id)) for id in POOLS),
        mappings=draw(mappings((*ids, *(port.id for port in ways)))),
        uplinks=draw(_uplinks()),
        tunnel_ifindex=TUNNEL_IFINDEX,
        inspect_ifindex=draw(pick((0, INSPECT_IFINDEX, INSPECT_IFINDEX))),
        sets=draw(sets()),
        prefixes=draw(prefix_mappings(UPLINKS, SPACES)),
    )))


@st.composite
def over_underlays(draw: st.DrawFn, state: EngineState) -> EngineState:
    """How other hosts are reached: not said; by one address of a family, or several; some paths are narrow.

    Some ports have an address of their own for it.
    """
    mtus = pick((0, 1300, 1500, 9100))
    here = draw(pick(((), HERE[:1], HERE[:1], (HERE[0], HERE[2]), HERE)))
    paths = draw(st.lists(st.tuples(pick(VTEPS), pick((1280, 1400, 9000))), max_size=2, unique_by=lambda path: path[0]))
    own = (HERE[0::2], HERE[1::2], HERE[:1], HERE[3:], (), ())
    return replace(
        state, paths=tuple(paths),
        underlays=tuple(Underlay(address, draw(pick((0, UNDERLAY_IFINDEX))), draw(mtus)) for address in here),
        ports=tuple(replace(port, vteps=tuple(vtep for vtep in draw(pick(own)) if vtep in here))
                    for port in state.ports))


@st.composite
def set_rules(draw: st.DrawFn) -> Layer:
    """A layer in which sets decide, and fragments, VNIs and opening segments sometimes."""
    def group(name: str) -> Group:
        rules = []
        for priority in range(draw(st.integers(1, 3))):
            which = draw(pick((DYNAMIC_SET, DYNAMIC_SET, *STATIC_SETS)))
            match = Match(**{draw(pick(("src_set", "dst_set"))): which})
            other = draw(pick(({"fragment": True}, {"fragment": False}, {"vni": VNIS[0]}, {"vni": VNIS[1]})))
            beside = draw(pick(("set", "set", "both", "other")))
            if beside != "set":
                match = replace(match if beside == "both" else Match(), **other)
            action = draw(pick((Allow(), Allow(), Deny(), Deny(), Pass(), Rewrite(dst_port=8080))))
            syn_only = draw(pick((False, False, False, True)))
            rules.append(Rule(priority, match, action, f"s{priority}", syn_only=syn_only))
        return Group(name, tuple(rules))

    out = tuple(group(name) for name in draw(pick((("x",), ("x", "y"), ()))))
    in_ = tuple(group(name) for name in draw(pick((("x",), ()))))
    defaults = pick((Allow(),) * 5 + (Deny(),))
    return Layer("sets", out, in_, draw(defaults), draw(defaults))


@st.composite
def set_states(draw: st.DrawFn) -> EngineState:
    """A host whose packets get through unless sets say otherwise."""
    state = draw(states(plain=True))
    return replace(state, ports=tuple(
        replace(port, layers=(port.layers[0], draw(set_rules()), *port.layers[1:])) for port in state.ports))


@st.composite
def changes(draw: st.DrawFn, state: EngineState, plain: bool = False) -> EngineState:
    """One thing of a state is different: a port's policy, a place, a pool, the mappings, ..."""
    what = draw(pick(("port", "port", "port", "unport", "place", "place", "place", "unplace", "route",
                      "route", "exit", "pool", "pool", "mappings", "mappings", "prefixes", "uplink", "underlay",
                      "switch", "nothing", "all", "set", "set", "set")))
    if what == "port":
        number = draw(pick(PORT_IDS))
        others = tuple(port for port in state.ports if port.id != number)
        return replace(state, ports=(*others, draw(ports(number, plain))))
    if what == "unport" and len(linked(state)) > 1:
        gone = draw(pick(state.ports)).id
        without = tuple(
            replace(space, routes=tuple(route for route in space.routes if not (
                isinstance(route.via, LocalPort) and route.via.port == gone))) for space in state.spaces)
        return replace(state, ports=tuple(port for port in state.ports if port.id != gone), spaces=without,
                       mappings=tuple(mapping for mapping in state.mappings if mapping.port != gone))
    if what in ("place", "unplace"):
        space = draw(pick(state.spaces))
        address = draw(pick((*INSIDE, GATEWAY)))
        address = draw(pick((address, six(address))))
        new = with_place(space, address, draw(places(four(address))) if what == "place" else None)
        return replace(state, spaces=tuple(new if each is space else each for each in state.spaces))
    if what == "route":
        space = draw(pick(state.spaces))
        new = replace(space, routes=draw(routes(space.id, state.ports)))
        return replace(state, spaces=tuple(new if each is space else each for each in state.spaces))
    if what == "exit":
        at = draw(pick((0, 1)))
        others = tuple(port for port in state.ports if port.id != EXITS[at])
        return replace(state, ports=(*others, draw(exits(EXITS[at], VNIS[at]))))
    if what == "pool":
        id = draw(pick(POOLS))
        return replace(state, pools=tuple(draw(pools(id)) if pool.id == id else pool for pool in state.pools))
    if what == "set":
        changed = draw(pick(STATIC_SETS))
        return replace(state, sets=tuple(
            replace(given, members=draw(members())) if given.id == changed else given for given in state.sets))
    if what == "mappings":
        return replace(state, mappings=draw(mappings(tuple(port.id for port in state.ports))))
    if what == "prefixes":
        return replace(state, prefixes=draw(prefix_mappings(UPLINKS, SPACES)))
    if what == "switch":
        numbers = tuple(port.id for port in state.ports)
        return replace(state, spaces=draw(switched(state.spaces, (*MACS.values(),), numbers, VTEPS)))
    if what == "uplink":
        return replace(state, uplinks=tuple(each for each in draw(_uplinks()) if draw(st.booleans())),
                       tunnel_ifindex=draw(pick((0, TUNNEL_IFINDEX))),
                       inspect_ifindex=draw(pick((0, INSPECT_IFINDEX))))
    if what == "underlay":
        return draw(over_underlays(state))
    return draw(states(plain)) if what == "all" else state
