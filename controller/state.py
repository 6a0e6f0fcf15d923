"""What is declared, in memory: every stored object with the indexes that checks and planning need.

A `State` is a value to its readers. A write forks it, changes the fork, commits it to the store and then puts it
in the old one's place; a refused write throws its fork away. Forks share what they do not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast

from controller.host_specs import DEFAULT_VXLAN_PORT
from controller.resources import (
    DEFAULT_TENANT,
    EndpointSpec,
    HostSpec,
    NetworkSpec,
    PolicySpec,
    Spec,
    StaticMappingSpec,
)
from southbound.messages import Subnet

S = TypeVar("S", bound=Spec, covariant=True)
K = TypeVar("K")


class Ref(NamedTuple):
    """Names a resource. `tenant` is empty for Tenant and Host."""

    kind: str
    tenant: str
    name: str

    @property
    def path(self) -> str:
        """`tenant/name`, or `name`."""
        return f"{self.tenant}/{self.name}" if self.tenant else self.name

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


@dataclass(frozen=True, slots=True)
class Assigned:
    """What the controller chose for an object; zero and empty: does not apply to its kind."""

    space: int = 0                          # of a Network: VNI, or 2**24 + n
    gateway_mac: str = ""                   # of a Network
    subnets: tuple[Subnet, ...] = ()        # of a Network: in use, in the order of those declared
    moved: str = ""                         # of a Network: how it was renumbered last
    shunned: tuple[str, ...] = ()           # of a Network: prefixes that have driven it away, the last ones
    leases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)     # of a Network: by host, addresses in use
    address: str = ""                       # of an Endpoint: IPv4
    address6: str = ""                      # of an Endpoint: IPv6
    mac: str = ""                           # of an Endpoint
    external_port: int = 0                  # of a StaticMapping: the first one

    def to_json(self) -> dict[str, Any]:
        """Without what does not apply."""
        return {k: v for k, v in asdict(self).items() if v}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Assigned:
        """The reverse of `to_json`."""
        subnets = tuple(Subnet(**each) for each in value.get("subnets", ()))
        leases = {host: tuple(addresses) for host, addresses in value.get("leases", {}).items()}
        return cls(**{**value, "subnets": subnets, "shunned": tuple(value.get("shunned", ())), "leases": leases})

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those of an Endpoint, of both families."""
        return tuple(address for address in (self.address, self.address6) if address)


@dataclass(frozen=True, slots=True)
class Stored(Generic[S]):
    """One declared object as it is stored."""

    ref: Ref
    uid: str
    revision: int                           # of the store, when it changed last
    created_at: str                         # RFC 3339, UTC
    spec: S
    labels: Mapping[str, str] = field(default_factory=dict)
    assigned: Assigned = Assigned()


AnyStored = Stored[Spec]


@dataclass(frozen=True, slots=True)
class Change:
    """One object before and after a commit."""

    before: AnyStored | None
    after: AnyStored | None

    @property
    def ref(self) -> Ref:
        """Which object."""
        either = self.after or self.before
        assert either is not None
        return either.ref


CLUSTER_KINDS = frozenset({"Tenant", "Host"})
_IN_NETWORKS = ("Endpoint", "Policy", "StaticMapping")
DEFAULT_TENANT_REF = Ref("Tenant", "", DEFAULT_TENANT)


