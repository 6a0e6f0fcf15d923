"""Nat networks: pools and what they are told, what is routed, mappings and their doors, shadowed prefixes, taps."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Network, ip_address

import pytest
from agent_kit import (
    HOST,
    HOST_ADDRESS,
    SECOND_ADDRESS,
    UPLINK,
    built,
    engine,
    error_of,
    from_world,
    ip,
    ip6,
    mapping,
    nat,
    number_of,
    observed,
    port,
    tcp,
    udp,
)
from agent_kit import goals as goals_of
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from agent.build import Built, build, wanted
from agent.ids import MAX_POOLS, Ids, allocate
from agent.observed import Observed
from southbound.messages import Goal, MappingGoal, PortGoal
from vfp.compile import Compiler
from vfp.datapath.limits import Limits
from vfp.model import Filtering, Pool, PortRange, PrefixMapping, Rule
from vfp.reference import Hook, Result, Verdict
from vfp.timeouts import Timeouts
from vswitch.links import OwnedLink

UPLINK_6 = replace(UPLINK, addresses6=("2001:db8:ff::10/64",))
NAT_1, NAT_2 = nat(1), nat(2)
WEB, APP = port("web", NAT_1, "192.168.1.5", 5), port("app", NAT_1, "192.168.1.6", 6)
DB = port("db", NAT_2, "192.168.2.5", 7)
SERVER = "172.16.0.80"
FIRST, SECOND = IPv4Address(HOST_ADDRESS), IPv4Address(SECOND_ADDRESS)


def send(made: Built, sender: PortGoal, frame: bytes) -> Result:
    return engine(made).process(Hook.PORT_OUT, number_of(made, sender), frame, now_s=0)


def source(result: Result) -> str:
    assert result.verdict is Verdict.REDIRECT_UPLINK, result
    return str(Ether(result.frame)[IP].src)


def pools(made: Built) -> dict[str, Pool]:
    return {made.pool_names[pool.id]: pool for pool in made.engine.pools}


def rules(made: Built, endpoint: PortGoal, layer: str, group: str) -> list[Rule]:
    port = next(one for one in made.engine.ports if one.id == number_of(made, endpoint))
    return [rule for one in port.layers if one.name == layer
            for each in (*one.groups_out, *one.groups_in) if each.name == group for rule in each.rules]


# Pools


def test_every_network_has_pools_of_its_own() -> None:
    made = built(HOST, NAT_1, NAT_2, WEB, DB)
    assert {name: pool.addresses for name, pool in pools(made).items()} == {
        "nat-1/172.16.0.10": (FIRST,), "nat-1/172.17.0.10": (SECOND,),
        "nat-2/172.16.0.10": (FIRST,), "nat-2/172.17.0.10": (SECOND,),
    }
    assert {(pool.uplink, pool.ports) for pool in made.engine.pools} == {(1, PortRange(20000, 32767))}


def test_a_pool_is_told_what_the_network_says() -> None:
    strict = nat(1, filtering="address-dependent", block=64, quota=1000, log=True,
                 timeouts=(("udp", 30.0), ("tcp_established", 7500)))
    made = built(HOST, strict, NAT_2, WEB, DB)
    by_name = pools(made)
    pool, other = by_name["nat-1/172.16.0.10"], by_name["nat-2/172.16.0.10"]
    assert (pool.filtering, pool.block, pool.quota, pool.log) == (Filtering.ADDRESS, 64, 1000, True)
    assert (other.filtering, other.block, other.quota, other.log) == (Filtering.ENDPOINT_INDEPENDENT, 0, 0, False)
    times = {port.name: port.timeouts for port in made.engine.ports}
    assert times == {"default/web": Timeouts(udp_s=30, tcp_established_s=7500), "default/db": None}


def test_times_that_a_network_does_not_name_are_those_of_the_engine() -> None:
    quick = nat(1, timeouts=(("udp", 30.0),))
    made = built(HOST, quick, WEB, timeouts=Timeouts(icmp_s=99))
    assert made.engine.ports[0].timeouts == Timeouts(icmp_s=99, udp_s=30)


def test_named_addresses_are_one_pool() -> None:
    named = nat(1, addresses=(SECOND_ADDRESS, HOST_ADDRESS))
    made = built(HOST, named, WEB)
    assert {name: pool.addresses for name, pool in pools(made).items()} == {"nat-1/named4": (SECOND, FIRST)}
    only = built(HOST, nat(1, addresses=(SECOND_ADDRESS,)), WEB)
    assert source(send(only, WEB, ip(WEB, SERVER, tcp()))) == SECOND_ADDRESS


def test_a_named_address_that_the_uplink_has_not_is_the_networks_fault_and_nothing_leaves() -> None:
    named = nat(1, addresses=("172.16.0.99",))
    made = built(HOST, named, WEB, APP)
    assert "172.16.0.99 is not on the uplink, which has 172.16.0.10, 172.17.0.10" in error_of(made, named)
    assert send(made, WEB, ip(WEB, SERVER, tcp())).layer == "nat"
    assert send(made, WEB, ip(WEB, "192.168.1.6", tcp())).verdict is Verdict.REDIRECT_PORT


def test_sockets_of_the_host_hold_their_ports() -> None:
    heard = (("tcp", "0.0.0.0", 20001), ("udp", "::", 20002), ("tcp", HOST_ADDRESS, 20003), ("tcp", "127.0.0.1", 20004),
             ("tcp", "0.0.0.0", 80), ("sctp", "0.0.0.0", 5))
    by_name = pools(built(HOST, NAT_1, WEB, listeners=heard))
    assert by_name["nat-1/172.16.0.10"].held == ((6, 20001), (6, 20003), (17, 20002), (132, 5))
    assert by_name["nat-1/172.17.0.10"].held == ((6, 20001), (17, 20002), (132, 5))


def test_a_pool_keeps_its_number_when_others_come_and_go_and_over_a_restart() -> None:
    def numbers(known: Ids, *objects: Goal) -> Ids:
        return allocate(known, wanted(goals_of(*objects), Observed(UPLINK)), 100)

    first = numbers(Ids(), HOST, NAT_2, DB)
    later = numbers(first, HOST, NAT_1, NAT_2, WEB, DB)
    assert {name: later.pools[name] for name in first.pools} == dict(first.pools)
    assert len(set(later.pools.values())) == len(later.pools)


def test_who_finds_no_room_for_a_pool_has_a_fault_and_the_others_go_on() -> None:
    def numbers(known: Ids, *objects: Goal) -> Ids:
        return allocate(known, wanted(goals_of(*objects), Observed(UPLINK)), 100, max_pools=3)

    newer = nat(0)                          # of a lower space than those that were there before
    host = port("new", newer, "192.168.0.5", 8)
    first = numbers(Ids(), HOST, NAT_1, WEB)
    state = goals_of(HOST, newer, NAT_1, NAT_2, WEB, DB, host)
    ids = numbers(first, *state.objects.values())
    made = build(state, observed(state, ids), ids)
    Compiler().compile(made.engine, 100)
    assert len(made.engine.pools) <= 3
    assert "the host has no room for another pool" in error_of(made, newer)
    assert not error_of(made, NAT_1)
    assert source(send(made, WEB, ip(WEB, SERVER, tcp()))) == HOST_ADDRESS
    assert send(made, host, ip(host, SERVER, tcp())).layer == "nat"
    room = numbers(ids, HOST, newer, host)
    assert not error_of(build(goals_of(HOST, newer, host), observed(goals_of(HOST, newer, host), room), room), newer)


def test_a_mapping_whose_gateway_finds_no_room_for_a_pool_is_its_networks_fault() -> None:
    state = goals_of(HOST, NAT_1, WEB, mapping("m", WEB, 8080, 80))
    ids = allocate(Ids(), wanted(state, Observed(UPLINK)), 100, max_pools=2)
    made = build(state, observed(state, ids), ids)
    assert "no room for another pool; it has 2" in error_of(made, NAT_1)


def test_the_host_gives_as_many_pools_as_the_engine_holds() -> None:
    assert Limits().pools == MAX_POOLS
    state = goals_of(HOST, *(nat(n) for n in range(200)))
    ids = allocate(Ids(), wanted(state, Observed(UPLINK)), 100)
    assert len(ids.pools) == 400, "one for each address of the uplink, and no more"


# What is routed


def test_exceptions_are_routed_untranslated() -> None:
    made = built(HOST, nat(1, exceptions=("172.16.0.0/16", "fd00::/8")), WEB)
    assert source(send(made, WEB, ip(WEB, SERVER, tcp()))) == "192.168.1.5"
    assert source(send(made, WEB, ip(WEB, "8.8.8.8", udp()))) == HOST_ADDRESS


def test_only_named_destinations_are_translated() -> None:
    made = built(HOST, nat(1, destinations=("172.16.0.0/12", "8.8.8.0/24"), exceptions=("172.18.0.0/16",)), WEB)
    for destination, seen in ((SERVER, HOST_ADDRESS), ("172.17.0.80", SECOND_ADDRESS), ("172.20.0.1", HOST_ADDRESS),
                              ("8.8.8.8", HOST_ADDRESS), ("9.9.9.9", "192.168.1.5"), ("172.18.0.1", "192.168.1.5")):
        assert source(send(made, WEB, ip(WEB, destination, tcp()))) == seen


def test_a_destination_within_an_on_link_prefix_keeps_to_its_address() -> None:
    made = built(HOST, nat(1, destinations=("172.17.0.128/25",)), WEB)
    assert source(send(made, WEB, ip(WEB, "172.17.0.200", tcp()))) == SECOND_ADDRESS
    assert source(send(made, WEB, ip(WEB, "172.17.0.80", tcp()))) == "192.168.1.5"


def test_what_is_routed_cannot_forge_vxlan_from_the_vtep() -> None:
    made = built(HOST, nat(1, exceptions=("0.0.0.0/0",)), WEB)
    assert send(made, WEB, ip(WEB, "172.31.0.2", udp(4789))).layer == "nat"


def test_a_prefix_is_translated_one_to_one() -> None:
    network = nat(1, "192.168.1.0/24", "fd00:1::/64", ipv6="prefix", external_prefix="2001:db8:1::/64")
    web = port("web", network, "192.168.1.5", 5, address6="fd00:1::5/64")
    made = built(HOST, network, web, uplink=UPLINK_6)
    inside, outside = IPv6Network("fd00:1::/64"), IPv6Network("2001:db8:1::/64")
    assert made.engine.prefixes == (PrefixMapping(1, outside, inside, network.space),)
    (rule,) = [rule for rule in rules(made, web, "nat", "source") if rule.name == "prefix"]
    assert (rule.match.src, rule.action.internal, rule.action.external) == (inside, inside, outside)  # type: ignore[union-attr]
    assert made.faults == ()
    run = engine(made)
    there = run.process(Hook.PORT_OUT, number_of(made, web), ip6(web, "2001:db8::80", tcp()), now_s=0)
    seen = Ether(there.frame)[IPv6].src
    assert (there.verdict, ip_address(seen) in outside, Ether(there.frame)[TCP].sport) == (
        Verdict.REDIRECT_UPLINK, True, 40000)
    frame = bytes(Ether(src="02:bb:00:00:00:01", dst=UPLINK.mac) / IPv6(src="2001:db8::99", dst=seen) / tcp(22))
    back = run.process(Hook.UPLINK_IN, 1, frame, now_s=0)
    assert (back.verdict, back.port, Ether(back.frame)[IPv6].dst) == (
        Verdict.REDIRECT_PORT, number_of(made, web), "fd00:1::5")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"ipv6": "prefix", "external_prefix": "2001:db8:1::/48"}, "of its length"),
        ({"ipv6": "prefix", "external_prefix": "nonsense"}, "nonsense"),
        ({"timeouts": (("udpp", 3.0),)}, "udpp"),
        ({"timeouts": (("udp", 0.0),)}, "udp"),
        ({"timeouts": (("udp", 1e10),)}, "udp"),
        ({"ipv6": "prefix", "external_prefix": "2001:db8:1::/96"}, "of a length of"),
        ({"block": 100_000}, "portBlock 100000"),
        ({"quota": -1}, "portsPerEndpoint -1"),
        ({"exceptions": ("10.0.0.1/8",)}, "host bits"),
        ({"destinations": ("all",)}, "all"),
        ({"filtering": "none"}, "none"),
        ({"addresses": ("172.16.0",)}, "172.16.0"),
    ],
)
def test_what_a_network_cannot_have_is_its_own_fault(more: dict[str, object], words: str) -> None:
    bad = nat(1, "192.168.1.0/24", "fd00:1::/64", **more)
    made = built(HOST, bad, NAT_2, DB, uplink=UPLINK_6)
    assert words in error_of(made, bad)
    assert source(send(made, DB, ip(DB, SERVER, tcp()))) == HOST_ADDRESS


def test_two_networks_do_not_take_one_external_prefix() -> None:
    one, other = (nat(n, f"fd00:{n}::/64", ipv6="prefix", external_prefix="2001:db8:1::/64") for n in (1, 2))
    made = built(HOST, one, other, uplink=UPLINK_6)
    assert (error_of(made, one), "default/nat1" in error_of(made, other)) == ("", True)


# Mappings


def opened(made: Built, goal: MappingGoal) -> set[tuple[str, str, int, int]]:
    name = f"{goal.tenant}/{goal.name}"
    uplinks = {uplink.id: uplink.name for uplink in made.engine.uplinks}
    return {(uplinks[one.uplink], str(one.external), one.external_port, one.internal_port)
            for one in made.engine.mappings if one.name == name}


@pytest.mark.parametrize(("protocol", "number"), [("tcp", 6), ("udp", 17), ("sctp", 132), ("icmp", 1)])
def test_a_range_is_a_mapping_for_each_port(protocol: str, number: int) -> None:
    goal = mapping("m", WEB, 8000, 8000 if protocol == "sctp" else 80, protocol=protocol,
                   external_ports=(8000, 8002), external_address=HOST_ADDRESS)
    made = built(HOST, NAT_1, WEB, goal)
    inside = 8000 if protocol == "sctp" else 80
    world = {each[2:] for each in opened(made, goal) if each[0] == "lan0"}
    assert world == {(8000 + n, inside + n) for n in range(3)}
    assert {one.protocol for one in made.engine.mappings} == {number}
    reserved = ((20000, 32767),) if protocol == "icmp" else ((20000, 32767), (8000, 8002))
    assert made.reserved_ports == reserved


def test_identifiers_of_icmpv6_are_mapped_too() -> None:
    network = nat(1, "192.168.1.0/24", "fd00:1::/64")
    web = port("web", network, "192.168.1.5", 5, address6="fd00:1::5/64")
    goal = mapping("m", web, 7, 7, protocol="icmp", external_address="::", internal_address="fd00:1::5")
    made = built(HOST, network, web, goal, uplink=UPLINK_6)
    assert {(one.protocol, one.external.version) for one in made.engine.mappings} == {(58, 6)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"external_ports": (0, 0)}, "external ports 0-0"),
        ({"external_ports": (65535, 65536)}, "65536"),
        ({"external_ports": (90, 80)}, "90-80"),
        ({"external_ports": (8000, 8100), "internal_port": 65500}, "internal port 65500"),
        ({"internal_port": 0}, "internal port 0"),
        ({"protocol": "sctp"}, "SCTP ports cannot be translated"),
        ({"external_ports": (19999, 20000)}, "NAT ports 20000-32767"),
        ({"internal_address": "192.168.1.6"}, "is not that of endpoint default/web"),
        ({"external_address": "::"}, "different families"),
        ({"protocol": "any"}, "has no ports"),
        ({"protocol": "any", "external_ports": (0, 0), "internal_port": 0}, "for itself"),
        ({"protocol": "any", "external_ports": (0, 0), "internal_port": 0, "external_address": HOST_ADDRESS},
         "the host itself uses"),
        ({"protocol": "any", "external_ports": (0, 0), "internal_port": 0, "external_address": SECOND_ADDRESS},
         "externalAddresses of network default/nat2"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused_alone(change: dict[str, object], words: str) -> None:
    bad = replace(mapping("bad", WEB, 8080, 80), **change)  # type: ignore[arg-type]
    good = mapping("good", APP, 9090, 90)
    other = nat(2, addresses=(SECOND_ADDRESS,))
    made = built(HOST, NAT_1, other, WEB, APP, bad, good)
    assert words in error_of(made, bad)
    assert error_of(made, good) == ""
    assert {one.external_port for one in made.engine.mappings} == {9090}


@pytest.mark.parametrize(
    ("listener", "refused"),
    [
        (("tcp", "0.0.0.0", 8080), True),
        (("tcp", "::", 8080), True),
        (("tcp", HOST_ADDRESS, 8080), True),
        (("tcp", "10.9.9.9", 8080), False),
        (("udp", "0.0.0.0", 8080), False),
        (("tcp", "0.0.0.0", 8081), False),
    ],
)
def test_a_listening_socket_of_the_host_is_named(listener: tuple[str, str, int], refused: bool) -> None:
    goal = mapping("m", WEB, 8080, 80)
    made = built(HOST, NAT_1, WEB, goal, listeners=(listener,))
    assert (f"listens at {listener[1]}" in error_of(made, goal)) == refused
    held = built(HOST, NAT_1, WEB, goal, listeners=(listener,), served=frozenset({goal.id}))
    assert error_of(held, goal) == ""       # it was there first


def test_one_port_on_two_addresses_is_two_mappings() -> None:
    first = mapping("a", WEB, 80, 80, external_address=HOST_ADDRESS)
    second = mapping("b", APP, 80, 80, external_address=SECOND_ADDRESS)
    made = built(HOST, NAT_1, WEB, APP, first, second)
    assert made.faults == ()
    assert made.external_addresses == {first.id: (HOST_ADDRESS,), second.id: (SECOND_ADDRESS,)}
    for address, endpoint in ((HOST_ADDRESS, WEB), (SECOND_ADDRESS, APP)):
        result = engine(made).process(Hook.UPLINK_IN, 1, from_world("172.16.0.90", address, tcp(80)), now_s=0)
        assert result.port == number_of(made, endpoint)


WHOLE = mapping("whole", WEB, 0, 0, protocol="any", external_address=SECOND_ADDRESS)


def test_a_whole_address_is_its_endpoints_out_and_in_and_nobody_elses() -> None:
    anywhere = mapping("m", APP, 8080, 80)
    made = built(HOST, NAT_1, WEB, APP, WHOLE, anywhere)
    assert made.faults == ()
    assert {(one.protocol, one.external, one.external_port) for one in made.engine.mappings if one.uplink == 1} == {
        (0, SECOND, 0), (6, FIRST, 8080)}
    for destination in (SERVER, "172.17.0.80"):
        assert source(send(made, WEB, ip(WEB, destination, tcp()))) == SECOND_ADDRESS
        assert source(send(made, APP, ip(APP, destination, tcp()))) == HOST_ADDRESS
    assert source(send(made, WEB, ip(WEB, SERVER, IP(proto=47)))) == SECOND_ADDRESS
    assert all(SECOND not in pool.addresses for pool in made.engine.pools)
    named = built(HOST, NAT_1, WEB, APP, WHOLE, replace(anywhere, external_address=SECOND_ADDRESS))
    assert named.faults == ()               # one port of it may be another's


# Links


def test_a_port_without_a_namespace_is_a_tap_of_the_given_name() -> None:
    vm = replace(port("vm", NAT_1, "192.168.1.9", 9), netns="", interface="vm0")
    made = built(HOST, NAT_1, WEB, vm)
    link = made.ports[vm.id]
    assert (link.tap, link.host_interface, link.netns, link.interface) == (True, "vm0", "", "")
    assert link.alias == f"sluice:port:{vm.id}:{number_of(made, vm)}"
    assert {one.name: one.tap for one in made.engine.ports} == {"default/web": False, "default/vm": True}
    assert "vm0" in made.links()


def test_a_tap_that_is_anothers_still_is_not_in_the_engine() -> None:
    vm = replace(port("vm", NAT_1, "192.168.1.9", 9), netns="", interface="vm0")
    state = goals_of(HOST, NAT_1, vm)
    ids = allocate(Ids(), wanted(state, Observed(UPLINK)), 100)
    found = observed(state, ids, owned={"vm0": OwnedLink("vm0", 50, "tun", 1500, "sluice:port:other:9")})
    assert build(state, found, ids).engine.ports == ()


@pytest.mark.parametrize(("name", "words"), [
    ("slp7", "another link"), ("lo", "another link"), ("lan0", "another link"), ("", "give its name"),
    ("vm0", "is that of endpoint default/vm"),
])
def test_a_tap_takes_no_name_of_another_link(name: str, words: str) -> None:
    vm = replace(port("vm", NAT_1, "192.168.1.9", 9), netns="", interface="vm0")
    bad = replace(port("z", NAT_1, "192.168.1.8", 8), netns="", interface=name)
    made = built(HOST, NAT_1, vm, bad)
    assert words in error_of(made, bad)
    assert error_of(made, vm) == ""


# Prefixes that are somewhere else, too

TWIN = replace(nat(2, "192.168.0.0/16", tenant="blue"))
TWIN_A = port("twin", TWIN, "192.168.1.5", 0x25)


def test_of_tenants_with_one_prefix_the_stack_knows_the_first_and_both_work() -> None:
    made = built(HOST, NAT_1, TWIN, WEB, APP, TWIN_A)
    assert made.faults == ()
    assert made.shadowed == {TWIN.id}
    assert made.bridges[NAT_1.id].addresses == ("192.168.1.1/24",)
    assert made.bridges[TWIN.id].addresses == ()
    assert made.neighbours[made.bridges[TWIN.id].name] == {}
    for sender in (WEB, TWIN_A):
        assert source(send(made, sender, ip(sender, SERVER, tcp()))) == HOST_ADDRESS
    inside = send(made, WEB, ip(WEB, "192.168.1.6", tcp()))
    assert (inside.verdict, inside.port) == (Verdict.REDIRECT_PORT, number_of(made, APP))
    assert send(made, TWIN_A, ip(TWIN_A, "192.168.1.6", tcp())).verdict is Verdict.DROP      # it has no such endpoint


def test_a_network_that_overlaps_what_the_host_has_now_is_shadowed() -> None:
    made = built(HOST, NAT_1, WEB, APP, overlaps={NAT_1.id: "overlap with wlan0 192.168.1.0/24"})
    assert made.shadowed == {NAT_1.id}
    assert send(made, WEB, ip(WEB, "192.168.1.6", tcp())).verdict is Verdict.REDIRECT_PORT


def test_one_tenants_prefixes_do_not_overlap() -> None:
    made = built(HOST, NAT_1, replace(TWIN, tenant="default"))
    assert "overlaps that of nat network default/nat1" in error_of(made, TWIN)
