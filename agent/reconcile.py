"""Make the kernel equal the goal state, by difference.

Order, so that nothing passes before its policy is in:

1. ports that must go, go first: what has no link sends nothing;
2. links are made or mended; a port is hooked before it is up. The programs drop what comes from a port that the
   engine does not know, so a new link passes nothing yet;
3. the engine is told everything at once, and swaps each port's program atomically: now new ports pass;
4. the uplinks are hooked, lo among them if endpoints are to reach the host's own sockets; neighbours and reserved
   ports are set;
5. bridges and the tunnel that must go, go last, and uplinks are unhooked that nothing needs.

A link or hook that is as it was made costs nothing, unless the run is to mend: then each is looked at again, a port
inside its namespace, too.

Each object stands alone: its failure is its own status, and the next run tries again. A run that changes
nothing writes nothing to the engine. Any step may be the last one: identities are on disk before links are
made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Interface, ip_interface
from types import MappingProxyType
from typing import Any, NamedTuple

import structlog

from agent.announce import Announcement, frame
from agent.bandwidth import Bandwidth
from agent.build import INSPECT_LINKS, LOOPBACK, LOOPBACK_IFINDEX, Built, Observed, build, wanted
from agent.egress import EgressSeam, NameInvalid, QueueError
from agent.goals import Goals
from agent.hooks import Hooks
from agent.ids import MAX_POOLS, Ids, allocate, recover
from agent.last_build import LastBuild
from agent.outcome import Outcome, statuses
from agent.overlaps import Overlap, overlapping
from agent.paths import Paths, underlays_of
from agent.qos import SHAPER_LINKS
from agent.seams import DatapathSeam, SwitchSeam
from agent.standing import NOTHING, Standing
from agent.state import Disk
from policy.contribution import Fault
from policy.domains import DNS_QUEUE
from policy.world import is_translated
from segments.layer import MODES as SEGMENTS
from southbound.messages import HostFacts, NetworkGoal, PortGoal, key_of
from vfp.compile import Compiler
from vfp.datapath.engine import Hook
from vfp.datapath.errors import DatapathError
from vfp.errors import CompileError, PolicyError
from vfp.model import Address, EngineState
from vfp.timeouts import Timeouts
from vswitch.errors import NamespaceGone, UplinkMissing, VSwitchError
from vswitch.links import (
    BridgeLink,
    Detour,
    HookedProgram,
    InspectPrograms,
    OwnedLink,
    PortLink,
    TunnelLink,
    UplinkState,
    Where,
)

__all__ = ["Outcome", "Reconciler", "host_addresses"]

_log = structlog.get_logger("agent")

_PORT_KINDS = ("veth", "tun")
_NO_FACTS = HostFacts()
_TIMEOUTS = Timeouts()


class _Done(NamedTuple):
    """A port as it was last made or mended: its link, and the interfaces it then had."""

    link: PortLink
    ifindex: int
    bridge: int


class Reconciler:
    """Calls on the switch and the datapath of one host. Every method blocks; one thread uses it.

    `max_ports`, `max_pools`: the engine's limits. `egress`: who serves the DNS queue; None: nobody.
    `timeouts`: those of the engine.
    """

    def __init__(
        self, switch: SwitchSeam, datapath: DatapathSeam, disk: Disk, ids: Ids, max_ports: int,
        egress: EgressSeam | None = None, timeouts: Timeouts = _TIMEOUTS, max_pools: int = MAX_POOLS,
    ) -> None:
        self._switch = switch
        self._datapath = datapath
        self._disk = disk
        self._ids = ids
        self._max_ports, self._max_pools = max_ports, max_pools
        self._egress = egress
        self._timeouts = timeouts
        self._served = frozenset(mapping.id for mapping in disk.load().goals.mappings)  # MappingGoal.id, in force
        self._detour: Detour | None = None  # as it was last made or mended
        self._straight = False              # whether it is known that there is none
        self._programmed: EngineState | None = None
        self._build = LastBuild()
        self._done: dict[str, _Done] = {}   # by PortGoal.id
        self._others: dict[str, tuple[BridgeLink | TunnelLink, int]] = {}   # by name: as last made or mended, ifindex
        self._surrounded: tuple[Any, ...] | None = None     # what `_surround` left
        self._hooks = Hooks(switch, datapath)
        self._listening: tuple[frozenset[str], frozenset[str]] | None = None    # as `set_listening` was told last
        self._unhooked: set[str] = set()    # former uplinks that are known to be free of our program
        self._underlying: dict[str, int] | None = None      # links that have the underlays' program, and ifindex
        self._bandwidth = Bandwidth(switch, datapath)
        self._announced: frozenset[Announcement] = frozenset()
        self.paths = Paths(switch)

    def reconcile(
        self, goals: Goals, mend: bool = True, facts: HostFacts = _NO_FACTS,
        leases: Mapping[str, IPv4Interface] = MappingProxyType({}), standing: Mapping[str, Standing] = NOTHING,
    ) -> Outcome:
        """One run. Raises only what is no object's fault: the disk is full, netlink is closed.

        Args:
            mend: look also at what this process made or mended before and is still there.
            facts: what else the host has: its networks may meet their prefixes there.
            leases: by PortGoal.id, the addresses that endpoints have by DHCP.
            standing: by PortGoal.id, what is known of ports that container runtimes asked for.
        """
        general: list[str] = []
        overlaps = overlapping(goals, facts)
        observed = self._observe(goals, overlaps, leases, standing)
        self._identify(goals, observed)
        plan = self._build(goals, observed, self._ids)
        self._remove(observed, plan, _PORT_KINDS, general)
        gone = set(plan.gone)
        failures = self._make_links(goals, plan, {} if mend else observed.owned, gone)
        owned = self._switch.owned()
        if owned != observed.owned:
            observed = replace(observed, owned=owned)
            plan = self._build(goals, observed, self._ids)
        failures += self._queue(goals, plan, owned, mend)
        if not plan.links().isdisjoint(SHAPER_LINKS) and not owned.keys() >= set(SHAPER_LINKS):
            observed = replace(observed, owned=self._switch.owned())
            plan = self._build(goals, observed, self._ids)
        failures += self._name_domains(plan)
        built, refusals = self._program(goals, observed, plan)
        failures += refusals
        if mend:
            self._hooks.doubt()
            self._listening = None
        failures += self._hook_uplink(goals, built)
        failures += self._hook_underlays(goals, built, observed)
        self._announce(built, general)
        self._surround(built, observed.owned, mend, general)
        if self._programmed == built.engine:        # else the engine may still use what should go
            self._bandwidth.tidy(built.shapes, observed.owned, general)
        self._remove(observed, built, (), general)
        self._unhook_uplinks(built, general)
        if not built.inspects and (mend or not self._straight):
            self._remove_detour(general)
        self._served = frozenset(uid for uid, addresses in built.external_addresses.items() if addresses)
        found = tuple(statuses(goals, built, failures, overlaps))
        return Outcome(goals.revision, found, built, tuple(general), overlaps, frozenset(gone),
                       _back(standing, built, owned))

    def _observe(
        self, goals: Goals, overlaps: Mapping[str, Overlap], leases: Mapping[str, IPv4Interface],
        standing: Mapping[str, Standing],
    ) -> Observed:
        translated = any(is_translated(network) for network in goals.networks)
        uplink, uplink_error = self._uplink(goals.host.uplink) if translated else (None, "")
        segments: dict[str, UplinkState] = {}
        segment_errors: dict[str, str] = {}
        for name in {network.uplink for network in goals.networks if network.mode in SEGMENTS}:
            link, segment_errors[name] = self._uplink(name or goals.host.uplink)
            if link is not None:
                segments[name] = link
        underlays, underlay_error = underlays_of(self._switch, goals)
        addresses = self._switch.addresses() if translated else ()
        return Observed(
            uplink=uplink,
            uplink_error=uplink_error,
            segments=segments,
            segment_errors=segment_errors,
            underlays=underlays,
            underlay_error=underlay_error,
            paths=self.paths.narrow(goals, underlays),
            leases=leases,
            standing=standing,
            addresses=host_addresses(addresses),
            owned=self._switch.owned(),
            listeners=self._switch.listeners() if translated else (),
            served=self._served,
            overlaps={uid: str(overlap) for uid, overlap in overlaps.items() if overlap.eclipses},
            timeouts=self._timeouts,
        )

    def _uplink(self, name: str) -> tuple[UplinkState | None, str]:
        try:
            return self._switch.uplink(name), ""
        except VSwitchError as error:
            return None, str(error)

    def _identify(self, goals: Goals, observed: Observed) -> None:
        ids = recover(self._ids, observed.owned.values())
        ids = allocate(ids, wanted(goals, observed), self._max_ports, self._max_pools)
        if ids != self._ids:
            self._disk.save_ids(ids)
            self._ids = ids

    def _remove(self, observed: Observed, keep: Built, kinds: tuple[str, ...], general: list[str]) -> None:
        """Remove our links that must not be; of some kinds, or of all that are left."""
        going = set(observed.owned) - keep.links()
        if kinds:
            going = (going | _taps_of_others(observed, keep)) - set(SHAPER_LINKS)  # the engine may still send there
        for name in sorted(going):
            if not kinds or observed.owned[name].kind in kinds:
                try:
                    self._switch.remove(name)
                    _log.info("link removed", link=name)
                except VSwitchError as error:
                    general.append(f"remove link {name}: {error}")

    def _make_links(
        self, goals: Goals, plan: Built, present: Mapping[str, OwnedLink], gone: set[str]
    ) -> list[Fault]:
        """Make, mend and hook what is in `plan`. Ports that are `present` as this process left them are skipped.

        `gone`: gets those whose namespace is no more.
        """
        faults: list[Fault] = []
        before, self._others = self._others, {}
        if plan.tunnel is not None:
            try:
                if not self._stands(plan.tunnel, present, before):
                    ifindex = self._switch.ensure_tunnel(plan.tunnel)
                    self._hooks.put(ifindex, Hook.OVERLAY_IN)
                    self._others[plan.tunnel.name] = plan.tunnel, ifindex
            except VSwitchError as error:
                faults.append(Fault(key_of(goals.host), str(error)))
                faults += [Fault(key_of(remote), f"not reachable: {error}") for remote in goals.remotes]
        if plan.inspects:
            faults += self._make_detour(plan, present)
        bridges = {"": 0}
        for uid, bridge in plan.bridges.items():
            try:
                if not self._stands(bridge, present, before):
                    self._others[bridge.name] = bridge, self._switch.ensure_bridge(bridge)
                bridges[bridge.name] = self._others[bridge.name][1]
            except VSwitchError as error:
                faults.append(Fault((NetworkGoal.kind, uid), str(error)))
        done: dict[str, _Done] = {}
        for uid, port in plan.ports.items():
            found = present.get(port.host_interface)
            known = self._done.get(uid)
            if found and known == (port, found.ifindex, bridges.get(port.bridge, 0)):
                done[uid] = known
                continue
            try:
                ifindex = self._switch.ensure_port(port, self._port_hooks())
                done[uid] = _Done(port, ifindex, bridges.get(port.bridge, 0))
            except VSwitchError as error:
                if isinstance(error, NamespaceGone):
                    gone.add(uid)
                faults.append(Fault((PortGoal.kind, uid), str(error)))
        self._done = done
        return faults

    def _stands(self, link: BridgeLink | TunnelLink, present: Mapping[str, OwnedLink],
                before: Mapping[str, tuple[BridgeLink | TunnelLink, int]]) -> bool:
        """Whether it is as this process left it; noted if so."""
        found = present.get(link.name)
        if found is None or before.get(link.name) != (link, found.ifindex):
            return False
        self._others[link.name] = before[link.name]
        return True

    def _queue(self, goals: Goals, plan: Built, owned: Mapping[str, OwnedLink], mend: bool) -> list[Fault]:
        """Queues that the engine is about to use. A port whose queue failed sends or gets nothing rather than all."""
        failed = self._bandwidth.prepare(plan.shapes, goals.host.uplink_bps, owned, mend)
        uids = {number: uid for uid, number in self._ids.ports.items()}
        return [Fault((PortGoal.kind, uids[number]), f"qos: {error}") for number, error in failed.items()]

    def _make_detour(self, plan: Built, present: Mapping[str, OwnedLink]) -> list[Fault]:
        """The way of DNS by user space, and someone who listens there."""
        self._straight = False
        try:
            if self._detour is None or not present.keys() >= set(INSPECT_LINKS):
                fd = self._datapath.program_fd
                programs = InspectPrograms(fd(Hook.INSPECT_IN), fd(Hook.INSPECT_OUT), fd(Hook.INSPECTED))
                self._detour = self._switch.ensure_inspection(programs, (DNS_QUEUE,))
            if self._egress is not None:
                self._egress.follow(self._detour)
        except (VSwitchError, QueueError, OSError) as error:
            return [Fault((PortGoal.kind, uid), f"egress by domain name: {error}") for uid in plan.inspects]
        return []

    def _name_domains(self, plan: Built) -> list[Fault]:
        """Before the first answer that goes by the new rules comes."""
        try:
            if self._egress is not None:
                self._egress.configure(plan.domains)
        except (NameInvalid, PolicyError, DatapathError) as error:
            return [Fault((PortGoal.kind, uid), f"egress by domain name: {error}") for uid in plan.inspects]
        return []

    def _remove_detour(self, general: list[str]) -> None:
        self._detour, self._straight = None, False
        try:
            if self._egress is not None:
                self._egress.stop()
            if self._switch.remove_inspection():
                _log.info("inspect namespace removed")
            self._straight = True
        except (VSwitchError, OSError) as error:
            general.append(f"remove the inspect namespace: {error}")

    def _port_hooks(self) -> tuple[HookedProgram, ...]:
        places: tuple[tuple[Where, Hook], ...] = (("ingress", Hook.PORT_OUT), ("egress", Hook.PORT_IN))
        return tuple(
            HookedProgram(where, self._datapath.program_fd(hook), f"sluice_{hook.value}") for where, hook in places
        )

    def _program(self, goals: Goals, observed: Observed, built: Built) -> tuple[Built, list[Fault]]:
        """Tell the engine, if it is not what it was told last.

        A port that does not compile is left out, so that the others get theirs; its packets drop. If the
        engine refuses for another reason (a table is full, the kernel says no), all stays as it was.
        """
        if built.engine == self._programmed:
            return built, []
        self._programmed = None
        try:
            try:
                self._datapath.apply(built.engine)
            except CompileError:
                refused = self._uncompilable(built)
                if not refused:
                    raise
                built = build(goals, observed, self._ids, refused=refused)
                self._datapath.apply(built.engine)
        except (PolicyError, DatapathError) as error:
            _log.error("engine refused the state", error=str(error))
            reason = f"the engine refused the new state of this host and keeps the old one: {error}"
            return built, [Fault(key, reason) for key in goals.objects]
        self._programmed = built.engine
        return built, []

    def _uncompilable(self, built: Built) -> dict[str, str]:
        """PortGoal.id and reason of each port that does not compile by itself."""
        goal_ids = {number: uid for uid, number in built.port_ids.items()}
        refused: dict[str, str] = {}
        for port in built.engine.ports:
            alone = replace(built.engine, ports=(port,), spaces=(), mappings=(), prefixes=())
            try:
                Compiler().compile(alone, self._max_ports)
            except CompileError as error:
                refused[goal_ids[port.id]] = str(error)
        return refused

    def _hook_uplink(self, goals: Goals, built: Built) -> list[Fault]:
        """After the engine knows its mappings; before, what comes by the uplink is the host's own."""
        try:
            for uplink in built.uplinks:
                self._hooks.keep(uplink.ifindex, Hook.UPLINK_IN)
        except VSwitchError as error:
            nats = [network for network in goals.networks if is_translated(network) or network.mode in SEGMENTS]
            return [Fault(key_of(network), f"uplink: {error}") for network in nats]
        return []

    def _hook_underlays(self, goals: Goals, built: Built, observed: Observed) -> list[Fault]:
        """Links by which packets of the overlay come, but for uplinks, whose program takes them, too."""
        taken = {uplink.ifindex for uplink in built.uplinks}
        links = {one.link.name: one.link.ifindex for one in observed.underlays
                 if built.tunnel is not None and one.link.ifindex and one.link.ifindex not in taken}
        try:
            for ifindex in links.values():
                self._hooks.keep(ifindex, Hook.UNDERLAY_IN)
            if self._underlying is None:    # whatever another process of ours left
                self._underlying = self._switch.hooked()
            for _, ifindex in self._underlying.items() - links.items():
                if ifindex not in taken:
                    self._hooks.remove(ifindex)
            self._underlying = links
            listening = built.promiscuous, frozenset(_attentive(goals, observed) - built.promiscuous)
            if listening != self._listening:
                self._listening = None
                self._switch.set_listening(*listening)
                self._listening = listening
        except VSwitchError as error:
            return [Fault(key_of(goals.host), f"underlay: {error}")]
        return []

    def _announce(self, built: Built, general: list[str]) -> None:
        """What is new on segments, when the engine answers for it."""
        by_link: dict[int, list[bytes]] = {}
        for one in built.announcements - self._announced:
            by_link.setdefault(one.ifindex, []).append(frame(one))
        self._announced = built.announcements
        for ifindex, frames in by_link.items():
            try:
                self._switch.send(ifindex, frames)
            except VSwitchError as error:
                general.append(f"announce addresses: {error}")
                self._announced = frozenset(one for one in self._announced if one.ifindex != ifindex)

    def _surround(self, built: Built, owned: Mapping[str, OwnedLink], mend: bool, general: list[str]) -> None:
        """Neighbours of bridges, and the ports that the host's own sockets must leave alone."""
        bridges = {link.name: (link.addresses, owned[link.name].ifindex, built.neighbours[link.name])
                   for link in built.bridges.values() if link.name in owned}
        if not mend and (bridges, built.reserved_ports) == self._surrounded:
            return
        before = len(general)
        self._surrounded = None
        for bridge, (_addresses, _ifindex, neighbours) in sorted(bridges.items()):
            try:
                self._switch.set_neighbours(bridge, neighbours)
            except VSwitchError as error:
                general.append(f"neighbours of {bridge}: {error}")
        try:
            if built.reserved_ports:
                self._switch.reserve_ports(built.reserved_ports)
            else:
                self._switch.release_ports()
        except VSwitchError as error:
            general.append(f"reserve ports: {error}")
        if len(general) == before:
            self._surrounded = (bridges, built.reserved_ports)

    def _unhook_uplinks(self, built: Built, general: list[str]) -> None:
        """Take our program off interfaces that were our uplink once."""
        now = {uplink.name for uplink in built.uplinks}
        now |= set(self._underlying or ())
        for name in sorted(({LOOPBACK} | set(self._ids.uplinks)) - now - self._unhooked):
            try:
                self._hooks.remove(LOOPBACK_IFINDEX if name == LOOPBACK else self._switch.uplink(name).ifindex)
            except UplinkMissing:
                pass
            except VSwitchError as error:
                general.append(f"unhook {name}: {error}")
                continue
            self._unhooked.add(name)
        self._unhooked -= now


