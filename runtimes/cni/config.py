"""The network configuration on standard input: what the person wrote, and what the runtime added.

The runtime's words win over the person's: a capability in `runtimeConfig`, then `args.cni`, then CNI_ARGS, then the
fields of the configuration.
"""

from __future__ import annotations

from runtimes.cni.capabilities import addresses_of, aliases_of, bandwidth_of, dns_of, mappings_of, ranges_of
from runtimes.cni.errors import DECODING_FAILURE, INCOMPATIBLE_VERSION, INVALID_CONFIG, UNSUPPORTED_FIELD, CniError
from runtimes.cni.invocation import Invocation, interface_fault, is_identifier
from runtimes.cni.results import VERSIONS
from runtimes.lean import TYPE_CHECKING, loads

if TYPE_CHECKING:
    from typing import Any

OURS = {"network": str, "tenant": str, "interface": str, "labels": dict, "podLabels": bool, "qos": dict, "spec": dict,
        "socket": str}
THEIRS = {"cniVersion", "cniVersions", "name", "type", "args", "capabilities", "runtimeConfig", "prevResult", "dns",
          "disableCheck", "disableGC", "loadOnlyInlinedPlugins"}
CAPABILITIES = ("portMappings", "bandwidth", "ips", "mac", "ipRanges", "dns", "aliases")
_WORDS: dict[type, str] = {str: "a text", dict: "an object", bool: "true or false", list: "a list"}
_POD_LABELS = {"K8S_POD_NAME": "io.kubernetes.pod.name", "K8S_POD_NAMESPACE": "io.kubernetes.pod.namespace",
               "K8S_POD_UID": "io.kubernetes.pod.uid"}
_MAX_LABEL = 63
_SHORT_ID, _POD_NAME = 12, 30               # characters of an endpoint's name
_HASH = 32                                  # a container id of so many hexadecimal digits is unique by its first ones


class Config:
    """One configuration. `raw` is all of it, `given` what the runtime added by capability."""

    __slots__ = ("arguments", "given", "name", "raw", "version")

    def __init__(self, raw: dict[str, Any], version: str) -> None:
        self.raw, self.version = raw, version
        self.name: str = raw["name"]
        self.given: dict[str, Any] = raw.get("runtimeConfig") or {}
        self.arguments: dict[str, Any] = (raw.get("args") or {}).get("cni") or {}

    @property
    def socket(self) -> str:
        """The agent's, if it is not at its usual place."""
        return str(self.raw.get("socket", ""))

    @property
    def network(self) -> str:
        """The Sluice network: that of the configuration's name, if it says no other."""
        return str(self.raw.get("network", self.name))

    @property
    def scope(self) -> str:
        """What one GC is about: this configuration, and if it makes an interface of another name, that."""
        interface = self.raw.get("interface", "")
        return f"{self.name}/{interface}" if interface else self.name

    def interface(self, named: str) -> str:
        """The interface's name: CNI_IFNAME, if the configuration has none of its own."""
        return str(self.raw.get("interface", named))

    def attachment(self, container: str, named: str) -> str:
        """The id by which the agent knows it: the spec's key, and the interface if it is another than CNI_IFNAME."""
        own = self.raw.get("interface", "")
        return f"{self.name}/{container}/{named}" + (f"/{own}" if own else "")

    def valid(self) -> list[str]:
        """Ids that a GC leaves alone.

        Raises:
            CniError: INVALID_CONFIG. A list that cannot be read must not release anything.
        """
        key = "cni.dev/valid-attachments"
        found = self.raw.get(key)
        if not isinstance(found, list):
            raise _wrong(key, "must be a list", found, "the runtime gives it with GC")
        ids = []
        for each in found:
            container, named = (each.get("containerID"), each.get("ifname")) if isinstance(each, dict) else (None, None)
            if not isinstance(container, str) or not isinstance(named, str):
                raise _wrong(key, "each must have containerID and ifname", each, "the runtime gives them with GC")
            ids.append(self.attachment(container, named))
        return ids

    def request(self, call: Invocation) -> dict[str, Any]:
        """Arguments of the agent's `attach`.

        Raises:
            CniError: INVALID_CONFIG or UNSUPPORTED_FIELD.
        """
        interface = self.interface(call.interface)
        mac = self.given.get("mac") or self.arguments.get("mac") or call.arguments.get("MAC")
        if mac is not None and not isinstance(mac, str):
            raise _wrong("runtimeConfig.mac", "must be a text", mac, "write it like 02:00:00:00:00:05")
        return {
            "runtime": "cni", "id": self.attachment(call.container, call.interface), "scope": self.scope,
            "network": call.arguments.get("SLUICE_NETWORK", self.network),
            "tenant": call.arguments.get("SLUICE_TENANT", self.raw.get("tenant")),
            "netns": call.netns, "interface": interface, "name": self._name(call, interface),
            "addresses": addresses_of(self.given, self.arguments, call.arguments) or None,
            "ranges": ranges_of(self.given) or None, "mac": mac or None,
            "labels": self._labels(call) or None, "qos": self._qos(), "mappings": mappings_of(self.given) or None,
        }

    def dns(self) -> dict[str, Any]:
        """As a result has it."""
        return dns_of(self.given) or self.raw.get("dns") or {}

    def _qos(self) -> dict[str, Any] | None:
        return {**self.raw.get("qos", {}), **bandwidth_of(self.given)} or None

    def _name(self, call: Invocation, interface: str) -> str | None:
        """Pod and short id, as the runtime's own listing has them; None: the agent's choice."""
        given = call.arguments.get("SLUICE_NAME", "")
        pod = _plain(call.arguments.get("K8S_POD_NAME", ""))[:_POD_NAME].strip("-")
        if given or not pod or len(call.container) < _HASH or call.container.strip("0123456789abcdef"):
            return given or None
        name = f"{pod}-{call.container[:_SHORT_ID]}"
        return name if interface == "eth0" else f"{name}-{_plain(interface)}".strip("-")

    def _labels(self, call: Invocation) -> dict[str, str]:
        labels: dict[str, str] = dict(self.raw.get("labels", {}))
        if self.raw.get("podLabels"):
            labels.update({label: value for name, label in _POD_LABELS.items()
                           if (value := call.arguments.get(name)) and len(value) <= _MAX_LABEL})
        for each in self.arguments.get("labels") or ():
            if not isinstance(each, dict) or not isinstance(each.get("key"), str):
                raise _wrong("args.cni.labels", "each must have key and value", each,
                             'write {"key": "app", "value": "web"}')
            labels[each["key"]] = str(each.get("value", ""))
        # Podman's first alias is the short id: no label for that, as an endpoint without any can do with a lease.
        labels.update({f"alias/{alias}": "true" for alias in aliases_of(self.given)
                       if not call.container.startswith(alias)})
        return labels


