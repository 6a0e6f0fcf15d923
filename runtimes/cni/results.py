"""Results of ADD in the version that was asked for; merged into that of the plug-ins before in the chain."""

from __future__ import annotations

from runtimes.cni.errors import EXISTS, INVALID_CONFIG, CniError
from runtimes.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")    # Podman 4 writes 0.4.0
_FAMILY_OF_ADDRESSES = VERSIONS[:3]                         # an address says its family: up to 0.4.0
_NEWEST = VERSIONS[-1]


def result(version: str, netns: str, found: dict[str, Any], dns: dict[str, Any],
           previous: dict[str, Any] | None) -> dict[str, Any]:
    """Of an attachment (docs/runtimes.md). What came before stays as it is; indexes of ours count on."""
    before = previous or {}
    interfaces = list(before.get("interfaces") or ())
    if found.get("hostInterface"):
        interfaces.append({"name": found["hostInterface"], **_mac(found["hostInterface"])})
    own = len(interfaces)
    interfaces.append({"name": found["interface"], "mac": found["mac"], "sandbox": netns,
                       **({"mtu": found["mtu"]} if version == _NEWEST and found.get("mtu") else {})})
    gateways = found.get("gateways") or []
    ips = [{**({"version": "6" if ":" in address else "4"} if version in _FAMILY_OF_ADDRESSES else {}),
            "interface": own, "address": address, **_gateway(address, gateways)}
           for address in found.get("addresses") or ()]
    routes = [{"dst": "::/0" if ":" in gateway else "0.0.0.0/0", "gw": gateway} for gateway in gateways]
    return {"cniVersion": version, "interfaces": interfaces, "ips": [*(before.get("ips") or ()), *ips],
            "routes": [*(before.get("routes") or ()), *routes], "dns": dns or before.get("dns") or {}}


def check_free(previous: dict[str, Any] | None, interface: str, netns: str) -> None:
    """The plug-ins before have not made the interface that is asked for.

    Raises:
        CniError: INVALID_CONFIG (a result that cannot be read), EXISTS.
    """
    for each in interfaces_of(previous):
        if each.get("name") == interface and each.get("sandbox"):
            raise CniError(EXISTS, f"CNI_IFNAME: a plug-in before in the chain has made {interface} in {netns}",
                           'give this one another name: "interface": "net1" in its configuration')


def interfaces_of(previous: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Those of a previous result.

    Raises:
        CniError: INVALID_CONFIG
    """
    for key in ("interfaces", "ips", "routes"):
        found = (previous or {}).get(key)
        if found is None:
            continue
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise CniError(INVALID_CONFIG, f"prevResult.{key}: must be a list of objects (found: {found!r})",
                           "the runtime passes what the plug-in before answered")
    return (previous or {}).get("interfaces") or []


def _gateway(address: str, gateways: list[str]) -> dict[str, str]:
    for gateway in gateways:
        if (":" in gateway) == (":" in address):
            return {"gateway": gateway}
    return {}


def _mac(interface: str) -> dict[str, str]:
    """Of a link of the host, if this process sees the host's."""
    try:
        with open(f"/sys/class/net/{interface}/address", encoding="ascii") as file:  # noqa: PTH123  pathlib: 5 ms
            return {"mac": file.read().strip()}
    except OSError:
        return {}


__all__ = ["VERSIONS", "check_free", "interfaces_of", "result"]