def _back(standing: Mapping[str, Standing], built: Built, owned: Mapping[str, OwnedLink]) -> frozenset[str]:
    """Ports that a runtime took whose far end it has not here taken away, or has put back."""
    links = {uid: owned.get(link.host_interface) for uid, link in built.ports.items() if link.handed}
    return frozenset(uid for uid, link in links.items()
                     if link is not None and link.far_here and uid in standing and standing[uid].taken)


def _attentive(goals: Goals, observed: Observed) -> set[str]:
    """Links by which others ask for IPv6 addresses of endpoints: by group MACs that the host's stack has not joined."""
    return {observed.segments[network.uplink].name for network in goals.networks
            if network.mode in SEGMENTS and network.uplink in observed.segments
            and any(":" in subnet.prefix for subnet in network.subnets)}


def _taps_of_others(observed: Observed, keep: Built) -> set[str]:
    """Taps whose name is given to another endpoint now: it gets a new one, that nobody has open."""
    wanted: dict[str, set[str]] = {}
    for port in keep.ports.values():
        if port.tap:
            wanted.setdefault(port.host_interface, set()).add(port.alias)
    return {name for name, link in observed.owned.items()
            if link.kind == "tun" and link.alias and name in wanted and link.alias not in wanted[name]}


def host_addresses(addresses: Iterable[tuple[str, str]]) -> frozenset[Address]:
    """The addresses among (interface, address/length) pairs, without loopback ones and link-local IPv6."""
    found = (ip_interface(text).ip for _, text in addresses)
    return frozenset(ip for ip in found if not (ip.is_loopback or (ip.version == 6 and ip.is_link_local)))
