"""What a StaticMapping may say: a port, a range of ports, or an address that leads to an endpoint."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Literal

from pydantic import Field, model_validator

from controller.texts import (
    AddressText,
    ExternalPorts,
    InternalPorts,
    Model,
    Name,
    PrefixText,
    port_range,
    wrong,
)

ANY_ADDRESSES = ("0.0.0.0", "::")
EVERYONE = ("0.0.0.0/0", "::/0")
MAX_SOURCES = 1024


class StaticMappingSpec(Model):
    """Ports of the host's own addresses, or a whole address, that lead to an endpoint of a nat network.

    With `any` all of one external address goes to the endpoint, whatever the protocol, and there are no ports. With
    `icmp` the ports are identifiers of echo requests.
    """

    network: Name
    endpoint: Name
    protocol: Literal["tcp", "udp", "sctp", "icmp", "any"]
    external_port: ExternalPorts | None = Field(
        default=None, description="80, '8000-8010', or auto: from mappingPorts of the host, shown in status")
    internal_port: InternalPorts | None = Field(
        default=None, description="as many as external ones; default: the same")
    external_address: AddressText = Field(
        default="0.0.0.0", description="0.0.0.0 (or ::): every IPv4 (or IPv6) address of the uplink")
    internal_address: AddressText | None = Field(
        default=None, description="default: the endpoint's, of the family of externalAddress")
    allow_from: tuple[PrefixText, ...] = Field(
        default=EVERYONE, min_length=1, max_length=MAX_SOURCES, description="who may use it; policies come before")

    @model_validator(mode="after")
    def _ports(self) -> StaticMappingSpec:
        if self.protocol == "any":
            self._without_ports()
        elif self.external_port is None:
            raise wrong(f"protocol {self.protocol} without externalPort", "add externalPort", "missing",
                        field="externalPort", found="nothing")
        elif self.external_port == "auto":
            if self.internal_port is None:
                raise wrong("externalPort auto without internalPort", "add internalPort", "missing",
                            field="internalPort", found="nothing")
            if self.protocol == "sctp":
                raise wrong("externalPort auto with sctp, whose ports are not translated",
                            "give the endpoint's own port as externalPort", field="externalPort", found="auto")
        elif self.internal_port is not None:
            outer, inner = port_range(self.external_port), port_range(self.internal_port)
            if outer[1] - outer[0] != inner[1] - inner[0]:
                raise wrong(f"externalPort {self.external_port} are {outer[1] - outer[0] + 1} ports and internalPort "
                            f"{self.internal_port} {inner[1] - inner[0] + 1}", "give ranges of equal size",
                            field="internalPort", found=self.internal_port)
            if self.protocol == "sctp" and outer != inner:
                raise wrong(f"sctp from externalPort {self.external_port} to internalPort {self.internal_port}: its "
                            "ports are not translated", "give the same port twice, or leave internalPort out",
                            field="internalPort", found=self.internal_port)
        if not any((":" in source) == (self.version == 6) for source in self.allow_from):
            raise wrong(f"allowFrom has no IPv{self.version} prefix and externalAddress {self.external_address} is IPv"
                        f"{self.version}", f"add an IPv{self.version} prefix", "family",
                        field="allowFrom", found=self.allow_from)
        if self.internal_address and ip_address(self.internal_address).version != self.version:
            raise wrong(f"externalAddress {self.external_address} and internalAddress {self.internal_address} are of "
                        "different families", "give both of one", "family", field="internalAddress",
                        found=self.internal_address)
        return self

    def _without_ports(self) -> None:
        if self.external_port is not None or self.internal_port is not None:
            raise wrong("protocol any with ports; it maps a whole address",
                        "leave externalPort and internalPort out, or name a protocol",
                        field="internalPort" if self.external_port is None else "externalPort",
                        found=self.internal_port if self.external_port is None else self.external_port)
        if self.external_address in ANY_ADDRESSES:
            raise wrong(f"protocol any with externalAddress {self.external_address}",
                        "name one address of the host that nothing else uses",
                        field="externalAddress", found=self.external_address)

    @property
    def version(self) -> Literal[4, 6]:
        """The family of both sides."""
        return 6 if ":" in self.external_address else 4

    @property
    def size(self) -> int:
        """How many ports it has; of `any` one, numbered 0."""
        ports = self.external_port if isinstance(self.external_port, int | str) and self.external_port != "auto" \
            else self.internal_port
        if ports is None:
            return 1
        low, high = port_range(ports)
        return high - low + 1

    def externals(self, first: int) -> tuple[int, int]:
        """First and last external port when the first one is known; of `any` 0 and 0."""
        return first, first + self.size - 1

    def internal(self, first: int) -> int:
        """The internal port of the first external one."""
        return first if self.internal_port is None else port_range(self.internal_port)[0]


__all__ = ["ANY_ADDRESSES", "EVERYONE", "StaticMappingSpec"]
