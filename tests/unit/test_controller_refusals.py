"""Every bad input is refused with field, found value and what to do, and nothing is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
from controller_kit import (
    FACTS,
    Parts,
    Refusal,
    document,
    endpoint,
    host,
    mapping,
    nat,
    overlay,
    policy,
    refuses,
    tenant,
    with_parts,
)

DENY_80 = {"direction": "in", "action": "deny", "protocol": "tcp", "ports": [80]}

REFUSED: dict[str, Refusal] = {
    "not an object": ("red", 422, "", "red", "an object", ""),
    "unknown kind": (document("Netwrok", "x", {}), 422, "kind", "Netwrok", "no such kind", "did you mean 'Network'?"),
    "no kind": ({"apiVersion": "sluice/v1"}, 422, "kind", "null", "no such kind", "use one of"),
    "version": (overlay("x") | {"apiVersion": "sluice/v2"}, 422, "apiVersion", "sluice/v2", "version", "sluice/v1"),
    "unknown field": (overlay("x", subnet=[]), 422, "spec.subnet", "subnet", "unknown field",
                      "did you mean 'subnets'?"),
    "domains and deny": (policy("p", "red", {"direction": "out", "action": "deny", "domains": ["a.example.com"]}), 422,
                         "spec.rules[0]", "", "domains", "direction out and action allow"),
    "domains inwards": (policy("p", "red", {"direction": "in", "action": "allow", "domains": ["a.example.com"]}), 422,
                        "spec.rules[0]", "", "domains", "direction out"),
    "domains and to": (policy("p", "red", {"direction": "out", "action": "allow", "domains": ["a.example.com"],
                                           "to": {"cidrs": ["10.0.0.0/8"]}}), 422,
                       "spec.rules[0]", "", "'to' and domains", "two rules"),
    "no domain": (policy("p", "red", {"direction": "out", "action": "allow", "domains": ["a.*.com"]}), 422,
                  "spec.rules[0].domains[0]", "a.*.com", "not a domain name", "*.example.com"),
    "unknown field in a list": (policy("p", "red", DENY_80 | {"port": [1]}), 422, "spec.rules[0].port", "port",
                                "unknown field", "did you mean 'ports'?"),
    "unknown field at the top": (overlay("x") | {"specs": {}}, 422, "specs", "specs", "unknown", "'spec'"),
    "missing field": (document("Network", "x", {"mode": "nat"}), 422, "spec.subnets", "nothing", "missing", "add"),
    "bad name": (overlay("Red_1"), 422, "metadata.name", "Red_1", "not a name", "lower-case"),
    "wrong type": (host("x", uplink=5), 422, "spec.uplink", "5", "must be text", "quotes"),
    "text for a number": (mapping("m", "office", "web", "8080"), 422, "spec.externalPort", "8080",
                          "an external port", "whole number"),
    "mode unknown": (overlay("x", mode="ovrlay"), 422, "spec.mode", "ovrlay", "not a network mode",
                     "did you mean 'overlay'?"),
    "host bits": (overlay("x", "10.1.0.5/24"), 422, "spec.subnets[0].prefix", "10.1.0.5/24", "host bits",
                  "write 10.1.0.0/24"),
    "not a prefix": (overlay("x", "10.1.0/24"), 422, "spec.subnets[0].prefix", "10.1.0/24", "not an IPv4 prefix",
                     "10.1.0.0/24"),
    "no prefix length": (overlay("x", "10.1.0.0"), 422, "spec.subnets[0].prefix", "10.1.0.0", "no prefix length",
                         "/24"),
    "prefix too short": (overlay("x", "10.0.0.0/7"), 422, "spec.subnets[0].prefix", "10.0.0.0/7", "prefix length",
                         "/24"),
    "loopback prefix": (overlay("x", "127.1.0.0/24"), 422, "spec.subnets[0].prefix", "127.1.0.0/24", "loopback",
                        "private"),
    "gateway outside": (overlay("x", subnets=[{"prefix": "10.2.0.0/24", "gateway": "10.3.0.1"}]), 422,
                        "spec.subnets[0].gateway", "10.3.0.1", "outside of its subnet 10.2.0.0/24", "10.2.0.1"),
    "overlay with a host": (overlay("x", host="h1"), 422, "spec.host", "h1", "spans hosts", "leave it out"),
    "nat without a host": (document("Network", "x", {"mode": "nat", "subnets": [{"prefix": "10.9.0.0/24"}]}), 422,
                           "spec.host", "nothing", "lives on one host", "add the name"),
    "nat with a VNI": (nat("x", "10.9.0.0/24", vni=7), 422, "spec.vni", "7", "no VNI", "leave it out"),
    "nat on an unknown host": (nat("x", "10.9.0.0/24", "h9"), 422, "spec.host", "h9", "no Host 'h9'", "h1"),
    "VNI out of range": (overlay("x", vni=2**24), 422, "spec.vni", str(2**24), "out of range", "16777215"),
    "VNI zero": (overlay("x", vni=0), 422, "spec.vni", "0", "out of range", "use 1 to"),
    "VNI taken": (overlay("x", vni=4096), 409, "spec.vni", "4096", "taken by Network default/red", "auto"),
    "nat over nat": (nat("x", "192.168.250.128/25"), 409, "spec.subnets[0].prefix", "192.168.250.128/25",
                     "192.168.250.0/24 of Network default/office", "choose"),
    "nat over the LAN": (nat("x", "192.168.7.0/25"), 409, "spec.subnets[0].prefix", "192.168.7.0/25",
                         "interface lan0", "free on h1"),
    "nat over a VPN route": (nat("x", "10.8.3.0/24"), 409, "spec.subnets[0].prefix", "10.8.3.0/24",
                             "route 10.8.0.0/16 over interface tun0", "free on h1"),
    "prefix changed": (overlay("red", "10.2.0.0/24"), 409, "spec.subnets[0].prefix", "10.2.0.0/24",
                       "cannot be changed (it is 10.1.0.0/24)", "another network"),
    "mode changed": (nat("red", "10.1.0.0/24"), 409, "spec.mode", "nat", "cannot be changed", "another network"),
    "host changed": (nat("office", "192.168.250.0/24", "h2"), 409, "spec.host", "h2", "cannot be changed (it is h1)",
                     "another network"),
    "VNI changed": (overlay("red", vni=9), 409, "spec.vni", "9", "cannot be changed (it is 4096)", "another"),
    "address outside": (endpoint("x", "red", address="10.2.0.5"), 422, "spec.address", "10.2.0.5",
                        "outside of its subnet 10.1.0.0/24", "10.1.0.1 to 10.1.0.254"),
    "network address": (endpoint("x", "red", address="10.1.0.0"), 422, "spec.address", "10.1.0.0",
                        "network address", "10.1.0.1 to"),
    "broadcast address": (endpoint("x", "red", address="10.1.0.255"), 422, "spec.address", "10.1.0.255",
                          "broadcast address", "10.1.0.1 to"),
    "gateway's address": (endpoint("x", "red", address="10.1.0.1"), 409, "spec.address", "10.1.0.1",
                          "gateway of Network default/red", "choose another"),
    "address in use": (endpoint("x", "red", address="10.1.0.5"), 409, "spec.address", "10.1.0.5",
                       "address of Endpoint default/a", "choose another"),
    "not an address": (endpoint("x", "red", address="10.1.0.300"), 422, "spec.address", "10.1.0.300",
                       "not an IPv4 address", "10.1.0.5"),
    "multicast MAC": (endpoint("x", "red", mac="01:00:5e:00:00:01"), 422, "spec.mac", "01:00:5e:00:00:01",
                      "multicast", "unicast"),
    "unknown network": (endpoint("x", "rad"), 422, "spec.network", "rad", "no Network 'rad'", "did you mean 'red'?"),
    "unknown host": (endpoint("x", "red", "h9"), 422, "spec.host", "h9", "no Host 'h9'", "h1"),
    "unknown tenant": (overlay("x", in_tenant="acme"), 422, "metadata.tenant", "acme", "no Tenant 'acme'", "apply it"),
    "network of another host": (endpoint("x", "office", "h2"), 422, "spec.host", "h2", "nat network of host h1",
                                "use host h1"),
    "host without underlay": (endpoint("x", "red", "h3"), 422, "spec.host", "h3", "no underlay", "set spec.underlay"),
    "interface too long": (endpoint("x", "red", interface="ethernet-adapter"), 422, "spec.interface",
                           "ethernet-adapter", "16 characters", "at most 15"),
    "interface in use": (endpoint("x", "red", netns="ns-a"), 409, "spec.interface", "eth0",
                         "that of Endpoint default/a", "another interface"),
    "endpoint's network changed": (endpoint("a", "blue"), 409, "spec.network", "blue", "cannot be changed",
                                   "delete the endpoint"),
    "unknown endpoint": (mapping("m", "office", "wbe", 81), 422, "spec.endpoint", "wbe", "no Endpoint 'wbe'",
                         "did you mean 'web'?"),
    "endpoint of another network": (mapping("m", "office", "a", 81), 422, "spec.endpoint", "a", "in network red",
                                    "endpoint of office"),
    "mapping on an overlay": (mapping("m", "red", "a", 81), 422, "spec.network", "red", "overlay network", "nat"),
    "external port in use": (mapping("m", "office", "web", 8080), 409, "spec.externalPort", "8080",
                             "taken by StaticMapping default/www", "auto"),
    "external port of a listener": (mapping("m", "office", "web", 22), 409, "spec.externalPort", "22",
                                    "listens on 0.0.0.0:22", "stop that program"),
    "external port of a v6 listener": (mapping("m", "office", "web", 5353, protocol="udp"), 409,
                                       "spec.externalPort", "5353", "[::]:5353", "choose another"),
    "external port of NAT": (mapping("m", "office", "web", 25000), 409, "spec.externalPort", "25000",
                             "20000-32767", "natPorts"),
    "external address": (mapping("m", "office", "web", 81, externalAddress="192.0.2.1"), 422,
                         "spec.externalAddress", "192.0.2.1", "not an address of host h1", "192.168.7.10"),
    "protocol of a mapping": (mapping("m", "office", "web", 81, protocol="gre"), 422, "spec.protocol", "gre",
                              "not one of", "tcp"),
    "policy for nobody": (policy("p", "red", {"direction": "in", "action": "deny", "from": {}}), 422,
                          "spec.rules[0].from", "{}", "names nobody", "leave it out"),
    "to with in": (policy("p", "red", {"direction": "in", "action": "deny", "to": {"cidrs": ["10.0.0.0/8"]}}), 422,
                   "spec.rules[0]", "", "direction in has 'to'", "use 'from'"),
    "ports without protocol": (policy("p", "red", {"direction": "in", "action": "deny", "ports": [80]}), 422,
                               "spec.rules[0]", "", "ports need a protocol", "set protocol"),
    "port range": (policy("p", "red", DENY_80 | {"ports": ["90-80"]}), 422, "spec.rules[0].ports[0]", "90-80",
                   "ends before", "80-90"),
    "action": (policy("p", "red", DENY_80 | {"action": "drop"}), 422, "spec.rules[0].action", "drop", "not one of",
               "allow"),
    "priority": (policy("p", "red", DENY_80 | {"priority": 65536}), 422, "spec.rules[0].priority", "65536",
                 "less than", "in range"),
    "same priority": (policy("p", "red", DENY_80 | {"priority": 5},
                             DENY_80 | {"priority": 5, "action": "allow"}), 422, "spec", "", "priority 5",
                      "different priorities"),
    "same priority, another mark": (policy("p", "red", DENY_80 | {"priority": 5, "action": "allow"},
                                           DENY_80 | {"priority": 5, "action": "allow", "dscp": 46}), 422, "spec", "",
                                    "priority 5", "different priorities"),
    "dscp out of range": (policy("p", "red", DENY_80 | {"action": "allow", "dscp": 64}), 422, "spec.rules[0].dscp",
                          "64", "less than", "in range"),
    "dscp of what is denied": (policy("p", "red", DENY_80 | {"dscp": 46}), 422, "spec.rules[0]", "",
                               "dscp with action deny", "use action allow"),
    "log of what is rejected": (policy("p", "red", DENY_80 | {"action": "reject", "log": True}), 422, "spec.rules[0]",
                                "", "log with action reject", "use action allow"),
    "dscp and log": (policy("p", "red", DENY_80 | {"action": "allow", "dscp": 46, "log": True}), 422, "spec.rules[0]",
                     "", "both dscp and log", "one of them"),
    "policy names a stranger": (policy("p", "red", DENY_80, appliesTo={"endpoints": ["web"]}), 422,
                                "spec.appliesTo.endpoints[0]", "web", "not in red", "endpoint of red"),
    "host's underlay in use": (host("h3", "172.31.0.1"), 409, "spec.underlay", "172.31.0.1",
                               "underlay address of Host h1", "its own"),
    "host's underlay removed": (host("h1"), 409, "spec.underlay", "nothing", "has overlay endpoints", "keep it"),
    "natPorts over a mapping": (host("h1", "172.31.0.1", natPorts=[8000, 9000]), 409, "spec.natPorts",
                                "[8000, 9000]", "port 8080", "another range"),
    "natPorts reversed": (host("h3", natPorts=[3000, 2000]), 422, "spec.natPorts", "[3000, 2000]",
                          "not a range", "low <= high"),
    "tenant of a host": (document("Host", "h4", {}, "default"), 422, "metadata.tenant", "default",
                         "not in a tenant", "leave it out"),
    "token as a document": (document("Token", "x", {}), 422, "kind", "Token", "not declared", "sluice token create"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_document_is_refused_by_name_and_leaves_no_trace(what: str, tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        await refuses(parts, REFUSED[what])

    with_parts(tmp_path, body)


def test_all_problems_of_a_request_are_reported_together(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        answer = await parts.apply(overlay("bad", "10.9.0.1/24"), endpoint("x", "bad"), endpoint("y", "rad"),
                                   endpoint("z", "red", address="10.1.0.5"))
        said = [(e["resource"], e["field"]) for e in answer.json()["errors"]]
        # x is not blamed for the network that is refused itself
        assert said == [("Network default/bad", "spec.subnets[0].prefix"), ("Endpoint default/y", "spec.network"),
                        ("Endpoint default/z", "spec.address")]

    with_parts(tmp_path, body)


@pytest.mark.parametrize(("path", "users"), [
    ("networks/red", "Endpoint default/a, Endpoint default/b"),
    ("endpoints/web", "StaticMapping default/www"),
])
def test_what_is_in_use_is_not_deleted(path: str, users: str, tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        before = await parts.everything()
        answer = await parts.http.delete(f"/v1/tenants/default/{path}")
        assert answer.status_code == 409
        assert users in answer.json()["error"]["message"]
        assert "first" in answer.json()["error"]["todo"]
        assert await parts.everything() == before

    with_parts(tmp_path, body)


@pytest.mark.parametrize("path", ["/v1/hosts/h1", "/v1/tenants/acme", "/v1/tenants/default"])
def test_host_and_tenant_in_use_are_not_deleted(path: str, tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        await parts.apply(tenant("acme"), overlay("green", in_tenant="acme"))
        answer = await parts.http.delete(path)
        assert answer.status_code == 409, answer.text
        assert (await parts.http.get(path)).status_code == 200

    with_parts(tmp_path, body)


def test_the_same_mac_twice_in_a_network_is_refused_and_in_two_networks_is_fine(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        mac = "02:00:00:00:00:07"
        await parts.world()
        assert (await parts.apply(endpoint("m", "red", mac=mac))).status_code == 200
        assert (await parts.apply(endpoint("n", "blue", mac=mac))).status_code == 200
        answer = await parts.apply(endpoint("o", "red", mac=mac.upper()))
        assert answer.status_code == 409
        assert "Endpoint default/m" in answer.json()["error"]["message"]

    with_parts(tmp_path, body)


def test_a_loopback_listener_is_not_in_the_way_of_a_mapping(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        assert (await parts.apply(mapping("m", "office", "web", 9000))).status_code == 200
        other = mapping("n", "office", "web", 9443, externalAddress="192.168.8.3")
        assert (await parts.apply(other)).status_code == 200      # the listener is on the other address
        answer = await parts.apply(mapping("o", "office", "web", 9443, externalAddress="192.168.7.10"))
        assert answer.status_code == 409

    with_parts(tmp_path, body)


def test_overlays_of_different_tenants_may_have_the_same_prefix_and_a_default_route_is_no_overlap(
        tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world(FACTS)
        answer = await parts.apply(tenant("acme"), overlay("red", in_tenant="acme"),
                                   endpoint("a", "red", in_tenant="acme", address="10.1.0.5"),
                                   nat("second", "192.168.251.0/24"))
        assert answer.status_code == 200, answer.text

    with_parts(tmp_path, body)


def test_two_documents_of_one_name_are_refused(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        answer = await parts.apply(overlay("x"), overlay("x", "10.3.0.0/24"))
        assert answer.status_code == 422
        assert "twice" in answer.json()["error"]["message"]

    with_parts(tmp_path, body)


@pytest.mark.parametrize(("content", "message"), [
    (b"{not json", "not JSON"), (b"{}", "must be a list"), (b"\xff\xfe", "not JSON"),
    (b"[" * 100_000, "not JSON"),
])
def test_a_body_that_cannot_be_read_is_400(content: bytes, message: str, tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        answer = await parts.http.post("/v1/apply", content=content)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]

    with_parts(tmp_path, body)
