"""The status of resources: what the controller chose, and how far hosts have come with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from ipaddress import ip_network
from typing import Any, Literal, cast

from pydantic import BaseModel

from controller.documents import render
from controller.ledger import Ledger
from controller.link import Link
from controller.overlaps import overlaps
from controller.planner import HOST_GOAL_ID
from controller.push import Push
from controller.renumber import stuck
from controller.resources import (
    EndpointSpec,
    EndpointStatus,
    HostStatus,
    NetworkSpec,
    NetworkStatus,
    StaticMappingSpec,
    StaticMappingStatus,
    SubnetStatus,
)
from controller.state import AnyStored, Ref, State, Stored
from southbound.messages import Key

HOST_KEY: Key = ("host", HOST_GOAL_ID)
Phase = Literal["Pending", "Ready", "Failed"]
NetworkPhase = Literal["Pending", "Ready", "Degraded", "Failed"]


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
        if self._ledger.state.is_external(name):
            return HostStatus.model_construct(
                connected=False, applied_revision=0, agent="", message="external: no agent is expected", facts={})
        return HostStatus.model_construct(
            connected=link.connected, applied_revision=link.applied(self._ledger.state.revision),
            agent=report.agent if report else "", message=link.trouble or _host_error(link),
            facts=asdict(report.facts) if report else {})

    def _network(self, stored: Stored[NetworkSpec]) -> NetworkStatus:
        spec, assigned, hosts = stored.spec, stored.assigned, self._push.plan.hosts_of(stored.ref)
        overlay = spec.mode == "overlay"
        told = [_progress(self._push.link(host), ("network", stored.uid), _under(link, stored.uid) if overlay else [])
                for host in hosts for link in (self._push.link(host),)]
        phase: NetworkPhase = next((each for each in ("Failed", "Pending") if any(each == p for p, _ in told)), "Ready")
        messages = dict.fromkeys(message for p, message in told if message and p == phase)
        if spec.mode == "nat" and spec.host is not None:
            # A host may come to overlap a network after it was accepted: it roams, or a VPN goes up.
            facts = self._ledger.facts.get(spec.host)
            found = dict.fromkeys(f"overlap with {each}" for subnet in assigned.subnets
                                  for each in overlaps(ip_network(subnet.prefix), facts))
            if found:
                phase, messages = "Degraded", found
                if stuck(self._ledger.state, stored, facts):
                    messages[f"no free prefix to renumber to: add to autoPrefixes of Host {spec.host}"] = None
        return NetworkStatus.model_construct(
            phase=phase, message="; ".join((*messages, *([assigned.moved] if assigned.moved else []))),
            subnets=tuple(SubnetStatus.model_construct(prefix=each.prefix, gateway=each.gateway)
                          for each in assigned.subnets),
            vni=assigned.space if spec.mode == "overlay" else None, gateway_mac=assigned.gateway_mac,
            endpoints=len(self._ledger.state.endpoints_of(stored.ref)), hosts=hosts,
            leases={host: len(its) for host, its in assigned.leases.items()})

    def _endpoint(self, stored: Stored[EndpointSpec]) -> EndpointStatus:
        state, revision = self._ledger.state, self._ledger.state.revision
        link, assigned = self._push.link(stored.spec.host), stored.assigned
        if state.is_external(stored.spec.host):
            return EndpointStatus.model_construct(
                phase="Ready", message=f"host {link.host} is external", applied_revision=revision,
                address=assigned.address or None, address6=assigned.address6 or None, mac=assigned.mac, details={})
        key = ("port", stored.uid)
        network = state.network(State.network_ref(stored))
        also: list[Key] = [("network", network.uid)] if network else []
        if network is not None and network.spec.mode == "overlay":
            also.append(HOST_KEY)
        carrier = state.link_of(stored)
        if carrier is not stored:
            also.append(("port", carrier.uid))
        phase, message = _progress(link, key, also)
        told = link.objects.get(key)
        details = dict(told.details) if told else {}
        address = _leased(details) if stored.spec.dhcp else assigned.address
        if stored.spec.dhcp and not address and phase == "Ready" and not message:
            message = "no lease was seen yet"
        return EndpointStatus.model_construct(
            phase=phase, message=message, applied_revision=link.applied(revision), address=address or None,
            address6=assigned.address6 or None, mac=carrier.assigned.mac, details=details)

    def _mapping(self, stored: Stored[StaticMappingSpec]) -> StaticMappingStatus:
        endpoint = self._ledger.state.endpoint(Ref("Endpoint", stored.ref.tenant, stored.spec.endpoint))
        link = self._push.link(endpoint.spec.host if endpoint else "")
        phase, message = _progress(link, ("mapping", stored.uid), [])
        target = endpoint.assigned if endpoint else None
        return StaticMappingStatus.model_construct(
            phase=phase, message=message, applied_revision=link.applied(self._ledger.state.revision),
            external_address=stored.spec.external_address, external_port=_ports(stored),
            internal_address=(target.address6 if stored.spec.version == 6 else target.address) if target else None)


def _host_error(link: Link) -> str:
    told = link.failed.get(HOST_KEY)
    return told.error if told is not None and link.connected else ""


def _under(link: Link, network: str) -> list[Key]:
    """What an overlay network rests on at a host and that is not as it should be: its tunnel, endpoints elsewhere."""
    return [key for key in link.failed
            if key == HOST_KEY or (key[0] == "remotes" and key[1].startswith(f"{network}/"))]


def _leased(details: Mapping[str, Any]) -> str:
    """The address that an agent saw in a lease, without its prefix length."""
    found = details.get("address")
    return found.partition("/")[0] if isinstance(found, str) else ""


def _ports(stored: Stored[StaticMappingSpec]) -> int | str | None:
    if stored.spec.protocol == "any":
        return None
    low, high = stored.spec.externals(stored.assigned.external_port)
    return low if low == high else f"{low}-{high}"


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
