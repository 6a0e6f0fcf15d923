"""Look inside: traces across hosts, and flows, drops, rules and NAT of hosts, asked of agents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from pydantic import Field

from controller.edits import missing
from controller.errors import Invalid, NotFound, Problem, Unavailable
from controller.push import Push
from controller.resources import DEFAULT_TENANT, EndpointSpec
from controller.state import Ref, State, Stored
from controller.texts import PROTOCOL_NUMBERS, Model, Name, ProtocolText

MAX_HOPS = 4
EPHEMERAL_PORT = 49152                      # source port of a trace that does not care (RFC 6335 section 6)
WITH_PORTS = (6, 17, 132)
ICMPV6 = 58


class TraceRequest(Model):
    """A packet to follow."""

    from_: str = Field(alias="from", description="endpoint: name, or tenant/name")
    to: str = Field(default="", description="endpoint, or address; left out with a frame")
    protocol: ProtocolText = "tcp"
    destination_port: int | None = Field(default=None, ge=0, le=65535, description="with tcp, udp and sctp")
    source_port: int | None = Field(default=None, ge=0, le=65535, description="default: 49152")
    source_address: str = Field(default="", description="default: the endpoint's own")
    source_mac: str = Field(default="", description="default: the endpoint's own")
    tcp_flags: int | None = Field(default=None, ge=0, le=255, description="default: SYN")
    icmp_type: int | None = Field(default=None, ge=0, le=255, description="default: echo request")
    icmp_code: int | None = Field(default=None, ge=0, le=255)
    icmp_id: int | None = Field(default=None, ge=0, le=65535, description="default: 1")
    dscp: int | None = Field(default=None, ge=0, le=63)
    frame: str = Field(default="", max_length=16384, description="Ethernet frame in base64, in place of all these")
    live: bool = Field(default=False, description="run it in the kernels, too, and compare")
    tenant: Name = DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class _Packet:
    """What is followed: fields, or a frame. `more`: what is asked of the first host only."""

    source: str = ""
    destination: str = ""
    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0
    frame: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def args(self) -> dict[str, Any]:
        if self.frame:
            return {"frame": self.frame}
        return {"source": self.source, "destination": self.destination, "protocol": self.protocol,
                "source_port": self.source_port, "destination_port": self.destination_port}


def endpoint_named(state: State, text: str, tenant: str, field: str) -> Stored[EndpointSpec]:
    """The endpoint that `name` or `tenant/name` means.

    Raises:
        NotFound: there is none.
    """
    prefix, _, name = text.rpartition("/")
    ref = Ref("Endpoint", prefix or tenant, name)
    endpoint = state.endpoint(ref)
    if endpoint is None:
        problem = missing(ref, state)
        raise NotFound(Problem(problem.code, problem.message, field, text, problem.todo))
    return endpoint


async def trace(push: Push, state: State, request: TraceRequest) -> dict[str, Any]:
    """Follow a packet: OUT on the source's host; if it leaves for another host of ours, IN there.

    Returns {verdict, reason, denied_by, packet, hops}; the first three are those of the last hop. With `live` also
    `agrees`: reference and kernel say the same on every host.

    Raises:
        NotFound, Invalid: the request names nothing, or lacks a port.
        Unavailable: an agent on the way cannot be asked.
    """
    source = endpoint_named(state, request.from_, request.tenant, "from")
    packet = _packet(state, source, request)
    live = {"live": True} if request.live else {}
    args = {"port": state.link_of(source).uid, "direction": "out", **packet.args(), **packet.more, **live}
    hop = await push.query(source.spec.host, "trace", args)
    hops = [{"host": source.spec.host, **hop}]
    while len(hops) < MAX_HOPS and (following := _next_hop(state, hops[-1], packet)) is not None:
        host, args = following
        hop = await push.query(host, "trace", args)
        hops.append({"host": host, **hop})
    last = hops[-1]
    agrees = {"agrees": all((each.get("live") or {}).get("agrees", False) for each in hops)} if request.live else {}
    return {"verdict": last.get("verdict", ""), "reason": last.get("reason", ""),
            "denied_by": last.get("denied_by"), "packet": hops[0].get("packet") or packet.args(), **agrees,
            "hops": hops}


async def inside(push: Push, state: State, what: str, host: str, endpoint: str,
                 args: Mapping[str, Any]) -> dict[str, Any]:
    """Ask one host, the host of an endpoint, or every connected one.

    Returns {hosts: [{host, error, ...}]}. When one was asked for by name it must answer (else `Unavailable`).
    """
    if endpoint:
        found = endpoint_named(state, endpoint, DEFAULT_TENANT, "endpoint")
        if host and host != found.spec.host:
            raise Invalid(Problem("invalid", f"endpoint {endpoint} is on host {found.spec.host}", "host", host,
                                  "leave one of the two out"))
        host, args = found.spec.host, {**args, "port": state.link_of(found).uid}
    if host:
        known(state, host)
        return {"hosts": [{"host": host, "error": "", **await push.query(host, what, dict(args))}]}
    names = sorted(h.ref.name for h in state.hosts() if not h.spec.external)
    return {"hosts": await asyncio.gather(*(_one(push, name, what, args) for name in names))}


async def nat(push: Push, state: State, host: str, network: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Ask about NAT: one host, the host of a network, or every connected one; as `inside`."""
    host, name = nat_place(state, host, network)
    return await inside(push, state, "nat", host, "", {**args, **({"network": name} if name else {})})


