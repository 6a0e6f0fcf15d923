"""Which networks make sense, by themselves and beside each other, and which of them the host's stack may know.

Prefixes of different tenants may be the same on one host, and the host may roam into a LAN that has a network's
prefix. The host's stack can have only one route to an address: among nat networks that overlap, the one with the
lowest space has it, and none that overlaps what the host itself needs. The others are *shadowed*: their bridge has no
address.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_network
from itertools import combinations

from agent.goals import Goals
from agent.ids import Ids, bridge_alias, bridge_name
from agent.observed import Observed
from overlay.layer import endpoint_mtu
from policy.addresses import gateways, network_prefixes
from policy.contribution import Fault, ObjectError, mac_bytes
from policy.world import is_translated
from segments.layer import MODES as SEGMENTS
from southbound.messages import HostGoal, NetworkGoal, key_of
from vfp.compile import MAX_TIMEOUT_S
from vfp.model import Filtering, Prefix
from vfp.pools import MAX_BLOCK
from vfp.timeouts import Timeouts
from vswitch.links import BridgeLink

__all__ = ["TIMEOUTS", "Networks", "bridge", "check_networks", "mtu"]

TIMEOUTS = frozenset(one.name.removesuffix("_s") for one in fields(Timeouts))
_DEFAULT_MTU = 1500
_MOST_PORT = 65535
_SPACES = ((1 << 24, (1 << 31) - 1), (1, (1 << 24) - 1))      # not overlay, overlay (RFC 7348)
_LEAST_MTU = {4: 68, 6: 1280}                # RFC 791, RFC 8200


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks that can be served, by NetworkGoal.id, in the order of their spaces."""

    good: Mapping[str, NetworkGoal]
    shadowed: frozenset[str]
    faults: tuple[Fault, ...]


def check_networks(goals: Goals, observed: Observed) -> Networks:
    """Each network stands alone: a bad one is a fault and no more."""
    good: dict[str, NetworkGoal] = {}
    shadowed: set[str] = set()
    faults: list[Fault] = []
    known = _Disjoint()                     # what the stack has
    tenants: dict[str, _Disjoint] = {}
    spaces: dict[int, NetworkGoal] = {}
    for network in sorted(goals.networks, key=lambda network: (network.space, network.id)):
        try:
            prefixes = _check(network)
            if is_translated(network):
                _check_nat(network, goals.host)
            other = spaces.setdefault(network.space, network)
            if other is not network:
                raise ObjectError(f"space {network.space} is that of {other.tenant}/{other.name} too")
            if network.mode == "nat":
                _refuse_overlap(prefixes, tenants.setdefault(network.tenant, _Disjoint()))
        except ObjectError as error:
            faults.append(Fault(key_of(network), str(error)))
            continue
        good[network.id] = network
        if network.mode != "nat":
            continue
        tenants[network.tenant].add(prefixes, network)
        if network.id in observed.overlaps or any(map(known.holder, prefixes)):
            shadowed.add(network.id)
        else:
            known.add(prefixes, network)
    return Networks(good, frozenset(shadowed), tuple(faults))


def _check(network: NetworkGoal) -> tuple[Prefix, ...]:
    prefixes = network_prefixes(network)
    mac_bytes(network.gateway_mac)
    if not prefixes:
        raise ObjectError("0 subnets; a network needs one at least")
    for one, other in combinations(prefixes, 2):
        if one.version == other.version and one.overlaps(other):
            raise ObjectError(f"subnets {one} and {other} overlap; take one out")
    gateways(network)
    low, high = _SPACES[network.mode == "overlay"]
    if not low <= network.space <= high:
        what = "VNI" if network.mode == "overlay" else "space"
        raise ObjectError(f"{what} {network.space} is out of range; use {low} to {high}")
    _check_mtu(network, prefixes)
    return prefixes


def _check_mtu(network: NetworkGoal, prefixes: tuple[Prefix, ...]) -> None:
    least = _LEAST_MTU[6 if any(prefix.version == 6 for prefix in prefixes) else 4]
    if network.mtu_bytes and not least <= network.mtu_bytes <= _MOST_PORT:
        why = "; IPv6 needs 1280 (RFC 8200 5)" if least > _LEAST_MTU[4] else ""
        raise ObjectError(f"mtu {network.mtu_bytes}; give {least} to {_MOST_PORT}, or leave it out{why}")


