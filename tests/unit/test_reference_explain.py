"""Traces: the same decision, told."""

import json
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from reference_kit import A_1, A_2, A_9, EXTERNAL, GATEWAY_MAC, MAC_9, N_3, VNI, VTEP, WORLD, deny_in, host, layer, rule
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether

from vfp.model import Address, Allow, Deny, EngineState, Pool, PortRange
from vfp.reference import Hook, explain, probe
from vfp.reference.bindings import BindingKey, Block, Exhausted, External, OverQuota, PeekedBindings, candidates
from vfp.reference.craft import frame_of
from vfp.reference.packet import parse


def trace(state: EngineState, source: str, destination: str, *, number: int = 1, hook: Hook = Hook.PORT_OUT,
          protocol: int = 6, port: int = 80, vtep: IPv4Address | None = None) -> dict[str, Any]:
    packet = probe(state, hook, number, source=IPv4Address(source), destination=IPv4Address(destination),
                   protocol=protocol, source_port=1000, destination_port=port)
    answer = explain(state, hook, number, packet, vtep=vtep).to_dict()
    assert json.loads(json.dumps(answer)) == answer
    return answer


def test_a_denied_packet_names_port_layer_group_and_rule() -> None:
    answer = trace(host(two=(deny_in(dst_ports=PortRange(80, 80)),)), A_1, A_2)
    assert (answer["verdict"], answer["reason"]) == ("drop", "DENIED")
    assert answer["denied_by"] == {"port": "p2", "layer": "acl", "group": "only", "rule": "no"}
    assert answer["steps"][-1]["action"] == "deny"
    assert answer["steps"][-1]["direction"] == "in"
    assert answer["leaves"] == {"to": ""}


def test_every_rule_considered_is_listed_with_the_reason_why_it_did_not_match() -> None:
    acl = layer("acl", (rule(30, Deny()), rule(20, Allow(), protocol=6, name="tcp"), rule(10, Deny(), protocol=17)))
    steps = [step for step in trace(host(one=(acl,)), A_1, A_2)["steps"] if step["layer"] == "acl"]
    assert [(s["rule"], s["matched"]) for s in steps] == [("r10", False), ("tcp", True)]
    assert steps[0]["note"] == "protocol 6 is not 17"


def test_a_default_that_denies_is_what_denied() -> None:
    closed = layer("acl", (rule(10, Allow(), protocol=17),), default=(Deny(), Deny()))
    answer = trace(host(one=(closed,)), A_1, A_2)
    assert answer["reason"] == "LAYER_DEFAULT"
    assert answer["denied_by"] == {"port": "p1", "layer": "acl", "group": "", "rule": ""}


def test_a_packet_to_a_remote_shows_its_tunnel() -> None:
    answer = trace(host(), A_1, A_9)
    tunnel = {"vtep": str(VTEP), "vni": VNI}
    assert answer["verdict"] == "forward"
    assert answer["transposition"] == {"set": {"dst_mac": MAC_9.hex(":")}, "encapsulate": tunnel}
    assert answer["leaves"] == {"to": "vtep", **tunnel}


def test_the_other_end_of_a_tunnel_trusts_the_mapping_unless_told_a_vtep() -> None:
    arrived = trace(host(), A_9, A_1, hook=Hook.OVERLAY_IN, number=VNI)
    assert arrived["leaves"] == {"to": "port", "name": "p1"}
    wrong = trace(host(), A_9, A_1, hook=Hook.OVERLAY_IN, number=VNI, vtep=IPv4Address("172.31.0.9"))
    assert (wrong["reason"], wrong["note"]) == ("WRONG_VTEP", f"{A_9} is behind {VTEP}")


def test_a_translated_packet_shows_what_is_set_and_its_uplink() -> None:
    answer = trace(host(), N_3, WORLD, number=3)
    sets = answer["transposition"]["set"]
    assert (sets["src"], sets["ttl"]) == (str(EXTERNAL), "decrement")
    assert 20000 <= sets["src_port"] <= 20009
    assert answer["leaves"] == {"to": "uplink", "name": "lan0"}
    notes = [step["note"] for step in answer["steps"] if step["action"] == "translate-source(1)"]
    assert notes == [f"source becomes {EXTERNAL}:{sets['src_port']}"]


