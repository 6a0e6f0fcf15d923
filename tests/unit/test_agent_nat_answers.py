"""What the agent answers about NAT: prefixes, pools with their use, mappings with their hits, bindings, records."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from agent_kit import (
    HOST,
    HOST_ADDRESS,
    SECOND_ADDRESS,
    FakeDatapath,
    FakeSwitch,
    goals,
    mapping,
    nat,
    overlay,
    port,
    reconciler,
)

from agent.errors import BadQuery
from agent.inspect import Inspector
from agent.overlaps import Overlap
from agent.record_file import RecordFile
from southbound.codec import encode
from southbound.messages import Answer, NatGoal
from vfp.datapath.binding_log import BindingEvent
from vfp.datapath.bindings import BindingRecord

FRONT = nat(1)
BACK = replace(nat(2), nat=NatGoal(addresses=(SECOND_ADDRESS,), quota=5, block=16, filtering="address-dependent"))
RED = overlay(5001)
WEB, APP = port("web", FRONT, "192.168.1.5", 5), port("app", BACK, "192.168.2.6", 6)
MAP = mapping("http", WEB, 8080, 80)
TAKEN = mapping("taken", WEB, 25000, 80)                # among the ports of NAT: refused
ALL = goals(HOST, FRONT, BACK, RED, WEB, APP, MAP, TAKEN)


class Site:
    """A host as it was programmed, and what its engine says."""

    def __init__(self, directory: Path) -> None:
        self.datapath = FakeDatapath()
        self.overlaps: dict[str, Overlap] = {}
        self.built = reconciler(directory, FakeSwitch(), self.datapath).reconcile(ALL).built
        self.inspector = Inspector("h1", self.datapath, lambda: self.built, lambda: ALL, lambda: self.overlaps)

    def ask(self, **args: Any) -> dict[str, Any]:
        """The answer, as it survives the wire."""
        answer = self.inspector.answer("nat", args)
        encode(Answer(1, "", answer))
        return answer

    def pool(self, network: str, address: str) -> int:
        """The pool by which a network leaves as this address."""
        (found,) = {row["pool"] for row in self.ask(section="pools")["pools"]
                    if (row["network"], row["address"]) == (network, address)}
        return int(found)

    def bind(self, who: str, network: str, external: str, *ports: int, protocol: int = 6) -> None:
        sender = {"web": WEB, "app": APP}[who]
        source = ip_address(sender.address.split("/")[0])
        pool, number_of = self.pool(network, external), self.built.port_ids[sender.id]
        self.datapath.bound += [
            BindingRecord(number_of, pool, protocol, source, number, ip_address(external), number, 0)
            for number in ports
        ]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_prefixes_say_where_they_are_and_how_they_fare(site: Site) -> None:
    site.overlaps = {FRONT.id: Overlap(("wlan0 192.168.1.0/25",), True)}
    rows = {row["network"]: row for row in site.ask(section="prefixes")["prefixes"]}
    bridges = {network.id: site.built.bridges[network.id].name for network in (FRONT, BACK)}
    assert rows == {
        "default/nat1": {
            "network": "default/nat1", "prefix": "192.168.1.0/24", "gateway": "192.168.1.1",
            "bridge": bridges[FRONT.id], "endpoints": 1,
            "translation": "as the uplink", "status": "overlap with wlan0 192.168.1.0/25"},
        "default/nat2": {
            "network": "default/nat2", "prefix": "192.168.2.0/24", "gateway": "192.168.2.1", "bridge": bridges[BACK.id],
            "endpoints": 1, "translation": f"as {SECOND_ADDRESS}", "status": "ready"},
    }


def test_pools_show_their_use_and_how_full_their_address_is(site: Site) -> None:
    site.bind("web", "default/nat1", SECOND_ADDRESS, *range(20000, 20640))
    site.bind("web", "default/nat1", HOST_ADDRESS, 20001, protocol=17)
    site.bind("app", "default/nat2", SECOND_ADDRESS, *range(21000, 21636))
    rows = [row for row in site.ask(section="pools")["pools"] if row["network"] in ("default/nat1", "default/nat2")]
    found = {(row["network"], row["address"]): row for row in rows}
    front = found["default/nat1", SECOND_ADDRESS]
    assert (front["tcp"], front["udp"], front["ports"], front["uplink"]) == (640, 0, "20000-32767", "lan0")
    # Ports of an address are taken for all pools that give them.
    assert front["percent"] == found["default/nat2", SECOND_ADDRESS]["percent"] == round((640 + 636) / 12768 * 100, 1)
    assert (found["default/nat1", HOST_ADDRESS]["udp"], found["default/nat1", HOST_ADDRESS]["percent"]) == (1, 0.0)
    back = found["default/nat2", SECOND_ADDRESS]
    assert (back["filtering"], back["block"], back["blocks"], back["quota"]) == ("address-dependent", 16, 0, 5)
    # 798 blocks of 16 are in the range: they may be gone before the ports are.
    site.datapath.blocks = {site.pool("default/nat2", SECOND_ADDRESS): [(ip_address(SECOND_ADDRESS), 399)]}
    (back,) = [row for row in site.ask(network="default/nat2")["pools"] if row["address"] == SECOND_ADDRESS]
    assert (back["blocks"], back["percent"]) == (399, 50.0)


def test_mappings_show_hits_and_why_one_is_closed(site: Site) -> None:
    site.datapath.mapped = {"default/http": 7}
    rows = {row["mapping"]: row for row in site.ask(section="mappings")["mappings"]}
    http, taken = rows["default/http"], rows["default/taken"]
    assert http == {
        "mapping": "default/http", "network": "default/nat1", "protocol": "tcp",
        "addresses": [HOST_ADDRESS, SECOND_ADDRESS], "external_ports": "8080", "endpoint": "default/web",
        "internal": "192.168.1.5", "internal_ports": "80", "hits": 7, "status": "open"}
    assert (taken["hits"], taken["addresses"]) == (0, [])
    assert "NAT ports" in taken["status"]


def test_bindings_bear_names_and_are_limited(site: Site) -> None:
    site.bind("web", "default/nat1", HOST_ADDRESS, 20003, 20002)
    site.bind("app", "default/nat2", SECOND_ADDRESS, 20001, protocol=17)
    answer = site.ask(section="bindings")
    assert set(answer) == {"bindings", "total"}
    assert [(row["endpoint"], row["source_port"]) for row in answer["bindings"]] == [
        ("default/app", 20001), ("default/web", 20002), ("default/web", 20003)]
    assert answer["bindings"][0] == {
        "endpoint": "default/app", "network": "default/nat2", "protocol": 17, "source": "192.168.2.6",
        "source_port": 20001, "external": SECOND_ADDRESS, "external_port": 20001, "idle_s": 0.0}
    few = site.ask(section="bindings", limit="1")
    assert (len(few["bindings"]), few["total"]) == (1, 3)


def test_all_sections_of_one_network(site: Site) -> None:
    site.bind("web", "default/nat1", HOST_ADDRESS, 20001)
    site.bind("app", "default/nat2", SECOND_ADDRESS, 20002)
    answer = site.ask(network="default/nat2")
    assert set(answer) == {"prefixes", "pools", "mappings", "bindings", "total"}
    rows = [row for name in ("prefixes", "pools", "mappings", "bindings") for row in answer[name]]
    assert {row["network"] for row in rows} == {"default/nat2"}
    assert answer["total"] == 1
    assert site.ask(network="default/none") == {
        "prefixes": [], "pools": [], "mappings": [], "bindings": [], "total": 0}


def test_unknown_sections_are_refused(site: Site) -> None:
    with pytest.raises(BadQuery, match="prefixes, pools, mappings, bindings"):
        site.ask(section="bindigs")


def test_records_bear_names_and_times_also_of_who_is_gone(site: Site) -> None:
    pool, web = site.pool("default/nat1", HOST_ADDRESS), site.built.port_ids[WEB.id]
    outside, inside = ip_address(HOST_ADDRESS), ip_address("192.168.1.5")
    site.datapath.binding_events = [
        BindingEvent(time.monotonic(), "bound", web, pool, 6, inside, 40000, outside, 20001, 0),
        BindingEvent(1.0, "block-taken", web, pool, 0, None, 0, outside, 20016, 16),
        BindingEvent(1.0, "released", 999, 999, 47, inside, 0, outside, 0, 0),
    ]
    bound, block, unknown = site.inspector.read_bindings()
    assert abs(datetime.fromisoformat(bound.pop("time")).timestamp() - time.time()) < 5
    assert bound == {
        "event": "bound", "network": "default/nat1", "endpoint": "default/web", "protocol": "tcp",
        "internal": "192.168.1.5", "internal_port": 40000, "external": HOST_ADDRESS, "external_port": 20001}
    assert (block["event"], block["external_ports"], "protocol" in block) == ("block-taken", "20016-20031", False)
    assert (unknown["endpoint"], unknown["network"], unknown["protocol"]) == ("", "", "gre")

    site.built = replace(site.built, engine=replace(site.built.engine, ports=(), pools=()), pool_names={})
    site.datapath.binding_events = [BindingEvent(1.0, "released", web, pool, 6, inside, 40000, outside, 20001, 0)]
    (released,) = site.inspector.read_bindings()
    assert (released["endpoint"], released["network"]) == ("default/web", "default/nat1")
    assert site.inspector.read_bindings() == []


def test_the_file_of_records_has_whole_lines_and_says_what_lacks(tmp_path: Path) -> None:
    path = tmp_path / "nat.jsonl"
    file = RecordFile(path, lost=3)

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    file.write([{"event": "bound", "n": 1}], 3)
    file.write([{"event": "bound", "n": 2}], 5)             # the kernel lost two
    path.rename(tmp_path / "nat.jsonl.1")                   # turned over
    assert [(one["event"], one.get("n", one.get("records"))) for one in
            map(json.loads, (tmp_path / "nat.jsonl.1").read_text().splitlines())] == [
        ("bound", 1), ("lost", 2), ("bound", 2)]
    path.mkdir()                                            # cannot be written
    file.write([{"event": "bound", "n": 3}, {"event": "released", "n": 3}], 6)
    path.rmdir()
    file.write([{"event": "bound", "n": 4}], 6)
    assert [(one["event"], one.get("n", one.get("records"))) for one in lines()] == [("lost", 3), ("bound", 4)]
    file.write([], 6)
    assert len(lines()) == 2
