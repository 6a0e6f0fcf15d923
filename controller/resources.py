"""The resources that users declare, as strict pydantic models: what a document may say, and its status.

Here a document is checked by itself (form); `validate` checks it against what is stored. Models are frozen,
JSON names are camelCase, unknown fields are refused. `status` and the server's part of `metadata` (uid, revision,
createdAt) are accepted in documents, so that what `get` printed can be applied, and ignored. The specs are in
`network_specs`, `policy_specs` and `mapping_specs`, the types of fields in `texts`.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from controller.endpoint_specs import EndpointSpec
from controller.host_specs import HostSpec
from controller.mapping_specs import StaticMappingSpec
from controller.network_specs import NetworkSpec
from controller.policy_specs import PolicySpec
from controller.texts import Labels, Model, Name

API_VERSION = "sluice/v1"
DEFAULT_TENANT = "default"


class TenantSpec(Model):
    """A tenant has nothing to say of itself yet."""


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


class SubnetStatus(Model):
    """A subnet as it is in use; it differs from what was declared after a renumbering."""

    prefix: str
    gateway: str


class Progress(Model):
    """How far a declared object has come."""

    phase: Literal["Pending", "Ready", "Failed"]
    message: str = ""
    applied_revision: int = 0


class NetworkStatus(Model):
    """What the controller chose for a network, and how it is on its hosts."""

    phase: Literal["Pending", "Ready", "Degraded", "Failed"] = Field(
        description="Degraded: its host has come to overlap it; traffic inside goes on")
    message: str = Field(default="", description="what overlaps it, what is awaited, why it was renumbered or is not")
    subnets: tuple[SubnetStatus, ...] = Field(description="in use, in the order declared")
    vni: int | None = None
    gateway_mac: str
    endpoints: int
    hosts: tuple[str, ...] = Field(description="hosts that have an endpoint in it")
    leases: dict[str, int] = Field(
        default_factory=dict, description="hosts whose runtimes use it, and how many addresses they have leased")


class EndpointStatus(Progress):
    """An endpoint on its host."""

    address: str | None = None
    address6: str | None = None
    mac: str
    details: dict[str, Any] = Field(default_factory=dict)


class StaticMappingStatus(Progress):
    """A mapping on its host."""

    external_address: str
    external_port: int | str | None = Field(default=None, description="one, or first-last; none with any")
    internal_address: str | None = None


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

__all__ = ["API_VERSION", "DEFAULT_TENANT", "RESOURCES", "SPECS", "AnyResource", "EndpointSpec", "EndpointStatus",
           "HostSpec", "HostStatus", "NetworkSpec", "NetworkStatus", "PolicySpec", "Spec", "StaticMappingSpec",
           "StaticMappingStatus", "SubnetStatus", "TenantSpec"]
