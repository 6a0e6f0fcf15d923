"""The resources that users declare, as strict pydantic models: what a document may say, and its status.

Here a document is checked by itself (form); `validate` checks it against what is stored. Models are frozen,
JSON names are camelCase, unknown fields are refused. `status` and the server's part of `metadata` (uid, revision,
createdAt) are accepted in documents, so that what `get` printed can be applied, and ignored.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from controller.errors import suggestion

API_VERSION = "sluice/v1"
DEFAULT_TENANT = "default"

MAX_VNI = 2**24 - 1
MAX_INTERFACE_NAME = 15                     # IFNAMSIZ - 1
PROTOCOL_NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "sctp": 132}
PLANNED_MODES = ("transparent", "l2bridge", "l2tunnel", "private")


def _wrong(message: str, todo: str = "", code: str = "invalid") -> PydanticCustomError:
    """A refusal with its advice; `problems_of` takes it apart again."""
    return PydanticCustomError("sluice", "{text}", {"text": message, "todo": todo, "code": code})


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", value):
        raise _wrong(f"{value!r} is not a name",
                     "use 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends")
    return value


def _label(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,61}[A-Za-z0-9])?|", value):
        raise _wrong(f"{value!r} is not a label key or value",
                     "use at most 63 letters, digits and '-_./', with a letter or digit at both ends")
    return value


def _label_key(value: str) -> str:
    if not value:
        raise _wrong("a label key is empty", "give it a name")
    return _label(value)


def _prefix(value: str) -> str:
    if ":" in value:
        raise _wrong(f"{value!r} is IPv6, which is not available yet", "use IPv4, such as 10.1.0.0/24")
    if "/" not in value:
        raise _wrong(f"{value!r} has no prefix length", f"write for example {value}/24 (one address: /32)")
    try:
        loose = IPv4Network(value, strict=False)
    except (AddressValueError, NetmaskValueError, ValueError):
        raise _wrong(f"{value!r} is not an IPv4 prefix", "write it like 10.1.0.0/24") from None
    if IPv4Address(value.partition("/")[0]) != loose.network_address:
        raise _wrong(f"{value!r} has host bits set", f"write {loose}", "host_bits")
    return str(loose)


def _address(value: str) -> str:
    try:
        return str(IPv4Address(value))
    except AddressValueError:
        kind = "IPv6, which is not available yet" if ":" in value else "not an IPv4 address"
        raise _wrong(f"{value!r} is {kind}", "write it like 10.1.0.5") from None


def _mac(value: str) -> str:
    octets = value.lower().replace("-", ":")
    if not re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", octets):
        raise _wrong(f"{value!r} is not a MAC address", "write it like 02:00:00:00:00:05, or leave it out")
    if int(octets[:2], 16) & 1 or octets == "00:00:00:00:00:00":
        raise _wrong(f"{value!r} is not the MAC address of one interface (multicast, broadcast or zero)",
                     "use a unicast address such as 02:00:00:00:00:05, or leave it out")
    return octets


def _interface(value: str) -> str:
    if len(value) > MAX_INTERFACE_NAME:
        raise _wrong(f"{value!r} has {len(value)} characters", f"use at most {MAX_INTERFACE_NAME}", "too_long")
    if not value or value in (".", "..") or re.search(r"[\s/:%]", value):
        raise _wrong(f"{value!r} is not an interface name", "use letters, digits, '-', '_', '.', as in eth0")
    return value


_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def _domain(value: str) -> str:
    """As `inspection.names` wants them on the host, in normal form."""
    found = value.rstrip(".").lower()
    labels = found.removeprefix("*.").split(".")
    if len(found) > 253 or len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _wrong(f"{value!r} is not a domain name that a rule can have",
                     "write a full name like api.example.com, or *.example.com for all names below it; "
                     "international names in their xn-- form")
    return found


def _netns(value: str) -> str:
    if value in ("", ".", "..") or ("/" in value and not value.startswith("/")) or "\0" in value:
        raise _wrong(f"{value!r} is not a network namespace",
                     "use a name under /run/netns, or an absolute path such as /proc/4711/ns/net")
    return value


def _auto_or(low: int, high: int, what: str) -> Any:
    def check(value: Any) -> int | Literal["auto"]:
        if value == "auto":
            return "auto"
        if type(value) is not int:
            raise _wrong(f"{value!r} does not do for {what}", f"give a whole number from {low} to {high}, or auto")
        if not low <= value <= high:
            raise _wrong(f"{value} is out of range for {what}", f"use {low} to {high}, or auto", "out_of_range")
        return value

    schema = {"anyOf": [{"type": "integer", "minimum": low, "maximum": high}, {"const": "auto"}]}
    return [PlainValidator(check), WithJsonSchema(schema)]


def _protocol(value: Any) -> int | str:
    if isinstance(value, str) and value.lower() in PROTOCOL_NUMBERS:
        return value.lower()
    if type(value) is int and 0 <= value <= 255:
        return value
    hint = suggestion(str(value), PROTOCOL_NUMBERS)
    raise _wrong(f"{value!r} is not a protocol", f"{hint} (a number from 0 to 255 works too)")


def _ports(value: Any) -> int | str:
    text = str(value)
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    if type(value) not in (int, str) or not found:
        raise _wrong(f"{value!r} is neither a port nor a range of ports", "write 80 or '8000-8100'")
    low, high = int(found[1]), int(found[2] or found[1])
    if not (0 <= low <= 65535 and 0 <= high <= 65535):
        raise _wrong(f"{text!r} has a port out of range", "use 0 to 65535", "out_of_range")
    if low > high:
        raise _wrong(f"range {text!r} ends before it starts", f"write '{high}-{low}'")
    return low if low == high else f"{low}-{high}"


def _mode(value: str) -> str:
    if value in PLANNED_MODES:
        raise _wrong(f"mode {value!r} is not available yet", "use nat or overlay", "wrong_mode")
    if value not in ("nat", "overlay"):
        raise _wrong(f"{value!r} is not a network mode", suggestion(value, ("nat", "overlay")), "wrong_mode")
    return value


Name = Annotated[str, AfterValidator(_name)]
LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(_label)]
PrefixText = Annotated[str, AfterValidator(_prefix)]
AddressText = Annotated[str, AfterValidator(_address)]
MacText = Annotated[str, AfterValidator(_mac)]
InterfaceName = Annotated[str, AfterValidator(_interface)]
DomainText = Annotated[str, AfterValidator(_domain)]
NetnsText = Annotated[str, AfterValidator(_netns)]
ModeText = Annotated[str, AfterValidator(_mode), WithJsonSchema({"enum": ["nat", "overlay"]})]
Port = Annotated[int, Field(ge=1, le=65535)]
VniOrAuto = Annotated[int | str, *_auto_or(1, MAX_VNI, "a VNI")]
MtuOrAuto = Annotated[int | str, *_auto_or(576, 65535, "an MTU")]
PortOrAuto = Annotated[int | str, *_auto_or(1, 65535, "an external port")]
ProtocolText = Annotated[int | str, PlainValidator(_protocol), WithJsonSchema(
    {"anyOf": [{"enum": list(PROTOCOL_NUMBERS)}, {"type": "integer", "minimum": 0, "maximum": 255}]})]
PortsText = Annotated[int | str, PlainValidator(_ports), WithJsonSchema(
    {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 65535}, {"type": "string"}],
     "examples": [80, "8000-8100"]})]
Labels = dict[LabelKey, LabelValue]


class Model(BaseModel):
    """Strict, frozen, camelCase, no unknown fields."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", alias_generator=to_camel,
                              serialize_by_alias=True, validate_by_name=False, validate_by_alias=True)


