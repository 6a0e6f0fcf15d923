"""Ways in and around: hairpin, the host's own processes by lo, shadowed networks; judged by the reference engine."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from agent_kit import (
    HOST,
    HOST_ADDRESS,
    SECOND_ADDRESS,
    UPLINK,
    arp_request,
    built,
    engine,
    error_of,
    from_world,
    ip,
    ip6,
    mapping,
    nat,
    number_of,
    port,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from agent.build import Built
from southbound.messages import AclRule, AclTier, Goal, PortGoal
from vfp.model import Uplink
from vfp.reference import Engine, Hook, Result, Verdict

UPLINK_6 = replace(UPLINK, addresses6=("2001:db8:ff::10/64",))
NAT_1, NAT_2 = nat(1, "192.168.1.0/24", "fd00:1::/64"), nat(2)
WEB = port("web", NAT_1, "192.168.1.5", 5, address6="fd00:1::5/64")
APP = port("app", NAT_1, "192.168.1.6", 6, address6="fd00:1::6/64")
DB = port("db", NAT_2, "192.168.2.5", 7)
MAP = mapping("m", WEB, 8080, 80)
MAP_6 = mapping("m6", WEB, 8080, 80, external_address="::", internal_address="fd00:1::5")
TWIN = nat(3, "192.168.1.0/24", tenant="blue")
TWIN_A = port("twin", TWIN, "192.168.1.5", 0x25)
LO = 2                                      # the engine's id of lo: the second of two uplinks
GATEWAY = "192.168.1.1"
CLIENT = "172.16.0.90"
HOST_ADDRESSES = frozenset(map(IPv4Address, (HOST_ADDRESS, SECOND_ADDRESS)))


def out(run: Engine, made: Built, sender: PortGoal, frame: bytes, now_s: float = 0) -> Result:
    return run.process(Hook.PORT_OUT, number_of(made, sender), frame, now_s=now_s)


def by_lo(src: str, dst: str, payload: Packet) -> bytes:
    """What the host's own stack sends to itself."""
    head = IPv6(src=src, dst=dst) if ":" in src else IP(src=src, dst=dst)
    return bytes(Ether(src="00:00:00:00:00:00", dst="00:00:00:00:00:00") / head / payload)


def answer(packet: Packet) -> Packet:
    """A SYN-ACK to a SYN."""
    return TCP(sport=packet[TCP].dport, dport=packet[TCP].sport, flags="SA")


def host_of(*objects: Goal, **more: object) -> tuple[Built, Engine]:
    made = built(HOST, *objects, **({"uplink": UPLINK_6} | more))  # type: ignore[arg-type]
    return made, engine(made)


# Hairpin


@pytest.mark.parametrize("sender", [WEB, APP, DB])
@pytest.mark.parametrize("address", [HOST_ADDRESS, SECOND_ADDRESS])
def test_a_mapped_port_is_reached_from_inside_and_by_itself_as_from_the_world(sender: PortGoal, address: str) -> None:
    made, run = host_of(NAT_1, NAT_2, WEB, APP, DB, MAP)
    there = out(run, made, sender, ip(sender, address, tcp(8080)))
    assert (there.verdict, there.port) == (Verdict.REDIRECT_PORT, number_of(made, WEB))
    seen = Ether(there.frame)
    assert (seen[IP].src, seen[IP].dst, seen[TCP].dport) == (address, "192.168.1.5", 80)
    reply = ip(WEB, seen[IP].src, answer(seen))
    back = out(run, made, WEB, reply, now_s=1)
    assert (back.verdict, back.port) == (Verdict.REDIRECT_PORT, number_of(made, sender))
    got = Ether(back.frame)
    assert (got[IP].src, got[TCP].sport, got[TCP].dport) == (address, 8080, 40000)


def test_a_hairpin_leaves_with_a_named_address_of_the_sender() -> None:
    named = replace(NAT_1, nat=replace(NAT_1.nat, addresses=(SECOND_ADDRESS,)))
    made, run = host_of(named, WEB, APP, MAP)
    there = out(run, made, APP, ip(APP, HOST_ADDRESS, tcp(8080)))
    assert (there.verdict, Ether(there.frame)[IP].src) == (Verdict.REDIRECT_PORT, SECOND_ADDRESS)


