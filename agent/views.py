"""Attachments and networks as the local socket shows them."""

from __future__ import annotations

from typing import Any

from agent.attachment import Attachment
from agent.goals import Goals
from agent.host import Host
from policy.addresses import own_addresses
from southbound.messages import MappingGoal, NetworkGoal, PortGoal

__all__ = ["attachment_view"]


def attachment_view(attachment: Attachment, host: Host) -> dict[str, Any]:
    """An attachment, with what is programmed of it."""
    goals = host.effective
    port = goals.objects.get((PortGoal.kind, attachment.uid))
    status = host.statuses.get((PortGoal.kind, attachment.uid))
    details = status.details if status is not None else {}
    row: dict[str, Any] = {
        "runtime": attachment.runtime, "id": attachment.id, "scope": attachment.scope, "uid": attachment.uid,
        "name": attachment.name, "tenant": attachment.tenant, "network": attachment.network, "mode": "",
        "addresses": [], "gateways": [], "mac": "", "mtu": int(details.get("mtu_bytes", 0)),
        "interface": attachment.place.tap or attachment.interface, "netns": attachment.place.path,
        "hostInterface": str(details.get("host_interface", "")), "farInterface": attachment.far_interface,
        "labels": dict(attachment.labels), "mappings": [_mapping(each.name, each.uid, dict(each.spec), goals)
                                                        for each in attachment.mappings],
        "existing": False, "leased": attachment.leased,
    }
    if isinstance(port, PortGoal):
        network = goals.objects.get((NetworkGoal.kind, port.network))
        row["addresses"] = [text for text in (port.address, port.address6) if text]
        row["mac"] = port.mac
        if isinstance(network, NetworkGoal):
            row["mode"] = network.mode
            families = {address.version for address in own_addresses(port)}
            row["gateways"] = [subnet.gateway for subnet in network.subnets
                               if (6 if ":" in subnet.gateway else 4) in families and _holds(subnet.prefix, port)]
    return row


def _holds(prefix: str, port: PortGoal) -> bool:
    from ipaddress import ip_network

    whole = ip_network(prefix)
    return any(address.ip in whole for address in own_addresses(port) if address.version == whole.version)


def _mapping(name: str, uid: str, spec: dict[str, Any], goals: Goals) -> dict[str, Any]:
    """With the ports that were chosen."""
    goal = goals.objects.get((MappingGoal.kind, uid))
    if isinstance(goal, MappingGoal) and goal.protocol != "any":
        first, last = goal.external_ports
        size = last - first
        inner = goal.internal_port
        spec = spec | {"externalPort": first if not size else f"{first}-{last}",
                       "internalPort": inner if not size else f"{inner}-{inner + size}",
                       "externalAddress": goal.external_address}
    return {"name": name, **spec}