def version_of(data: bytes) -> str:
    """The version to answer in: what the configuration says if it is one of ours, else our newest."""
    try:
        found = loads(data)["cniVersion"]
    except (ValueError, TypeError, KeyError):
        return VERSIONS[-1]
    return found if found in VERSIONS else VERSIONS[-1]


def decode(data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CniError: DECODING_FAILURE
    """
    try:
        raw = loads(data)
    except ValueError as error:
        raise CniError(DECODING_FAILURE, f"network configuration: no JSON: {error}",
                       "the runtime passes it on standard input; see the file it made it from") from None
    if not isinstance(raw, dict):
        raise CniError(DECODING_FAILURE, f"network configuration: no JSON object (found: {_shown(raw)})",
                       "the runtime passes it on standard input; see the file it made it from")
    return raw


def parse_config(data: bytes, lenient: bool) -> Config:
    """The configuration. `lenient`: only what takes something away needs is looked at, so that it works whatever
    was changed since.

    Raises:
        CniError: DECODING_FAILURE, INCOMPATIBLE_VERSION, INVALID_CONFIG, UNSUPPORTED_FIELD.
    """
    raw = decode(data)
    version = raw.get("cniVersion", "")
    if version not in VERSIONS:
        raise CniError(INCOMPATIBLE_VERSION, f"cniVersion: not one that sluice-cni speaks (found: {_shown(version)})",
                       f"use one of {', '.join(VERSIONS)}")
    name = raw.get("name")
    if not isinstance(name, str) or not is_identifier(name):
        raise _wrong("name", "must be letters, digits, '_', '.', '-', beginning with a letter or digit", name,
                     "name the configuration")
    for key, value in raw.items():
        if lenient or key.startswith("cni.dev/") or key in THEIRS:
            continue
        kind = OURS.get(key)
        if kind is None:
            raise CniError(UNSUPPORTED_FIELD, f"{key}: no field of sluice-cni (found: {key}: {_shown(value)})",
                           f"remove it; there are {', '.join(OURS)}")
        if not isinstance(value, kind):
            raise _wrong(key, f"must be {_WORDS[kind]}", value, "see docs/runtimes.md")
    for key in ("args", "runtimeConfig", "dns", "prevResult"):
        if raw.get(key) is not None and not isinstance(raw[key], dict):
            raise _wrong(key, "must be an object", raw[key], "see docs/runtimes.md")
    if not isinstance((raw.get("args") or {}).get("cni", {}), dict):
        raise _wrong("args.cni", "must be an object", raw["args"]["cni"], "see docs/runtimes.md")
    if not lenient:
        _check_given(raw)
    return Config(raw, version)


def _check_given(raw: dict[str, Any]) -> None:
    own = raw.get("interface", "x")
    fault = interface_fault(own) or ("" if own else "must not be empty")
    if fault:
        raise _wrong("interface", fault, own, "leave it out: then it is CNI_IFNAME")
    for key, value in (raw.get("labels") or {}).items():
        if not isinstance(value, str):
            raise _wrong(f"labels.{key}", "must be a text", value, "put it into quotes")
    for key, value in (raw.get("runtimeConfig") or {}).items():
        if key not in CAPABILITIES:
            raise CniError(UNSUPPORTED_FIELD, f"runtimeConfig.{key}: no capability of sluice-cni "
                           f"(found: {key}: {_shown(value)})",
                           f"remove it from `capabilities`; there are {', '.join(CAPABILITIES)}")


def _plain(text: str) -> str:
    return "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in text.lower()).strip("-")


def _wrong(field: str, fault: str, found: object, todo: str) -> CniError:
    return CniError(INVALID_CONFIG, f"{field}: {fault} (found: {_shown(found)})", todo)


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


__all__ = ["CAPABILITIES", "Config", "decode", "parse_config", "version_of"]
