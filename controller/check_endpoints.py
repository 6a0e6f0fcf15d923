"""Checks of an Endpoint: where it is, and the addresses that it asks for."""

from __future__ import annotations

from collections.abc import Iterator

from controller.check_modes import ON_SEGMENT, known_link
from controller.check_networks import outside
from controller.checks import Surroundings, exists, own_addresses
from controller.documents import Declared
from controller.endpoint_specs import EndpointSpec
from controller.errors import Problem
from controller.network_specs import NetworkSpec
from controller.state import AnyStored, Ref, State, Stored
from controller.subnets import meant, subnets_of


def check_endpoint(document: Declared, old: AnyStored | None, around: Surroundings) -> Iterator[Problem]:
    """Problems of an Endpoint."""
    spec, ref, state = document.spec, document.ref, around.state
    assert isinstance(spec, EndpointSpec)
    network_ref = Ref("Network", ref.tenant, spec.network)
    yield from exists(network_ref, "spec.network", around)
    yield from exists(Ref("Host", "", spec.host), "spec.host", around)
    was = old.spec if old is not None and isinstance(old.spec, EndpointSpec) else None
    if was is not None and was.network != spec.network:
        yield Problem("immutable", f"cannot be changed (it is {was.network})", "spec.network", spec.network,
                      "delete the endpoint and make it anew")
        return
    yield from _place(ref, spec, state)
    network, host = state.network(network_ref), state.host(spec.host)
    if network is None:
        return
    yield from check_host(spec.host, "spec.host", network, state)
    if host is not None and host.spec.external:
        yield from _external(spec, network)
    elif spec.place is None and spec.behind is None:
        yield Problem("missing", "neither netns nor tap says where it is", "spec.netns", "nothing",
                      "add netns, or tap with the name of a tap device, or behind with the name of an endpoint")
    yield from _modes(spec, network)
    if network.spec.mode in ON_SEGMENT and network.spec.uplink is not None:
        yield from known_link(network.spec.uplink, "spec.host", spec.host, around, f", the uplink of {network.ref}")
    for field in ("address", "address6"):
        text = getattr(spec, field)
        if text and (was is None or getattr(was, field) != text):      # what was asked for before may have moved since
            yield from check_address(ref, spec.host, text, f"spec.{field}", network, state)
            yield from _host_address(text, f"spec.{field}", spec.host, network, around)
    if spec.mac:
        yield from _mac(ref, spec.mac, network, state)


def check_host(name: str, where: str, network: Stored[NetworkSpec], state: State) -> Iterator[Problem]:
    """Problems of an endpoint of this host in a network."""
    host = state.host(name)
    if network.spec.mode != "overlay" and network.spec.host not in (None, name):
        yield Problem("invalid", f"{network.ref} is a {network.spec.mode} network of host {network.spec.host}",
                      where, name, f"use host {network.spec.host}, or a network of {name}")
    if network.spec.mode == "overlay" and host is not None and not host.spec.underlay:
        yield Problem("invalid", f"host {name} has no underlay address, which an overlay endpoint needs",
                      where, name, f"set spec.underlay of Host {name}")


def _place(ref: Ref, spec: EndpointSpec, state: State) -> Iterator[Problem]:
    holder = state.interfaces.get(spec.place) if spec.place is not None else None
    if holder not in (None, ref):
        if spec.veth is not None:
            yield Problem("in_use", f"the link {spec.veth} on {spec.host} is that of {holder}", "spec.veth", spec.veth,
                          "choose another name")
        elif spec.tap is not None:
            yield Problem("in_use", f"tap device {spec.tap} on {spec.host} is that of {holder}", "spec.tap", spec.tap,
                          "choose another device")
        else:
            yield Problem("in_use", f"interface {spec.interface} in {spec.netns} on {spec.host} is that of {holder}",
                          "spec.interface", spec.interface, "choose another interface name or namespace")


def _host_address(text: str, where: str, host: str, network: Stored[NetworkSpec],
                  around: Surroundings) -> Iterator[Problem]:
    """A problem if the host, which is on the same segment, has the address itself."""
    facts = around.facts.get(host)
    if network.spec.mode in ON_SEGMENT and facts is not None and text in own_addresses(facts):
        yield Problem("in_use", f"{text} is an address of host {host} on that segment", where, text,
                      "choose another, or leave it out")


