"""What a runtime passes by capability (CNI conventions, `runtimeConfig`), in terms of the agent's `attach`."""

from __future__ import annotations

from runtimes.cni.errors import INVALID_CONFIG, UNSUPPORTED_FIELD, CniError
from runtimes.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Given = Mapping[str, Any]

PROTOCOLS = ("tcp", "udp", "sctp")
SMALLEST_BURST_BYTES, LARGEST_BURST_BYTES = 2 << 10, 1 << 30    # of the controller; "unlimited" comes as 2^31 - 1 bits


def addresses_of(given: Given, arguments: Given, environment: Mapping[str, str]) -> list[str]:
    """Addresses asked for, without length."""
    for where, found in (("runtimeConfig.ips", given.get("ips")), ("args.cni.ips", arguments.get("ips")),
                         ("CNI_ARGS: IP", environment.get("IP", "").split(",") if environment.get("IP") else None)):
        if not found:
            continue
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise _wrong(where, "must be a list of addresses", found, 'write ["10.1.0.5"]')
        return [each.strip().partition("/")[0] for each in found]
    return []


def ranges_of(given: Given) -> list[str]:
    """Prefixes and `first-last`, from which an address of each family is to come."""
    where, found = "runtimeConfig.ipRanges", _given(given, "ipRanges", [])
    if not isinstance(found, list) or not all(isinstance(each, list) for each in found):
        raise _wrong(where, "must be a list of lists of ranges", found, 'write [[{"subnet": "10.1.0.0/24"}]]')
    return [_range(where, each) for several in found for each in several]


def _range(where: str, found: Any) -> str:
    from ipaddress import ip_network  # 4 ms: only here

    if not isinstance(found, dict):
        raise _wrong(where, "each must be an object", found, 'write {"subnet": "10.1.0.0/24"}')
    for key, value in found.items():
        if key not in ("subnet", "rangeStart", "rangeEnd"):
            raise CniError(UNSUPPORTED_FIELD, f"{where}: {key} cannot be chosen here (found: {key}: {value!r})",
                           "leave it out: gateways are the network's")
    first, last = found.get("rangeStart"), found.get("rangeEnd")
    try:
        subnet = ip_network(found.get("subnet", ""), strict=False)
    except (ValueError, TypeError):
        raise _wrong(f"{where}: subnet", "must be a prefix", found.get("subnet"), "write it like 10.1.0.0/24") from None
    if not first and not last:
        return str(subnet)
    return f"{first or subnet[0]}-{last or subnet[-1]}"


def mappings_of(given: Given) -> list[dict[str, Any]]:
    """Ports of the host; those that follow each other are one mapping."""
    where, found = "runtimeConfig.portMappings", _given(given, "portMappings", [])
    if not isinstance(found, list):
        raise _wrong(where, "must be a list", found, 'write [{"hostPort": 8080, "containerPort": 80}]')
    runs: list[list[Any]] = []              # protocol, address, first outer and inner port, how many
    for protocol, address, outer, inner in sorted(
            each for number, port in enumerate(found) if (each := _mapping(f"{where}[{number}]", port))):
        last = runs[-1] if runs else None
        if last and last[:2] == [protocol, address] and (outer, inner) == (last[2] + last[4], last[3] + last[4]):
            last[4] += 1
        else:
            runs.append([protocol, address, outer, inner, 1])
    return [{"protocol": protocol, "externalPort": _ports(outer, size), "internalPort": _ports(inner, size),
             **({"externalAddress": address} if address else {})} for protocol, address, outer, inner, size in runs]


def _mapping(where: str, found: Any) -> tuple[str, str, int, int] | None:
    if not isinstance(found, dict):
        raise _wrong(where, "must be an object", found, 'write {"hostPort": 8080, "containerPort": 80}')
    protocol = str(found.get("protocol") or "tcp").lower()
    if protocol not in PROTOCOLS:
        raise _wrong(f"{where}.protocol", f"must be one of {', '.join(PROTOCOLS)}", found.get("protocol"), "write tcp")
    address = found.get("hostIP") or ""
    if not isinstance(address, str):
        raise _wrong(f"{where}.hostIP", "must be an address", address, "write it like 192.0.2.1, or leave it out")
    if found.get("hostPort") in (0, None):  # a port that the pod has, and the host does not
        return None
    ports = []
    for key in ("hostPort", "containerPort"):
        port = found.get(key)
        if type(port) is not int or not 1 <= port <= 65535:
            raise _wrong(f"{where}.{key}", "must be a port", port, "use 1 to 65535")
        ports.append(port)
    return protocol, address, ports[0], ports[1]


def _ports(first: int, size: int) -> int | str:
    return first if size == 1 else f"{first}-{first + size - 1}"


def bandwidth_of(given: Given) -> dict[str, Any]:
    """Caps, as an Endpoint's `qos` has them. Ingress is what the container gets, in CNI as here; CNI counts bits."""
    where, found = "runtimeConfig.bandwidth", _given(given, "bandwidth", {})
    if not isinstance(found, dict):
        raise _wrong(where, "must be an object", found, 'write {"ingressRate": 1000000, "ingressBurst": 800000}')
    caps: dict[str, Any] = {}
    for side in ("ingress", "egress"):
        rate, burst = found.get(f"{side}Rate") or 0, found.get(f"{side}Burst") or 0
        for key, value in (("Rate", rate), ("Burst", burst)):
            if type(value) is not int or value < 0:
                raise _wrong(f"{where}.{side}{key}", "must be a number of bits", value, "0 or nothing: no cap")
        if rate:
            size = min(max(-(-burst // 8), SMALLEST_BURST_BYTES), LARGEST_BURST_BYTES)
            caps[side] = {"rate": f"{rate}bit", **({"burst": f"{size}b"} if burst else {})}
    return caps


def dns_of(given: Given) -> dict[str, Any]:
    """Servers, search domains and options in a result's words (a runtime's are those of the CRI)."""
    where, found = "runtimeConfig.dns", _given(given, "dns", {})
    if not isinstance(found, dict):
        raise _wrong(where, "must be an object", found, 'write {"servers": ["10.1.0.1"]}')
    words = {"servers": "nameservers", "searches": "search", "options": "options"}
    return {word: found[key] for key, word in words.items() if found.get(key)}


def aliases_of(given: Given) -> list[str]:
    """Further names of the container, of all networks in the map: a runtime passes that of this one."""
    where, found = "runtimeConfig.aliases", _given(given, "aliases", {})
    lists = list(found.values()) if isinstance(found, dict) else [None]
    if not all(isinstance(each, list) and all(isinstance(alias, str) for alias in each) for each in lists):
        raise _wrong(where, "must be lists of names by network", found, 'write {"red": ["web"]}')
    return [alias for each in lists for alias in each or ()]


def _given(given: Given, key: str, nothing: Any) -> Any:
    found = given.get(key)
    return nothing if found is None else found


def _wrong(field: str, fault: str, found: object, todo: str) -> CniError:
    return CniError(INVALID_CONFIG, f"{field}: {fault} (found: {found!r})", todo)


__all__ = ["addresses_of", "aliases_of", "bandwidth_of", "dns_of", "mappings_of", "ranges_of"]