def test_the_external_side_of_a_binding_is_reached_from_inside() -> None:
    made, run = host_of(NAT_1, NAT_2, WEB, DB)
    first = Ether(out(run, made, WEB, ip(WEB, "172.16.0.80", udp())).frame)
    there = out(run, made, DB, ip(DB, first[IP].src, UDP(sport=9, dport=first[UDP].sport)))
    assert (there.verdict, there.port) == (Verdict.REDIRECT_PORT, number_of(made, WEB))
    assert (Ether(there.frame)[IP].dst, Ether(there.frame)[UDP].dport) == ("192.168.1.5", 40000)


def test_what_nobody_has_at_an_address_of_the_host_is_the_hosts() -> None:
    made, run = host_of(NAT_1, WEB, MAP)
    assert out(run, made, WEB, ip(WEB, HOST_ADDRESS, tcp(22))).verdict is Verdict.STACK


def test_ipv6_turns_around_too_though_it_is_routed() -> None:
    made, run = host_of(NAT_1, WEB, APP, MAP_6)
    there = out(run, made, APP, ip6(APP, "2001:db8:ff::10", tcp(8080)))
    assert there.verdict is Verdict.REDIRECT_PORT
    assert (Ether(there.frame)[IPv6].src, Ether(there.frame)[IPv6].dst) == ("2001:db8:ff::10", "fd00:1::5")


# The host's own processes


def test_lo_is_an_uplink_while_something_needs_it() -> None:
    assert built(HOST, NAT_1, WEB).loopback is False
    made = built(HOST, NAT_1, WEB, MAP)
    assert made.loopback
    lan = Uplink(1, "lan0", 3, mtu=1500, mac=bytes.fromhex(UPLINK.mac.replace(":", "")))
    assert made.uplinks == (lan, Uplink(LO, "lo", 1, loopback=True))
    assert built(HOST, NAT_1, TWIN).loopback


def test_only_networks_with_a_mapping_get_what_the_host_needs_for_it() -> None:
    made, _ = host_of(NAT_1, NAT_2, WEB, DB, MAP)
    with_host = {port.name for port in made.engine.ports for layer in port.layers if layer.name == "host"}
    assert with_host == {"default/web"}
    names = {made.pool_names[pool.id] for pool in made.engine.pools}
    assert {name for name in names if name.startswith("lo/")} == {"lo/192.168.1.1", "lo/fd00:1::1"}
    assert "nat-1/2001:db8:ff::10" not in names
    both, _ = host_of(NAT_1, WEB, MAP_6)    # for hairpins
    assert "nat-1/2001:db8:ff::10" in {both.pool_names[pool.id] for pool in both.engine.pools}


def test_a_mapping_to_all_addresses_is_open_to_the_host_at_all_of_its_own() -> None:
    made, _ = host_of(NAT_1, WEB, MAP, MAP_6)
    at_lo = {str(one.external) for one in made.engine.mappings if one.uplink == LO}
    assert at_lo == {"127.0.0.1", "::1", HOST_ADDRESS, SECOND_ADDRESS, "2001:db8:ff::10"}
    assert made.external_addresses[MAP.id] == (HOST_ADDRESS, SECOND_ADDRESS)


@pytest.mark.parametrize(("goal", "address", "source", "seen"), [
    (MAP, "127.0.0.1", "127.0.0.1", GATEWAY),
    (MAP, HOST_ADDRESS, HOST_ADDRESS, HOST_ADDRESS),
    (MAP_6, "::1", "::1", "fd00:1::1"),
    (MAP_6, "2001:db8:ff::10", "2001:db8:ff::10", "2001:db8:ff::10"),
])
def test_a_process_of_the_host_reaches_a_mapped_port(goal: Goal, address: str, source: str, seen: str) -> None:
    made, run = host_of(NAT_1, WEB, goal)
    there = run.process(Hook.UPLINK_IN, LO, by_lo(source, address, tcp(8080)), now_s=0)
    assert (there.verdict, there.port) == (Verdict.REDIRECT_PORT, number_of(made, WEB))
    packet = Ether(there.frame)
    assert (packet.payload.src, packet[TCP].dport) == (seen, 80)
    kind = ip6 if ":" in seen else ip
    back = out(run, made, WEB, kind(WEB, seen, answer(packet)), now_s=1)
    assert (back.verdict, back.uplink) == (Verdict.REDIRECT_UPLINK, LO)
    got = Ether(back.frame)
    assert (got.payload.src, got.payload.dst, got[TCP].sport, got[TCP].dport) == (address, source, 8080, 40000)