def _check_nat(network: NetworkGoal, host: HostGoal) -> None:
    """What the engine would refuse, and all networks with it."""
    nat = network.nat
    low, high = host.nat_ports
    if not 0 < low <= high <= _MOST_PORT:
        raise ObjectError(f"spec.natPorts of the host is {low}-{high}; give a range within 1..{_MOST_PORT}")
    if not 0 <= nat.block <= min(MAX_BLOCK, high - low + 1):
        raise ObjectError(
            f"nat.portBlock {nat.block}; give 0 for none, or 1 to {MAX_BLOCK} and no more than the host's natPorts"
            f" {low}-{high} have"
        )
    if not 0 <= nat.quota < 1 << 32:
        raise ObjectError(f"nat.portsPerEndpoint {nat.quota}; give 0 for no limit, or a number below 2^32")
    for text in (*nat.exceptions, *nat.destinations):
        try:
            ip_network(text)
        except ValueError as error:
            raise ObjectError(f"nat.exceptions or nat.destinations: {error}") from None
    for name, seconds in nat.timeouts:
        if name not in TIMEOUTS or not 0 < seconds <= MAX_TIMEOUT_S:
            raise ObjectError(
                f"nat.timeouts: {name} {seconds}; give seconds above 0, at most {MAX_TIMEOUT_S}, for any of"
                f" {', '.join(sorted(TIMEOUTS))}"
            )
    if nat.filtering not in {one.value for one in Filtering}:
        raise ObjectError(f"nat.filtering {nat.filtering!r}; use one of {', '.join(Filtering)}")


class _Disjoint:
    """Prefixes of which no two overlap, and whose they are."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int, int]] = []               # version, first and last address; sorted
        self._holders: dict[tuple[int, int, int], NetworkGoal] = {}

    def holder(self, prefix: Prefix) -> NetworkGoal | None:
        """Whose prefix overlaps this one."""
        version, first, last = _range(prefix)
        at = bisect_right(self._ranges, (version, last, 1 << 128))
        if at and (found := self._ranges[at - 1])[0] == version and found[2] >= first:
            return self._holders[found]
        return None

    def add(self, prefixes: tuple[Prefix, ...], network: NetworkGoal) -> None:
        """Prefixes that overlap none so far."""
        for prefix in prefixes:
            insort(self._ranges, _range(prefix))
            self._holders[_range(prefix)] = network


def _range(prefix: Prefix) -> tuple[int, int, int]:
    return (prefix.version, int(prefix.network_address), int(prefix.broadcast_address))


def _refuse_overlap(prefixes: tuple[Prefix, ...], taken: _Disjoint) -> None:
    for prefix in prefixes:
        other = taken.holder(prefix)
        if other is not None:
            raise ObjectError(f"prefix {prefix} overlaps that of nat network {other.tenant}/{other.name} on this host")


def bridge(network: NetworkGoal, ids: Ids, observed: Observed, shadowed: bool) -> BridgeLink:
    """The bridge of a nat network. A shadowed one has no address."""
    return BridgeLink(
        name=bridge_name(ids.bridges[network.id]),
        alias=bridge_alias(network.id),
        mac=network.gateway_mac,
        addresses=() if shadowed else tuple(str(gateway) for gateway in gateways(network)),
        mtu_bytes=mtu(network, observed),
    )


def mtu(network: NetworkGoal, observed: Observed) -> int:
    """The network's MTU, if given; else what its packets' way out of the host carries."""
    if network.mtu_bytes:
        return network.mtu_bytes
    if network.mode == "overlay":
        fitting = (endpoint_mtu(one.link.mtu_bytes, one.address.version) for one in observed.underlays)
        return min(fitting, default=endpoint_mtu(_DEFAULT_MTU))
    if network.mode in SEGMENTS:
        segment = observed.segments.get(network.uplink)
        return segment.mtu_bytes if segment else _DEFAULT_MTU
    if network.mode == "nat" and observed.uplink:
        return observed.uplink.mtu_bytes
    return _DEFAULT_MTU