def nat_place(state: State, host: str, network: str) -> tuple[str, str]:
    """The host to ask (empty: all) and `tenant/name` of the network (empty: all).

    Raises:
        NotFound: there is no such network or host. Invalid: the network is no nat network, or on another host.
    """
    if not network:
        if host:
            known(state, host)
        return host, ""
    prefix, _, name = network.rpartition("/")
    ref = Ref("Network", prefix or DEFAULT_TENANT, name)
    found = state.network(ref)
    if found is None:
        problem = missing(ref, state)
        raise NotFound(Problem(problem.code, problem.message, "network", network, problem.todo))
    if found.spec.egress == "nat" or found.spec.exits:      # an overlay: on many hosts, or on those that it leaves by
        only = found.spec.exits[0] if found.spec.egress != "nat" and len(found.spec.exits) == 1 else ""
        return host or only, f"{ref.tenant}/{ref.name}"
    if found.spec.mode != "nat" or found.spec.host is None:
        raise Invalid(Problem("invalid", f"network {ref.tenant}/{ref.name} has mode {found.spec.mode}", "network",
                              network, "name a network with mode nat, or one with egress"))
    if host and host != found.spec.host:
        raise Invalid(Problem("invalid", f"network {ref.tenant}/{ref.name} is on host {found.spec.host}", "host", host,
                              "leave one of the two out"))
    return found.spec.host, f"{ref.tenant}/{ref.name}"


def known(state: State, host: str) -> None:
    """Raise `NotFound` unless the host is declared."""
    if state.host(host) is None:
        raise NotFound(missing(Ref("Host", "", host), state))


async def _one(push: Push, host: str, what: str, args: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"host": host, "error": "", **await push.query(host, what, dict(args))}
    except Unavailable as error:
        return {"host": host, "error": error.problems[0].message}


def _packet(state: State, source: Stored[EndpointSpec], request: TraceRequest) -> _Packet:
    if request.frame:
        if request.to:
            raise Invalid(Problem("invalid", "a frame says itself where it goes", "to", request.to, "leave it out"))
        return _Packet(frame=request.frame)
    if not request.to:
        raise Invalid(Problem("missing", "to whom?", "to", "nothing", "name an endpoint, give an address, or a frame"))
    try:
        destination = str(ip_address(request.to))
    except ValueError:
        target = endpoint_named(state, request.to, request.tenant, "to").assigned
        destination = target.address if target.address and source.assigned.address else target.addresses[-1]
    own = source.assigned.address6 if ":" in destination else source.assigned.address
    protocol = PROTOCOL_NUMBERS.get(request.protocol, -1) if isinstance(request.protocol, str) else request.protocol
    if request.protocol == "icmp" and ":" in destination:
        protocol = ICMPV6
    has_ports = protocol in WITH_PORTS
    if has_ports and request.destination_port is None:
        raise Invalid(Problem("missing", f"protocol {request.protocol} needs a destination port", "destinationPort",
                              "nothing", "add destinationPort"))
    more = {name: value for name in ("source_mac", "tcp_flags", "icmp_type", "icmp_code", "icmp_id", "dscp")
            if (value := getattr(request, name)) not in (None, "")}
    if request.source_port is None and request.icmp_id is None:
        more["any_source_port"] = True
    return _Packet(request.source_address or own or source.assigned.addresses[0], destination, protocol,
                   (EPHEMERAL_PORT if request.source_port is None else request.source_port) if has_ports else 0,
                   (request.destination_port or 0) if has_ports else 0, more=more)


def _next_hop(state: State, hop: Mapping[str, Any], packet: _Packet) -> tuple[str, dict[str, Any]] | None:
    """Where the packet goes on: host and query. None: it ends here, or leaves what we know."""
    leaves = hop.get("leaves") or {}
    if leaves.get("to") != "vtep":
        return None
    host, network = state.underlays.get(leaves.get("vtep", "")), state.spaces.get(leaves.get("vni", -1))
    if host is None or network is None:
        return None
    destination = (hop.get("packet") or {}).get("destination", packet.destination)
    ways = (network, *(peer.ref for peer in state.peers_of(network)))
    target = next((found for each in ways if (found := state.addresses.get((each, destination))) is not None), None)
    endpoint = state.endpoint(target) if target is not None else None
    if endpoint is None or endpoint.spec.host != host.name or state.is_external(host.name):
        return None
    carried = {"frame": hop["frame"]} if hop.get("frame") else packet.args()
    live = {"live": True} if hop.get("live") else {}
    return host.name, {"port": state.link_of(endpoint).uid, "direction": "in", "vni": leaves["vni"], **carried, **live}


def place_of(state: State, host: str, endpoint: str) -> tuple[str, str]:
    """Host and uid of what is to be followed: an endpoint, or (uid empty) a host, or (both empty) all hosts.

    Raises:
        NotFound: there is no such endpoint or host.
    """
    if endpoint:
        found = endpoint_named(state, endpoint, DEFAULT_TENANT, "endpoint")
        return found.spec.host, state.link_of(found).uid
    if host:
        known(state, host)
    return host, ""


__all__ = ["TraceRequest", "endpoint_named", "inside", "known", "nat", "nat_place", "place_of", "trace"]
