"""Leases are learned from what a client and its server say to each other, and from nobody else."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from agent.dhcp import Client, Leases, parse

MAC, SERVER_MAC = "02:00:00:00:00:05", "02:00:00:00:00:99"
RAW = bytes.fromhex(MAC.replace(":", ""))
CLIENT = Client("uid-a", RAW, (IPv4Network("192.168.7.0/24"),), frozenset({IPv4Address("192.168.7.1")}))
GIVEN = "192.168.7.40"


def asking(kind: str, xid: int = 7, mac: str = MAC, chaddr: bytes = RAW) -> bytes:
    frame = Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255") / UDP(
        sport=68, dport=67) / BOOTP(chaddr=chaddr, xid=xid) / DHCP(options=[("message-type", kind), "end"])
    return bytes(frame)


def answer(kind: str, address: str = GIVEN, xid: int = 7, lease: int = 60, chaddr: bytes = RAW) -> bytes:
    options = [("message-type", kind), ("subnet_mask", "255.255.255.0"), ("lease_time", lease), "end"]
    frame = Ether(src=SERVER_MAC, dst=MAC) / IP(src="192.168.7.1", dst=address) / UDP(sport=67, dport=68) / BOOTP(
        op=2, chaddr=chaddr, xid=xid, yiaddr=address) / DHCP(options=options)
    return bytes(frame)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(tmp_path: Path, clock: Clock) -> Leases:
    made = Leases(tmp_path / "leases.json", clock)
    made.follow([CLIENT])
    return made


def see(leases: Leases, frame: bytes) -> bool:
    message = parse(frame)
    assert message is not None
    return leases.see(message)


def test_an_acknowledged_address_counts_until_its_time_is_over(leases: Leases, clock: Clock, tmp_path: Path) -> None:
    assert not see(leases, asking("discover"))
    assert not see(leases, answer("offer"))
    assert not see(leases, asking("request"))
    assert leases.current() == {}
    assert see(leases, answer("ack"))
    assert leases.current() == {"uid-a": IPv4Interface(f"{GIVEN}/24")}
    clock.now_s += 30
    assert not see(leases, asking("request", xid=8))
    assert not see(leases, answer("ack", xid=8))               # renewed: the same address
    assert leases.ends_in_s() == 60
    assert Leases(tmp_path / "leases.json", clock).current() == leases.current()
    clock.now_s += 61
    assert leases.current() == {}
    assert leases.expire()
    assert not leases.expire()


@pytest.mark.parametrize("frame", [
    answer("ack", xid=9), answer("ack", address="10.0.0.1"), answer("ack", address="192.168.7.1"),
    answer("ack", chaddr=bytes(6)), answer("ack", lease=0), answer("offer"), answer("nak")])
def test_what_the_endpoint_did_not_ask_for_or_may_not_have_does_not_count(leases: Leases, frame: bytes) -> None:
    see(leases, asking("request"))
    assert not see(leases, frame)
    assert leases.current() == {}


def test_another_endpoint_cannot_ask_in_its_name(leases: Leases) -> None:
    see(leases, asking("request", mac="02:00:00:00:00:06"))
    assert not see(leases, answer("ack"))


@pytest.mark.parametrize("end", [answer("nak"), asking("release"), asking("decline")])
def test_a_lease_may_end_early(leases: Leases, end: bytes) -> None:
    see(leases, asking("request"))
    assert see(leases, answer("ack"))
    assert see(leases, end)
    assert leases.current() == {}


def test_an_endpoint_that_goes_leaves_no_lease(leases: Leases, clock: Clock, tmp_path: Path) -> None:
    see(leases, asking("request"))
    see(leases, answer("ack"))
    leases.follow([])
    assert Leases(tmp_path / "leases.json", clock).current() == {}


@given(st.binary(max_size=40), st.integers(0, 330))
def test_damaged_messages_are_none_or_harmless(noise: bytes, at: int) -> None:
    frame = answer("ack")
    parse(frame[:at])
    parse(frame[:at] + noise + frame[at + len(noise):])
