"""RFC 6888, common requirements for carrier-grade NAT, as far as they are a host's: in both engines (docs/nat.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from ipaddress import IPv4Address

import pytest
from nat_rfc_kit import EXTERNAL, HIGH, LOW, OTHER, WORLD, A, B, Bpf, Host, Reference, echo, pool, state, tcp, udp
from scapy.layers.inet import IP

from vfp.datapath import binding_log
from vfp.model import PortRange
from vfp.reasons import DropReason

BLOCK = 16


@pytest.fixture(scope="module", params=[Reference, Bpf], ids=["reference", "bpf"])
def backend(request: pytest.FixtureRequest) -> Iterator[Reference | Bpf]:
    made = request.param()
    yield made
    if isinstance(made, Bpf):
        made.close()


@pytest.fixture
def host(backend: Reference | Bpf) -> Host:
    return Host(backend).load(state())


def test_req_3_addresses_of_a_pool_need_not_be_neighbours(host: Host) -> None:
    addresses = tuple(IPv4Address(each) for each in ("198.51.100.1", "198.51.100.77", "192.0.2.200"))
    host.load(state(pool(addresses=addresses, ports=PortRange(LOW, LOW + 3))))
    held = {(seen.packet[IP].src, seen.port) for number in range(12)
            if (seen := host.out(udp(A, WORLD, 5000 + number))).verdict == "redirect_uplink"}
    assert held == {(str(address), port) for address in addresses for port in range(LOW, LOW + 4)}
    assert host.out(udp(A, WORLD, 4999)).reason is DropReason.NAT_EXHAUSTED


@pytest.mark.parametrize("packet", [udp, tcp])
def test_req_4_an_endpoint_has_a_quota_and_takes_nothing_from_others(host: Host, packet: type) -> None:
    host.load(state(pool(quota=5)))
    seen = [host.out(packet(A, WORLD, sport=5000 + number)) for number in range(7)]
    assert [each.verdict for each in seen] == ["redirect_uplink"] * 5 + ["drop"] * 2
    assert seen[-1].reason is DropReason.NAT_QUOTA
    assert host.out(packet(B, WORLD, sport=5000)).verdict == "redirect_uplink"
    assert host.out(packet(A, OTHER, sport=5000)).verdict == "redirect_uplink"      # a binding that it has


def test_req_4_identifiers_count_like_ports(host: Host) -> None:
    host.load(state(pool(quota=2)))
    assert [host.out(echo(A, WORLD, number)).verdict for number in (7, 8)] == ["redirect_uplink"] * 2
    assert host.out(echo(A, WORLD, 9)).reason is DropReason.NAT_QUOTA


def test_req_4_what_ends_is_given_back(host: Host) -> None:
    host.load(state(pool(quota=1)))
    host.out(udp(A, WORLD))
    assert host.out(udp(A, WORLD, 5001)).reason is DropReason.NAT_QUOTA
    host.idle(121)
    host.idle(3)
    assert host.out(udp(A, WORLD, 5001)).verdict == "redirect_uplink"


def test_req_6_destinations_can_be_left_untranslated(host: Host) -> None:
    host.load(state(untranslated=("203.0.113.8/32",)))
    assert host.out(udp(A, OTHER)).packet[IP].src == A
    assert host.out(udp(A, WORLD)).packet[IP].src == EXTERNAL


@pytest.mark.parametrize("limit", [{"ports": PortRange(LOW, LOW + 4)}, {"quota": 5}], ids=["full", "quota"])
def test_req_11_a_refused_flow_takes_no_other_ones_place(host: Host, limit: dict[str, object]) -> None:
    host.load(state(pool(**limit)))
    held = [host.out(udp(A, WORLD, 5000 + number)).port for number in range(5)]
    before = host.backend.flows()
    assert host.out(udp(A, WORLD, 4999)).verdict == "drop"
    assert host.backend.flows() == before
    for number, port in enumerate(held):
        assert host.out(udp(A, OTHER, 5000 + number)).port == port
    for port in held:
        assert host.back(udp(WORLD, EXTERNAL, 53, port)).target == 3


def test_req_12_a_record_names_no_destination() -> None:
    names = {field.name for field in fields(binding_log.BindingEvent)}
    assert names == {"time_s", "kind", "port", "pool", "protocol", "internal", "internal_port", "external",
                     "external_port", "size"}


def test_req_13_every_port_of_a_pool_is_used(host: Host) -> None:
    assert {host.out(tcp(A, WORLD, sport=30000 + number)).port for number in range(100)} == set(range(LOW, HIGH + 1))


def test_req_14_ports_come_in_blocks(host: Host) -> None:
    host.load(state(pool(block=BLOCK, ports=PortRange(LOW, LOW + 4 * BLOCK - 1))))
    blocks = {sender: {(host.out(udp(sender, WORLD, 5000 + number)).port - LOW) // BLOCK for number in range(BLOCK)}
              for sender in (A, B)}
    assert [len(each) for each in blocks.values()] == [1, 1]
    assert not blocks[A] & blocks[B]
    more = host.out(udp(A, WORLD, 4999))
    assert (more.port - LOW) // BLOCK not in blocks[A] | blocks[B]
