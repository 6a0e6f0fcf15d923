"""How much the data path may hold: sizes of tables, and what may be in them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from vfp.datapath.filter import filter_words

__all__ = ["Limits", "flows_for"]

MAX_FLOWS = 1 << 21
MIN_FLOWS = 1 << 16
FLOWS_PER_GIB = MAX_FLOWS // 16
_GIB = 1 << 30


def flows_for(memory_bytes: int) -> int:
    """Halves for a host of that much memory: a million connections from 16 GiB on, proportionally fewer below."""
    gibibytes = -(-memory_bytes // _GIB)    # what firmware keeps for itself does not count
    return min(max(gibibytes * FLOWS_PER_GIB, MIN_FLOWS), MAX_FLOWS)


def _flows_here() -> int:
    return flows_for(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of the tables, in entries, and other bounds. A full table refuses; it never evicts."""

    flows: int = field(default_factory=_flows_here)     # halves: a connection has two
    rules: int = 262144                     # a change of a whole group needs room for old and new side by side
    bindings: int = 524288
    ports: int = 4096
    space_entries: int = 1048576
    routes: int = 65536                     # of all spaces
    vteps: int = 65536                      # IPv6 ones; those of IPv4 need no room
    mappings: int = 262144
    segments: int = 1024                    # spaces that switch, and wires
    stations: int = 8192
    flooded: int = 16384                    # ports and VTEPs that get frames to groups, over all segments
    vlans: int = 8192                       # tags that ports may have, over all ports
    hops: int = 1024                        # routers that rules name
    pools: int = 16384                      # the agent gives no more numbers
    meters: int = 4096
    sets: int = 4096
    set_members: int = 131072               # of all sets; a change needs room for old and new side by side
    timeouts: int = 256                     # different ones of ports, one for the engine's own included
    half_open: int = 0                      # TCP pairs without a reply; 0: a quarter of the connections
    udp: int = 0                            # pairs that are not TCP; 0: half of the connections
    redecide_per_s: int = 200_000           # stale flows decided again, by each CPU

    def by_map(self) -> dict[str, int]:
        """Entries of each map."""
        closing = max(self.flows // 8, 1024)
        return {
            "flows": self.flows, "rules": self.rules, "buckets": self.rules, "filter": filter_words(self.rules),
            "bindings": self.bindings, "externals": self.bindings, "contacts": self.bindings,
            "ports": self.ports, "programs": self.ports, "gateways": self.ports, "usages": self.ports,
            "links": self.ports + 256,
            "spaces": self.space_entries, "routes": self.routes, "vtep_ids": self.vteps, "vtep_addresses": self.vteps,
            "paths": self.vteps,
            "mappings": self.mappings, "meters": self.meters,
            "pools": self.pools, "uses": 4 * self.pools,
            "segments": self.segments, "flooding": self.segments, "stations": self.stations, "flooded": self.flooded,
            "hops": self.hops, "vlans": self.vlans,
            "rule_hits": self.rules + self.mappings, "timeouts": self.timeouts,
            "sets": self.set_members, "set_lengths": 2 * self.sets,
            "time_waits": closing, "resets": closing, "lingering": closing,
        }

    def settings(self) -> dict[str, int]:
        """The fields of struct settings that are bounds."""
        return {
            "half_open_max": self.half_open or max(self.flows // 8, 1), "udp_max": self.udp or max(self.flows // 4, 1),
            "redecide_cost_ns": 1_000_000_000 // self.redecide_per_s, "redecide_burst_ns": 100_000_000,
        }
