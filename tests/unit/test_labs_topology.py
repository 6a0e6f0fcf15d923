"""What a lab's namespaces are made of."""

from __future__ import annotations

from labs.schema import Lab
from labs.topology import plan

LAB = {
    "name": "x", "segments": {"w": {}},
    "nodes": {"a": {"interfaces": {"e0": {"segment": "w", "address": "10.0.0.1/24"}}},
              "r": {"ip_forward": True, "interfaces": {"e0": {"segment": "w", "address": "10.0.0.2/24"}}}},
}
SIX = {**LAB, "nodes": {**LAB["nodes"], "s": {  # type: ignore[dict-item]
    "interfaces": {"e0": {"segment": "w", "address": "2001:db8::1/64"}}, "routes": [{"via": "2001:db8::2"}]}}}
OFF = "net.ipv6.conf.all.disable_ipv6"


def test_ipv6_is_off_and_links_are_silent() -> None:
    assert {values[OFF] for values in plan(Lab.model_validate(LAB)).sysctls.values()} == {"1"}


def test_ipv6_is_on_in_all_nodes_when_one_has_an_address_of_it() -> None:
    made = plan(Lab.model_validate(SIX))
    assert {name: values[OFF] for name, values in made.sysctls.items()} == {
        "x-switch": "1", "x-a": "0", "x-r": "0", "x-s": "0"}
    assert made.sysctls["x-r"]["net.ipv6.conf.all.forwarding"] == "1"
    assert made.sysctls["x-a"]["net.ipv6.conf.all.forwarding"] == "0"
    assert dict(made.links)["x-s"][-2:] == ("link set e0 up", "route add default via 2001:db8::2")
