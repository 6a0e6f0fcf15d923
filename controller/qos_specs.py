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
    packet_rate: PacketRateSpec = PacketRateSpec()
    connections: int | None = Field(default=None, ge=1, le=MAX_CONNECTIONS, description="at a time")
    metering: bool | None = Field(default=None, description="count packets and bytes by direction and rule")

    @model_validator(mode="after")
    def _fits(self) -> QosSpec:
        if self.minimum and self.egress and bits_per_second(self.minimum) > bits_per_second(self.egress.rate):
            raise wrong(f"minimum {self.minimum} is more than the cap of {self.egress.rate}",
                        "lower it, or raise egress.rate", "out_of_range", field="minimum", found=self.minimum)
        return self

    def over(self, default: QosSpec | None) -> QosSpec:
        """This one where it says something, else the default."""
        if default is None:
            return self
        return QosSpec.model_construct(
            egress=self.egress or default.egress, ingress=self.ingress or default.ingress,
            minimum=self.minimum or default.minimum, dscp=default.dscp if self.dscp is None else self.dscp,
            packet_rate=PacketRateSpec.model_construct(
                egress=self.packet_rate.egress or default.packet_rate.egress,
                ingress=self.packet_rate.ingress or default.packet_rate.ingress),
            connections=self.connections or default.connections,
            metering=default.metering if self.metering is None else self.metering)

    def goal(self) -> QosGoal:
        """As hosts are told it."""
        return QosGoal(
            egress_bps=bits_per_second(self.egress.rate) if self.egress else 0,
            egress_burst_bytes=self.egress.burst_bytes if self.egress else 0,
            ingress_bps=bits_per_second(self.ingress.rate) if self.ingress else 0,
            ingress_burst_bytes=self.ingress.burst_bytes if self.ingress else 0,
            minimum_bps=bits_per_second(self.minimum), dscp=self.dscp, packets_out=self.packet_rate.egress or 0,
            packets_in=self.packet_rate.ingress or 0, connections=self.connections or 0, meter=bool(self.metering))


__all__ = ["QosSpec"]
