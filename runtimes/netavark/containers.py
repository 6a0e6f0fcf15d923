"""`setup` and `teardown`: a container's interface in one network."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from ipaddress import ip_interface
from typing import Any

from runtimes.local import LocalError
from runtimes.netavark.fields import address, number, part, parts, prefix, text, texts, wrong
from runtimes.netavark.networks import ID_LENGTH, RUNTIME
from runtimes.options import endpoint_options
from runtimes.patient import ask

MAPPED = "nat"                              # the mode whose networks can have mappings
PROTOCOLS = ("tcp", "udp", "sctp")
_ALL = {4: "0.0.0.0", 6: "::"}              # addresses of the host
_NAME_LENGTH = 30


def setup(netns: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Attach; the status block.

    Raises:
        LocalError: nothing was made.
    """
    container, network, own = text(given, "container_id"), part(given, "network"), part(given, "network_options")
    interface, options = text(own, "interface_name"), part(network, "options", needed=False)
    said = endpoint_options(part(own, "options", needed=False))
    request: dict[str, Any] = {
        "runtime": RUNTIME, "id": _identity(given), "scope": text(network, "id"),
        "network": text(options, "network", text(network, "name")), "tenant": text(options, "tenant", "default"),
        "netns": netns, "interface": interface,
        "name": said.name or _name(text(given, "container_name", ""), container, interface),
        "addresses": [str(address(each, "static_ips")) for each in texts(own, "static_ips")] or None,
        "mac": text(own, "static_mac", "") or None, "labels": said.labels or None, "qos": said.qos or None,
        "mappings": _mappings(given, container, options) or None}
    try:
        found = ask("attach", **request)
    except LocalError as error:
        # Podman gives a container a new namespace each time. What was made for another one has no container any more.
        if error.code != "exists" or not _is_left_over(request["id"], netns):
            raise
        ask("detach", runtime=RUNTIME, id=request["id"])
        found = ask("attach", **request)
    return {"dns_search_domains": [], "dns_server_ips": [],
            "interfaces": {interface: {"mac_address": found["mac"], "subnets": _addresses(found)}}}


def teardown(given: Mapping[str, Any]) -> None:
    """Detach. What is not there is no error.

    Raises:
        LocalError
    """
    ask("detach", runtime=RUNTIME, id=_identity(given))


def _identity(given: Mapping[str, Any]) -> str:
    network, own = part(given, "network"), part(given, "network_options")
    return f"{text(given, 'container_id')}/{text(network, 'id')}/{text(own, 'interface_name')}"


def _name(container_name: str, container: str, interface: str) -> str:
    """As Podman's listing has it: the container's name, and its id, as names come again."""
    plain = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in container_name.lower())
    words = [plain[:_NAME_LENGTH].strip("-") or "podman", container[:ID_LENGTH].lower()]
    return "-".join(words if interface == "eth0" else [*words, *filter(None, interface.lower().split("."))])


def _is_left_over(identity: str, netns: str) -> bool:
    rows = ask("list", runtime=RUNTIME)["attachments"]
    return any(each["id"] == identity and each["netns"] != netns for each in rows)


def _mappings(given: Mapping[str, Any], container: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Published ports. Podman tells all networks of a container the same ones: the first nat network gets them."""
    versions = {prefix(text(each, "subnet"), "subnet").version for each in parts(part(given, "network"), "subnets")}
    found = [row for each in parts(given, "port_mappings") for row in _published(each, versions or {4})]
    if not found:
        return []
    if text(options, "mode", MAPPED) != MAPPED:
        print(f"sluice-netavark: no ports are published for network {given['network']['name']}, as its mode is"
              f" {options['mode']}; add a network of mode {MAPPED} to the container", file=sys.stderr)
        return []
    mine = _identity(given)
    others = [each for each in ask("list", runtime=RUNTIME)["attachments"]
              if each["id"].startswith(f"{container}/") and each["id"] != mine and each["mappings"]]
    return [] if others else found


def _published(given: Mapping[str, Any], versions: Collection[int]) -> list[dict[str, Any]]:
    """Without an address of the host: of all, in each family that the network has."""
    named = text(given, "host_ip", "")
    places = [str(address(named, "host_ip"))] if named else [_ALL[version] for version in sorted(versions)]
    outer, inner, count = number(given, "host_port", 0), number(given, "container_port"), number(given, "range", 1) or 1
    found = []
    for protocol in (text(given, "protocol", "") or "tcp").lower().split(","):
        if protocol.strip() not in PROTOCOLS:
            raise wrong("port_mappings", f"has a protocol that is none of {', '.join(PROTOCOLS)}", protocol)
        row = {"protocol": protocol.strip(), "externalPort": _range(outer, count) if outer else "auto",
               "internalPort": _range(inner, count)}
        found += [row | ({"externalAddress": place} if place != _ALL[4] else {}) for place in places]
    return found


def _range(first: int, count: int) -> int | str:
    return first if count == 1 else f"{first}-{first + count - 1}"


def _addresses(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each with the gateway of its prefix."""
    rows = []
    for each in found["addresses"]:
        whole = ip_interface(each).network
        gateway = next((one for one in found["gateways"] if address(one, "gateway") in whole), None)
        rows.append({"ipnet": each} | ({"gateway": gateway} if gateway else {}))
    return rows


__all__ = ["setup", "teardown"]
