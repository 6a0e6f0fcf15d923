"""What people write after `-o`, `--driver-opt` and `--ipam-opt`, as parts of a Network, of an attachment, of a pool.

An option that is not here is refused with the list: one that is silently ignored is found out much later.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtimes.local import LocalError

MODES = ("nat", "overlay", "transparent", "l2bridge", "l2tunnel", "private")
OVERLAY_EXITS = ("none", "nat")
_DOCKERS_OWN = "com.docker.network."        # what Docker says of itself among a person's options
_LABEL = "label."
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(slots=True)
class NetworkOptions:
    """Of `docker network create -o`."""

    mode: str = ""
    network: str = ""                       # one of ours, that is there or is to be made
    tenant: str = "default"
    exit: bool | None = None                # Docker's default route may go through it
    labels: dict[str, str] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)      # further fields of a Network


@dataclass(slots=True)
class EndpointOptions:
    """Of `docker network connect --driver-opt` and `docker run --network name=...,driver-opt=...`."""

    name: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    qos: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Of `docker network create --ipam-opt`."""

    network: str = ""
    tenant: str = "default"


def _text(name: str, value: str) -> str:
    if not value:
        raise LocalError("invalid", "it is empty", name, "nothing", "give it a value, or leave it out")
    return value


def _number(name: str, value: str) -> int:
    if not value.isascii() or not value.isdecimal() or len(value) > 9:
        raise LocalError("invalid", "not a number", name, value, f"write it like {name}=1400")
    return int(value)


def _number_or_auto(name: str, value: str) -> int | str:
    return value if value == "auto" else _number(name, value)


def _yes(name: str, value: str) -> bool:
    if value.lower() not in (*_TRUE, *_FALSE):
        raise LocalError("invalid", "not true or false", name, value, f"write {name}=true, or leave it out")
    return value.lower() in _TRUE


def _list(name: str, value: str) -> list[str]:
    return [_text(name, each.strip()) for each in value.split(",")]


def _exit(name: str, value: str) -> Any:
    return value if value in OVERLAY_EXITS else {"host": _text(name, value)}


def _broadcast(name: str, value: str) -> Any:
    if value == "off":
        return value
    rate, comma, burst = value.partition(",")
    return {"rate": _number(name, rate)} | ({"burst": _number(name, burst)} if comma else {})


def _rate(name: str, value: str) -> dict[str, str]:
    return {"rate": _text(name, value)}


Reading = Callable[[str, str], Any]

# Name of an option: where in the spec of a Network it goes, and how it is read. The controller judges values.
_SPEC: dict[str, tuple[str, Reading]] = {
    "uplink": ("uplink", _text),
    "parent": ("uplink", _text),            # as of macvlan and ipvlan
    "vni": ("vni", _number_or_auto),
    "mtu": ("mtu", _number_or_auto),
    "com.docker.network.driver.mtu": ("mtu", _number_or_auto),
    "egress": ("egress", _exit),
    "peers": ("peers", _list),
    "isolation": ("isolation", _yes),
    "broadcast": ("broadcast", _broadcast),
    "onOverlap": ("onOverlap", _text),
    "routerAdvertisements": ("routerAdvertisements", _yes),
    "slaac": ("slaac", _yes),
    "ipv6": ("nat.ipv6", _text),
    "externalPrefix": ("nat.externalPrefix", _text),
    "externalAddresses": ("nat.externalAddresses", _list),
    "exceptions": ("nat.exceptions", _list),
    "filtering": ("nat.filtering", _text),
    "portBlock": ("nat.portBlock", _number),
    "portsPerEndpoint": ("nat.portsPerEndpoint", _number),
    "log": ("nat.log", _yes),
}
_QOS: dict[str, tuple[str, Reading]] = {
    "qos.egress": ("egress", _rate),
    "qos.ingress": ("ingress", _rate),
    "qos.minimum": ("minimum", _text),
    "qos.dscp": ("dscp", _number),
    "qos.connections": ("connections", _number),
}
NETWORK_OPTIONS = ("mode", "network", "tenant", "gateway", *_SPEC, *_QOS, f"{_LABEL}KEY")
ENDPOINT_OPTIONS = ("name", *_QOS, f"{_LABEL}KEY")
POOL_OPTIONS = ("network", "tenant")


def network_options(given: Mapping[str, Any] | None) -> NetworkOptions:
    """What `docker network create -o` says.

    Raises:
        LocalError: invalid.
    """
    found = NetworkOptions()
    for name, value in _texts(given):
        if name in ("mode", "network", "tenant"):
            setattr(found, name, _text(name, value))
        elif name == "gateway":
            found.exit = _yes(name, value)
        elif name.startswith(_LABEL):
            found.labels[name.removeprefix(_LABEL)] = value
        elif name in _QOS:
            inner, reading = _QOS[name]
            found.spec.setdefault("qos", {})[inner] = reading(name, value)
        elif name in _SPEC:
            where, reading = _SPEC[name]
            _place(found.spec, name, where, reading(name, value))
        elif not name.startswith(_DOCKERS_OWN) or "bridge." in name:
            raise unknown("option", name, NETWORK_OPTIONS)
    if found.mode and found.mode not in MODES:
        raise LocalError("invalid", "no such mode", "mode", found.mode, f"use one of {', '.join(MODES)}")
    return found


def endpoint_options(given: Mapping[str, Any] | None) -> EndpointOptions:
    """What is said of one container's interface.

    Raises:
        LocalError: invalid.
    """
    found = EndpointOptions()
    own = {name: value for name, value in (given or {}).items() if not name.startswith(_DOCKERS_OWN)}
    for name, value in _texts(own):
        if name == "name":
            found.name = _text(name, value)
        elif name.startswith(_LABEL):
            found.labels[name.removeprefix(_LABEL)] = value
        elif name in _QOS:
            inner, reading = _QOS[name]
            found.qos[inner] = reading(name, value)
        else:
            raise unknown("endpoint option", name, ENDPOINT_OPTIONS)
    return found


def pool_options(given: Mapping[str, Any] | None) -> PoolOptions:
    """What `docker network create --ipam-opt` says.

    Raises:
        LocalError: invalid.
    """
    found: dict[str, str] = {}
    for name, value in _texts(given):
        if name in POOL_OPTIONS:
            found[name] = _text(name, value)
        elif not name.startswith(_DOCKERS_OWN):
            raise unknown("IPAM option", name, POOL_OPTIONS)
    return PoolOptions(**found)


def unknown(what: str, name: str, known: Iterable[str]) -> LocalError:
    """A refusal that says what there is."""
    near = difflib.get_close_matches(name, known, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return LocalError("invalid", f"no such {what}", name, todo=f"{meant}there are {', '.join(known)}")


def _texts(given: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    rows = []
    for name, value in (given or {}).items():
        if not isinstance(value, str):
            raise LocalError("invalid", "the value is not a text", name, str(value), "write it as NAME=VALUE")
        rows.append((name, value))
    return rows


def _place(spec: dict[str, Any], name: str, where: str, value: Any) -> None:
    outer, dot, inner = where.partition(".")
    target, key = (spec.setdefault(outer, {}), inner) if dot else (spec, outer)
    if key in target and target[key] != value:
        raise LocalError("invalid", f"{where} is given twice", name, str(value), "keep one of them")
    target[key] = value
