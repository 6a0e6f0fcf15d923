"""The types of fields in documents: what a text, a number or a list may say by itself, and its normal form.

Addresses and prefixes are kept as RFC 5952 and the dotted quad write them, so that equal things are equal texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from controller.errors import suggestion

MAX_VNI = 2**24 - 1
MAX_INTERFACE_NAME = 15                     # IFNAMSIZ - 1
RATE_UNITS = {"bit": 1, "kbit": 1000, "mbit": 1000**2, "gbit": 1000**3}     # a second
SIZE_UNITS = {"b": 1, "kb": 1 << 10, "mb": 1 << 20}
_QUANTITY = re.compile(r"(-?\d{1,12}(?:\.\d{1,6})?) ?([a-z]+)")
PROTOCOL_NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "sctp": 132}
MODES = ("nat", "overlay", "transparent", "l2bridge", "l2tunnel", "private")


def wrong(message: str, todo: str = "", code: str = "invalid", *, field: str = "",
          found: Any = None) -> PydanticCustomError:
    """A refusal with its advice; `problem_of` takes it apart again.

    `field`: JSON name of the field below the value that is checked; `found`: what it has, if not that whole value.
    """
    return PydanticCustomError("sluice", "{text}", {"text": message, "todo": todo, "code": code, "field": field,
                                                    "value": found})


def name(value: str) -> str:
    """A name of ours, or a refusal."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", value):
        raise wrong(f"{value!r} is not a name",
                     "use 1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends")
    return value


def _peer(value: str) -> str:
    tenant, slash, own = value.rpartition("/")
    return f"{name(tenant)}/{name(own)}" if slash else name(value)


def _label(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,61}[A-Za-z0-9])?|", value):
        raise wrong(f"{value!r} is not a label key or value",
                     "use at most 63 letters, digits and '-_./', with a letter or digit at both ends")
    return value


def _label_key(value: str) -> str:
    if not value:
        raise wrong("a label key is empty", "give it a name")
    return _label(value)


def _prefix(value: str) -> str:
    if "/" not in value:
        one = "128" if ":" in value else "32"
        raise wrong(f"{value!r} has no prefix length", f"write for example {value}/{'64' if ':' in value else '24'} "
                    f"(one address: /{one})")
    family, example = ("IPv6", "fd00:1::/64") if ":" in value else ("IPv4", "10.1.0.0/24")
    address, _, length = value.partition("/")
    try:
        if "%" in value or not (length.isdecimal() or "." in length):
            raise ValueError
        loose = ip_network(value, strict=False)
        exact = ip_address(address) == loose.network_address
    except ValueError:
        raise wrong(f"{value!r} is not an {family} prefix", f"write it like {example}") from None
    if not exact:
        raise wrong(f"{value!r} has host bits set", f"write {loose}", "host_bits")
    return str(loose)


def _prefix_or_auto(value: str) -> str:
    return value if value == "auto" else _prefix(value)


def _address4(value: str) -> str:
    if ":" in value:
        raise wrong(f"{value!r} is IPv6", "write an IPv4 address like 10.1.0.5; IPv6 has its own field, if any",
                    "family")
    try:
        return str(IPv4Address(value))
    except AddressValueError:
        raise wrong(f"{value!r} is not an IPv4 address", "write it like 10.1.0.5") from None


def _address6(value: str) -> str:
    if ":" not in value and "." in value:
        raise wrong(f"{value!r} is IPv4", "write an IPv6 address like fd00:1::5; IPv4 belongs into address", "family")
    try:
        if "%" in value:
            raise AddressValueError
        return str(IPv6Address(value))
    except AddressValueError:
        raise wrong(f"{value!r} is not an IPv6 address", "write it like fd00:1::5") from None


def address(value: str) -> str:
    """An address of either family in normal form, or a refusal."""
    if ":" in value:
        return _address6(value)
    try:
        return str(IPv4Address(value))
    except AddressValueError:
        raise wrong(f"{value!r} is not an address", "write it like 10.1.0.5 or fd00:1::5") from None


def addresses(value: str) -> str:
    """A prefix, one address, or first-last, in normal form, or a refusal."""
    if "/" in value:
        return _prefix(value)
    first, dash, last = value.partition("-")
    if not dash:
        return address(value)
    first, last = address(first.strip()), address(last.strip())
    low, high = ip_address(first), ip_address(last)
    if low.version != high.version:
        raise wrong(f"{value!r} goes from IPv{low.version} to IPv{high.version}", "keep to one family", "family")
    if int(low) > int(high):
        raise wrong(f"range {value!r} ends before it starts", f"write {last}-{first}")
    return f"{first}-{last}"