class State:
    """All objects at one revision. Change it only between `fork` and publication, by `put` and `remove`."""

    def __init__(self) -> None:
        self.revision = 0
        self.cursors: dict[str, int] = {}                        # where each allocator goes on
        self.objects: dict[Ref, AnyStored] = {}
        self.by_kind: dict[str, dict[Ref, AnyStored]] = {}
        self.uids: dict[str, Ref] = {}
        self.in_tenant: dict[str, dict[Ref, None]] = {}          # tenant -> what is in it
        self.in_network: dict[tuple[Ref, str], dict[Ref, AnyStored]] = {}    # network, kind -> what is in it
        self.on_host: dict[str, dict[Ref, AnyStored]] = {}       # host -> endpoints, nat networks
        self.mapped: dict[Ref, dict[Ref, None]] = {}             # endpoint -> its mappings
        self.spaces: dict[int, Ref] = {}
        self.addresses: dict[tuple[Ref, str], Ref] = {}          # (network, address) -> endpoint
        self.leased: dict[tuple[Ref, str], str] = {}             # (network, address) -> the host that may give it out
        self.leasing: dict[str, dict[Ref, None]] = {}            # host -> networks of which it has a lease
        self.macs: dict[tuple[Ref, str], Ref] = {}               # (network, MAC) -> endpoint
        self.interfaces: dict[tuple[str, str, str], Ref] = {}    # EndpointSpec.place -> endpoint
        self.underlays: dict[str, Ref] = {}                      # VTEP address -> host
        self.members: dict[Ref, dict[str, int]] = {}             # network -> host -> how many endpoints
        self.users: dict[Ref, dict[Ref, None]] = {}              # what a `mentions` leads to -> who names it
        # network -> (protocol, external port; 0 with any) -> its mappings there, with their external addresses
        self.externals: dict[Ref, dict[tuple[str, int], tuple[tuple[Ref, str], ...]]] = {}
        self._own: set[tuple[int, object]] = set()

    @classmethod
    def of(cls, objects: Iterable[AnyStored], revision: int = 0, cursors: Mapping[str, int] | None = None) -> Self:
        """The state that consists of these objects."""
        state = cls()
        for stored in objects:
            state.put(stored)
        state.revision = revision
        state.cursors.update(cursors or {})
        return state

    def fork(self) -> Self:
        """A copy that can be changed; inner tables are copied when they are first touched."""
        twin = type(self)()
        for name, value in vars(self).items():
            setattr(twin, name, dict(value) if isinstance(value, dict) else value)
        twin.by_kind = {kind: dict(table) for kind, table in self.by_kind.items()}
        twin._own = set()
        return twin

    def put(self, stored: AnyStored) -> None:
        """Add or replace."""
        if stored.ref in self.objects:
            self.remove(stored.ref)
        ref, spec, assigned = stored.ref, stored.spec, stored.assigned
        self.objects[ref] = stored
        self.by_kind.setdefault(ref.kind, {})[ref] = stored
        self.uids[stored.uid] = ref
        if ref.tenant:
            self._inner(self.in_tenant, ref.tenant)[ref] = None
        if isinstance(spec, (EndpointSpec, PolicySpec, StaticMappingSpec)):
            self._inner(self.in_network, (self.network_ref(stored), ref.kind))[ref] = stored
        if isinstance(spec, NetworkSpec):
            self.spaces[assigned.space] = ref
            for host, addresses in assigned.leases.items():
                self._inner(self.leasing, host)[ref] = None
                self.leased.update(((ref, address), host) for address in addresses)
            if spec.host:
                self._inner(self.on_host, spec.host)[ref] = stored
        elif isinstance(spec, EndpointSpec):
            network = self.network_ref(stored)
            self._inner(self.on_host, spec.host)[ref] = stored
            members = self._inner(self.members, network)
            members[spec.host] = members.get(spec.host, 0) + 1
            self.addresses.update(((network, address), ref) for address in assigned.addresses)
            if assigned.mac:
                self.macs[network, assigned.mac] = ref
            if spec.place is not None:
                self.interfaces[spec.place] = ref
        elif isinstance(spec, StaticMappingSpec):
            self._inner(self.mapped, Ref("Endpoint", ref.tenant, spec.endpoint))[ref] = None
            held = self._inner(self.externals, self.network_ref(stored))
            for key in _externals(spec, assigned):
                held[key] = (*held.get(key, ()), (ref, spec.external_address))
        elif isinstance(spec, HostSpec):
            self.underlays.update((address, ref) for address in spec.underlays)
        for named in mentions(stored):
            self._inner(self.users, named)[ref] = None

    def remove(self, ref: Ref) -> None:
        """Take an object out. Raises KeyError."""
        stored = self.objects.pop(ref)
        spec, assigned = stored.spec, stored.assigned
        del self.by_kind[ref.kind][ref]
        del self.uids[stored.uid]
        if ref.tenant:
            self._drop(self.in_tenant, ref.tenant, ref)
        if isinstance(spec, (EndpointSpec, PolicySpec, StaticMappingSpec)):
            self._drop(self.in_network, (self.network_ref(stored), ref.kind), ref)
        if isinstance(spec, NetworkSpec):
            del self.spaces[assigned.space]
            for host, addresses in assigned.leases.items():
                self._drop(self.leasing, host, ref)
                for address in addresses:
                    del self.leased[ref, address]
            if spec.host:
                self._drop(self.on_host, spec.host, ref)
        elif isinstance(spec, EndpointSpec):
            network = self.network_ref(stored)
            self._drop(self.on_host, spec.host, ref)
            self._inner(self.members, network)[spec.host] -= 1
            if not self.members[network][spec.host]:
                self._drop(self.members, network, spec.host)
            for address in assigned.addresses:
                del self.addresses[network, address]
            if assigned.mac:
                del self.macs[network, assigned.mac]
            if spec.place is not None:
                del self.interfaces[spec.place]
        elif isinstance(spec, StaticMappingSpec):
            self._drop(self.mapped, Ref("Endpoint", ref.tenant, spec.endpoint), ref)
            held = self._inner(self.externals, self.network_ref(stored))
            for key in _externals(spec, assigned):
                held[key] = tuple(each for each in held[key] if each[0] != ref)
                if not held[key]:
                    self._drop(self.externals, self.network_ref(stored), key)
        elif isinstance(spec, HostSpec):
            for address in spec.underlays:
                del self.underlays[address]
        for named in mentions(stored):
            self._drop(self.users, named, ref)

    # Typed readers

    def get(self, ref: Ref) -> AnyStored | None:
        """The object, if it is there."""
        return self.objects.get(ref)

    def host(self, name: str) -> Stored[HostSpec] | None:
        """A host by name."""
        return cast("Stored[HostSpec] | None", self.objects.get(Ref("Host", "", name)))

    def network(self, ref: Ref) -> Stored[NetworkSpec] | None:
        """A network."""
        return cast("Stored[NetworkSpec] | None", self.objects.get(ref))

    def endpoint(self, ref: Ref) -> Stored[EndpointSpec] | None:
        """An endpoint."""
        return cast("Stored[EndpointSpec] | None", self.objects.get(ref))

    def networks(self) -> Iterable[Stored[NetworkSpec]]:
        """All networks."""
        return cast("Iterable[Stored[NetworkSpec]]", self.by_kind.get("Network", {}).values())

    def hosts(self) -> Iterable[Stored[HostSpec]]:
        """All hosts."""
        return cast("Iterable[Stored[HostSpec]]", self.by_kind.get("Host", {}).values())

    def endpoints_of(self, network: Ref) -> list[Stored[EndpointSpec]]:
        """The endpoints of a network."""
        return cast("list[Stored[EndpointSpec]]", list(self.in_network.get((network, "Endpoint"), {}).values()))

    def policies_of(self, network: Ref) -> list[Stored[PolicySpec]]:
        """The policies of a network."""
        return cast("list[Stored[PolicySpec]]", list(self.in_network.get((network, "Policy"), {}).values()))

    def mappings_of(self, network: Ref) -> list[Stored[StaticMappingSpec]]:
        """The static mappings of a network."""
        return cast("list[Stored[StaticMappingSpec]]",
                    list(self.in_network.get((network, "StaticMapping"), {}).values()))

    def in_it(self, network: Ref) -> list[Ref]:
        """All that belongs to a network."""
        return [ref for kind in _IN_NETWORKS for ref in self.in_network.get((network, kind), ())]

    def is_empty(self, network: Ref) -> bool:
        """Whether nothing belongs to a network."""
        return not any((network, kind) in self.in_network for kind in _IN_NETWORKS)

    def nat_networks_on(self, host: str) -> list[Stored[NetworkSpec]]:
        """The nat networks of a host."""
        return [n for n in self.networks_on(host) if n.spec.mode == "nat"]

    def networks_on(self, host: str) -> list[Stored[NetworkSpec]]:
        """The networks that are on this host only."""
        return [cast("Stored[NetworkSpec]", s) for s in self.on_host.get(host, {}).values()
                if s.ref.kind == "Network"]

    def endpoints_on(self, host: str) -> list[Stored[EndpointSpec]]:
        """The endpoints of a host."""
        return [cast("Stored[EndpointSpec]", s) for s in self.on_host.get(host, {}).values()
                if s.ref.kind == "Endpoint"]

    def leased_by(self, host: str) -> list[Stored[NetworkSpec]]:
        """The networks of which a host has a lease."""
        found = (self.network(ref) for ref in self.leasing.get(host, ()))
        return [network for network in found if network is not None]

    def mappings_on(self, host: str) -> list[Stored[StaticMappingSpec]]:
        """The static mappings of a host: those of its nat networks."""
        return [m for network in self.nat_networks_on(host) for m in self.mappings_of(network.ref)]

    def peers_of(self, network: Ref) -> list[Stored[NetworkSpec]]:
        """The networks that a network is peered with, whichever side says so."""
        own = self.network(network)
        named = peers(own) if own is not None else ()
        found = (self.network(ref) for ref in sorted({*named, *self.named_by(network, "Network")}))
        return [each for each in found if each is not None]

    def has_endpoints(self, network: Ref) -> bool:
        """Whether anybody is in a network."""
        return (network, "Endpoint") in self.in_network

    def link_of(self, endpoint: Stored[EndpointSpec]) -> Stored[EndpointSpec]:
        """The endpoint by whose link this one is reached: itself, or the one that it is behind."""
        behind = endpoint.spec.behind
        return (self.endpoint(Ref("Endpoint", endpoint.ref.tenant, behind)) if behind else None) or endpoint

    def vxlan_port(self) -> int:
        """The UDP port of the overlay, the same on all hosts."""
        return next((host.spec.vxlan_port for host in self.hosts() if host.spec.vxlan_port is not None),
                    DEFAULT_VXLAN_PORT)

    def is_external(self, name: str) -> bool:
        """Whether a host is a VTEP that is not ours."""
        host = self.host(name)
        return host is not None and host.spec.external

    def named_by(self, ref: Ref, kind: str) -> list[Ref]:
        """What of a kind mentions this object."""
        return [each for each in self.users.get(ref, ()) if each.kind == kind]

    @staticmethod
    def network_ref(stored: AnyStored) -> Ref:
        """The network that an endpoint, policy or mapping belongs to."""
        spec = stored.spec
        assert isinstance(spec, (EndpointSpec, PolicySpec, StaticMappingSpec)), stored.ref
        return Ref("Network", stored.ref.tenant, spec.network)

    def _inner(self, index: dict[K, Any], key: K) -> dict[Any, Any]:
        mark = (id(index), key)
        if mark not in self._own:
            index[key] = dict(index.get(key, ()))
            self._own.add(mark)
        return cast("dict[Any, Any]", index[key])

    def _drop(self, index: dict[K, Any], key: K, item: object) -> None:
        inner = self._inner(index, key)
        del inner[item]
        if not inner:
            del index[key]
            self._own.discard((id(index), key))