class TenantSpec(Model):
    """A tenant has nothing to say of itself yet."""


class HostSpec(Model):
    """What Sluice may use of a host."""

    underlay: AddressText | None = Field(default=None, description="VTEP address; without it: no overlay")
    uplink: InterfaceName | None = Field(
        default=None, description="interface for NAT; default: that of the default route")
    nat_ports: tuple[Port, Port] = Field(
        default=(20000, 32767), description="source ports that NAT may use, inclusive")

    @model_validator(mode="after")
    def _range(self) -> HostSpec:
        low, high = self.nat_ports
        if not 1024 <= low <= high:
            raise _wrong(f"natPorts [{low}, {high}] is not a range of unprivileged ports",
                         "give [low, high] with 1024 <= low <= high <= 65535")
        return self


class SubnetSpec(Model):
    """One prefix of a network."""

    prefix: PrefixText
    gateway: AddressText | None = Field(default=None, description="default: the first address of the prefix")


class NetworkSpec(Model):
    """A virtual network. Mode, subnets, host and VNI cannot be changed later."""

    mode: ModeText
    subnets: tuple[SubnetSpec, ...]
    host: Name | None = Field(default=None, description="the host of a nat network; an overlay network has none")
    vni: VniOrAuto = Field(default="auto", description="overlay only")
    mtu: MtuOrAuto = Field(default="auto", description="bytes; auto: what the underlay or uplink leaves")


