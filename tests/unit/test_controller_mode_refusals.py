"""Modes, peers, routes, ways out, qos, nested and external endpoints: bad input is refused by field, without a trace.

All cases go to one controller: `refuses` itself looks that nothing was stored.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from controller_kit import (
    FACTS,
    Document,
    Parts,
    Refusal,
    document,
    endpoint,
    host,
    nat,
    overlay,
    refuses,
    tenant,
    with_parts,
)

from controller.store import Report


def network(name: str, mode: str, prefix: str, **spec: Any) -> Document:
    return document("Network", name, {"mode": mode, "subnets": [{"prefix": prefix}], **spec})


def dual(name: str, four: str, six: str, **spec: Any) -> Document:
    return overlay(name, subnets=[{"prefix": four}, {"prefix": six}], **spec)


def bare(name: str, of: str, on: str = "h1", **spec: Any) -> Document:
    """An endpoint that says of no namespace."""
    return endpoint(name, of, on, netns=None, **spec)


def route(destination: str, **via: str) -> Document:
    return {"destination": destination, "via": via}


def red(**spec: Any) -> Document:
    return dual("red", "10.1.0.0/24", "fd00:1::/64", **spec)


WORLD = [
    host("h1", "172.31.0.1", uplinkRate="1gbit"), host("h2", "172.31.0.2", vxlanPort=4789), host("h3"),
    host("h4", underlay=["172.31.0.4", "FD00:31::4"]),
    host("h6", "fd00:31::6"), host("ext", "172.31.0.9", external=True), tenant("acme"),
    red(), overlay("blue", "10.2.0.0/24"), overlay("green", "10.3.0.0/24", peers=["blue"]),
    overlay("sea", "10.4.0.0/24", peers=["green"]), overlay("other", "10.2.0.0/25"), overlay("twin", "10.5.0.0/24"),
    overlay("gone", "10.6.0.0/24", egress={"host": "h2"}),
    overlay("blue", "10.12.0.0/24", in_tenant="acme"), nat("office", "192.168.250.0/24"),
    network("seg", "transparent", "192.168.7.0/24", host="h1", uplink="lan0"),
    network("wide", "transparent", "192.168.9.0/24", uplink="wlan0"),
    network("bridge", "l2bridge", "192.168.8.0/24"), network("own", "private", "10.7.0.0/24"),
    endpoint("a", "red"), endpoint("b", "red", "h2", qos={"connections": 5}), endpoint("c", "blue"),
    endpoint("far", "red", "ext", netns=None, mac="02:00:00:00:00:99", address="10.1.0.99"),
    bare("in-a", "red", behind="a"), endpoint("d", "seg"),
    endpoint("busy", "twin", qos={"minimum": "900mbit"}),
]

MODES: dict[str, Refusal] = {
    "mtu and IPv6": (red(mtu=1279), 422, "spec.mtu", "1279", "1280", "1280 or more"),
    "mode in place": (network("seg", "l2bridge", "192.168.7.0/24", host="h1", uplink="lan0"), 409, "spec.mode",
                      "l2bridge", "transparent", "another network"),
    "vni out of range": (overlay("x", vni=2**24), 422, "spec.vni", "16777216", "out of range", "16777215"),
    "vni of a segment": (network("x", "private", "10.9.0.0/24", vni=9), 422, "spec.vni", "9", "no VNI", "leave it out"),
    "unknown uplink of a network": (network("x", "l2tunnel", "10.9.0.0/24", host="h1", uplink="eth9"), 422,
                                    "spec.uplink", "eth9", "host h1 has no interface eth9", "lan0"),
    "unknown uplink of a host": (host("h1", "172.31.0.1", uplink="eth9", uplinkRate="1gbit"), 422, "spec.uplink",
                                 "eth9", "no interface eth9", "lan0"),
    "unknown uplink at an endpoint": (endpoint("x", "wide", "h2"), 422, "spec.host", "wlan0", "uplink of Network",
                                      "eth0"),
    "uplink of an overlay": (overlay("x", "10.9.0.0/24", uplink="lan0"), 422, "spec.uplink", "lan0", "no uplink",
                             "transparent or l2bridge or l2tunnel"),
    "host that is not there": (network("x", "transparent", "10.9.0.0/24", host="h9"), 422, "spec.host", "h9",
                               "no Host 'h9'", "apply it first"),
    "segment on an external host": (network("x", "transparent", "10.9.0.0/24", host="ext"), 422, "spec.host", "ext",
                                    "external", "another host"),
    "automatic prefix of a segment": (network("x", "transparent", "auto", host="h1"), 422, "spec.subnets[0].prefix",
                                      "auto", "segment", "give the prefix"),
    "automatic prefix of no host": (network("x", "private", "auto"), 422, "spec.subnets[0].prefix", "auto",
                                    "without host", "give the prefix"),
    "two answer for one prefix": (network("x", "l2tunnel", "192.168.8.128/25", host="h2"), 409,
                                  "spec.subnets[0].prefix", "192.168.8.128/25", "Network default/bridge",
                                  "another uplink"),
    "endpoint on another host": (endpoint("x", "seg", "h2"), 422, "spec.host", "h2", "transparent network of host h1",
                                 "use host h1"),
    "the host's own address": (endpoint("x", "seg", address="192.168.7.10"), 409, "spec.address", "192.168.7.10",
                               "address of host h1", "choose another"),
    "broadcast of a nat network": (nat("x", "192.168.249.0/24", broadcast={"rate": 1, "burst": 1}), 422,
                                   "spec.broadcast", "rate 1", "no broadcast", "overlay or private"),
    "broadcast rate 0": (red(broadcast={"rate": 0, "burst": 1}), 422, "spec.broadcast.rate", "0", "rate of broadcast",
                         "use 1 to"),
    "broadcast without burst": (red(broadcast={"rate": 5}), 422, "spec.broadcast.burst", "nothing", "missing", "off"),
    "broadcast of something": (red(broadcast="on"), 422, "spec.broadcast", "on", "not a limit", "off"),
    "advertisements without IPv6": (overlay("x", "10.9.0.0/24", routerAdvertisements=True), 422,
                                    "spec.routerAdvertisements", "true", "no IPv6 subnet", "fd00:1::/64"),
    "advertisements on a segment": (network("x", "l2bridge", "fd00:9::/64", routerAdvertisements=True), 422,
                                    "spec.routerAdvertisements", "true", "no routerAdvertisements", "overlay or nat"),
    "slaac unheard": (red(slaac=True), 422, "spec.routerAdvertisements", "false", "nobody learns", "set"),
    "slaac of another length": (dual("x", "10.9.0.0/24", "fd00:9::/80", slaac=True, routerAdvertisements=True), 422,
                                "spec.subnets[1].prefix", "fd00:9::/80", "length 64", "/64"),
    "overlapping subnets": (dual("x", "10.9.0.0/24", "10.9.0.128/25"), 409, "spec.subnets[1].prefix", "10.9.0.128/25",
                            "overlaps", "its own"),
}

NEIGHBOURS: dict[str, Refusal] = {
    "peered with itself": (red(peers=["red"]), 422, "spec.peers[0]", "red", "itself", "leave it out"),
    "no such peer": (red(peers=["rad"]), 422, "spec.peers[0]", "rad", "no Network 'rad'", "did you mean"),
    "no such peer of a tenant": (red(peers=["acme/red"]), 422, "spec.peers[0]", "red", "in tenant acme", "apply it"),
    "bad name of a peer": (red(peers=["a/b/c"]), 422, "spec.peers[0]", "a/b/c", "not a name", "lower-case"),
    "peer twice": (red(peers=["sea", "sea"]), 422, "spec.peers[1]", "sea", "twice", "keep one"),
    "peer of another mode": (red(peers=["seg"]), 422, "spec.peers[0]", "seg", "transparent", "mode overlay"),
    "peers of a nat network": (nat("x", "192.168.249.0/24", peers=["red"]), 422, "spec.peers", "red", "no peers",
                               "mode overlay"),
    "peered back": (overlay("blue", "10.2.0.0/24", peers=["green"]), 422, "spec.peers[0]", "green",
                    "peered already: default/blue - default/green - default/blue", "both ways"),
    "peering loop": (overlay("sea", "10.4.0.0/24", peers=["green", "blue"]), 422, "spec.peers[1]", "blue",
                     "default/sea - default/green - default/blue - default/sea", "out of that loop"),
    "overlapping peers": (overlay("other", "10.2.0.0/25", peers=["blue"]), 409, "spec.peers[0]", "blue",
                          "10.2.0.0/24 of Network default/blue", "apart"),
    "peers that overlap each other": (overlay("other", "10.2.0.0/25", peers=["green"]), 409, "spec.peers[0]", "",
                                      "both are peers of Network default/green", "apart"),
    "a subnet that comes over a peer": (overlay("blue", subnets=[{"prefix": "10.2.0.0/24"}, {"prefix": "10.3.0.0/25"}]),
                                        409, "spec.subnets", "", "10.3.0.0/24 of Network default/green", "apart"),
    "route into a subnet": (red(routes=[route("10.1.0.0/25", host="h1")]), 409, "spec.routes[0].destination",
                            "10.1.0.0/25", "in subnet 10.1.0.0/24", "no subnet"),
    "route twice": (red(routes=[route("10.9.0.0/24", host="h1"), route("10.9.0.0/24", host="h2")]), 409,
                    "spec.routes[1].destination", "10.9.0.0/24", "routes[0]", "keep one"),
    "route of no family": (overlay("blue", "10.2.0.0/24", routes=[route("fd00:9::/64", host="h1")]), 422,
                           "spec.routes[0].destination", "fd00:9::/64", "no IPv6 subnet", "add a subnet"),
    "route by two": (red(routes=[route("10.9.0.0/24", host="h1", endpoint="a")]), 422, "spec.routes[0].via", "h1",
                     "endpoint and host", "one of"),
    "route by nobody": (red(routes=[route("10.9.0.0/24")]), 422, "spec.routes[0].via", "", "no next hop", "one of"),
    "next hop of another family": (red(routes=[route("10.9.0.0/24", address="fd00:1::5")]), 422,
                                   "spec.routes[0].via.address", "fd00:1::5", "is IPv6", "IPv4 address"),
    "next hop outside": (red(routes=[route("10.9.0.0/24", address="10.8.0.5")]), 422, "spec.routes[0].via.address",
                         "10.8.0.5", "in no subnet", "10.1.0.0/24"),
    "next hop is the gateway": (red(routes=[route("10.9.0.0/24", address="10.1.0.1")]), 422,
                                "spec.routes[0].via.address", "10.1.0.1", "the gateway", "name the router"),
    "next hop in another network": (red(routes=[route("10.9.0.0/24", endpoint="c")]), 422,
                                    "spec.routes[0].via.endpoint", "c", "in network blue", "endpoint of red"),
    "no such next hop": (red(routes=[route("10.9.0.0/24", endpoint="zz")]), 422, "spec.routes[0].via.endpoint", "zz",
                         "no Endpoint 'zz'", "apply it"),
    "next hop without that family": (red(routes=[route("fd00:9::/64", endpoint="far")]), 422,
                                     "spec.routes[0].via.endpoint", "far", "no IPv6 address", "give it one"),
    "exit without underlay": (red(routes=[route("10.9.0.0/24", host="h3")]), 422, "spec.routes[0].via.host", "h3",
                              "no underlay", "set spec.underlay"),
    "external exit": (red(egress={"host": "ext"}), 422, "spec.egress.host", "ext", "external", "another host"),
    "no such exit": (red(egress={"host": "h9"}), 422, "spec.egress.host", "h9", "no Host", "apply it"),
    "egress by what": (red(egress="natt"), 422, "spec.egress", "natt", "not a way out", "did you mean 'nat'?"),
    "egress of a nat network": (nat("x", "192.168.249.0/24", egress="nat"), 422, "spec.egress", "nat", "no egress",
                                "mode overlay"),
    "two ways for everything": (red(egress="nat", routes=[route("0.0.0.0/0", host="h1")]), 409,
                                "spec.routes[0].destination", "0.0.0.0/0", "egress already", "leave out"),
    "translation without a way out": (red(nat={}), 422, "spec.nat", "a nat section", "without egress", "add egress"),
    "one address of many hosts": (red(egress="nat", nat={"externalAddresses": ["192.0.2.1"]}), 422,
                                  "spec.nat.externalAddresses", "192.0.2.1", "several hosts", "leave it out"),
    "prefix translation of an overlay": (red(egress="nat", nat={"ipv6": "prefix", "externalPrefix": "2001:db8::/64"}),
                                         422, "spec.nat.ipv6", "prefix", "address of the host", "masquerade"),
}

ENDPOINTS: dict[str, Refusal] = {
    "nowhere": (bare("x", "red"), 422, "spec.netns", "nothing", "neither netns nor tap", "behind"),
    "two places": (endpoint("x", "red", behind="a"), 422, "spec.behind", "a", "both netns", "keep one"),
    "behind itself": (bare("x", "red", behind="x"), 422, "spec.behind", "x", "itself", "another"),
    "behind nobody": (bare("x", "red", behind="zz"), 422, "spec.behind", "zz", "no Endpoint", "apply it"),
    "behind one of another network": (bare("x", "red", behind="c"), 422, "spec.behind", "c", "in network blue",
                                      "of red"),
    "behind a nested one": (bare("x", "red", behind="in-a"), 422, "spec.behind", "in-a", "itself behind a", "name a"),
    "behind a VTEP": (bare("x", "red", behind="far"), 422, "spec.behind", "far", "external host", "another"),
    "behind one elsewhere": (bare("x", "red", "h2", behind="a"), 422, "spec.host", "h2", "on host h1", "use host h1"),
    "its host moves away": (endpoint("a", "red", "h2"), 409, "spec.host", "h2", "Endpoint default/in-a",
                            "same request"),
    "mac of a nested one": (bare("x", "red", behind="a", mac="02:00:00:00:00:05"), 422, "spec.mac",
                            "02:00:00:00:00:05", "MAC it uses", "set it on a"),
    "qos of a nested one": (bare("x", "red", behind="a", qos={"connections": 1}), 422, "spec.qos", "caps", "link",
                            "set it on a"),
    "external without mac": (bare("x", "red", "ext", address="10.1.0.77"), 422, "spec.mac", "nothing", "external",
                             "add the MAC"),
    "external without address": (bare("x", "red", "ext", mac="02:00:00:00:00:05"), 422, "spec.address", "nothing",
                                 "external", "add the address"),
    "external with a namespace": (endpoint("x", "red", "ext", mac="02:00:00:00:00:05", address="10.1.0.77"), 422,
                                  "spec.netns", "ns-x", "no agent", "leave it out"),
    "external in a segment": (bare("x", "wide", "ext", mac="02:00:00:00:00:05", address="192.168.9.7"), 422,
                              "spec.host", "ext", "transparent network", "overlay"),
    "external with qos": (bare("x", "red", "ext", mac="02:00:00:00:00:05", address="10.1.0.77",
                               qos={"connections": 1}), 422, "spec.qos", "caps", "nobody holds", "leave it out"),
    "underlays of different families": (endpoint("x", "red", "h6"), 422, "spec.host", "h6", "no underlay address",
                                        "other's family"),
    "dhcp in an overlay": (endpoint("x", "red", dhcp=True), 422, "spec.dhcp", "true", "transparent networks",
                           "leave it out"),
    "dhcp and address": (endpoint("x", "seg", dhcp=True, address="192.168.7.9"), 422, "spec.address", "192.168.7.9",
                         "both dhcp and address", "keep one"),
    "vlans in an overlay": (endpoint("x", "red", vlans=[5]), 422, "spec.vlans", "5", "transparent", "leave it out"),
    "vlan out of range": (endpoint("x", "seg", vlans=[4095]), 422, "spec.vlans[0]", "4095", "less than or equal", ""),
    "vlan twice": (endpoint("x", "seg", vlans=[5, 5]), 422, "spec.vlans", "5", "twice", "keep one"),
    "nine vlans": (endpoint("x", "seg", vlans=list(range(1, 10))), 422, "spec.vlans", "", "at most 8", ""),
    "forwards in a nat network": (endpoint("x", "office", forwards=["10.9.0.0/16"]), 422, "spec.forwards",
                                  "10.9.0.0/16", "overlay and transparent", "leave it out"),
    "queues without a tap": (endpoint("x", "red", queues=4), 422, "spec.queues", "4", "without a tap", "use tap"),
    "no queues": (bare("x", "red", tap="tap1", queues=0), 422, "spec.queues", "0", "greater than or equal", ""),
    "family of address": (endpoint("x", "red", address="fd00:1::7"), 422, "spec.address", "fd00:1::7", "IPv6", "IPv4"),
    "family of the network": (endpoint("x", "blue", address6="fd00:1::7"), 422, "spec.address6", "fd00:1::7",
                              "no IPv6 subnet", "leave it out"),
}

QOS: dict[str, Refusal] = {
    f"{what} {where}": (endpoint("x", "red", qos=qos), 422, f"spec.qos.{field}", found, message, todo)
    for where, what, qos, field, found, message, todo in (
        ("0", "rate", {"egress": {"rate": "0mbit"}}, "egress.rate", "0mbit", "lets nothing through", "more than 0"),
        ("negative", "rate", {"ingress": {"rate": "-5mbit"}}, "ingress.rate", "-5mbit", "lets nothing", "more than 0"),
        ("without unit", "rate", {"egress": {"rate": "100"}}, "egress.rate", "100", "not a rate", "kbit, mbit"),
        ("a number", "rate", {"egress": {"rate": 100}}, "egress.rate", "100", "not a rate", "100mbit"),
        ("unknown", "unit", {"egress": {"rate": "5mb"}}, "egress.rate", "5mb", "not a rate", "mbit"),
        ("too high", "rate", {"egress": {"rate": "9999gbit"}}, "egress.rate", "9999gbit", "out of range", "1000gbit"),
        ("missing", "rate", {"egress": {"burst": "64kb"}}, "egress.rate", "nothing", "required", "add rate"),
        ("too small", "burst", {"egress": {"rate": "1mbit", "burst": "5b"}}, "egress.burst", "5b", "out of range",
         "2kb"),
        ("negative", "minimum", {"minimum": "-1mbit"}, "minimum", "-1mbit", "lets nothing", "more than 0"),
        ("over the cap", "minimum", {"minimum": "20mbit", "egress": {"rate": "10mbit"}}, "minimum", "20mbit",
         "more than the cap", "lower it"),
        ("over the uplink", "minimum", {"minimum": "200mbit"}, "minimum", "200mbit", "1100000kbit", "guarantee less"),
        ("0", "packets", {"packetRate": {"egress": 0}}, "packetRate.egress", "0", "greater than or equal", "in range"),
        ("0", "connections", {"connections": 0}, "connections", "0", "greater than or equal", "in range"),
        ("out of range", "dscp", {"dscp": 64}, "dscp", "64", "less than or equal", "in range"),
        ("unknown", "field", {"egres": {}}, "egres", "egres", "unknown field", "did you mean 'egress'?"))
}

HOSTS: dict[str, Refusal] = {
    "guarantee on an unknown rate": (endpoint("x", "red", "h2", qos={"minimum": "1mbit"}), 422, "spec.qos.minimum",
                                     "1mbit", "host h2 says none", "set spec.uplinkRate"),
    "guarantee of a network": (red(qos={"minimum": "1mbit"}), 422, "spec.qos.minimum", "1mbit", "says none",
                               "uplinkRate"),
    "rate below what is guaranteed": (host("h1", "172.31.0.1", uplinkRate="100mbit"), 422, "spec.uplinkRate",
                                      "100mbit", "come to 900000kbit", "guarantee less"),
    "rate 0": (host("h1", "172.31.0.1", uplinkRate="0gbit"), 422, "spec.uplinkRate", "0gbit", "nothing through", ""),
    "another port than the others": (host("h1", "172.31.0.1", uplinkRate="1gbit", vxlanPort=8472), 409,
                                     "spec.vxlanPort", "8472", "Host h2 uses UDP port 4789", "same request"),
    "nine underlays": (host("h3", underlay=[f"172.31.1.{n}" for n in range(9)]), 422, "spec.underlay", "", "9 underlay",
                       "at most 8"),
    "underlay twice": (host("h3", underlay=["172.31.1.1", "172.31.1.1"]), 422, "spec.underlay", "172.31.1.1", "twice",
                       "keep one"),
    "underlay of another": (host("h3", underlay=["172.31.1.1", "172.31.0.2"]), 409, "spec.underlay", "172.31.0.2",
                            "of Host h2", "its own"),
    "no underlay address": (host("h3", underlay=["172.31.1.300"]), 422, "spec.underlay", "172.31.1.300", "not an",
                            "10.1.0.5"),
    "external without address": (host("h3", external=True), 422, "spec.underlay", "nothing", "VTEP address", "add"),
    "external with ports of ours": (host("h1", "172.31.0.1", external=True), 409, "spec.external", "true",
                                    "attached there by its agent", "delete them"),
    "an exit without underlay": (host("h2", vxlanPort=4789), 409, "spec.underlay", "nothing", "needs its underlay",
                                 "delete them"),
    "an external exit": (host("h2", "172.31.0.2", external=True), 409, "spec.external", "true", "leaves by it",
                         "change that network"),
    "underlay of the other family": (host("h2", "fd00:31::2"), 422, "spec.underlay", "h2", "no underlay address",
                                     "other's family"),
}


def test_every_bad_document_is_refused_by_name_and_leaves_no_trace(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.ledger.save_report("h1", Report("test", replace(FACTS, links=("lan0", "lo", "wlan0"))))
        await parts.ledger.save_report("h2", Report("test", replace(FACTS, links=("eth0", "lo"))))
        answer = await parts.apply(*WORLD)
        assert answer.status_code == 200, answer.text
        for cases in (MODES, NEIGHBOURS, ENDPOINTS, QOS, HOSTS):
            for what, refusal in cases.items():
                try:
                    await refuses(parts, refusal)
                except AssertionError as error:
                    raise AssertionError(f"{what}: {error}") from error

    with_parts(tmp_path, body)


def test_broadcast_that_would_go_to_too_many_hosts_is_refused_from_either_side(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        hosts = [host(f"m{n}", f"172.31.9.{n}") for n in range(1, 131)]
        many = [endpoint(f"m{n}", "red", f"m{n}") for n in range(1, 131)]
        loud = red(broadcast={"rate": 5, "burst": 5})
        assert (await parts.apply(*hosts, loud, *many[:-1])).status_code == 200
        await refuses(parts, (many[-1], 422, "spec.host", "m130", "on 130 hosts", "broadcast: off"))
        assert (await parts.apply(red(), many[-1])).status_code == 200
        await refuses(parts, (loud, 422, "spec.broadcast", "rate 5", "at most 128", "broadcast: off"))

    with_parts(tmp_path, body)


def test_what_others_name_is_not_deleted_but_together_with_them_it_is(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        for name in ("h1", "h2"):
            await parts.ledger.save_report(name, Report("test", replace(FACTS, links=("lan0", "lo", "wlan0"))))
        named = overlay("via", "10.8.0.0/24", routes=[route("10.9.0.0/24", endpoint="nva")])
        assert (await parts.apply(*WORLD, named, endpoint("nva", "via"))).status_code == 200
        for path, user in (("tenants/default/networks/blue", "Endpoint default/c, Network default/green"),
                           ("tenants/default/endpoints/a", "Endpoint default/in-a"),
                           ("tenants/default/endpoints/nva", "Network default/via"),
                           ("hosts/h2", "Network default/gone")):
            answer = await parts.http.delete(f"/v1/{path}")
            assert answer.status_code == 409, path
            assert user in answer.json()["error"]["message"], answer.json()
        gone = [{"kind": kind, "tenant": "default", "name": name} for kind, name in (
            ("Network", "via"), ("Endpoint", "nva"), ("Endpoint", "in-a"), ("Endpoint", "a"))]
        answer = await parts.http.post("/v1/delete", json=gone)
        assert answer.status_code == 200, answer.text

    with_parts(tmp_path, body)


def test_peers_next_hops_and_ports_may_come_and_change_in_one_request_in_any_order(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        answer = await parts.apply(
            bare("in-a", "red", behind="a"), endpoint("a", "red", forwards=["10.9.0.0/16"]),
            red(peers=["blue"], routes=[route("10.9.0.0/16", endpoint="a")]), overlay("blue", "10.2.0.0/24"),
            host("h1", "172.31.0.1", vxlanPort=4789), host("h2", "172.31.0.2"))
        assert answer.status_code == 200, answer.text
        answer = await parts.apply(
            host("h1", "172.31.0.1", vxlanPort=8472), host("h2", "172.31.0.2", vxlanPort=8472),
            red(routes=[route("10.9.0.0/16", endpoint="a")]), overlay("blue", "10.2.0.0/24", peers=["red"]),
            endpoint("a", "red", "h2", forwards=["10.9.0.0/16"]), bare("in-a", "red", "h2", behind="a"))
        assert answer.status_code == 200, answer.text

    with_parts(tmp_path, body)