def peers(network: Stored[NetworkSpec]) -> list[Ref]:
    """The networks that this one names as its peers."""
    return [Ref("Network", *path) for path in network.spec.peer_paths(network.ref.tenant)]


def mentions(stored: AnyStored) -> set[Ref]:
    """What an object names beside its network and host: peers, next hops, exits, the endpoint that it is behind."""
    ref, spec = stored.ref, stored.spec
    if isinstance(spec, EndpointSpec):
        return {Ref("Endpoint", ref.tenant, spec.behind)} if spec.behind is not None else set()
    if not isinstance(spec, NetworkSpec):
        return set()
    found = {Ref("Network", *path) for path in spec.peer_paths(ref.tenant)}
    found |= {Ref("Host", "", host) for host in spec.exits}
    return found | {Ref("Endpoint", ref.tenant, route.via.endpoint) for route in spec.routes
                    if route.via.endpoint is not None}


def _externals(spec: StaticMappingSpec, assigned: Assigned) -> Iterable[tuple[str, int]]:
    low, high = spec.externals(assigned.external_port)
    return ((spec.protocol, port) for port in range(low, high + 1))


__all__ = ["CLUSTER_KINDS", "DEFAULT_TENANT_REF", "AnyStored", "Assigned", "Change", "Ref", "State", "Stored",
           "mentions", "peers"]