def _external(spec: EndpointSpec, network: Stored[NetworkSpec]) -> Iterator[Problem]:
    """Problems of an endpoint behind a VTEP that is not ours: nothing can be done there, so all must be known."""
    if network.spec.mode != "overlay":
        yield Problem("invalid", f"host {spec.host} is external, and {network.ref} a {network.spec.mode} network",
                      "spec.host", spec.host, "use an overlay network, or another host")
    for field in ("netns", "tap", "veth", "behind"):
        if getattr(spec, field) is not None:
            yield Problem("invalid", f"host {spec.host} is external: no agent attaches it there", f"spec.{field}",
                          str(getattr(spec, field)), "leave it out")
    if not spec.mac:
        yield Problem("missing", f"host {spec.host} is external: its MAC cannot be chosen", "spec.mac", "nothing",
                      "add the MAC that it has")
    versions = {subnet.version for subnet in subnets_of(network)}
    given = {version for version, text in ((4, spec.address), (6, spec.address6)) if text}
    if not given & versions:
        field = "address" if 4 in versions else "address6"
        yield Problem("missing", f"host {spec.host} is external: its address cannot be chosen", f"spec.{field}",
                      "nothing", "add the address that it has")
    if spec.qos is not None:
        yield Problem("invalid", f"host {spec.host} is external: nobody holds qos there", "spec.qos", "caps",
                      "leave it out")


_ONLY = {"dhcp": ("transparent",), "vlans": ("transparent",), "forwards": ("overlay", "transparent")}
"""Fields that endpoints of some modes only may have."""


def _modes(spec: EndpointSpec, network: Stored[NetworkSpec]) -> Iterator[Problem]:
    for field, modes in _ONLY.items():
        value = getattr(spec, field)
        if value and network.spec.mode not in modes:
            shown = "true" if value is True else ", ".join(map(str, value))
            yield Problem("wrong_mode", f"{network.ref} is a {network.spec.mode} network; {field} is for "
                          f"{' and '.join(modes)} networks", f"spec.{field}", shown, "leave it out")


def check_address(ref: Ref | None, host: str, text: str, where: str, network: Stored[NetworkSpec],
                  state: State) -> Iterator[Problem]:
    """Problems of an address that an endpoint of a host is to have. `ref` None: one that is yet to come."""
    subnets = subnets_of(network)
    version = 6 if ":" in text else 4
    own = [subnet for subnet in subnets if subnet.version == version]
    if not own:
        yield Problem("family", f"{network.ref} has no IPv{version} subnet", where, text,
                      f"leave it out, or add an IPv{version} subnet")
        return
    found = meant(subnets, text)
    if found is None:
        if len(own) == 1:
            yield from outside(text, own[0].prefix, where, "address")
        else:
            yield Problem("outside", f"address is in no subnet of {network.ref}", where, text,
                          f"use one of {', '.join(str(subnet.prefix) for subnet in own)}")
        return
    subnet, address = found
    wrong = list(outside(address, subnet.prefix, where, "address"))
    yield from wrong
    if wrong:
        return
    holder = state.addresses.get((network.ref, address))
    todo = "choose another, or leave it out"
    if address == subnet.gateway:
        yield Problem("in_use", f"{address} is the gateway of {network.ref}", where, text, todo)
    elif subnet.excludes(address):
        yield Problem("in_use", f"{address} is excluded in subnet {subnet.prefix} of {network.ref}", where, text, todo)
    elif holder not in (None, ref):
        yield Problem("in_use", f"{address} is the address of {holder}", where, text, todo)
    elif (other := state.leased.get((network.ref, address))) not in (None, host):
        yield Problem("in_use", f"{address} is leased to host {other} for its containers", where, text, todo)


def _mac(ref: Ref, mac: str, network: Stored[NetworkSpec], state: State) -> Iterator[Problem]:
    holder = state.macs.get((network.ref, mac))
    if mac == network.assigned.gateway_mac:
        yield Problem("in_use", f"{mac} is the gateway's MAC in {network.ref}", "spec.mac", mac,
                      "choose another, or leave it out")
    elif holder not in (None, ref):
        yield Problem("in_use", f"{mac} is the MAC of {holder}", "spec.mac", mac, "choose another, or leave it out")


__all__ = ["check_address", "check_endpoint", "check_host"]
