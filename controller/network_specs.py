"""What hosts, networks and endpoints may say: subnets, translation, addresses."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Annotated, Literal

from pydantic import Field, model_validator

from controller.texts import (
    Address4Text,
    Address6Text,
    AddressesText,
    AddressText,
    InterfaceName,
    MacText,
    Model,
    ModeText,
    MtuOrAuto,
    Name,
    NetnsText,
    Port,
    PrefixOrAuto,
    PrefixText,
    VniOrAuto,
    address_range,
    wrong,
)

MAX_SUBNETS = 16
MAX_EXTERNAL_ADDRESSES = 16
MAX_PREFIXES = 1024                         # of one list
MAX_TIMEOUT_S = 30 * 86400
BLOCK_PORTS = (16, 4096)
AUTO_LENGTHS = (8, 30)
DEFAULT_AUTO_LENGTH = 24
AUTO_PREFIXES = ("192.168.0.0/16", "172.16.0.0/12", "10.0.0.0/8")
DEFAULT_INTERFACE = "eth0"


class HostSpec(Model):
    """What Sluice may use of a host."""

    underlay: Address4Text | None = Field(default=None, description="VTEP address; without it: no overlay")
    uplink: InterfaceName | None = Field(
        default=None, description="interface for NAT; default: that of the default route")
    nat_ports: tuple[Port, Port] = Field(
        default=(20000, 32767), description="source ports that NAT may use, inclusive")
    mapping_ports: tuple[Port, Port] = Field(
        default=(10000, 19999), description="where `externalPort: auto` takes from, inclusive; not from natPorts")
    avoid_prefixes: tuple[PrefixText, ...] = Field(
        default=(), max_length=MAX_PREFIXES,
        description="prefixes that nat networks of this host must not overlap, whatever its routes say now")
    auto_prefixes: tuple[PrefixText, ...] = Field(
        default=(), max_length=MAX_PREFIXES,
        description=f"where `prefix: auto` takes from, in order; default: {', '.join(AUTO_PREFIXES)}")

    @model_validator(mode="after")
    def _range(self) -> HostSpec:
        low, high = self.nat_ports
        if not 1024 <= low <= high:
            raise wrong(f"natPorts [{low}, {high}] is not a range of unprivileged ports",
                        "give [low, high] with 1024 <= low <= high <= 65535", field="natPorts",
                        found=self.nat_ports)
        low, high = self.mapping_ports
        if low > high:
            raise wrong(f"mappingPorts [{low}, {high}] ends before it starts", f"write [{high}, {low}]",
                        field="mappingPorts", found=self.mapping_ports)
        return self


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
    host: Name | None = Field(default=None, description="the host of a nat network; an overlay network has none")
    vni: VniOrAuto = Field(default="auto", description="overlay only")
    mtu: MtuOrAuto = Field(default="auto", description="bytes; auto: what the underlay or uplink leaves")
    on_overlap: Literal["degrade", "renumber"] = Field(
        default="degrade", description="nat only: what happens when the host comes to overlap it")
    nat: NatSpec | None = Field(default=None, description="nat only")


class EndpointSpec(Model):
    """An interface in a network namespace of a host, or behind a tap device of it, attached to a network."""

    network: Name
    host: Name
    netns: NetnsText | None = Field(default=None, description="name under /run/netns, or an absolute path")
    tap: InterfaceName | None = Field(default=None, description="in place of netns: a tap device of the host")
    interface: InterfaceName = Field(default=DEFAULT_INTERFACE, description="name in the namespace")
    address: Address4Text | None = Field(default=None, description="default: the next free one of the subnets")
    address6: Address6Text | None = Field(default=None, description="default: the next free one of the subnets")
    mac: MacText | None = Field(default=None, description="default: 02: and a hash")

    @model_validator(mode="after")
    def _one_place(self) -> EndpointSpec:
        if self.netns is None and self.tap is None:
            raise wrong("neither netns nor tap says where it is", "add netns, or tap with the name of a tap device",
                        "missing", field="netns", found="nothing")
        if self.netns is not None and self.tap is not None:
            raise wrong(f"both netns {self.netns} and tap {self.tap}", "keep one of them", field="tap", found=self.tap)
        if self.tap is not None and self.interface != DEFAULT_INTERFACE:
            raise wrong(f"interface {self.interface} with tap {self.tap}, whose machine names it itself",
                        "leave interface out", field="interface", found=self.interface)
        return self

    @property
    def place(self) -> tuple[str, str, str]:
        """Host, namespace (empty: the host's own) and name of the interface: what no two endpoints share."""
        return self.host, self.netns or "", self.tap or self.interface


__all__ = ["AUTO_PREFIXES", "DEFAULT_INTERFACE", "EndpointSpec", "HostSpec", "NatSpec", "NetworkSpec",
           "SubnetSpec", "TimeoutsSpec"]
