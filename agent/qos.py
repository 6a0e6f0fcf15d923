"""Limits of endpoints as the engine and the queues of links are told of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from policy.contribution import ObjectError
from southbound.messages import HostGoal, PortGoal, QosGoal
from vfp.limits import MAX_CONNECTIONS
from vfp.model import Rate

__all__ = ["SHAPER_LINKS", "Shape", "check_qos", "not_guaranteed", "packet_rate", "shapes_of"]

SHAPER_LINKS = ("slq0", "slq1")             # queues are on the first, the second leads back into the engine

_MOST_PER_SECOND, _MOST_BURST = 1 << 31, 1 << 20
_BURST_PART = 10                            # of a second: what may come at once


@dataclass(frozen=True, slots=True)
class Shape:
    """What the queues do for one port. 0: no limit, and no guarantee.

    What the port sends passes the class `1:PORT` of HTB on `slq0` if `shaped`; what it gets passes a queue on its own
    link if `queued`. Rates are bits a second of frames.
    """

    port: int                               # model.Port.id
    host_interface: str
    egress_bps: int = 0
    egress_burst_bytes: int = 0
    minimum_bps: int = 0
    ingress_bps: int = 0
    ingress_burst_bytes: int = 0
    shaped: bool = False
    queued: bool = False


def shapes_of(host: HostGoal, ports: Iterable[tuple[int, str, PortGoal]]) -> dict[int, Shape]:
    """By model.Port.id, of those that have any.

    As soon as one port has a guaranteed minimum all are shaped: a guarantee holds only against who waits in the same
    queue.

    Args:
        ports: engine's id, link and goal of each.
    """
    ports = tuple(ports)
    guaranteed = host.uplink_bps > 0 and any(goal.qos.minimum_bps for _, _, goal in ports)
    found: dict[int, Shape] = {}
    for number, link, goal in ports:
        qos = goal.qos
        shaped, queued = guaranteed or qos.egress_bps > 0, qos.ingress_bps > 0
        if shaped or queued:
            found[number] = Shape(
                number, link, qos.egress_bps, qos.egress_burst_bytes, qos.minimum_bps if guaranteed else 0,
                qos.ingress_bps, qos.ingress_burst_bytes, shaped, queued)
    return found


def check_qos(qos: QosGoal, host: HostGoal) -> None:
    """Refuse what neither queues nor engine could keep.

    Raises:
        ObjectError: a limit is negative, or a minimum is larger than its cap or the uplink.
    """
    for name, value in (
        ("egress.rate", qos.egress_bps), ("egress.burst", qos.egress_burst_bytes), ("ingress.rate", qos.ingress_bps),
        ("ingress.burst", qos.ingress_burst_bytes), ("minimum", qos.minimum_bps),
        ("packetRate.egress", qos.packets_out), ("packetRate.ingress", qos.packets_in),
        ("connections", qos.connections),
    ):
        if value < 0:
            raise ObjectError(f"qos.{name} {value}; give a number above 0, or leave it out")
    if qos.connections > MAX_CONNECTIONS:
        raise ObjectError(f"qos.connections {qos.connections}; give at most {MAX_CONNECTIONS}")
    if qos.dscp is not None and not 0 <= qos.dscp <= 63:
        raise ObjectError(f"qos.dscp {qos.dscp}; give 0 to 63")
    if qos.minimum_bps and qos.egress_bps and qos.minimum_bps > qos.egress_bps:
        raise ObjectError(f"qos.minimum {qos.minimum_bps} bit/s is more than qos.egress.rate {qos.egress_bps}")
    if qos.minimum_bps and host.uplink_bps and qos.minimum_bps > host.uplink_bps:
        raise ObjectError(f"qos.minimum {qos.minimum_bps} bit/s is more than the uplink carries, {host.uplink_bps}")


def not_guaranteed(qos: QosGoal, host: HostGoal) -> str:
    """Why a minimum is none, though the endpoint is served; empty: it is kept, or there is none."""
    if not qos.minimum_bps or host.uplink_bps:
        return ""
    return (f"qos.minimum {qos.minimum_bps} bit/s is not guaranteed: what the uplink carries is not known; set"
            " spec.uplinkRate of the host")


def packet_rate(per_second: int) -> Rate | None:
    """The token bucket of a cap on packets; 0: none."""
    if not per_second:
        return None
    return Rate(min(per_second, _MOST_PER_SECOND), min(max(1, per_second // _BURST_PART), _MOST_BURST))