def test_a_policy_sees_the_host_as_the_gateway() -> None:
    tier = AclTier("default/p", 1, (AclRule(1, "in", "allow", (f"{GATEWAY}/32",)),))
    web = replace(WEB, tiers=(tier,), default_in="deny")
    _, run = host_of(NAT_1, web, MAP)
    frame = by_lo("127.0.0.1", "127.0.0.1", tcp(8080))
    assert run.process(Hook.UPLINK_IN, LO, frame, now_s=0).verdict is Verdict.REDIRECT_PORT
    world = from_world(CLIENT, HOST_ADDRESS, tcp(8080))
    assert run.process(Hook.UPLINK_IN, 1, world, now_s=0).verdict is Verdict.DROP


def test_a_mappings_own_rule_lets_in_what_came_by_it_and_nothing_else() -> None:
    own = AclTier("static-mappings", 65536, (
        AclRule(1, "in", "allow", ("172.16.0.0/16",), 6, ((80, 80),), "default/m", mapped=True),))
    web = replace(WEB, tiers=(own,), default_in="deny")
    made, run = host_of(NAT_1, web, APP, MAP)
    for client, verdict in ((CLIENT, Verdict.REDIRECT_PORT), ("172.17.0.9", Verdict.DROP)):
        frame = from_world(client, HOST_ADDRESS, tcp(8080))
        assert run.process(Hook.UPLINK_IN, 1, frame, now_s=0).verdict is verdict
    assert out(run, made, APP, ip(APP, "192.168.1.5", tcp(80))).verdict is Verdict.DROP


def test_nobody_on_the_lan_poses_as_the_host() -> None:
    _, run = host_of(NAT_1, WEB, MAP)
    frame = from_world("127.0.0.1", HOST_ADDRESS, tcp(8080))
    assert run.process(Hook.UPLINK_IN, 1, frame, now_s=0).verdict is not Verdict.REDIRECT_PORT


def test_a_mapping_at_a_loopback_address_is_the_hosts_alone() -> None:
    goal = mapping("m", WEB, 8080, 80, external_address="127.0.0.1")
    made, run = host_of(NAT_1, WEB, goal)
    assert made.external_addresses[goal.id] == ("127.0.0.1",)
    frame = by_lo("127.0.0.1", "127.0.0.1", tcp(8080))
    assert run.process(Hook.UPLINK_IN, LO, frame, now_s=0).verdict is Verdict.REDIRECT_PORT
    world = from_world(CLIENT, HOST_ADDRESS, tcp(8080))
    assert run.process(Hook.UPLINK_IN, 1, world, now_s=0).verdict is Verdict.STACK


def test_a_laptop_without_a_network_still_reaches_its_own_mappings() -> None:
    named = mapping("n", WEB, 9090, 90, external_address=SECOND_ADDRESS)
    made = built(HOST, NAT_1, WEB, MAP, named, uplink=None)
    assert "open to this host alone" in error_of(made, MAP)
    assert "no uplink" in error_of(made, named)
    (lo,) = made.uplinks
    assert (lo.name, made.external_addresses[MAP.id]) == ("lo", ("127.0.0.1", HOST_ADDRESS))
    frame = by_lo("127.0.0.1", "127.0.0.1", tcp(8080))
    assert engine(made).process(Hook.UPLINK_IN, lo.id, frame, now_s=0).verdict is Verdict.REDIRECT_PORT


