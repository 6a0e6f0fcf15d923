"""What a Network may say: mode, subnets, translation, neighbours."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Annotated, Literal

from pydantic import Field, model_validator

from controller.host_specs import MAX_PREFIXES
from controller.qos_specs import QosSpec
from controller.routing_specs import Broadcast, Egress, EgressHost, RouteSpec
from controller.texts import (
    AddressesText,
    AddressText,
    InterfaceName,
    Model,
    ModeText,
    MtuOrAuto,
    Name,
    PeerText,
    PrefixOrAuto,
    PrefixText,
    VniOrAuto,
    address_range,
    wrong,
)

MAX_SUBNETS = 16
MAX_EXTERNAL_ADDRESSES = 16
MAX_PEERS = 64
MAX_TIMEOUT_S = 30 * 86400
BLOCK_PORTS = (16, 4096)
AUTO_LENGTHS = (8, 30)
DEFAULT_AUTO_LENGTH = 24
DEFAULT_FLOODING = (1000, 2000)             # of a segment that is there anyway


class SubnetSpec(Model):
    """One prefix of a network, IPv4 or IPv6."""

    prefix: PrefixOrAuto = Field(description="auto: one that collides with nothing that the host knows (IPv4)")
    prefix_length: int | None = Field(
        default=None, ge=AUTO_LENGTHS[0], le=AUTO_LENGTHS[1], description="with auto; default: 24")
    gateway: AddressText | None = Field(default=None, description="default: the first address of the prefix")
    allocate: tuple[AddressesText, ...] = Field(
        default=(), max_length=MAX_PREFIXES,
        description="automatic addresses only from here: prefixes, addresses, first-last; default: the prefix")
    exclude: tuple[AddressesText, ...] = Field(
        default=(), max_length=MAX_PREFIXES, description="no endpoint has these, automatically or by hand")

    @model_validator(mode="after")
    def _fits(self) -> SubnetSpec:
        if self.prefix == "auto":
            for field, value in (("gateway", self.gateway), ("allocate", self.allocate), ("exclude", self.exclude)):
                if value:
                    raise wrong(f"{field} with prefix auto, whose addresses are not known before",
                                f"leave {field} out, or give the prefix", field=field, found=value)
            return self
        if self.prefix_length is not None:
            raise wrong(f"prefixLength with prefix {self.prefix}", "leave it out, or use prefix: auto",
                        field="prefixLength", found=self.prefix_length)
        whole = ip_network(self.prefix)
        if self.gateway and ip_address(self.gateway).version != whole.version:
            raise wrong(f"gateway {self.gateway} is IPv{ip_address(self.gateway).version} and prefix {whole} "
                        f"IPv{whole.version}", "give it an address of the prefix", "family", field="gateway",
                        found=self.gateway)
        low, high = int(whole.network_address), int(whole.broadcast_address)
        for name, texts in (("allocate", self.allocate), ("exclude", self.exclude)):
            for position, text in enumerate(texts):
                version, first, last = address_range(text)
                if version != whole.version or first < low or last > high:
                    raise wrong(f"{name} {text} is outside of prefix {whole}",
                                f"use addresses from {whole.network_address} to {whole.broadcast_address}", "outside",
                                field=f"{name}[{position}]", found=text)
        return self

    @property
    def version(self) -> int:
        """4 or 6."""
        return 4 if self.prefix == "auto" else ip_network(self.prefix).version

    @property
    def length(self) -> int:
        """Of the prefix."""
        if self.prefix == "auto":
            return self.prefix_length or DEFAULT_AUTO_LENGTH
        return ip_network(self.prefix).prefixlen


Seconds = Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S)]


class TimeoutsSpec(Model):
    """Seconds that conversations of a network may be idle, by protocol and state; absent: the agent's own."""

    tcp_opening: Seconds | None = None
    tcp_syn_received: Seconds | None = None
    tcp_established: Seconds | None = None
    tcp_fin_wait: Seconds | None = None
    tcp_time_wait: Seconds | None = None
    tcp_reset: Seconds | None = None
    udp_new: Seconds | None = Field(default=None, description="before a reply was seen")
    udp: Seconds | None = None
    icmp: Seconds | None = None
    other: Seconds | None = None
    binding: Seconds | None = Field(default=None, description="of a source translation without flows")

    def given(self) -> tuple[tuple[str, float], ...]:
        """(name, s) of those that are given, in order of the fields; names as `sluice agent run --timeout` has them."""
        return tuple((name, value) for name in type(self).model_fields
                     if (value := getattr(self, name)) is not None)


