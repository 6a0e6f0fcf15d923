"""Arguments of operations on the local socket, checked: a wrong one is told by its name, with what was found."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from agent.attachment import Attachment, Mapped, Place, default_name
from agent.local_errors import Refusal

__all__ = ["RUNTIMES", "Arguments", "mapped_of", "new_attachment", "range_of"]

RUNTIMES = ("docker", "cni", "netavark", "attach")
DEFAULT_TENANT = "default"
_PLACES = ("netns", "pid", "tap", "veth")
_MAPPING_FIELDS = {"protocol", "externalPort", "internalPort", "externalAddress", "internalAddress", "allowFrom"}
_MOST_TEXT = 4096
_MOST_MAPPINGS = 1024
_FIELDS = frozenset(("runtime", "id", "scope", "network", "tenant", "name", "interface", "addresses", "ranges", "mac",
                     "labels", "qos", "mappings", "queues", *_PLACES))


@dataclass(frozen=True, slots=True)
class Arguments:
    """Those of one operation."""

    op: str
    given: Mapping[str, Any]

    def only(self, *names: str) -> None:
        """Refuse what is none of these: a mistyped name must not be passed over."""
        for name in self.given:
            if name not in names and name != "op":
                raise Refusal("invalid", f"{self.op} has no such argument", name, "", f"use {', '.join(sorted(names))}")

    def text(self, name: str, default: str | None = None) -> str:
        """A text that is not empty, unless it may be left out."""
        value = self.given.get(name)
        if value is None:
            value = default
        if value is None:
            raise Refusal("invalid", f"{self.op} needs it", name, "nothing", f"add {name}")
        if not isinstance(value, str) or len(value) > _MOST_TEXT or (default is None and not value) or "\0" in value:
            raise Refusal("invalid", "is not a text" if value != "" else "is empty", name, _shown(value),
                          f"give a text of 1 to {_MOST_TEXT} characters")
        return value

    def runtime(self) -> str:
        """One of those that there are."""
        value = self.text("runtime")
        if value not in RUNTIMES:
            raise Refusal("invalid", "is no runtime", "runtime", value, f"use one of {', '.join(RUNTIMES)}")
        return value

    def number(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number within bounds."""
        value = self.given.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Refusal("invalid", "is not a number that fits", name, _shown(value), f"give {low} to {high}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty if it is left out."""
        value = self.given.get(name) or ()
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) and each for each in value):
            raise Refusal("invalid", "is not a list of texts", name, _shown(value), f'write {name}: ["..."]')
        return tuple(value)

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object; None if it is left out."""
        value = self.given.get(name)
        if value is not None and not isinstance(value, dict):
            raise Refusal("invalid", "is not an object", name, _shown(value), f"write {name}: {{...}}")
        return value


def new_attachment(arguments: Arguments) -> Attachment:
    """What `attach` asks for, under new uids.

    Raises:
        Refusal: an argument is wrong.
    """
    arguments.only(*_FIELDS)
    runtime, identity = arguments.runtime(), arguments.text("id")
    name = arguments.text("name", "") or default_name(runtime, identity)
    place = _place(arguments)
    labels = arguments.mapping("labels") or {}
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in labels.items()):
        raise Refusal("invalid", "is not an object of texts", "labels", _shown(labels), 'write {"key": "value"}')
    return Attachment(
        runtime=runtime,
        id=identity,
        uid=str(uuid.uuid4()),
        name=name,
        tenant=arguments.text("tenant", "") or DEFAULT_TENANT,
        network=arguments.text("network"),
        place=place,
        interface=arguments.text("interface", "") or "eth0",
        scope=arguments.text("scope", ""),
        addresses=_addresses(arguments),
        mac=arguments.text("mac", ""),
        labels=labels,
        qos=arguments.mapping("qos") or None,
        queues=arguments.number("queues", 1, 64, 1),
        mappings=mapped_of(name, arguments.given.get("mappings")),
        asked={key: value for key, value in arguments.given.items() if key in _FIELDS and value not in (None, [], {})},
    )


def mapped_of(name: str, given: Any, used: Sequence[Mapped] = ()) -> tuple[Mapped, ...]:
    """Mappings that are asked for, of the Endpoint `name`. Those among `used` that are the same stay as they are."""
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) > _MOST_MAPPINGS:
        raise Refusal("invalid", "is not a list of mappings", "mappings", _shown(given),
                      'write [{"protocol": "tcp", "externalPort": 8080, "internalPort": 80}]')
    left, names = list(used), {each.name for each in used}
    numbers = (f"{name}-{number}" for number in range(1, 2 * _MOST_MAPPINGS + len(names)))
    found = []
    for position, spec in enumerate(given):
        if not isinstance(spec, dict) or not spec.get("protocol"):
            raise Refusal("invalid", "is not a mapping", f"mappings[{position}]", _shown(spec),
                          "give protocol, externalPort and internalPort")
        for field in spec.keys() - _MAPPING_FIELDS:
            raise Refusal("invalid", "a mapping has no such field", f"mappings[{position}].{field}", "",
                          f"use {', '.join(sorted(_MAPPING_FIELDS))}")
        clean = {key: value for key, value in spec.items() if value is not None}
        same = next((each for each in left if dict(each.spec) == clean), None)
        if same is not None:
            left.remove(same)
            found.append(same)
        else:
            found.append(Mapped(next(each for each in numbers if each not in names), str(uuid.uuid4()), clean))
    return tuple(found)


def _place(arguments: Arguments) -> Place:
    given = [name for name in _PLACES if arguments.given.get(name)]
    if len(given) != 1:
        raise Refusal("invalid", "exactly one of netns, pid, tap and veth says where it is", given[1] if given else
                      "netns", " and ".join(given) or "none", "give one of them")
    match given[0]:
        case "netns":
            return Place(netns=arguments.text("netns"))
        case "pid":
            return Place(pid=arguments.number("pid", 1, 1 << 22))
        case "tap":
            return Place(tap=arguments.text("tap"))
    if arguments.given["veth"] is not True:
        raise Refusal("invalid", "is not true", "veth", _shown(arguments.given["veth"]), "write veth: true")
    return Place(handed=True)


def _addresses(arguments: Arguments) -> tuple[str, ...]:
    found: dict[int, str] = {}
    for position, text in enumerate(arguments.texts("addresses")):
        field = f"addresses[{position}]"
        try:
            address = ip_address(text.partition("/")[0])
        except ValueError:
            raise Refusal("invalid", "is not an address", field, text, "write one like 10.1.0.5") from None
        if address.version in found:
            raise Refusal("invalid", f"is the second IPv{address.version} address; an endpoint has one of each family",
                          field, text, "leave it out")
        found[address.version] = str(address)
    return tuple(found.values())


def range_of(text: str, field: str) -> tuple[int, int, int]:
    """Family, first and last address of a prefix or of first-last, as numbers."""
    try:
        if "-" in text:
            first, last = (ip_address(each.strip()) for each in text.split("-", 1))
            if first.version != last.version or int(first) > int(last):
                raise ValueError
            return first.version, int(first), int(last)
        prefix = ip_network(text, strict=False)
    except ValueError:
        raise Refusal("invalid", "is no range of addresses", field, text,
                      "write a prefix like 10.1.0.0/28, or 10.1.0.5-10.1.0.9") from None
    return prefix.version, int(prefix.network_address), int(prefix.broadcast_address)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
