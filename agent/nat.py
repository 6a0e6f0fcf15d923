"""What `sluice nat` shows of a host: prefixes, pools with their use, mappings with their hits, bindings, and records.

Pure, but for what it asks the engine. Networks are named `tenant/name`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from agent import arguments
from agent.arguments import Args
from agent.build import Built
from agent.goals import Goals
from agent.names import Row
from agent.overlaps import Overlap
from southbound.messages import MappingGoal, NetworkGoal, key_of
from vfp.datapath.binding_log import BindingEvent
from vfp.datapath.bindings import BindingRecord
from vfp.model import Address, Pool

__all__ = ["MOST_BINDINGS", "SECTIONS", "NatSeam", "NatSight", "Recorder", "clock"]

SECTIONS = ("prefixes", "pools", "mappings", "bindings")
MOST_BINDINGS = 20_000                      # of one answer
_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_PROTOCOLS = {_ICMP: "icmp", _TCP: "tcp", _UDP: "udp", 47: "gre", 50: "esp", _ICMPV6: "icmpv6", 132: "sctp",
              136: "udplite"}
_KINDS = {_TCP: "tcp", _UDP: "udp", _ICMP: "icmp", _ICMPV6: "icmp"}
_HOST_ITSELF = "lo"                         # in place of a network's uid, in names of pools (`nat.pools`)


class NatSeam(Protocol):
    """What is asked of the engine; see `vfp.datapath.engine.Datapath`."""

    def select_bindings(  # noqa: D102
        self, pools: Collection[int] | None, limit: int
    ) -> tuple[list[BindingRecord], int]: ...
    def pool_use(self) -> Mapping[int, Sequence[tuple[Address, int, int]]]: ...  # noqa: D102
    def block_use(self) -> Mapping[int, Sequence[tuple[Address, int]]]: ...  # noqa: D102
    def mapping_hits(self) -> Mapping[str, int]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class NatSight:
    """One host's NAT as it was programmed last."""

    goals: Goals
    built: Built
    overlaps: Mapping[str, Overlap]         # by NetworkGoal.id

    def answer(self, datapath: NatSeam, args: Args) -> Row:
        """The sections that are asked for, and how many bindings there are.

        Args:
            datapath: the engine.
            args: section (none: all), network (`tenant/name`; none: all), limit (of bindings).

        Raises:
            BadQuery: an argument is wrong.
        """
        asked = arguments.word(args, "section", SECTIONS)
        network = arguments.word(args, "network")
        limit = min(arguments.number(args, "limit") or MOST_BINDINGS, MOST_BINDINGS)
        found: Row = {}
        makers: dict[str, Callable[[], Iterable[Row]]] = {
            "prefixes": self._prefixes,
            "pools": lambda: self._pools(datapath.pool_use(), datapath.block_use()),
            "mappings": lambda: self._mappings(datapath.mapping_hits()),
        }
        for section, make in makers.items():
            if asked in ("", section):
                found[section] = [row for row in make() if network in ("", row["network"])]
        if asked in ("", "bindings"):
            owners = self.owners()
            pools = {pool for pool, owner in owners.items() if owner == network} if network else None
            bindings, found["total"] = datapath.select_bindings(pools, limit)
            names = {port.id: port.name for port in self.built.engine.ports}
            rows = (_binding(one, names.get(one.port, ""), owners.get(one.pool, "")) for one in bindings)
            found["bindings"] = sorted(rows, key=_in_order)
        return found

    def owners(self) -> dict[int, str]:
        """The network of each pool; `lo`: the host's own, for what its processes send to mapped ports."""
        networks = {one.id: f"{one.tenant}/{one.name}" for one in self.goals.networks}
        uids = {pool: name.partition("/")[0] for pool, name in self.built.pool_names.items()}
        return {pool: uid if uid == _HOST_ITSELF else networks.get(uid, "") for pool, uid in uids.items()}

    def _networks(self) -> list[NetworkGoal]:
        nats = (network for network in self.goals.networks if network.mode == "nat")
        return sorted(nats, key=lambda network: (network.tenant, network.name))

    def _prefixes(self) -> Iterator[Row]:
        for network in self._networks():
            bridge = self.built.bridges.get(network.id)
            endpoints = [port for port in self.goals.ports if port.network == network.id]
            for subnet in network.subnets:
                six = ":" in subnet.prefix
                yield {
                    "network": f"{network.tenant}/{network.name}",
                    "prefix": subnet.prefix,
                    "gateway": subnet.gateway,
                    "bridge": bridge.name if bridge else "",
                    "endpoints": sum(1 for port in endpoints if (port.address6 if six else port.address)),
                    "translation": _translation(network, six),
                    "status": self._status(network),
                }

    def _status(self, network: NetworkGoal) -> str:
        fault = next((fault.message for fault in self.built.faults if fault.key == key_of(network)), "")
        if fault:
            return fault
        if network.id in self.overlaps:
            return str(self.overlaps[network.id])
        return "hidden from the host: another network has its prefix" if network.id in self.built.shadowed else "ready"

    def _pools(
        self, use: Mapping[int, Sequence[tuple[Address, int, int]]], blocks: Mapping[int, Sequence[tuple[Address, int]]]
    ) -> Iterator[Row]:
        """A row for each external address.

        `percent`: of its ports, by the protocol of which most are taken, or of its blocks, by whichever pool.
        """
        taken: dict[tuple[Address, str], int] = {}
        for uses in use.values():
            for address, protocol, count in uses:
                kind = (address, _KINDS.get(protocol, "other"))
                taken[kind] = taken.get(kind, 0) + count
        given: dict[Address, int] = {}
        for each in blocks.values():
            for address, count in each:
                given[address] = given.get(address, 0) + count
        uplinks = {uplink.id: uplink.name for uplink in self.built.engine.uplinks}
        owners = self.owners()
        for pool in sorted(self.built.engine.pools, key=lambda pool: (owners.get(pool.id, ""), pool.id)):
            for address in pool.addresses:
                own = dict.fromkeys(("tcp", "udp", "icmp", "other"), 0)
                for at, protocol, count in use.get(pool.id, ()):
                    if at == address:
                        own[_KINDS.get(protocol, "other")] += count
                full = max(taken.get((address, kind), 0) / room for kind, room in _room(pool).items())
                own_blocks = sum(count for at, count in blocks.get(pool.id, ()) if at == address)
                if pool.block:
                    full = max(full, given.get(address, 0) / max(1, _size(pool) // pool.block))
                yield {
                    "network": owners.get(pool.id, ""), "pool": pool.id, "uplink": uplinks.get(pool.uplink, ""),
                    "address": str(address), "ports": f"{pool.ports.low}-{pool.ports.high}", **own,
                    "percent": round(min(full, 1.0) * 100, 1), "filtering": pool.filtering.value,
                    "block": pool.block, "blocks": own_blocks, "quota": pool.quota, "log": pool.log,
                }

    def _mappings(self, hits: Mapping[str, int]) -> Iterator[Row]:
        ports = {port.id: port for port in self.goals.ports}
        networks = {network.id: f"{network.tenant}/{network.name}" for network in self.goals.networks}
        faults = {fault.key: fault.message for fault in self.built.faults}
        for goal in sorted(self.goals.mappings, key=lambda goal: (goal.tenant, goal.name)):
            port = ports.get(goal.port)
            name = f"{goal.tenant}/{goal.name}"
            open_at = self.built.external_addresses.get(goal.id, ())
            yield {
                "mapping": name,
                "network": networks.get(port.network, "") if port else "",
                "protocol": goal.protocol,
                "addresses": list(open_at),
                "external_ports": _ports(*goal.external_ports) if goal.protocol != "any" else "",
                "endpoint": f"{port.tenant}/{port.name}" if port else "",
                "internal": goal.internal_address,
                "internal_ports": _internal_ports(goal),
                "hits": hits.get(name, 0),
                "status": faults.get(key_of(goal), "open" if open_at else "closed"),
            }


class Recorder:
    """Records of bindings with names. It knows endpoints and networks that are gone: what they release is told later.

    Numbers of ports go round before one is given again, so that a name is not another's for long.
    """

    def __init__(self) -> None:
        self._endpoints: dict[int, str] = {}
        self._networks: dict[int, str] = {}
        self._built: Built | None = None

    def rows(self, sight: NatSight, events: Iterable[BindingEvent], epoch_s: float) -> list[Row]:
        """As they are told and written; `epoch_s`: when the engine's clock began."""
        if sight.built is not self._built:
            self._built = sight.built
            self._endpoints |= {port.id: port.name for port in sight.built.engine.ports}
            self._networks |= {pool: network for pool, network in sight.owners().items() if network}
        return [self._row(event, epoch_s + event.time_s) for event in events]

    def _row(self, event: BindingEvent, time_s: float) -> Row:
        row: Row = {
            "time": clock(time_s), "event": event.kind, "network": self._networks.get(event.pool, ""),
            "endpoint": self._endpoints.get(event.port, ""),
        }
        if event.size:
            first = event.external_port
            return row | {"external": str(event.external), "external_ports": f"{first}-{first + event.size - 1}"}
        protocol = _PROTOCOLS.get(event.protocol, str(event.protocol))
        return row | {"protocol": protocol, "internal": str(event.internal), "internal_port": event.internal_port,
                      "external": str(event.external), "external_port": event.external_port}


def clock(time_s: float | None = None) -> str:
    """A time as records have it, in UTC; None: now."""
    moment = datetime.now(UTC) if time_s is None else datetime.fromtimestamp(time_s, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _room(pool: Pool) -> dict[str, int]:
    """Ports that a pool's address has, by protocol."""
    size = _size(pool)
    held: dict[str, int] = {}
    for protocol, _ in pool.held:
        kind = _KINDS.get(protocol, "other")
        held[kind] = held.get(kind, 0) + 1
    return {kind: max(1, size - held.get(kind, 0)) for kind in ("tcp", "udp", "icmp")}


def _size(pool: Pool) -> int:
    return pool.ports.high - pool.ports.low + 1


def _translation(network: NetworkGoal, six: bool) -> str:
    if six:
        text: str = network.nat.ipv6
        return f"prefix {network.nat.external_prefix}" if text == "prefix" else text
    named = [address for address in network.nat.addresses if ":" not in address]
    return f"as {', '.join(named)}" if named else "as the uplink"


def _ports(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _internal_ports(goal: MappingGoal) -> str:
    if goal.protocol == "any":
        return ""
    first, last = goal.external_ports
    return _ports(goal.internal_port, goal.internal_port + last - first)


def _binding(one: BindingRecord, endpoint: str, network: str) -> Row:
    return {
        "endpoint": endpoint, "network": network, "protocol": one.protocol, "source": str(one.source),
        "source_port": one.source_port, "external": str(one.external), "external_port": one.external_port,
        "idle_s": round(one.idle_s, 1),
    }


def _in_order(row: Row) -> tuple[str, int, str, int]:
    return row["endpoint"], row["protocol"], row["source"], row["source_port"]