def _mac(value: str) -> str:
    octets = value.lower().replace("-", ":")
    if not re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", octets):
        raise wrong(f"{value!r} is not a MAC address", "write it like 02:00:00:00:00:05, or leave it out")
    if int(octets[:2], 16) & 1 or octets == "00:00:00:00:00:00":
        raise wrong(f"{value!r} is not the MAC address of one interface (multicast, broadcast or zero)",
                     "use a unicast address such as 02:00:00:00:00:05, or leave it out")
    return octets


def _interface(value: str) -> str:
    if len(value) > MAX_INTERFACE_NAME:
        raise wrong(f"{value!r} has {len(value)} characters", f"use at most {MAX_INTERFACE_NAME}", "too_long")
    if not value or value in (".", "..") or re.search(r"[\s/:%]", value):
        raise wrong(f"{value!r} is not an interface name", "use letters, digits, '-', '_', '.', as in eth0")
    return value


_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def _domain(value: str) -> str:
    """As `inspection.names` wants them on the host, in normal form."""
    found = value.rstrip(".").lower()
    labels = found.removeprefix("*.").split(".")
    if len(found) > 253 or len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        raise wrong(f"{value!r} is not a domain name that a rule can have",
                     "write a full name like api.example.com, or *.example.com for all names below it; "
                     "international names in their xn-- form")
    return found


def _netns(value: str) -> str:
    if value in ("", ".", "..") or ("/" in value and not value.startswith("/")) or "\0" in value:
        raise wrong(f"{value!r} is not a network namespace",
                     "use a name under /run/netns, or an absolute path such as /proc/4711/ns/net")
    return value


def _auto_or(low: int, high: int, what: str) -> Any:
    def check(value: Any) -> int | Literal["auto"]:
        if value == "auto":
            return "auto"
        if type(value) is not int:
            raise wrong(f"{value!r} does not do for {what}", f"give a whole number from {low} to {high}, or auto")
        if not low <= value <= high:
            raise wrong(f"{value} is out of range for {what}", f"use {low} to {high}, or auto", "out_of_range")
        return value

    schema = {"anyOf": [{"type": "integer", "minimum": low, "maximum": high}, {"const": "auto"}]}
    return [PlainValidator(check), WithJsonSchema(schema)]


def _mapped_ports(what: str, auto: bool) -> Any:
    """A port from 1, or low-high as text; with `auto` that, too. One port is a number."""
    forms = f"give a whole number from 1 to 65535, a range such as '8000-8010'{', or auto' if auto else ''}"

    def check(value: Any) -> int | str:
        if auto and value == "auto":
            return "auto"
        found = re.fullmatch(r"(\d{1,9})-(\d{1,9})", value) if isinstance(value, str) else None
        if type(value) is not int and not found:
            raise wrong(f"{value!r} does not do for {what}", forms)
        low, high = (int(found[1]), int(found[2])) if found else (value, value)
        for port in (low, high):
            if not 1 <= port <= 65535:
                raise wrong(f"port {port} is out of range for {what}", "use 1 to 65535", "out_of_range")
        if low > high:
            raise wrong(f"range {value!r} ends before it starts", f"write '{high}-{low}'")
        return low if low == high else f"{low}-{high}"

    kinds: list[dict[str, Any]] = [{"type": "integer", "minimum": 1, "maximum": 65535},
                                   {"type": "string", "pattern": r"^\d+-\d+$"}]
    return [PlainValidator(check), WithJsonSchema({"anyOf": [*kinds, {"const": "auto"}] if auto else kinds})]


def _protocol(value: Any) -> int | str:
    if isinstance(value, str) and value.lower() in PROTOCOL_NUMBERS:
        return value.lower()
    if type(value) is int and 0 <= value <= 255:
        return value
    hint = suggestion(str(value), PROTOCOL_NUMBERS)
    raise wrong(f"{value!r} is not a protocol", f"{hint} (a number from 0 to 255 works too)")


def _ports(value: Any) -> int | str:
    text = str(value)
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    if type(value) not in (int, str) or not found:
        raise wrong(f"{value!r} is neither a port nor a range of ports", "write 80 or '8000-8100'")
    low, high = int(found[1]), int(found[2] or found[1])
    if not (0 <= low <= 65535 and 0 <= high <= 65535):
        raise wrong(f"{text!r} has a port out of range", "use 0 to 65535", "out_of_range")
    if low > high:
        raise wrong(f"range {text!r} ends before it starts", f"write '{high}-{low}'")
    return low if low == high else f"{low}-{high}"


def _mode(value: str) -> str:
    if value not in MODES:
        raise wrong(f"{value!r} is not a network mode", suggestion(value, MODES), "wrong_mode")
    return value


