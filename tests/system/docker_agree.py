"""What Docker says of a host's containers beside what Sluice says, and beside what is in the host's kernel."""

from __future__ import annotations

import json
import time
from typing import Any

from docker_site import WAIT_S, Host, bare

DRIVERS = ("nat", "transparent", "l2bridge", "l2tunnel", "private", "sluice")


def attached(host: Host) -> set[tuple[str, ...]]:
    """(IPv4 address, IPv6 address, MAC) of each running container's place in a network of ours."""
    ours = set(host.docker("network", "ls", "--format", "{{.Name}}",
                           *(word for driver in DRIVERS for word in ("--filter", f"driver={driver}"))).split())
    return {(each["IPAddress"], each["GlobalIPv6Address"], each["MacAddress"])
            for container in _running(host) for name, each in container["NetworkSettings"]["Networks"].items()
            if name in ours}


def published(host: Host) -> set[tuple[str, int]]:
    """(protocol, outer port) of each running container."""
    return {(inner.partition("/")[2], int(each["HostPort"]))
            for container in _running(host) for inner, outer in container["NetworkSettings"]["Ports"].items()
            for each in outer or ()}


def _running(host: Host) -> list[dict[str, Any]]:
    names = host.docker("ps", "--quiet").split()
    found: list[dict[str, Any]] = json.loads(host.docker("inspect", *names)) if names else []
    return found


def differences(host: Host) -> list[str]:
    """Where Docker, the controller and the host's kernel do not agree; nothing: they do."""
    endpoints = host.endpoints()
    told = {(bare(status.get("address") or ""), bare(status.get("address6") or ""), status["mac"])
            for status in (found["status"] for found in endpoints.values())}
    want = attached(host)
    wrong = [f"only Docker has {each}" for each in want - told] + [f"only Sluice has {each}" for each in told - want]
    wrong += [f"endpoint {name}: {found['status']['phase']} {found['status'].get('message')}"
              for name, found in endpoints.items() if found["status"]["phase"] != "Ready"]
    mappings = {port for found in host.site.list("StaticMapping") if found["spec"]["endpoint"] in endpoints
                for port in _outer(found)}
    ports = published(host)
    wrong += [f"only Docker publishes {each}" for each in ports - mappings]
    wrong += [f"only Sluice maps {each}" for each in mappings - ports]
    links = host.ports()
    if len(links) != len(endpoints):
        wrong.append(f"{len(endpoints)} endpoints, and the links {sorted(links)}")
    return wrong


def _outer(mapping: dict[str, Any]) -> list[tuple[str, int]]:
    low, _, high = str(mapping["status"].get("externalPort") or mapping["spec"]["externalPort"]).partition("-")
    return [(mapping["spec"]["protocol"], port) for port in range(int(low), int(high or low) + 1)]


def agree(*hosts: Host, limit_s: float = WAIT_S) -> None:
    """Wait until all agree: what is gone is found after a grace."""
    deadline = time.monotonic() + limit_s
    for host in hosts:
        while wrong := differences(host):
            assert time.monotonic() < deadline, f"{host.name}: {'; '.join(wrong)}\n{host.told()}"
            time.sleep(0.2)
