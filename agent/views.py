"""Attachments and networks as the local socket shows them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from agent.attachment import Attachment
from agent.goals import Goals
from agent.host import Host
from agent.ports import leads_out
from policy.addresses import own_addresses
from southbound.messages import LeaseGoal, MappingGoal, NetworkGoal, PortGoal

__all__ = ["attachment_view", "network_view", "stored_network_view"]

_MOST = 1 << 31                             # that are told, of an IPv6 prefix


def attachment_view(attachment: Attachment, host: Host) -> dict[str, Any]:
    """An attachment, with what is programmed of it."""
    goals = host.effective
    port = goals.objects.get((PortGoal.kind, attachment.uid))
    status = host.statuses.get((PortGoal.kind, attachment.uid))
    details = status.details if status is not None else {}
    row: dict[str, Any] = {
        "runtime": attachment.runtime, "id": attachment.id, "scope": attachment.scope, "uid": attachment.uid,
        "name": attachment.name, "tenant": attachment.tenant, "network": attachment.network, "mode": "", "exit": False,
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
            row["exit"] = leads_out(network)
            families = {address.version for address in own_addresses(port)}
            row["gateways"] = [subnet.gateway for subnet in network.subnets
                               if (6 if ":" in subnet.gateway else 4) in families and _holds(subnet.prefix, port)]
    return row


def _holds(prefix: str, port: PortGoal) -> bool:
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


def network_view(network: NetworkGoal, host: Host) -> dict[str, Any]:
    """A network as this host was told of it."""
    return {"uid": network.id, "name": network.name, "tenant": network.tenant, "mode": network.mode,
            "mtu": network.mtu_bytes or _mtu_here(network.id, host),
            "subnets": [{"prefix": subnet.prefix, "gateway": subnet.gateway} for subnet in network.subnets],
            "host": "", "leased": _leased(network.id, host), "spec": None}


def stored_network_view(item: dict[str, Any], host: Host) -> dict[str, Any]:
    """A network as the controller gives it."""
    spec, assigned, uid = item["spec"], item["assigned"], str(item["uid"])
    mtu = spec.get("mtu", "auto")
    return {"uid": uid, "name": item["name"], "tenant": item["tenant"], "mode": spec["mode"],
            "mtu": mtu if isinstance(mtu, int) else _mtu_here(uid, host),
            "subnets": [{"prefix": subnet["prefix"], "gateway": subnet["gateway"]}
                        for subnet in assigned.get("subnets", ())],
            "host": spec.get("host") or "", "leased": _leased(uid, host), "spec": spec}


def _mtu_here(uid: str, host: Host) -> int:
    """Of a port of the network; 0: there is none to know it from."""
    for port in host.effective.ports:
        status = host.statuses.get((PortGoal.kind, port.id))
        if port.network == uid and status is not None and "mtu_bytes" in status.details:
            return int(status.details["mtu_bytes"])
    return 0


def _leased(uid: str, host: Host) -> int:
    """How many addresses this host may give while the controller is away, those in use among them."""
    lease = host.effective.objects.get((LeaseGoal.kind, uid))
    if not isinstance(lease, LeaseGoal):
        return 0
    ranges = lease.ranges if lease.whole else ()
    free = sum(int(ip_address(last)) - int(ip_address(first)) + 1 for first, last in ranges)
    return min(len(lease.addresses) + free, _MOST)
