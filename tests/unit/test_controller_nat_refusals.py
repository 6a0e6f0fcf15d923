"""Every bad subnet, translation, tap or mapping is refused with field, find and what to do; nothing is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

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
    refuses,
    tenant,
    with_parts,
)

H1 = host("h1", "172.31.0.1", avoidPrefixes=["10.99.0.0/16", "fd99::/16"], mappingPorts=[10000, 10003])
DUAL = nat("dual", "10.5.0.0/24", subnets=[
    {"prefix": "10.5.0.0/24", "exclude": ["10.5.0.40", "10.5.0.200-10.5.0.210"]},
    {"prefix": "10.6.0.0/24"}, {"prefix": "fd00:5::/64"}])
VMS = endpoint("vm", "dual", netns=None, tap="tap7", address="10.5.0.9", address6="fd00:5::9")
SECOND = (*FACTS.addresses, ("lan0", "192.168.7.11/24"), ("lan0", "2001:db8::1/64"), ("lan0", "2001:db8::2/64"),
          ("wlan0", "2001:db8:8::3/64"))


def subnets(*given: dict[str, Any], **spec: Any) -> Any:
    return nat("x", "", subnets=list(given), **spec)


def section(**nat_spec: Any) -> Any:
    """A dual-stack network with a nat section."""
    return subnets({"prefix": "10.9.0.0/24"}, {"prefix": "fd00:9::/64"}, nat=nat_spec)


def to_vm(name: str = "m", **spec: Any) -> Any:
    return document("StaticMapping", name, {"network": "dual", "endpoint": "vm", **spec})


def tcp(external: Any, internal: Any = None, **spec: Any) -> Any:
    ports = {"externalPort": external} | ({"internalPort": internal} if internal is not None else {})
    return to_vm(protocol="tcp", **ports, **spec)


REFUSED: dict[str, Refusal] = {
    # prefixes
    "no subnet": (subnets(), 422, "spec.subnets", "0 subnets", "1 to 16", "at least one"),
    "host bits of IPv6": (nat("x", "fd00::1/64"), 422, "spec.subnets[0].prefix", "fd00::1/64", "host bits",
                          "write fd00::/64"),
    "not an IPv6 prefix": (nat("x", "fd00:::/64"), 422, "spec.subnets[0].prefix", "fd00:::/64", "not an IPv6 prefix",
                           "fd00:1::/64"),
    "link-local": (nat("x", "fe80::/64"), 422, "spec.subnets[0].prefix", "fe80::/64", "link-local", "fd00:1::/64"),
    "one address": (nat("x", "fd00::5/128"), 422, "spec.subnets[0].prefix", "fd00::5/128", "prefix length", "/64"),
    "over itself": (subnets({"prefix": "10.9.0.0/24"}, {"prefix": "10.9.0.128/25"}), 409, "spec.subnets[1].prefix",
                    "10.9.0.128/25", "overlaps subnets[0] 10.9.0.0/24", "of its own"),
    "over another of the tenant": (nat("x", "fd00:5::/48"), 409, "spec.subnets[0].prefix", "fd00:5::/48",
                                   "fd00:5::/64 of Network default/dual", "or auto"),
    "over what is to be avoided": (nat("x", "10.99.3.0/24"), 409, "spec.subnets[0].prefix", "10.99.3.0/24",
                                   "avoidPrefixes of Host h1", "free on h1"),
    "over the LAN's IPv6": (nat("x", "2001:db8::/64"), 409, "spec.subnets[0].prefix", "2001:db8::/64",
                            "address 2001:db8::1/64 of interface lan0", "free on h1"),
    "auto in an overlay": (overlay("x", "auto"), 422, "spec.subnets[0].prefix", "auto", "on no host", "mode nat"),
    "length without auto": (subnets({"prefix": "10.9.0.0/24", "prefixLength": 24}), 422,
                            "spec.subnets[0].prefixLength", "24", "with prefix 10.9.0.0/24", "auto"),
    "length out of range": (subnets({"prefix": "auto", "prefixLength": 31}), 422, "spec.subnets[0].prefixLength", "31",
                            "less than", "in range"),
    "no such prefix left": (subnets({"prefix": "auto", "prefixLength": 8}), 422,
                            "spec.subnets[0].prefix", "auto", "no /8 is free", "autoPrefixes of Host h1"),
    "gateway with auto": (subnets({"prefix": "auto", "gateway": "10.0.0.1"}), 422, "spec.subnets[0].gateway",
                          "10.0.0.1", "not known before", "leave gateway out"),
    "gateway of the other family": (subnets({"prefix": "10.9.0.0/24", "gateway": "fd00::1"}), 422,
                                    "spec.subnets[0].gateway", "fd00::1", "IPv6", "address of the prefix"),
    "exclude outside": (subnets({"prefix": "10.9.0.0/24", "exclude": ["10.9.0.1", "10.9.0.250-10.9.1.2"]}), 422,
                        "spec.subnets[0].exclude[1]", "10.9.0.250-10.9.1.2", "outside of prefix 10.9.0.0/24",
                        "10.9.0.0 to 10.9.0.255"),
    "allocate outside": (subnets({"prefix": "10.9.0.0/24", "allocate": ["fd00::/64"]}), 422,
                         "spec.subnets[0].allocate[0]", "fd00::/64", "outside of prefix", "10.9.0.0 to"),
    "range reversed": (subnets({"prefix": "10.9.0.0/24", "exclude": ["10.9.0.9-10.9.0.3"]}), 422,
                       "spec.subnets[0].exclude[0]", "10.9.0.9-10.9.0.3", "ends before", "write 10.9.0.3-10.9.0.9"),
    "nothing left": (subnets({"prefix": "10.9.0.0/24", "allocate": ["10.9.0.8/30"], "exclude": ["10.9.0.8/29"]}), 422,
                     "spec.subnets[0].allocate", "10.9.0.8/30", "leave no address", "exclude less"),
    "avoid reversed": (host("h3", avoidPrefixes=["10.0.0.1/8"]), 422, "spec.avoidPrefixes[0]", "10.0.0.1/8",
                       "host bits", "write 10.0.0.0/8"),
    "mappingPorts reversed": (host("h3", mappingPorts=[90, 80]), 422, "spec.mappingPorts", "[90, 80]", "ends before",
                              "write [80, 90]"),
    # changes
    "subnet in use removed": (nat("dual", "10.5.0.0/24", subnets=DUAL["spec"]["subnets"][1:]), 409, "spec.subnets",
                              "no 10.5.0.0/24", "in use by Endpoint default/vm", "delete them first"),
    "prefix changed": (nat("dual", "", subnets=[*DUAL["spec"]["subnets"][:2], {"prefix": "fd00:6::/64"}]), 409,
                       "spec.subnets[2].prefix", "fd00:6::/64", "cannot be changed (it is fd00:5::/64)", "another"),
    "gateway changed": (nat("office", "", subnets=[{"prefix": "192.168.250.0/24", "gateway": "192.168.250.9"}]), 409,
                        "spec.subnets[0].gateway", "192.168.250.9", "(it is 192.168.250.1)", "keep it"),
    "exclusion of somebody": (nat("dual", "", subnets=[{"prefix": "10.5.0.0/24", "exclude": ["10.5.0.8/29"]},
                                                       *DUAL["spec"]["subnets"][1:]]), 409, "spec.subnets[0].exclude",
                              "10.5.0.8/29", "excludes 10.5.0.9, the address of Endpoint default/vm", "exclude less"),
    # translation
    "nat of an overlay": (overlay("x", nat={}), 422, "spec.nat", "", "not translated", "mode nat"),
    "renumber of an overlay": (overlay("x", onOverlap="renumber"), 422, "spec.onOverlap", "renumber", "apart", "leave"),
    "onOverlap": (nat("x", "10.9.0.0/24", onOverlap="renumbr"), 422, "spec.onOverlap", "renumbr", "possible values",
                  "did you mean 'renumber'?"),
    "external address of nobody": (section(externalAddresses=["192.168.7.11", "192.0.2.1"]), 422,
                                   "spec.nat.externalAddresses[1]", "192.0.2.1", "not an address of host h1",
                                   "192.168.7.10"),
    "external address twice": (section(externalAddresses=["192.168.7.10", "192.168.7.10"]), 422,
                               "spec.nat.externalAddresses", "192.168.7.10", "twice", "keep one"),
    "IPv6 address that is not used": (section(externalAddresses=["2001:db8::1"]), 422, "spec.nat.externalAddresses",
                                      "2001:db8::1", "not masqueraded (ipv6: routed)", "masquerade"),
    "external address without a family": (subnets({"prefix": "fd00:9::/64"}, nat={
        "externalAddresses": ["192.168.7.10"]}), 422, "spec.nat.externalAddresses[0]", "192.168.7.10",
        "no IPv4 subnet", "add a subnet"),
    "masquerade without IPv6": (nat("x", "10.9.0.0/24", nat={"ipv6": "masquerade"}), 422, "spec.nat.ipv6", "masquerade",
                                "no IPv6 subnet", "add an IPv6 subnet"),
    "prefix without a prefix": (section(ipv6="prefix"), 422, "spec.nat.externalPrefix", "nothing", "without", "add"),
    "prefix of another length": (section(ipv6="prefix", externalPrefix="2001:db8:1::/56"), 422,
                                 "spec.nat.externalPrefix", "2001:db8:1::/56", "has length 56", "give a /64"),
    "prefix of IPv4": (section(ipv6="prefix", externalPrefix="192.0.2.0/24"), 422, "spec.nat.externalPrefix",
                       "192.0.2.0/24", "is IPv4", "IPv6 prefix"),
    "prefix for nothing": (section(externalPrefix="2001:db8:1::/64"), 422, "spec.nat.externalPrefix", "2001:db8:1::/64",
                           "with ipv6: routed", "use ipv6: prefix"),
    "its own prefix": (section(ipv6="prefix", externalPrefix="fd00:9::/64"), 409, "spec.nat.externalPrefix",
                       "fd00:9::/64", "overlaps the network's own", "another prefix"),
    "filtering": (section(filtering="endpoint-dependent"), 422, "spec.nat.filtering", "endpoint-dependent",
                  "possible values", "did you mean"),
    "block out of range": (section(portBlock=8), 422, "spec.nat.portBlock", "8", "out of range", "16 to 4096"),
    "block larger than natPorts": (nat("x", "10.9.0.0/24", "h2", nat={"portBlock": 200}), 422, "spec.nat.portBlock",
                                   "200", "larger than natPorts 30000-30099", "at most 100"),
    "quota below zero": (section(portsPerEndpoint=-1), 422, "spec.nat.portsPerEndpoint", "-1", "greater", "in range"),
    "unknown timeout": (section(timeouts={"tcpEstablishd": 60}), 422, "spec.nat.timeouts.tcpEstablishd",
                        "tcpEstablishd", "unknown field", "did you mean 'tcpEstablished'?"),
    "timeout of nothing": (section(timeouts={"udp": 0}), 422, "spec.nat.timeouts.udp", "0", "greater than", "in range"),
    "exception with host bits": (section(exceptions=["10.0.0.1/8"]), 422, "spec.nat.exceptions[0]", "10.0.0.1/8",
                                 "host bits", "write 10.0.0.0/8"),
    # endpoints
    "nowhere": (endpoint("x", "dual", netns=None), 422, "spec.netns", "nothing", "neither netns nor tap", "add netns"),
    "both": (endpoint("x", "dual", tap="tap8"), 422, "spec.tap", "tap8", "both", "keep one"),
    "tap in use": (endpoint("x", "dual", netns=None, tap="tap7"), 409, "spec.tap", "tap7", "Endpoint default/vm",
                   "another device"),
    "tap with an interface": (endpoint("x", "dual", netns=None, tap="tap8", interface="eth1"), 422, "spec.interface",
                              "eth1", "names it itself", "leave interface out"),
    "IPv6 as address": (endpoint("x", "dual", address="fd00:5::7"), 422, "spec.address", "fd00:5::7", "is IPv6",
                        "IPv4"),
    "IPv4 as address6": (endpoint("x", "dual", address6="10.5.0.7"), 422, "spec.address6", "10.5.0.7", "is IPv4",
                         "belongs into address"),
    "address6 without a subnet": (endpoint("x", "office", address6="fd00:5::7"), 422, "spec.address6", "fd00:5::7",
                                  "no IPv6 subnet", "add an IPv6 subnet"),
    "address6 in use": (endpoint("x", "dual", address6="fd00:5:0::0009"), 409, "spec.address6", "fd00:5::9",
                        "address of Endpoint default/vm", "choose another"),
    "address in no subnet": (endpoint("x", "dual", address="10.7.0.7"), 422, "spec.address", "10.7.0.7", "in no subnet",
                             "10.5.0.0/24, 10.6.0.0/24"),
    "gateway of the second subnet": (endpoint("x", "dual", address="10.6.0.1"), 409, "spec.address", "10.6.0.1",
                                     "gateway", "choose another"),
    "excluded by hand": (endpoint("x", "dual", address="10.5.0.205"), 409, "spec.address", "10.5.0.205", "excluded",
                         "choose another"),
    "router's anycast": (endpoint("x", "dual", address6="fd00:5::"), 422, "spec.address6", "fd00:5::",
                         "network address", "fd00:5::1"),
    # mappings
    "port 0": (tcp(0), 422, "spec.externalPort", "0", "out of range", "1 to 65535"),
    "port 65536": (tcp(65536), 422, "spec.externalPort", "65536", "out of range", "1 to 65535"),
    "internal port 0": (tcp(81, 0), 422, "spec.internalPort", "0", "out of range", "1 to 65535"),
    "range reversed (ports)": (tcp("8010-8000"), 422, "spec.externalPort", "8010-8000", "ends before", "8000-8010"),
    "range past the end": (tcp("65530-65536"), 422, "spec.externalPort", "65530-65536", "port 65536", "1 to 65535"),
    "unequal ranges": (tcp("8000-8010", "9000-9009"), 422, "spec.internalPort", "9000-9009", "11 ports", "equal size"),
    "range for one": (tcp("8000-8010", 80), 422, "spec.internalPort", "80", "11 ports", "equal size"),
    "no port": (to_vm(protocol="tcp", internalPort=80), 422, "spec.externalPort", "nothing", "without", "add"),
    "auto to what": (tcp("auto"), 422, "spec.internalPort", "nothing", "without internalPort", "add"),
    "auto too large": (tcp("auto", "8000-8004"), 422, "spec.internalPort", "8000-8004",
                       "5 ports do not fit into mappingPorts 10000-10003", "smaller range"),
    "range over NAT's": (tcp("19990-20000"), 409, "spec.externalPort", "19990-20000", "20000-32767", "natPorts"),
    "range over a listener": (tcp("20-25"), 409, "spec.externalPort", "20-25", "listens on 0.0.0.0:22", "stop"),
    "range over a mapping": (tcp("8075-8085"), 409, "spec.externalPort", "8075-8085",
                             "port 8080 of host h1 is taken by StaticMapping default/www", "choose another"),
    "VXLAN": (to_vm(protocol="udp", externalPort=4789), 409, "spec.externalPort", "4789", "overlay", "another"),
    "sctp is not translated": (to_vm(protocol="sctp", externalPort=80, internalPort=81), 422, "spec.internalPort", "81",
                               "not translated", "same port"),
    "sctp auto": (to_vm(protocol="sctp", externalPort="auto", internalPort=81), 422, "spec.externalPort", "auto",
                  "not translated", "own port"),
    "icmp id 0": (to_vm(protocol="icmp", externalPort=0), 422, "spec.externalPort", "0", "out of range", "1 to 65535"),
    "any with ports": (to_vm(protocol="any", externalPort=80, externalAddress="192.168.7.11"), 422, "spec.externalPort",
                       "80", "with ports", "leave"),
    "any of all": (to_vm(protocol="any"), 422, "spec.externalAddress", "0.0.0.0", "any with", "name one address"),
    "any of the only address": (to_vm(protocol="any", externalAddress="192.168.8.3"), 409, "spec.externalAddress",
                                "192.168.8.3", "primary address", "second address"),
    "any of the only IPv6 address": (to_vm(protocol="any", externalAddress="2001:db8:8::3"), 409,
                                     "spec.externalAddress", "2001:db8:8::3", "primary address", "second address"),
    "address of nobody": (tcp(81, externalAddress="2001:db8::99"), 422, "spec.externalAddress", "2001:db8::99",
                          "not an address of host h1", "2001:db8::1"),
    "no address of that family": (mapping("m", "office", "web", 81, externalAddress="::"), 422, "spec.externalAddress",
                                  "::", "no IPv6 address", "0.0.0.0"),
    "internal address outside": (tcp(81, internalAddress="10.7.0.9"), 422, "spec.internalAddress", "10.7.0.9",
                                 "outside of Network default/dual", "10.5.0.9"),
    "internal address of another": (tcp(81, internalAddress="10.5.0.10"), 422, "spec.internalAddress", "10.5.0.10",
                                    "not the address of Endpoint default/vm", "10.5.0.9"),
    "families": (tcp(81, internalAddress="fd00:5::9"), 422, "spec.internalAddress", "fd00:5::9", "families", "one"),
    "allowFrom of the other family": (tcp(81, allowFrom=["fd00::/8"]), 422, "spec.allowFrom", "fd00::/8", "no IPv4",
                                      "add an IPv4"),
    "allowFrom nobody": (tcp(81, allowFrom=[]), 422, "spec.allowFrom", "[]", "at least 1", ""),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_document_is_refused_by_name_and_leaves_no_trace(what: str, tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world(replace(FACTS, addresses=SECOND))
        answer = await parts.apply(H1, DUAL, VMS, host("h2", "172.31.0.2", natPorts=[30000, 30099]))
        assert answer.status_code == 200, answer.text
        await refuses(parts, REFUSED[what])

    with_parts(tmp_path, body)


def test_a_whole_address_is_for_one_alone(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world(replace(FACTS, addresses=SECOND))
        await parts.apply(H1, DUAL, VMS)
        whole = to_vm("whole", protocol="any", externalAddress="192.168.7.11")
        assert (await parts.apply(whole)).status_code == 200
        for bad, field in ((to_vm("m", protocol="any", externalAddress="192.168.7.11"), "spec.externalAddress"),
                           (tcp(81, externalAddress="192.168.7.11"), "spec.externalAddress"),
                           (nat("x", "10.9.0.0/24", nat={"externalAddresses": ["192.168.7.11"]}),
                            "spec.nat.externalAddresses[0]")):
            await refuses(parts, (bad, 409, field, "192.168.7.11", "StaticMapping default/whole", ""))
        # Asked of an address that is taken otherwise, it is refused as well; mappings of all addresses stay.
        assert (await parts.apply(tcp(82), tcp(83, externalAddress="192.168.7.10") | {"metadata": {"name": "n"}},
                                  nat("y", "10.9.0.0/24", nat={"ipv6": "routed"}))).status_code == 200
        gone = await parts.http.delete("/v1/tenants/default/staticmappings/whole")
        assert gone.status_code == 200
        held = nat("y", "10.9.0.0/24", nat={"externalAddresses": ["192.168.7.11"]})
        assert (await parts.apply(held)).status_code == 200
        await refuses(parts, (whole, 409, "spec.externalAddress", "192.168.7.11", "external address of Network", ""))

    with_parts(tmp_path, body)


def test_one_port_of_different_addresses_and_protocols_is_no_conflict(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world(replace(FACTS, addresses=SECOND))
        await parts.apply(H1, DUAL, VMS)

        def of(name: str, protocol: str, **spec: Any) -> Any:
            return to_vm(name, protocol=protocol, externalPort=88, **spec)

        answer = await parts.apply(of("a", "tcp", externalAddress="192.168.7.10"),
                                   of("b", "tcp", externalAddress="192.168.8.3"), of("c", "udp"), of("d", "icmp"),
                                   of("e", "sctp"), of("f", "tcp", externalAddress="::"))
        assert answer.status_code == 200, answer.text
        inner = {i["name"]: i["resource"]["status"]["internalAddress"] for i in answer.json()["items"]}
        assert (inner["a"], inner["f"]) == ("10.5.0.9", "fd00:5::9")
        for bad, holder in ((of("x", "tcp"), "a"), (of("x", "tcp", externalAddress="192.168.8.3"), "b"),
                            (of("x", "tcp", externalAddress="2001:db8::2"), "f")):
            await refuses(parts, (bad, 409, "spec.externalPort", "88", f"StaticMapping default/{holder}", "auto"))

    with_parts(tmp_path, body)


def test_tenants_may_have_the_same_prefix_on_one_host(tmp_path: Path) -> None:
    async def body(parts: Parts) -> None:
        await parts.world()
        theirs = nat("office", "192.168.250.0/24")
        theirs["metadata"]["tenant"] = "acme"
        answer = await parts.apply(tenant("acme"), theirs, endpoint("web", "office", in_tenant="acme"))
        assert answer.status_code == 200, answer.text
        assert answer.json()["items"][2]["resource"]["status"]["address"] == "192.168.250.2"

    with_parts(tmp_path, body)