def _quantity(units: Mapping[str, int], low: int, high: int, what: str, example: str) -> Any:
    """A number with a unit, as text: kept as it was written, read by `bits_per_second` and `bytes_of`."""
    known = ", ".join(units)

    def check(value: Any) -> str:
        found = _QUANTITY.fullmatch(value.strip().lower()) if isinstance(value, str) else None
        if found is None or found[2] not in units:
            raise wrong(f"{value!r} is not {what}", f"write a number and one of {known}, as in {example}")
        number = float(found[1]) * units[found[2]]
        if number <= 0:
            raise wrong(f"{what} of {value} lets nothing through",
                        f"give more than 0, as in {example}, or leave it out", "out_of_range")
        if not low <= number <= high:
            raise wrong(f"{value} is out of range for {what}",
                        f"use {_shown(low, units)} to {_shown(high, units)}", "out_of_range")
        return f"{found[1]}{found[2]}"

    schema = {"type": "string", "pattern": rf"^[0-9.]+({'|'.join(units)})$", "examples": [example]}
    return [PlainValidator(check), WithJsonSchema(schema)]


def _shown(number: int, units: Mapping[str, int]) -> str:
    unit = max((each for each in units if number % units[each] == 0), key=lambda each: units[each])
    return f"{number // units[unit]}{unit}"


def _measured(text: str, units: Mapping[str, int]) -> int:
    found = _QUANTITY.fullmatch(text)
    assert found is not None, "checked when it was read"
    return int(float(found[1]) * units[found[2]])


def bits_per_second(rate: str | None) -> int:
    """Of `100mbit`; 0: none is given."""
    return _measured(rate, RATE_UNITS) if rate else 0


def bytes_of(size: str | None) -> int:
    """Of `256kb`; 0: none is given."""
    return _measured(size, SIZE_UNITS) if size else 0


Name = Annotated[str, AfterValidator(name)]
PeerText = Annotated[str, AfterValidator(_peer)]
LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(_label)]
PrefixText = Annotated[str, AfterValidator(_prefix)]
PrefixOrAuto = Annotated[str, AfterValidator(_prefix_or_auto)]
AddressText = Annotated[str, AfterValidator(address)]
Address4Text = Annotated[str, AfterValidator(_address4)]
Address6Text = Annotated[str, AfterValidator(_address6)]
AddressesText = Annotated[str, AfterValidator(addresses)]
MacText = Annotated[str, AfterValidator(_mac)]
InterfaceName = Annotated[str, AfterValidator(_interface)]
DomainText = Annotated[str, AfterValidator(_domain)]
NetnsText = Annotated[str, AfterValidator(_netns)]
ModeText = Annotated[str, AfterValidator(_mode), WithJsonSchema({"enum": list(MODES)})]
RateText = Annotated[str, *_quantity(RATE_UNITS, 8_000, 10**12, "a rate", "100mbit")]
SizeText = Annotated[str, *_quantity(SIZE_UNITS, 2 << 10, 1 << 30, "a size", "256kb")]
Port = Annotated[int, Field(ge=1, le=65535)]
Vlan = Annotated[int, Field(ge=1, le=4094)]
VniOrAuto = Annotated[int | str, *_auto_or(1, MAX_VNI, "a VNI")]
MtuOrAuto = Annotated[int | str, *_auto_or(576, 65535, "an MTU")]
ExternalPorts = Annotated[int | str, *_mapped_ports("an external port", auto=True)]
InternalPorts = Annotated[int | str, *_mapped_ports("an internal port", auto=False)]
ProtocolText = Annotated[int | str, PlainValidator(_protocol), WithJsonSchema(
    {"anyOf": [{"enum": list(PROTOCOL_NUMBERS)}, {"type": "integer", "minimum": 0, "maximum": 255}]})]
PortsText = Annotated[int | str, PlainValidator(_ports), WithJsonSchema(
    {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 65535}, {"type": "string"}],
     "examples": [80, "8000-8100"]})]
Labels = dict[LabelKey, LabelValue]


class Model(BaseModel):
    """Strict, frozen, camelCase, no unknown fields."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", alias_generator=to_camel,
                              serialize_by_alias=True, validate_by_name=False, validate_by_alias=True)


def port_range(ports: int | str) -> tuple[int, int]:
    """First and last port of 80 or '8000-8100'."""
    if isinstance(ports, int):
        return ports, ports
    low, _, high = ports.partition("-")
    return int(low), int(high)


def address_range(text: str) -> tuple[int, int, int]:
    """IP version, first and last address of a prefix, one address, or first-last."""
    if "/" in text:
        prefix = ip_network(text)
        return prefix.version, int(prefix.network_address), int(prefix.broadcast_address)
    first, _, last = text.partition("-")
    low = ip_address(first)
    return low.version, int(low), int(ip_address(last or first))


Prefix = IPv4Network | IPv6Network
