"""`create`: a network of Podman's is one of ours, made for it or joined.

Podman keeps what `create` answers and gives it to each `setup`. It hands out addresses by itself unless the answer says
that nobody does; ours come from the controller, as another host may have the same network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtimes.free import free_prefix
from runtimes.local import LocalError
from runtimes.netavark.fields import Network, address, part, parts, prefix, text
from runtimes.options import MODES, NetworkOptions, network_options
from runtimes.patient import ask

RUNTIME = "netavark"
ANY_MODE = "sluice"                         # the driver's name that says nothing of the mode
DRIVERS = (ANY_MODE, *MODES)
SEGMENTS = ("transparent", "l2bridge", "l2tunnel")
ID_LENGTH = 12                              # of Podman's ids, where people see them
LABEL = "io.podman.network"                 # of ours: the name of Podman's
_MOST_LABEL = 63
NOBODY = "none"                             # an IPAM driver of Podman's: it hands out no addresses


def create(given: Mapping[str, Any]) -> dict[str, Any]:
    """Make or join the network; the configuration that Podman is to keep.

    Raises:
        LocalError: nothing was made.
    """
    identity, name = text(given, "id"), text(given, "name")
    asked = network_options(part(given, "options", needed=False))
    _check(given)
    internal = bool(given.get("internal"))
    mode = _mode(text(given, "driver"), asked, internal)
    subnets = [_subnet(each) for each in parts(given, "subnets")]
    ours = asked.network or f"podman-{identity[:ID_LENGTH]}"
    there = _find(asked) if asked.network else None
    if there is not None:
        _check_joined(asked, mode, subnets, there)
        joined = [{"prefix": each["prefix"]} for each in there["subnets"]]
        spec = _spec(given, asked, mode or there["mode"], subnets or joined, internal) if asked.spec else None
    elif mode:
        spec = _spec(given, asked, mode, subnets, internal)
    else:
        what = f"network {ours} is not there, and driver {ANY_MODE}" if asked.network else f"driver {ANY_MODE}"
        raise LocalError("not_found", f"{what} says no mode", "mode", "nothing",
                         "add -o mode=nat (or another), or -o network=NAME of a network that is there")
    labels = {LABEL: name[:_MOST_LABEL].rstrip("-_./")} | asked.labels
    made = ask("network-create", runtime=RUNTIME, id=identity, network=ours, tenant=asked.tenant, spec=spec,
               labels=labels if spec else None)
    return _kept(given, asked, made)


def forget(name: str) -> str:
    """Let go of the network that was made for Podman's, by Podman's id or our name; what became of it.

    Raises:
        LocalError
    """
    rows = ask("networks", runtime=RUNTIME)["networks"]
    found = [each for each in rows
             if each["id"].startswith(name) or name in (each["name"], f"{each['tenant']}/{each['name']}")]
    if not name or len(found) != 1:
        known = ", ".join(f"{each['id'][:ID_LENGTH]} ({each['tenant']}/{each['name']})" for each in rows) or "none"
        raise LocalError("not_found", f"{'several networks' if found else 'no network'} of Podman's so called",
                         "NETWORK", name, f"there are {known}")
    answer = ask("network-delete", runtime=RUNTIME, id=found[0]["id"])
    what = f"network {found[0]['tenant']}/{found[0]['name']}"
    return f"{what} deleted" if answer.get("deleted") else f"{what} stays: others use it, or it was not made for Podman"


def _check(given: Mapping[str, Any]) -> None:
    """Refuse what is asked for and could not be had."""
    driver = part(given, "ipam_options", needed=False).get("driver", "")
    if driver not in ("", NOBODY, "host-local"):
        raise LocalError("invalid", "addresses come from Sluice", "--ipam-driver", str(driver), "leave it out")
    if parts(given, "routes"):
        raise LocalError("invalid", "containers get their gateway's route only", "--route", str(given["routes"])[:80],
                         "leave it out, and declare routes of the network with `sluice apply`")
    if given.get("network_dns_servers"):
        raise LocalError("invalid", "Podman serves names in its own bridge networks only", "--dns",
                         str(given["network_dns_servers"])[:80], "give --dns to `podman run`")


def _mode(driver: str, asked: NetworkOptions, internal: bool) -> str:
    """The mode that is asked for; empty: that of the network which is joined."""
    named = driver if driver in MODES else ""
    if named and asked.mode not in ("", named):
        raise LocalError("invalid", f"driver {named} makes networks of mode {named}", "mode", asked.mode,
                         f"use -d {asked.mode}, or -d {ANY_MODE} -o mode={asked.mode}")
    mode = asked.mode or named
    return "private" if internal and mode not in ("", "overlay") else mode


def _subnet(given: Mapping[str, Any]) -> dict[str, Any]:
    """A subnet as a Network has it."""
    whole = prefix(text(given, "subnet"), "subnet")
    found: dict[str, Any] = {"prefix": str(whole)}
    if given.get("gateway"):
        found["gateway"] = str(address(text(given, "gateway"), "gateway"))
    lease = part(given, "lease_range", needed=False)
    first, last = (lease.get(name) or default for name, default in (
        ("start_ip", str(whole.network_address + 1)), ("end_ip", str(whole.broadcast_address - (whole.version == 4)))))
    if lease.get("start_ip") or lease.get("end_ip"):
        found["allocate"] = [f"{address(first, 'lease_range')}-{address(last, 'lease_range')}"]
    return found


def _find(asked: NetworkOptions) -> dict[str, Any] | None:
    try:
        return ask("network", network=asked.network, tenant=asked.tenant)
    except LocalError as error:
        if error.code != "not_found":
            raise
        return None


def _spec(given: Mapping[str, Any], asked: NetworkOptions, mode: str, subnets: Sequence[dict[str, Any]],
          internal: bool) -> dict[str, Any]:
    """The Network that is to be made."""
    spec: dict[str, Any] = {"mode": mode, "subnets": [dict(each) for each in subnets], **asked.spec}
    device = text(given, "network_interface", "")
    if device and mode not in SEGMENTS:
        raise LocalError("invalid", f"a network of mode {mode} has no interface of the host", "--interface-name",
                         device, f"leave it out, or use mode {', '.join(SEGMENTS)}")
    if device and spec.setdefault("uplink", device) != device:
        raise LocalError("invalid", "two uplinks", "--interface-name", f"{device} and {spec['uplink']}",
                         "keep one of them")
    if not subnets:
        spec["subnets"] = [{"prefix": "auto"}]
    if given.get("ipv6_enabled") and not any(":" in each["prefix"] for each in spec["subnets"]):
        spec["subnets"].append({"prefix": str(free_prefix(6, _taken()))})
    if mode in ("nat", "private") or (mode != "overlay" and not asked.network):
        spec["host"] = ask("hello")["host"]
    if mode == "nat" and any(":" in each["prefix"] for each in spec["subnets"]):
        spec["nat"] = {"ipv6": "masquerade", **spec.get("nat", {})}     # as with Podman's own bridge
    if internal and spec.get("egress", "none") != "none":
        raise LocalError("invalid", "--internal with a way out", "egress", str(spec["egress"]), "keep one of them")
    return spec


def _taken() -> list[Network]:
    rows = ask("networks")["networks"]
    return [prefix(each["prefix"], "subnet") for row in rows for each in row.get("subnets", ())]


def _check_joined(
    asked: NetworkOptions, mode: str, subnets: Sequence[Mapping[str, Any]], there: Mapping[str, Any]
) -> None:
    """Refuse to join what is other than was said."""
    name = f"network {asked.network}"
    if mode and mode != there["mode"]:
        raise LocalError("exists", f"{name} is there, with mode {there['mode']}", "mode", mode,
                         f"use -d {ANY_MODE} -o network={asked.network}, or another name")
    gateways = {each["prefix"]: each.get("gateway") for each in there["subnets"]}
    for subnet in subnets:
        if subnet["prefix"] not in gateways:
            raise LocalError("exists", f"{name} has {', '.join(gateways)}", "--subnet", subnet["prefix"],
                             "leave it out")
        gateway = gateways[subnet["prefix"]]
        if subnet.get("gateway", gateway) != gateway:
            raise LocalError("exists", f"{name} has gateway {gateway}", "--gateway", subnet["gateway"], "leave it out")


def _kept(given: Mapping[str, Any], asked: NetworkOptions, made: Mapping[str, Any]) -> dict[str, Any]:
    """What Podman is to keep: what it said, with what came of it."""
    ranges = {str(prefix(text(each, "subnet"), "subnet")): each["lease_range"]
              for each in parts(given, "subnets") if each.get("lease_range")}
    subnets = [{"subnet": each["prefix"], "gateway": each["gateway"]}
               | ({"lease_range": ranges[each["prefix"]]} if each["prefix"] in ranges else {})
               for each in made["subnets"]]
    ours = {"network": made["name"], "tenant": asked.tenant, "mode": made["mode"]}
    return {**given, "subnets": subnets, "options": part(given, "options", needed=False) | ours, "dns_enabled": False,
            "ipv6_enabled": any(":" in each["subnet"] for each in subnets),
            "ipam_options": {"driver": NOBODY}}


__all__ = ["DRIVERS", "RUNTIME", "create", "forget"]