def test_what_is_not_ours_is_the_stacks() -> None:
    answer = trace(host(), WORLD, str(EXTERNAL), hook=Hook.UPLINK_IN)
    assert (answer["verdict"], answer["steps"], answer["leaves"]) == ("stack", [], {"to": "stack"})
    mapped = trace(host(), WORLD, str(EXTERNAL), hook=Hook.UPLINK_IN, port=8080)
    assert mapped["leaves"] == {"to": "port", "name": "p3"}
    assert mapped["transposition"]["set"]["src_mac"] == GATEWAY_MAC.hex(":")


def test_a_ping_is_probed_as_a_request() -> None:
    acl = layer("acl", (rule(10, Deny(), icmp_type=8, name="ping"),))
    answer = trace(host(one=(acl,)), A_1, A_2, protocol=1)
    assert answer["denied_by"]["rule"] == "ping"


def test_a_table_of_bindings_that_is_elsewhere_gives_the_port_that_is_free_there() -> None:
    key = BindingKey(1, 1, 6, IPv4Address("192.168.1.5"), 20001)
    pool = Pool(1, 1, (EXTERNAL,), PortRange(20000, 20009))
    tries = list(candidates(key, pool))
    table = PeekedBindings(Elsewhere(None, {20001, tries[1]}))
    assert table.obtain(key, pool, 0.0).port == tries[2]
    known = External(EXTERNAL, 6, 20003)
    assert PeekedBindings(Elsewhere(known, set(tries))).obtain(key, pool, 0.0) == known
    with pytest.raises(Exhausted):
        PeekedBindings(Elsewhere(External(EXTERNAL, 6, 30000), set(tries))).obtain(key, pool, 0.0)
    with pytest.raises(OverQuota):
        PeekedBindings(Elsewhere(None, set(), count=3)).obtain(key, replace(pool, quota=3), 0.0)
    assert len(table) == 0


@dataclass
class Elsewhere:
    """Somebody else's tables."""

    known: External | None
    held: set[int]
    count: int = 0

    def binding(self, key: BindingKey) -> External | None:
        return self.known

    def binding_at(self, external: External) -> BindingKey | None:
        return BindingKey(9, 1, 6, EXTERNAL, 1) if external.port in self.held else None

    def block_holder(self, block: Block) -> tuple[int, int] | None:
        return None

    def binding_count(self, port: int, pool: int) -> int:
        return self.count

    def has_contact(self, key: BindingKey, remote: Address) -> bool:
        return False


@pytest.mark.parametrize(("protocol", "more"), [
    (6, {"tcp_flags": 18}), (17, {}), (132, {}), (1, {}), (1, {"icmp_type": 0, "icmp_id": 7}), (47, {"dscp": 46}),
    (1, {"icmp_type": 3, "icmp_code": 1}),
])
@pytest.mark.parametrize("family", [4, 6])
def test_an_imagined_packet_has_right_bytes(protocol: int, more: dict[str, Any], family: int) -> None:
    protocol = 58 if family == 6 and protocol == 1 else protocol
    if protocol == 58 and "icmp_type" in more:
        more = more | {"icmp_type": {0: 129, 3: 1}[more["icmp_type"]]}
    source, destination = ("10.0.0.1", "10.0.0.2") if family == 4 else ("fd00::1", "fd00::2")
    imagined = probe(EngineState(), Hook.PORT_OUT, 1, source=ip_address(source), destination=ip_address(destination),
                     protocol=protocol, source_port=5, destination_port=6, **more)
    frame = frame_of(imagined.tuple, imagined.headers)
    packet = parse(frame)
    assert (packet.tuple, packet.headers) == (imagined.tuple, imagined.headers)
    again = Ether(frame)
    for part in (IP, TCP, UDP, ICMP):
        if again.haslayer(part):
            del again[part].chksum
    if protocol == 58:
        del again.getlayer(2).cksum
    assert bytes(Ether(bytes(again))) == frame
