"""An attachment: an endpoint that a runtime of this host asked for, as the agent keeps it. Values only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

__all__ = ["HOST_LABEL", "RUNTIME_LABEL", "Attachment", "Mapped", "Place", "default_name"]

API_VERSION = "sluice/v1"
RUNTIME_LABEL = "sluice.io/runtime"
HOST_LABEL = "sluice.io/host"
FAR_PREFIX = "slc"

State = Literal["asked", "up"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the endpoint's end of the link is; one of the first three, or `handed`."""

    netns: str = ""                         # name under /run/netns, or a path
    pid: int = 0                            # of a process in the namespace
    tap: str = ""
    handed: bool = False                    # in the host's own namespace, for a runtime to take

    @property
    def path(self) -> str:
        """The namespace as an Endpoint says it."""
        return f"/proc/{self.pid}/ns/net" if self.pid else self.netns


@dataclass(frozen=True, slots=True)
class Mapped:
    """A static mapping of an attachment. `spec`: of the StaticMapping, without network and endpoint."""

    name: str
    uid: str
    spec: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Attachment:
    """What is on disk before the controller is asked, and until all of it is gone.

        asked ──port is up──▶ up ──detach──▶ (forgotten, see `agent.attachment_files.Forgotten`)

    An `asked` one that a new process finds was never answered: it is undone.
    """

    runtime: str
    id: str                                 # the runtime's own name for it
    uid: str                                # of the Endpoint, chosen here
    name: str
    tenant: str
    network: str                            # name
    place: Place
    interface: str                          # name in the namespace
    scope: str = ""
    addresses: tuple[str, ...] = ()         # asked for, or leased; at most one of each family
    mac: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    qos: Mapping[str, Any] | None = None
    queues: int = 1
    mappings: tuple[Mapped, ...] = ()
    coming: tuple[Mapped, ...] = ()         # in place of some of them, by a `map` that was not answered yet
    changing: bool = False                  # such a `map` may have begun: what is declared is not known
    asked: Mapping[str, Any] = field(default_factory=dict)      # the arguments, to tell a repetition from another
    state: State = "asked"
    taken: bool = False
    since_s: float = 0.0                    # seconds since 1970: when it was made
    namespace: str = ""                     # `Switch.identify` of its namespace
    goals: str = ""                         # `agent.leased.keep_goals`: made by a lease; the controller does not know

    @property
    def key(self) -> tuple[str, str]:
        """What it is known by."""
        return self.runtime, self.id

    @property
    def leased(self) -> bool:
        """Whether the controller does not know it yet."""
        return bool(self.goals)

    @property
    def far_interface(self) -> str:
        """Name of the far end of a handed link in the host's namespace."""
        return f"{FAR_PREFIX}{self.uid.replace('-', '')[:8]}" if self.place.handed else ""

    def to_json(self) -> dict[str, Any]:
        """As it is kept."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Attachment:
        """The reverse of `to_json`. Raises KeyError, TypeError, ValueError."""
        return cls(**{
            **value,
            "place": Place(**value["place"]),
            "addresses": tuple(value["addresses"]),
            "mappings": tuple(Mapped(**each) for each in value["mappings"]),
            "coming": tuple(Mapped(**each) for each in value["coming"]),
        })

    def endpoint(self, host: str) -> dict[str, Any]:
        """The document of the Endpoint."""
        spec: dict[str, Any] = {"network": self.network, "host": host}
        if self.place.handed:
            spec["veth"] = self.far_interface
        elif self.place.tap:
            spec |= {"tap": self.place.tap, "queues": self.queues}
        else:
            spec |= {"netns": self.place.path, "interface": self.interface}
        for address in self.addresses:
            spec["address6" if ":" in address else "address"] = address
        if self.mac:
            spec["mac"] = self.mac
        if self.qos:
            spec["qos"] = dict(self.qos)
        return self._document("Endpoint", self.name, spec)

    def mapping_document(self, mapped: Mapped) -> dict[str, Any]:
        """The document of one of its StaticMappings."""
        return self._document("StaticMapping", mapped.name,
                              {"network": self.network, "endpoint": self.name, **mapped.spec})

    def documents(self, host: str) -> list[dict[str, Any]]:
        """All that is declared for it."""
        return [self.endpoint(host), *(self.mapping_document(each) for each in self.mappings)]

    def refs(self) -> list[tuple[str, str, str]]:
        """Kind, tenant and name of all that is, or may be, declared for it."""
        return [("Endpoint", self.tenant, self.name),
                *(("StaticMapping", self.tenant, each.name) for each in (*self.mappings, *self.coming))]

    def uids(self) -> dict[str, str]:
        """Kind/tenant/name to uid, of the same."""
        return {f"Endpoint/{self.tenant}/{self.name}": self.uid,
                **{f"StaticMapping/{self.tenant}/{each.name}": each.uid for each in (*self.mappings, *self.coming)}}

    def with_mappings(self, mappings: tuple[Mapped, ...]) -> Attachment:
        """With these in place of those that it has."""
        return replace(self, mappings=mappings)

    def _document(self, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        labels = {RUNTIME_LABEL: self.runtime, **self.labels}
        return {"apiVersion": API_VERSION, "kind": kind, "spec": spec,
                "metadata": {"name": name, "tenant": self.tenant, "labels": labels}}


def default_name(runtime: str, identity: str) -> str:
    """Of an Endpoint that nobody named."""
    return f"{runtime}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
