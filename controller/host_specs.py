"""What a Host may say of itself."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from controller.texts import InterfaceName, Model, Name, Port, PrefixText, RateText, address, wrong

MAX_PREFIXES = 1024                         # of one list
MAX_UNDERLAYS = 8
MAX_TENANTS = 64
AUTO_PREFIXES = ("192.168.0.0/16", "172.16.0.0/12", "10.0.0.0/8")
DEFAULT_VXLAN_PORT = 4789                   # RFC 7348


def _underlays(value: Any) -> str | tuple[str, ...]:
    """One address as text, several as a tuple."""
    texts = value if isinstance(value, list | tuple) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise wrong(f"{value!r} is not an address", "write one like 192.0.2.1, or a list of up to "
                    f"{MAX_UNDERLAYS} of them")
    found = tuple(address(text) for text in texts)
    if len(found) > MAX_UNDERLAYS:
        raise wrong(f"{len(found)} underlay addresses", f"use at most {MAX_UNDERLAYS}", "out_of_range")
    if len(set(found)) < len(found):
        twice = next(text for text in found if found.count(text) > 1)
        raise wrong(f"names {twice} twice", "keep one of them", found=twice)
    return found[0] if len(found) == 1 else found


def _plain(value: str | tuple[str, ...]) -> str | list[str]:
    return value if isinstance(value, str) else list(value)


Underlays = Annotated[str | tuple[str, ...], PlainValidator(_underlays), PlainSerializer(_plain), WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": MAX_UNDERLAYS}]})]


class RuntimesSpec(Model):
    """What the container runtimes of a host may do."""

    tenants: tuple[Name, ...] = Field(
        default=("default",), max_length=MAX_TENANTS, description="in which they may attach, map ports, make networks")
    networks: bool = Field(default=True, description="whether they may make networks, beside using those there are")

    @model_validator(mode="after")
    def _once(self) -> RuntimesSpec:
        if len(set(self.tenants)) < len(self.tenants):
            twice = next(each for each in self.tenants if self.tenants.count(each) > 1)
            raise wrong(f"tenants names {twice} twice", "keep one of them", field="tenants", found=twice)
        return self


class HostSpec(Model):
    """What Sluice may use of a host."""

    underlay: Underlays | None = Field(
        default=None, description="VTEP addresses, IPv4 or IPv6, one or a list; without: no overlay")
    external: bool = Field(default=False, description="a VTEP that is not ours: no agent runs there")
    vxlan_port: Port | None = Field(
        default=None, description=f"UDP; all hosts have the same. Default: what another says, or {DEFAULT_VXLAN_PORT}")
    uplink: InterfaceName | None = Field(
        default=None, description="interface for NAT; default: that of the default route")
    uplink_rate: RateText | None = Field(
        default=None, description="what the uplink carries; needed for guaranteed minimums")
    nat_ports: tuple[Port, Port] = Field(
        default=(20000, 32767), description="source ports that NAT may use, inclusive")
    mapping_ports: tuple[Port, Port] = Field(
        default=(10000, 19999), description="where `externalPort: auto` takes from, inclusive; not from natPorts")
    avoid_prefixes: tuple[PrefixText, ...] = Field(
        default=(), max_length=MAX_PREFIXES,
        description="prefixes that nat networks of this host must not overlap, whatever its routes say now")
    auto_prefixes: tuple[PrefixText, ...] = Field(
        default=(), max_length=MAX_PREFIXES,
        description=f"where `prefix: auto` takes from, in order; default: {', '.join(AUTO_PREFIXES)}")
    runtimes: RuntimesSpec = RuntimesSpec()

    @model_validator(mode="after")
    def _range(self) -> HostSpec:
        low, high = self.nat_ports
        if not 1024 <= low <= high:
            raise wrong(f"natPorts [{low}, {high}] is not a range of unprivileged ports",
                        "give [low, high] with 1024 <= low <= high <= 65535", field="natPorts",
                        found=self.nat_ports)
        low, high = self.mapping_ports
        if low > high:
            raise wrong(f"mappingPorts [{low}, {high}] ends before it starts", f"write [{high}, {low}]",
                        field="mappingPorts", found=self.mapping_ports)
        if self.external and self.underlay is None:
            raise wrong("an external host is nothing but its VTEP address", "add underlay", "missing",
                        field="underlay", found="nothing")
        return self

    @property
    def underlays(self) -> tuple[str, ...]:
        """The VTEP addresses in the order declared."""
        if self.underlay is None:
            return ()
        return (self.underlay,) if isinstance(self.underlay, str) else self.underlay


__all__ = ["AUTO_PREFIXES", "DEFAULT_VXLAN_PORT", "MAX_PREFIXES", "MAX_UNDERLAYS", "HostSpec", "RuntimesSpec"]