class EndpointSpec(Model):
    """An interface in a network namespace of a host, attached to a network."""

    network: Name
    host: Name
    netns: NetnsText = Field(description="name under /run/netns, or an absolute path")
    interface: InterfaceName = "eth0"
    address: AddressText | None = Field(default=None, description="default: the next free address of the subnet")
    mac: MacText | None = Field(default=None, description="default: 02: and a hash")


class Selector(Model):
    """Endpoints of the policy's network: those named and those that carry all the labels."""

    endpoints: tuple[Name, ...] = ()
    labels: Labels = Field(default_factory=dict)


class Peer(Selector):
    """The other side of a rule: endpoints by name or labels, or prefixes."""

    cidrs: tuple[PrefixText, ...] = ()

    @model_validator(mode="after")
    def _somebody(self) -> Peer:
        if not (self.endpoints or self.labels or self.cidrs):
            raise _wrong("names nobody", "give endpoints, labels or cidrs; leave it out to mean anyone")
        return self


class PolicyRule(Model):
    """One rule; the lowest priority that matches decides, `pass` hands on to the next policy.

    `deny` drops in silence; `reject` tells the sender: a connection is refused, anything else "prohibited".
    """

    name: LabelValue = ""
    direction: Literal["in", "out"]
    action: Literal["allow", "deny", "reject", "pass"]
    priority: int | None = Field(default=None, ge=0, le=65535, description="default: 10, 20, 30, ... by position")
    from_: Peer | None = Field(default=None, alias="from", description="with direction in; absent: anyone")
    to: Peer | None = Field(default=None, description="with direction out; absent: anyone")
    protocol: ProtocolText | None = None
    ports: tuple[PortsText, ...] = Field(default=(), description="destination ports; with tcp, udp or sctp")
    dscp: int | None = Field(default=None, ge=0, le=63, description="with allow: packets leave with it, both ways")
    log: bool = Field(default=False, description="with allow: a record of each new flow; a drop always has one")
    domains: tuple[DomainText, ...] = Field(
        default=(), max_length=256,
        description="out and allow: names whose addresses, as DNS tells them to the endpoint, may be reached")

    @model_validator(mode="after")
    def _sides(self) -> PolicyRule:
        if self.domains and (self.direction != "out" or self.action != "allow"):
            raise _wrong(f"a rule with domains has direction {self.direction} and action {self.action}",
                         "domains open a way out: use direction out and action allow")
        if self.domains and self.to is not None:
            raise _wrong("a rule has 'to' and domains", "make it two rules")
        if self.direction == "in" and self.to is not None:
            raise _wrong("a rule of direction in has 'to'", "use 'from', or direction out")
        if self.direction == "out" and self.from_ is not None:
            raise _wrong("a rule of direction out has 'from'", "use 'to', or direction in")
        if self.ports and self.protocol not in ("tcp", "udp", "sctp", 6, 17, 132):
            raise _wrong(f"ports need a protocol that has them, found {self.protocol or 'none'}",
                         "set protocol to tcp, udp or sctp")
        if (self.dscp is not None or self.log) and self.action != "allow":
            raise _wrong(f"{'dscp' if self.dscp is not None else 'log'} with action {self.action}",
                         "use action allow, or leave it out")
        if self.dscp is not None and self.log:
            raise _wrong("a rule has both dscp and log", "use one of them")
        return self

    @property
    def outcome(self) -> tuple[str, int | None, bool]:
        """What becomes of a packet that the rule matches; rules of one priority may not differ in it."""
        return self.action, self.dscp, self.log

    @property
    def peer(self) -> Peer | None:
        """The other side, whichever the direction."""
        return self.from_ if self.direction == "in" else self.to


class PolicySpec(Model):
    """Rules for endpoints of one network."""

    network: Name
    priority: int = Field(default=1000, ge=0, le=65535, description="order between policies; lower runs first")
    applies_to: Selector = Field(default_factory=Selector, description="empty: every endpoint of the network")
    rules: tuple[PolicyRule, ...] = Field(default=(), max_length=6000)
    default_in: Literal["allow", "deny"] = "allow"
    default_out: Literal["allow", "deny"] = "allow"
    tcp: Literal["pickup", "strict"] = Field(
        default="pickup", description="strict: drop TCP segments that do not fit their connection's state, and"
        " connections that did not begin with a SYN; pickup: let them pass as far as the rules do")

    @model_validator(mode="after")
    def _priorities(self) -> PolicySpec:
        seen: dict[tuple[str, int], PolicyRule] = {}
        for position, (priority, rule) in enumerate(self.numbered()):
            other = seen.setdefault((rule.direction, priority), rule)
            if other.outcome != rule.outcome:
                raise _wrong(f"rules[{position}] and another rule of direction {rule.direction} have "
                             f"priority {priority} and different actions", "give them different priorities")
        return self

    def numbered(self) -> tuple[tuple[int, PolicyRule], ...]:
        """The rules with the priorities that hold."""
        return tuple(((position + 1) * 10 if rule.priority is None else rule.priority, rule)
                     for position, rule in enumerate(self.rules))


