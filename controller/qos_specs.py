"""Bandwidth, marks and counts of an endpoint, as a Network (for all of its endpoints) or an Endpoint says them."""

from __future__ import annotations

from pydantic import Field, model_validator

from controller.texts import Model, RateText, SizeText, bits_per_second, bytes_of, wrong
from southbound.messages import QosGoal

MAX_PACKETS = 2**31
MAX_CONNECTIONS = 2**31 - 1
SHORTEST_BURST_BYTES = 64 << 10             # an offload makes packets of that size, which must fit into the bucket
BURST_S = 0.01                              # of the rate: timers are that late on a busy machine


class CapSpec(Model):
    """A bandwidth cap: a token bucket over frames."""

    rate: RateText
    burst: SizeText | None = Field(default=None, description="default: 10 ms of the rate, at least 64kb")

    @property
    def burst_bytes(self) -> int:
        """What is given, or what does for the rate."""
        return bytes_of(self.burst) or max(SHORTEST_BURST_BYTES, int(bits_per_second(self.rate) / 8 * BURST_S))


class PacketRateSpec(Model):
    """Packets a second."""

    egress: int | None = Field(default=None, ge=1, le=MAX_PACKETS)
    ingress: int | None = Field(default=None, ge=1, le=MAX_PACKETS)


class QosSpec(Model):
    """What an endpoint may use. Egress is what it sends."""

    egress: CapSpec | None = None
    ingress: CapSpec | None = None
    minimum: RateText | None = Field(default=None, description="guaranteed of the host's uplinkRate for what it sends")
    dscp: int | None = Field(default=None, ge=0, le=63, description="mark what it sends")
    packet_rate: PacketRateSpec | None = None
    connections: int | None = Field(default=None, ge=1, le=MAX_CONNECTIONS, description="at a time")
    metering: bool | None = Field(default=None, description="count packets and bytes by direction and rule")

    @model_validator(mode="after")
    def _fits(self) -> QosSpec:
        if self.minimum and self.egress and bits_per_second(self.minimum) > bits_per_second(self.egress.rate):
            raise wrong(f"minimum {self.minimum} is more than the cap of {self.egress.rate}",
                        "lower it, or raise egress.rate", "out_of_range", field="minimum", found=self.minimum)
        return self

    def goal(self) -> QosGoal:
        """As hosts are told it."""
        return QosGoal(
            egress_bps=bits_per_second(self.egress.rate) if self.egress else 0,
            egress_burst_bytes=self.egress.burst_bytes if self.egress else 0,
            ingress_bps=bits_per_second(self.ingress.rate) if self.ingress else 0,
            ingress_burst_bytes=self.ingress.burst_bytes if self.ingress else 0,
            minimum_bps=bits_per_second(self.minimum), dscp=self.dscp,
            packets_out=(self.packet_rate.egress if self.packet_rate else None) or 0,
            packets_in=(self.packet_rate.ingress if self.packet_rate else None) or 0,
            connections=self.connections or 0, meter=bool(self.metering))


def qos_of(own: QosSpec | None, network: QosSpec | None) -> QosGoal:
    """What holds for an endpoint: its own where it says something, else its network's."""
    goal = own.goal() if own is not None else QosGoal()
    if network is None:
        return goal
    default = network.goal()
    if own is None:
        return default
    return QosGoal(
        *((goal.egress_bps, goal.egress_burst_bytes) if own.egress else
          (default.egress_bps, default.egress_burst_bytes)),
        *((goal.ingress_bps, goal.ingress_burst_bytes) if own.ingress else
          (default.ingress_bps, default.ingress_burst_bytes)),
        goal.minimum_bps or default.minimum_bps, default.dscp if own.dscp is None else own.dscp,
        goal.packets_out or default.packets_out, goal.packets_in or default.packets_in,
        goal.connections or default.connections, default.meter if own.metering is None else own.metering)


__all__ = ["QosSpec", "qos_of"]
