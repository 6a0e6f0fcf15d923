"""What a Network may say of where its packets go: routes, the way to the world, broadcast."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from controller.errors import suggestion
from controller.texts import AddressText, Model, Name, PrefixText, name, wrong

EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}
MAX_RATE = 1_000_000                        # frames a second
MAX_BURST = 2**20


class ViaSpec(Model):
    """A next hop: one of the three."""

    endpoint: Name | None = Field(default=None, description="of the network; it must forward")
    host: Name | None = Field(default=None, description="leaves by this host's NAT")
    address: AddressText | None = Field(default=None, description="in a subnet of the network")

    @model_validator(mode="after")
    def _one(self) -> ViaSpec:
        given = [each for each in ("endpoint", "host", "address") if getattr(self, each) is not None]
        if len(given) != 1:
            raise wrong(f"names {' and '.join(given) or 'no next hop'}", "give one of endpoint, host and address",
                        "invalid" if given else "missing")
        return self


class RouteSpec(Model):
    """Where a prefix that is no subnet of the network is."""

    destination: PrefixText
    via: ViaSpec


class EgressHost(Model):
    """The world is behind this host."""

    host: Name


class BroadcastSpec(Model):
    """How many frames to all are let through on a host, by CPU."""

    rate: int = Field(ge=1, le=MAX_RATE, description="a second")
    burst: int = Field(ge=1, le=MAX_BURST, description="at once")


def _egress(value: Any) -> str | EgressHost:
    if isinstance(value, EgressHost):
        return value
    if isinstance(value, dict) and set(value) == {"host"} and isinstance(value["host"], str):
        return EgressHost(host=name(value["host"]))
    if not isinstance(value, str) or value not in ("none", "nat"):
        hint = suggestion(value, ("none", "nat")) if isinstance(value, str) else "use none, nat"
        raise wrong(f"{value!r} is not a way out", f"{hint}, or {{host: NAME}}")
    return value


def _broadcast(value: Any) -> str | BroadcastSpec:
    if isinstance(value, BroadcastSpec):
        return value
    if value == "off" or value is False:    # what YAML 1.1 makes of off
        return "off"
    if not isinstance(value, dict):
        raise wrong(f"{value!r} is not a limit of broadcast", "write {rate: 100, burst: 200}, or off")
    for field, most in (("rate", MAX_RATE), ("burst", MAX_BURST)):
        number = value.get(field)
        if type(number) is not int or not 1 <= number <= most:
            raise wrong(f"{field} of broadcast is {'missing' if number is None else number}",
                        f"use 1 to {most}, or off in place of the whole", "out_of_range" if number else "missing",
                        field=field, found="nothing" if number is None else number)
    unknown = next((each for each in value if each not in ("rate", "burst")), None)
    if unknown is not None:
        raise wrong(f"broadcast has no {unknown}", "use rate and burst", "unknown_field", field=unknown, found=unknown)
    return BroadcastSpec(rate=value["rate"], burst=value["burst"])


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Model) else value


_PLAIN = PlainSerializer(_plain)
Egress = Annotated[Literal["none", "nat"] | EgressHost, PlainValidator(_egress), _PLAIN, WithJsonSchema(
    {"anyOf": [{"enum": ["none", "nat"]}, EgressHost.model_json_schema()]})]
Broadcast = Annotated[Literal["off"] | BroadcastSpec, PlainValidator(_broadcast), _PLAIN, WithJsonSchema(
    {"anyOf": [{"const": "off"}, BroadcastSpec.model_json_schema()]})]


__all__ = ["EVERYTHING", "Broadcast", "BroadcastSpec", "Egress", "EgressHost", "RouteSpec", "ViaSpec"]
