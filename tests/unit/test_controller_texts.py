"""Addresses, prefixes and ranges have one normal form, whatever way they are written; listings show what holds."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any

import pytest
from controller_kit import nat
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cli.columns import columns_of
from controller.documents import Declared, parse
from controller.facts import readable
from controller.network_specs import NetworkSpec, TimeoutsSpec
from controller.texts import address_range
from southbound.messages import HostFacts
from vfp.timeouts import Timeouts

NUMBERS = st.one_of(st.integers(0, 2**128 - 1), st.sampled_from([0, 1, 0xfd << 120, 0xffff << 32, 2**128 - 1]),
                    st.lists(st.sampled_from([0, 0, 1, 0xfd00, 0xffff]), min_size=8, max_size=8).map(
                        lambda groups: sum(group << (16 * i) for i, group in enumerate(groups))))


def texts(address: IPv6Address) -> list[str]:
    """Ways to write an address (RFC 4291 section 2.2)."""
    groups = address.exploded.split(":")
    return [str(address), str(address).upper(), address.exploded, ":".join(f"{int(g, 16):X}" for g in groups)]


def declared(document: Any) -> NetworkSpec:
    found = parse(document, "document")
    assert isinstance(found, Declared), found
    assert isinstance(found.spec, NetworkSpec)
    return found.spec


@given(NUMBERS, st.integers(1, 127))
def test_ipv6_is_kept_as_rfc_5952_writes_it(number: int, length: int) -> None:
    prefix = IPv6Network((number, length), strict=False)
    first, last = prefix.network_address, prefix.broadcast_address
    for low, high in zip(texts(first), texts(last)[::-1], strict=True):
        (subnet,) = declared(nat("x", "", subnets=[
            {"prefix": f"{low}/{length}", "gateway": high, "allocate": [f"{low}-{high}", low],
             "exclude": [f"{low}/{length}"]}])).subnets
        assert (subnet.prefix, subnet.gateway) == (str(prefix), str(last))
        assert (subnet.allocate, subnet.exclude) == ((f"{first}-{last}", str(first)), (str(prefix),))
        assert {address_range(text) for text in (*subnet.allocate[:1], *subnet.exclude)} == {(6, int(first), int(last))}


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_a_prefix_with_host_bits_is_refused_with_the_one_that_is_meant(number: int, length: int) -> None:
    whole = IPv4Network((number, length), strict=False)
    text = f"{IPv4Network(number).network_address}/{length}"
    found = parse(nat("x", text), "document")
    if ip_network(text, strict=False).network_address == IPv4Network(number).network_address:
        assert isinstance(found, Declared)
    else:
        assert isinstance(found, list)
        assert (found[0].code, found[0].todo) == ("host_bits", f"write {whole}")


@pytest.mark.parametrize("text", ["fd00::%eth0/64", "fd00::/129", "fd00::/-1", "fd00::/", "::ffff:1.2.3/64", "/64",
                                  "10.0.0.0/33", "10.0.0/8", "010.0.0.0/8", "10.0.0.0/0xff", " 10.0.0.0/8", "Auto", ""])
def test_what_is_no_prefix_is_refused(text: str) -> None:
    found = parse(nat("x", text), "document")
    assert isinstance(found, list)
    assert [(problem.field, bool(problem.todo)) for problem in found] == [("spec.subnets[0].prefix", True)]


def test_timeouts_are_those_of_the_engine() -> None:
    assert tuple(f"{name}_s" for name in TimeoutsSpec.model_fields) == Timeouts.__slots__


def test_what_a_host_says_is_taken_as_far_as_it_can_be_read() -> None:
    good = HostFacts(addresses=(("lan0", "10.0.0.5/24"), ("lan0", "fd00::5/64")), routes=(("tun0", "10.8.0.7/16"),),
                     listeners=(("tcp", "::", 80),))
    bad = HostFacts(addresses=(("x", ""), *good.addresses, ("x", "10.0.0.300/24")),
                    routes=(("x", "default"), *good.routes, ("x", "fd00::/129")),
                    listeners=(("tcp", "*", 80), *good.listeners))
    assert readable(bad) == good
    assert readable(good) == good


def row(kind: str, resource: dict[str, Any]) -> dict[str, str]:
    console = Console(width=200)
    found = {}
    for title, cell in columns_of(kind):
        with console.capture() as capture:
            console.print(cell(resource), end="")
        found[title] = capture.get().strip()
    return found


def test_listings_show_what_is_in_use() -> None:
    network = {"metadata": {"name": "n"}, "spec": {"mode": "nat", "host": "h1", "subnets": [
        {"prefix": "172.17.5.0/24"}, {"prefix": "auto"}, {"prefix": "fd00::/64"}]}}
    assert row("Network", network)["PREFIXES"] == "172.17.5.0/24, auto, fd00::/64"
    status = {"phase": "Degraded", "message": "overlap with wlan0 172.17.0.0/16", "subnets": [
        {"prefix": "10.20.3.0/24"}, {"prefix": "192.168.0.0/24"}, {"prefix": "fd00::/64"}]}
    shown = row("Network", network | {"status": status})
    assert shown["PREFIXES"] == "10.20.3.0/24 (172.17.5.0/24), 192.168.0.0/24 (auto), fd00::/64"
    assert (shown["PHASE"], shown["MESSAGE"]) == ("Degraded", "overlap with wlan0 172.17.0.0/16")
    vm = {"spec": {"network": "n", "host": "h1", "tap": "tap7"},
          "status": {"address": "10.0.0.5", "address6": "fd00::5"}}
    assert (row("Endpoint", vm)["ADDRESS"], row("Endpoint", vm)["NETNS"]) == ("10.0.0.5, fd00::5", "tap7")
    ports = {"spec": {"protocol": "tcp", "endpoint": "vm", "externalPort": "auto", "internalPort": "80-82"},
             "status": {"externalAddress": "::", "externalPort": "10000-10002"}}
    shown = row("StaticMapping", ports)
    assert (shown["PROTOCOL"], shown["EXTERNAL"], shown["TO"]) == ("tcp", "[::]:10000-10002", "vm:80-82")
    whole = {"spec": {"protocol": "any", "endpoint": "vm", "externalAddress": "172.16.0.11"}}
    shown = row("StaticMapping", whole)
    assert (shown["PROTOCOL"], shown["EXTERNAL"], shown["TO"]) == ("any", "172.16.0.11", "vm")