class NatSpec(Model):
    """How the endpoints of a nat network reach the world. All of it can be changed later."""

    external_addresses: tuple[AddressText, ...] = Field(
        default=(), max_length=MAX_EXTERNAL_ADDRESSES, description="default: the uplink's own")
    exceptions: tuple[PrefixText, ...] = Field(
        default=(), max_length=MAX_PREFIXES, description="destinations that are routed untranslated")
    destinations: tuple[PrefixText, ...] = Field(
        default=(), max_length=MAX_PREFIXES, description="only these are translated; default: all")
    filtering: Literal["endpoint-independent", "address-dependent", "address-and-port-dependent"] = Field(
        default="endpoint-independent", description="who may send to a binding (RFC 4787 section 5)")
    port_block: int = Field(default=0, description="ports that an endpoint gets at a time, 16 to 4096; 0: one by one")
    ports_per_endpoint: int = Field(default=0, ge=0, le=1 << 20, description="bindings of one endpoint; 0: no limit")
    log: bool = Field(default=False, description="a record of each binding, or block, that begins or ends")
    ipv6: Literal["routed", "masquerade", "prefix"] = Field(
        default="routed", description="prefix: RFC 6296, to externalPrefix")
    external_prefix: PrefixText | None = Field(default=None, description="with ipv6: prefix")
    timeouts: TimeoutsSpec = TimeoutsSpec()

    @model_validator(mode="after")
    def _fits(self) -> NatSpec:
        low, high = BLOCK_PORTS
        if self.port_block and not low <= self.port_block <= high:
            raise wrong(f"portBlock {self.port_block} is out of range", f"use 0, or {low} to {high}", "out_of_range",
                        field="portBlock", found=self.port_block)
        if len(set(self.external_addresses)) < len(self.external_addresses):
            raise wrong("externalAddresses names an address twice", "keep one of them", field="externalAddresses",
                        found=self.external_addresses)
        if self.ipv6 == "prefix" and self.external_prefix is None:
            raise wrong("ipv6: prefix without externalPrefix", "add the prefix that the network's becomes", "missing",
                        field="externalPrefix", found="nothing")
        if self.external_prefix is not None and self.ipv6 != "prefix":
            raise wrong(f"externalPrefix with ipv6: {self.ipv6}", "use ipv6: prefix, or leave it out",
                        field="externalPrefix", found=self.external_prefix)
        if self.external_prefix is not None and ":" not in self.external_prefix:
            raise wrong(f"externalPrefix {self.external_prefix} is IPv4", "give an IPv6 prefix", "family",
                        field="externalPrefix", found=self.external_prefix)
        if self.ipv6 != "masquerade" and (sixes := [a for a in self.external_addresses if ":" in a]):
            raise wrong(f"external address {sixes[0]} is IPv6, which is not masqueraded (ipv6: {self.ipv6})",
                        "use ipv6: masquerade, or leave it out", "family", field="externalAddresses", found=sixes[0])
        return self


class NetworkSpec(Model):
    """A virtual network. Mode, prefixes, gateways, host and VNI cannot be changed later; subnets can be added."""

    mode: ModeText
    subnets: tuple[SubnetSpec, ...]
    host: Name | None = Field(
        default=None, description="the host of a nat network; of other modes but overlay the only one it is on")
    uplink: InterfaceName | None = Field(
        default=None, description="transparent, l2bridge, l2tunnel: interface to the segment; default: the host's")
    vni: VniOrAuto = Field(default="auto", description="overlay only")
    mtu: MtuOrAuto = Field(default="auto", description="bytes; auto: what the underlay or uplink leaves")
    on_overlap: Literal["degrade", "renumber"] = Field(
        default="degrade", description="nat only: what happens when the host comes to overlap it")
    nat: NatSpec | None = Field(default=None, description="nat, and overlay with egress")
    peers: tuple[PeerText, ...] = Field(
        default=(), max_length=MAX_PEERS,
        description="overlay only: networks, name or tenant/name, that it reaches and that reach it")
    routes: tuple[RouteSpec, ...] = Field(
        default=(), max_length=MAX_PREFIXES, description="overlay only: by the longest prefix")
    egress: Egress = Field(
        default="none", description="overlay only: to the world by each host's NAT, or by that of one host")
    broadcast: Broadcast | None = Field(
        default=None, description="overlay, private, transparent; default: off, of transparent 1000 and 2000")
    isolation: bool = Field(default=False, description="its endpoints reach the gateway and beyond, not each other")
    router_advertisements: bool = Field(default=False, description="IPv6, from the gateway; overlay, nat, private")
    slaac: bool = Field(default=False, description="with routerAdvertisements: hosts may choose their addresses")
    qos: QosSpec | None = Field(default=None, description="of its endpoints, where they say nothing else")

    @property
    def exit(self) -> str | None:
        """The host by which the network reaches the world, if that is one."""
        return self.egress.host if isinstance(self.egress, EgressHost) else None

    @property
    def exits(self) -> tuple[str, ...]:
        """All hosts by which some packets of it leave."""
        hosts = [self.exit, *(route.via.host for route in self.routes)]
        return tuple(dict.fromkeys(host for host in hosts if host is not None))

    @property
    def flooding(self) -> tuple[int, int] | None:
        """Frames a second and at once to all; None: none."""
        if self.broadcast is None:
            return DEFAULT_FLOODING if self.mode == "transparent" else None
        return None if self.broadcast == "off" else (self.broadcast.rate, self.broadcast.burst)

    def peer_paths(self, tenant: str) -> tuple[tuple[str, str], ...]:
        """Tenant and name of each peer of a network of this tenant."""
        return tuple((other or tenant, name) for other, _, name in (text.rpartition("/") for text in self.peers))


__all__ = ["NatSpec", "NetworkSpec", "SubnetSpec", "TimeoutsSpec"]
