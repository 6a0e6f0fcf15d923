"""The status of resources: what the controller chose, and how far hosts have come with it."""

from __future__ import annotations

from dataclasses import asdict
from ipaddress import IPv4Network
from typing import Any, Literal, cast

from pydantic import BaseModel

from controller.documents import render
from controller.ledger import Ledger
from controller.link import Link
from controller.push import Push
from controller.resources import (
    EndpointSpec,
    EndpointStatus,
    HostStatus,
    NetworkSpec,
    NetworkStatus,
    StaticMappingSpec,
    StaticMappingStatus,
)
from controller.state import AnyStored, Ref, State, Stored
from controller.validate import overlaps_host
from southbound.messages import Key

Phase = Literal["Pending", "Ready", "Failed"]


class Statuses:
    """Says how things are now."""

    def __init__(self, ledger: Ledger, push: Push) -> None:
        self._ledger = ledger
        self._push = push

    def document(self, stored: AnyStored) -> dict[str, Any]:
        """A resource with its status, as JSON."""
        return render(stored, self.of(stored))

    def of(self, stored: AnyStored) -> BaseModel | None:
        """The status of a stored object; None: its kind has none."""
        spec = stored.spec
        if isinstance(spec, EndpointSpec):
            return self._endpoint(cast("Stored[EndpointSpec]", stored))
        if isinstance(spec, NetworkSpec):
            return self._network(cast("Stored[NetworkSpec]", stored))
        if isinstance(spec, StaticMappingSpec):
            return self._mapping(cast("Stored[StaticMappingSpec]", stored))
        return self._host(stored.ref.name) if stored.ref.kind == "Host" else None

    def _host(self, name: str) -> HostStatus:
        link, report = self._push.link(name), self._ledger.reports.get(name)
        return HostStatus.model_construct(
            connected=link.connected, applied_revision=link.applied(self._ledger.state.revision),
            agent=report.agent if report else "", message=link.trouble,
            facts=asdict(report.facts) if report else {})

    def _network(self, stored: Stored[NetworkSpec]) -> NetworkStatus:
        spec, host = stored.spec, stored.spec.host
        message = ""
        if spec.mode == "nat" and host is not None:
            # A host may come to overlap a network after it was accepted: it roams, or a VPN goes up.
            prefix = IPv4Network(spec.subnets[0].prefix)
            overlaps = overlaps_host(prefix, "", host, self._ledger.facts.get(host))
            message = "; ".join(f"{prefix} {problem.message}" for problem in overlaps)
        return NetworkStatus.model_construct(
            vni=stored.assigned.space if spec.mode == "overlay" else None,
            gateway_mac=stored.assigned.gateway_mac,
            endpoints=len(self._ledger.state.endpoints_of(stored.ref)),
            hosts=self._push.plan.hosts_of(stored.ref), message=message)

    def _endpoint(self, stored: Stored[EndpointSpec]) -> EndpointStatus:
        link = self._push.link(stored.spec.host)
        key = ("port", stored.uid)
        network = self._ledger.state.network(State.network_ref(stored))
        also: list[Key] = [("network", network.uid)] if network else []
        phase, message = _progress(link, key, also)
        told = link.objects.get(key)
        return EndpointStatus.model_construct(
            phase=phase, message=message, applied_revision=link.applied(self._ledger.state.revision),
            address=stored.assigned.address, mac=stored.assigned.mac, details=dict(told.details) if told else {})

    def _mapping(self, stored: Stored[StaticMappingSpec]) -> StaticMappingStatus:
        endpoint = self._ledger.state.endpoint(Ref("Endpoint", stored.ref.tenant, stored.spec.endpoint))
        link = self._push.link(endpoint.spec.host if endpoint else "")
        phase, message = _progress(link, ("mapping", stored.uid), [])
        return StaticMappingStatus.model_construct(
            phase=phase, message=message, applied_revision=link.applied(self._ledger.state.revision),
            external_address=stored.spec.external_address, external_port=stored.assigned.external_port)


def _progress(link: Link, key: Key, also: list[Key]) -> tuple[Phase, str]:
    """How far a host is with one object; an error of what it rests on counts as its own."""
    away = "" if link.connected else f"host {link.host} is not connected"
    if link.awaits(key):
        return "Pending", away or link.trouble or f"host {link.host} has not acknowledged it yet"
    for each in (key, *also):
        told = link.objects.get(each)
        if told is not None and told.error:
            return "Failed", told.error
    return "Ready", away


__all__ = ["Statuses"]