def test_a_whole_address_is_reached_from_everywhere() -> None:
    whole = mapping("whole", WEB, 0, 0, protocol="any", external_address=SECOND_ADDRESS)
    made, run = host_of(NAT_1, NAT_2, WEB, DB, whole)
    for frame in (from_world(CLIENT, SECOND_ADDRESS, tcp(4711)), from_world(CLIENT, SECOND_ADDRESS, ICMP(id=7)),
                  from_world(CLIENT, SECOND_ADDRESS, IP(proto=47))):
        there = run.process(Hook.UPLINK_IN, 1, frame, now_s=0)
        assert (there.verdict, Ether(there.frame)[IP].dst) == (Verdict.REDIRECT_PORT, "192.168.1.5")
    inside = out(run, made, DB, ip(DB, SECOND_ADDRESS, tcp(4712)))
    assert (inside.port, Ether(inside.frame)[IP].src) == (number_of(made, WEB), HOST_ADDRESS)


# Shadowed networks


@pytest.mark.parametrize("address", [HOST_ADDRESS, SECOND_ADDRESS, GATEWAY])
def test_a_shadowed_networks_endpoint_reaches_the_host_as_an_address_of_it(address: str) -> None:
    made, run = host_of(NAT_1, TWIN, WEB, TWIN_A, addresses=HOST_ADDRESSES)
    there = out(run, made, TWIN_A, ip(TWIN_A, address, tcp(22)))
    lo = next(uplink.id for uplink in made.uplinks if uplink.loopback)
    assert (there.verdict, there.uplink) == (Verdict.REDIRECT_UPLINK, lo)
    packet = Ether(there.frame)
    arrived = HOST_ADDRESS if address == GATEWAY else address
    assert (packet[IP].src, packet[IP].dst) == (HOST_ADDRESS, arrived)
    assert 20000 <= packet[TCP].sport <= 32767
    back = run.process(Hook.UPLINK_IN, lo, by_lo(arrived, HOST_ADDRESS, answer(packet)), now_s=1)
    assert (back.verdict, back.port) == (Verdict.REDIRECT_PORT, number_of(made, TWIN_A))
    got = Ether(back.frame)
    assert (got[IP].src, got[IP].dst, got[TCP].dport) == (address, "192.168.1.5", 40000)


def test_a_shadowed_networks_gateway_answers_arp() -> None:
    made, run = host_of(NAT_1, TWIN, WEB, TWIN_A)
    asked = out(run, made, TWIN_A, arp_request(TWIN_A, GATEWAY))
    assert (asked.verdict, Ether(asked.frame)[ARP].hwsrc) == (Verdict.REPLY, TWIN.gateway_mac)


def test_a_shadowed_networks_mapping_works_for_the_world_and_for_the_host() -> None:
    goal = mapping("m", TWIN_A, 8081, 80)
    made, run = host_of(NAT_1, TWIN, WEB, TWIN_A, goal)
    lo = next(uplink.id for uplink in made.uplinks if uplink.loopback)
    for hook_number, frame, seen in ((1, from_world(CLIENT, HOST_ADDRESS, tcp(8081)), CLIENT),
                                     (lo, by_lo("127.0.0.1", "127.0.0.1", tcp(8081)), GATEWAY)):
        there = run.process(Hook.UPLINK_IN, hook_number, frame, now_s=0)
        assert (there.port, Ether(there.frame)[IP].src) == (number_of(made, TWIN_A), seen)


def test_a_host_address_within_an_overlapped_prefix_is_the_hosts() -> None:
    """The host joined a LAN with the network's prefix; it has an address in it now."""
    lan = replace(UPLINK, addresses=("192.168.1.77/24",))
    made, run = host_of(NAT_1, WEB, APP, uplink=lan, addresses=frozenset({IPv4Address("192.168.1.77")}),
                        overlaps={NAT_1.id: "overlap with lan0 192.168.1.0/24"})
    lo = next(uplink.id for uplink in made.uplinks if uplink.loopback)
    assert out(run, made, WEB, arp_request(WEB, "192.168.1.77")).verdict is Verdict.REPLY
    there = out(run, made, WEB, ip(WEB, "192.168.1.77", tcp(22)))
    assert (there.verdict, there.uplink) == (Verdict.REDIRECT_UPLINK, lo)
    assert out(run, made, WEB, ip(WEB, "192.168.1.6", tcp())).verdict is Verdict.REDIRECT_PORT
    assert out(run, made, WEB, ip(WEB, "8.8.8.8", tcp())).verdict is Verdict.REDIRECT_UPLINK