class StaticMappingSpec(Model):
    """A port of the host's own address that leads to an endpoint of a nat network."""

    network: Name
    endpoint: Name
    protocol: Literal["tcp", "udp"]
    external_port: PortOrAuto
    internal_port: Port
    external_address: AddressText = Field(default="0.0.0.0", description="0.0.0.0: every address of the uplink")


Spec = TenantSpec | HostSpec | NetworkSpec | EndpointSpec | PolicySpec | StaticMappingSpec
SpecT = TypeVar("SpecT", bound=BaseModel)
StatusT = TypeVar("StatusT", bound=BaseModel)


class HostStatus(Model):
    """How a host is."""

    connected: bool
    applied_revision: int = Field(description="the revision that its kernel shows; 0: not known")
    agent: str = Field(default="", description="software version")
    message: str = Field(default="", description="why its goal state cannot be sent, if so")
    facts: dict[str, Any] = Field(default_factory=dict, description="addresses, routes, listeners, features")


class NetworkStatus(Model):
    """What the controller chose for a network."""

    vni: int | None = None
    gateway_mac: str
    endpoints: int
    hosts: tuple[str, ...] = Field(description="hosts that have an endpoint in it")
    message: str = Field(default="", description="what of its host has come to overlap it, if anything")


class Progress(Model):
    """How far a declared object has come."""

    phase: Literal["Pending", "Ready", "Failed"]
    message: str = ""
    applied_revision: int = 0


class EndpointStatus(Progress):
    """An endpoint on its host."""

    address: str
    mac: str
    details: dict[str, Any] = Field(default_factory=dict)


class StaticMappingStatus(Progress):
    """A mapping on its host."""

    external_address: str
    external_port: int


class NoStatus(Model):
    """Nothing to report."""


class Metadata(Model):
    """Identity of a resource. `uid`, `revision` and `createdAt` are the server's."""

    name: Name
    tenant: Name | None = None
    labels: Labels = Field(default_factory=dict)
    uid: str | None = None
    revision: int | None = Field(default=None, description="store revision of the last change; for If-Match")
    created_at: str | None = None


class Resource(Model, Generic[SpecT, StatusT]):
    """A document: what is declared, and how it is."""

    api_version: Literal["sluice/v1"]
    kind: str
    metadata: Metadata
    spec: SpecT
    status: StatusT | None = None


class TenantResource(Resource[TenantSpec, NoStatus]):
    """A namespace for networks and what is in them."""

    kind: Literal["Tenant"]
    spec: TenantSpec = TenantSpec()


class HostResource(Resource[HostSpec, HostStatus]):
    """A machine with an agent."""

    kind: Literal["Host"]
    spec: HostSpec = HostSpec()


class NetworkResource(Resource[NetworkSpec, NetworkStatus]):
    """A virtual network."""

    kind: Literal["Network"]


class EndpointResource(Resource[EndpointSpec, EndpointStatus]):
    """A virtual NIC."""

    kind: Literal["Endpoint"]


class PolicyResource(Resource[PolicySpec, NoStatus]):
    """Who may talk to whom."""

    kind: Literal["Policy"]


class StaticMappingResource(Resource[StaticMappingSpec, StaticMappingStatus]):
    """An inbound port."""

    kind: Literal["StaticMapping"]


AnyResource = (TenantResource | HostResource | NetworkResource | EndpointResource | PolicyResource
               | StaticMappingResource)

RESOURCES: dict[str, type[AnyResource]] = {
    "Tenant": TenantResource,
    "Host": HostResource,
    "Network": NetworkResource,
    "Endpoint": EndpointResource,
    "Policy": PolicyResource,
    "StaticMapping": StaticMappingResource,
}
"""By kind, in the order in which they depend on each other."""

SPECS: dict[str, type[Spec]] = {
    "Tenant": TenantSpec,
    "Host": HostSpec,
    "Network": NetworkSpec,
    "Endpoint": EndpointSpec,
    "Policy": PolicySpec,
    "StaticMapping": StaticMappingSpec,
}
