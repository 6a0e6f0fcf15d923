"""How frames to group MACs spread in a network: what its goal says, as the engine takes it."""

from __future__ import annotations

from ipaddress import ip_address

from policy.contribution import Fault
from southbound.messages import NetworkGoal, key_of
from vfp.errors import CompileError
from vfp.model import Flooding, Rate
from vfp.vteps import check_vtep

__all__ = ["MOST_STATIONS", "MOST_VTEPS", "flooding_of"]

MOST_STATIONS = 1024                        # model.Space.stations
MOST_VTEPS = 128                            # model.Flooding.vteps
_MOST_PER_SECOND, _MOST_BURST = 1 << 31, 1 << 20


def flooding_of(network: NetworkGoal, faults: list[Fault]) -> Flooding | None:
    """None: it does not, or (a fault says why) cannot. To other hosts go copies of overlay networks only."""
    flood = network.flood
    if flood is None:
        return None
    if not (0 < flood.rate <= _MOST_PER_SECOND and 0 < flood.burst <= _MOST_BURST):
        faults.append(Fault(key_of(network), f"broadcast: rate {flood.rate}, burst {flood.burst}; give 1 to"
                            f" {_MOST_PER_SECOND} frames a second and a burst of 1 to {_MOST_BURST}"))
        return None
    if network.mode != "overlay":
        return Flooding(Rate(flood.rate, flood.burst))
    if len(flood.vteps) > MOST_VTEPS:
        faults.append(Fault(key_of(network), f"broadcast: the network is on {len(flood.vteps)} other hosts, and copies"
                            f" can go to {MOST_VTEPS} at most; set broadcast to off"))
        return None
    try:
        vteps = tuple(ip_address(vtep) for vtep in dict.fromkeys(flood.vteps))
        for vtep in vteps:
            check_vtep("broadcast", vtep)
    except (ValueError, CompileError) as error:
        faults.append(Fault(key_of(network), f"broadcast: underlay address: {error}"))
        return None
    return Flooding(Rate(flood.rate, flood.burst), network.space, vteps)
