"""Subnets as they are in use: prefix and gateway, which addresses of them are given out, and what a text means there.

After a renumbering the prefix in use is another than the declared one. Documents go on speaking of the declared one:
an address of it means the one with the same offset in the prefix in use. Addresses in use are understood as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from controller import ipam
from controller.ipam import Prefix, Range
from controller.network_specs import NetworkSpec, SubnetSpec
from controller.state import Ref, State, Stored
from controller.texts import address_range
from southbound.messages import Subnet


@dataclass(frozen=True, slots=True)
class InUse:
    """One subnet of a network."""

    spec: SubnetSpec
    prefix: Prefix
    gateway: str

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.prefix.version

    @property
    def shift(self) -> int:
        """From an address of the declared prefix to the one in use."""
        declared = self.spec.prefix
        return 0 if declared == "auto" else int(self.prefix.network_address) - int(ip_network(declared).network_address)

    def ring(self) -> list[Range]:
        """What is given out automatically."""
        bounds = ipam.usable(self.prefix)
        parts = ipam.within(self._ranges(self.spec.allocate), bounds) if self.spec.allocate else [bounds]
        gateway = int(ip_address(self.gateway))
        return ipam.without(parts, [*self._ranges(self.spec.exclude), (gateway, gateway)])

    def excludes(self, address: str) -> bool:
        """Whether no endpoint may have an address (in use), neither automatically nor by hand."""
        number = int(ip_address(address))
        return any(low <= number <= high for low, high in self._ranges(self.spec.exclude))

    def moved(self, prefix: Prefix) -> InUse:
        """The same subnet in another prefix of its length; the gateway keeps its offset."""
        offset = int(ip_address(self.gateway)) - int(self.prefix.network_address)
        return InUse(self.spec, prefix, ipam.text_of(int(prefix.network_address) + offset, prefix.version))

    def _ranges(self, texts: Iterable[str]) -> list[Range]:
        return [(low + self.shift, high + self.shift) for _, low, high in map(address_range, texts)]


def subnets_of(network: Stored[NetworkSpec]) -> tuple[InUse, ...]:
    """The subnets of a network, in the order declared."""
    return tuple(InUse(spec, ip_network(used.prefix), used.gateway)
                 for spec, used in zip(network.spec.subnets, network.assigned.subnets, strict=True))


def declared(spec: SubnetSpec) -> Subnet:
    """A subnet that is not auto, as it is in use at first."""
    return Subnet(spec.prefix, spec.gateway or ipam.default_gateway(ip_network(spec.prefix)))


def kept(was: Sequence[SubnetSpec], now: Sequence[SubnetSpec]) -> list[int | None]:
    """For each subnet declared now the place of the same one before; None: it is new."""
    left = list(range(len(was)))
    found: list[int | None] = []
    for spec in now:
        place = next((i for i in left if (was[i].prefix, was[i].length) == (spec.prefix, spec.length)), None)
        if place is not None:
            left.remove(place)
        found.append(place)
    return found


def meant(subnets: Iterable[InUse], text: str) -> tuple[InUse, str] | None:
    """Subnet and address in use that an address of a document means; None: it is outside of all."""
    address = ip_address(text)
    own = [subnet for subnet in subnets if subnet.version == address.version]
    for subnet in own:
        if subnet.spec.prefix != "auto" and address in ip_network(subnet.spec.prefix):
            return subnet, ipam.text_of(int(address) + subnet.shift, address.version)
    return next(((subnet, text) for subnet in own if address in subnet.prefix), None)


def users(subnet: InUse, network: Ref, state: State) -> list[Ref]:
    """The endpoints that have an address in a subnet."""
    return sorted(e.ref for e in state.endpoints_of(network)
                  if any(ip_address(address) in subnet.prefix for address in e.assigned.addresses))


__all__ = ["InUse", "declared", "kept", "meant", "subnets_of", "users"]
