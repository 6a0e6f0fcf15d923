"""What an Endpoint may say: where it is attached, its addresses, what more it may send."""

from __future__ import annotations

from pydantic import Field, model_validator

from controller.qos_specs import QosSpec
from controller.texts import (
    Address4Text,
    Address6Text,
    InterfaceName,
    MacText,
    Model,
    Name,
    NetnsText,
    PrefixText,
    Vlan,
    wrong,
)

DEFAULT_INTERFACE = "eth0"
MAX_FORWARDS = 64
MAX_VLANS = 8                               # of one port, in the engine
MAX_QUEUES = 64                             # of a tap device
_PLACES = ("netns", "tap", "veth", "behind")


class EndpointSpec(Model):
    """An interface attached to a network: in a network namespace of a host, or behind a tap device of it, or handed
    to a container runtime, or behind another endpoint, or (on an external host) behind a VTEP that is not ours."""

    network: Name
    host: Name
    netns: NetnsText | None = Field(default=None, description="name under /run/netns, or an absolute path")
    tap: InterfaceName | None = Field(default=None, description="in place of netns: a tap device of the host")
    behind: Name | None = Field(
        default=None, description="in place of netns: an endpoint of the network and host by whose link it is reached")
    veth: InterfaceName | None = Field(
        default=None,
        description="in place of netns: the far end waits in the host's own namespace for a container runtime")
    interface: InterfaceName = Field(default=DEFAULT_INTERFACE, description="name in the namespace")
    queues: int = Field(default=1, ge=1, le=MAX_QUEUES, description="of a tap device")
    address: Address4Text | None = Field(default=None, description="default: the next free one of the subnets")
    address6: Address6Text | None = Field(default=None, description="default: the next free one of the subnets")
    mac: MacText | None = Field(default=None, description="default: 02: and a hash")
    dhcp: bool = Field(default=False, description="transparent only: its IPv4 address is that of its lease")
    forwards: tuple[PrefixText, ...] = Field(
        default=(), max_length=MAX_FORWARDS, description="it is a router: prefixes that it may send from, too")
    vlans: tuple[Vlan, ...] = Field(
        default=(), max_length=MAX_VLANS, description="transparent only: 802.1Q tags that it may send and get")
    qos: QosSpec | None = Field(default=None, description="comes before what its network says, field by field")

    @model_validator(mode="after")
    def _one_place(self) -> EndpointSpec:
        places = [(name, value) for name in _PLACES if (value := getattr(self, name)) is not None]
        if len(places) > 1:
            (one, first), (other, second) = places[:2]
            raise wrong(f"both {one} {first} and {other} {second}", "keep one of them", field=other, found=second)
        if self.netns is None and self.interface != DEFAULT_INTERFACE:
            where = f"{places[0][0]} {places[0][1]}, whose machine names it itself" if places else "no netns"
            raise wrong(f"interface {self.interface} with {where}", "leave interface out", field="interface",
                        found=self.interface)
        if self.queues > 1 and self.tap is None:
            raise wrong(f"{self.queues} queues without a tap device", "leave queues out, or use tap", field="queues",
                        found=self.queues)
        if self.dhcp and self.address is not None:
            raise wrong(f"both dhcp and address {self.address}", "keep one of them", field="address",
                        found=self.address)
        for name, values in (("vlans", self.vlans), ("forwards", self.forwards)):
            if len(set(values)) < len(values):
                twice = next(value for value in values if values.count(value) > 1)
                raise wrong(f"{name} has {twice} twice", "keep one of them", field=name, found=twice)
        if self.behind is not None:
            for name, value, given in (("mac", self.mac, self.mac is not None), ("dhcp", "true", self.dhcp),
                                       ("vlans", list(self.vlans), self.vlans), ("qos", "caps", self.qos is not None),
                                       ("forwards", list(self.forwards), self.forwards)):
                if given:
                    raise wrong(f"{name} of an endpoint behind {self.behind}, whose link and MAC it uses",
                                f"leave it out, or set it on {self.behind}", field=name, found=value)
        return self

    @property
    def place(self) -> tuple[str, str, str] | None:
        """Host, namespace (empty: the host's own) and name of the interface: what no two endpoints share. None: it has
        no link of its own."""
        if self.netns is None and self.tap is None and self.veth is None:
            return None
        return self.host, self.netns or "", self.tap or self.veth or self.interface


__all__ = ["DEFAULT_INTERFACE", "EndpointSpec"]
