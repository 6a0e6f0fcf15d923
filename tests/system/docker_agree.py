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


def mappings(host: Host, container: str) -> dict[str, set[tuple[str, int]]]:
    """What of a container is published, by inner port as `80/tcp`: outer addresses and ports.

    Docker itself does not know it of a network of a plug-in: it takes nobody's word for it but its own bridge driver's.
    """
    places = {each["MacAddress"] for each in host.docker.networks(container).values()}
    endpoints = {name for name, found in host.endpoints().items() if found["status"]["mac"] in places}
    published: dict[str, set[tuple[str, int]]] = {}
    for mapping in host.site.list("StaticMapping"):
        if mapping["spec"]["endpoint"] in endpoints:
            inner, outer = _first(mapping["spec"]["internalPort"]), _first(mapping["status"]["externalPort"])
            published.setdefault(f"{inner}/{mapping['spec']['protocol']}", set()).add(
                (mapping["spec"].get("externalAddress") or "", outer))
    return published


def _first(ports: Any) -> int:
    """Of a port or a range: the plug-in maps each port by itself."""
    low, _, high = str(ports).partition("-")
    assert high in ("", low)
    return int(low)


def _asked(container: dict[str, Any]) -> set[str]:
    """Inner ports that were to be published."""
    settings = container["HostConfig"]
    every = container["Config"].get("ExposedPorts") or {} if settings["PublishAllPorts"] else {}
    return {*every, *(settings["PortBindings"] or {})}


def _running(host: Host) -> list[dict[str, Any]]:
    names = host.docker("ps", "--quiet").split()
    found: list[dict[str, Any]] = json.loads(host.docker("inspect", *names)) if names else []
    return found


def differences(host: Host) -> list[str]:
    """Where Docker, the controller and the host's kernel do not agree; nothing: they do."""
    endpoints = host.endpoints()
    told = {status["mac"]: status for status in (found["status"] for found in endpoints.values())}
    want = {each[-1]: each for each in attached(host)}
    wrong = [f"only Docker has {want[mac]}" for mac in want.keys() - told.keys()]
    wrong += [f"only Sluice has {told[mac]}" for mac in told.keys() - want.keys()]
    for mac in want.keys() & told.keys():
        # Of a network with both families Docker may know one: then it does not say what the other is.
        pairs = zip(want[mac], (bare(told[mac].get(field) or "") for field in ("address", "address6")), strict=False)
        wrong += [f"{mac}: Docker has {ours}, Sluice {theirs}" for ours, theirs in pairs if ours and ours != theirs]
    wrong += [f"endpoint {name}: {found['status']['phase']} {found['status'].get('message')}"
              for name, found in endpoints.items() if found["status"]["phase"] != "Ready"]
    wanted = {(container["Name"], inner) for container in _running(host) for inner in _asked(container)}
    mapped = {(container["Name"], inner) for container in _running(host) for inner in mappings(host, container["Name"])}
    stray = {found["metadata"]["name"] for found in host.site.list("StaticMapping")
             if found["spec"]["endpoint"] not in endpoints and found["spec"]["endpoint"] not in elsewhere(host)}
    wrong += [f"{name}: {inner} is not published" for name, inner in wanted - mapped]
    wrong += [f"{name}: {inner} is published" for name, inner in mapped - wanted]
    wrong += [f"mapping {name} of no endpoint" for name in stray]
    links = host.ports()
    if len(links) != len(endpoints):
        wrong.append(f"{len(endpoints)} endpoints, and the links {sorted(links)}")
    return wrong


def elsewhere(host: Host) -> set[str]:
    """Endpoints of other hosts."""
    return {name for other in host.site.hosts if other is not host for name in other.endpoints()}


def agree(*hosts: Host, limit_s: float = WAIT_S) -> None:
    """Wait until all agree: what is gone is found after a grace."""
    deadline = time.monotonic() + limit_s
    for host in hosts:
        while wrong := differences(host):
            assert time.monotonic() < deadline, f"{host.name}: {'; '.join(wrong)}\n{host.told()}"
            time.sleep(0.2)
