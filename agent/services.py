"""What the agent does for endpoints besides programming the kernel: it advertises routers, follows DHCP, watches paths.

Nothing here polls. Packets wake us by sockets whose filters let pass only what is waited for; the rest are times that
are known in advance: the next advertisement, the end of a lease, the moment when what a router told is forgotten.
Nothing is lost by a restart: leases are on disk, advertisements live for longer than that takes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import structlog

from agent.advertise import Advertiser, Router
from agent.build import Built
from agent.dhcp import Client, Leases, parse
from agent.goals import Goals
from agent.paths import Paths
from agent.seams import SwitchSeam
from agent.worker import Worker
from policy.addresses import link_local
from policy.contribution import mac_bytes
from southbound.messages import NetworkGoal
from vswitch.errors import VSwitchError

__all__ = ["Services", "clients_of", "routers_of"]

_log = structlog.get_logger("agent")

SETTLE_S = 0.05             # what a router says concerns many packets at once
TOO_BIG_PAUSE_S = 1.0       # after one look at all paths
FRAME_BYTES = 2048
FRAMES_AT_ONCE = 64
LEASES = "leases.json"

Key = tuple[str, str, int]  # what is listened for, by which link or for which port, ifindex or UDP port


def routers_of(goals: Goals, built: Built) -> dict[str, Router]:
    """What to advertise to each port, by PortGoal.id. On segments that is the physical router's business."""
    networks = {network.id: network for network in goals.networks
                if network.advertise and network.mode in ("nat", "overlay", "private")}
    found = {}
    for port in goals.ports:
        network, link = networks.get(port.network), built.ports.get(port.id)
        if network is None or link is None or port.id not in built.port_ids or not port.address6:
            continue
        mac = mac_bytes(network.gateway_mac)
        found[port.id] = Router(link.host_interface, mac, link_local(mac), link.mtu_bytes,
                                tuple(_prefixes6(network)), network.slaac)
    return found


def clients_of(goals: Goals, built: Built) -> list[Client]:
    """The endpoints whose IPv4 address comes by DHCP."""
    networks = {network.id: network for network in goals.networks}
    found = []
    for port in goals.ports:
        network = networks.get(port.network)
        if not port.dhcp or network is None or port.id not in built.port_ids:
            continue
        taken = {ip_address(subnet.gateway) for subnet in network.subnets}
        taken |= {ip_address(other.address.partition("/")[0]) for other in goals.ports
                  if other.network == port.network and other.address and other.id != port.id}
        found.append(Client(port.id, mac_bytes(port.mac), tuple(_prefixes4(network)),
                            frozenset(one for one in taken if isinstance(one, IPv4Address))))
    return found


def _prefixes6(network: NetworkGoal) -> Iterator[IPv6Network]:
    for subnet in network.subnets:
        prefix = ip_network(subnet.prefix)
        if isinstance(prefix, IPv6Network):
            yield prefix


def _prefixes4(network: NetworkGoal) -> Iterator[IPv4Network]:
    for subnet in network.subnets:
        prefix = ip_network(subnet.prefix)
        if isinstance(prefix, IPv4Network):
            yield prefix


class Services:
    """The services of one host. `mark`: of frames that the hooks at ports let pass."""

    def __init__(self, switch: SwitchSeam, worker: Worker, paths: Paths, state_dir: Path, mark: int) -> None:
        self._switch = switch
        self._worker = worker
        self._paths = paths
        self._mark = mark
        self._leases = Leases(state_dir / LEASES)
        self._advertiser = Advertiser(self._send)
        self._sender: socket.socket | None = None
        self._sockets: dict[Key, socket.socket] = {}
        self._frames: asyncio.Queue[bytes] = asyncio.Queue(FRAMES_AT_ONCE * 4)
        self._news = asyncio.Event()        # times may be other ones now
        self._again = asyncio.Event()       # the goal state is to be applied once more
        self._too_big = asyncio.Event()

    def leases(self) -> Mapping[str, IPv4Interface]:
        """Addresses that endpoints have by DHCP, by PortGoal.id."""
        return self._leases.current()

    async def follow(self, goals: Goals, built: Built) -> None:
        """What was programmed: who is served, and how."""
        clients = clients_of(goals, built)
        routers = routers_of(goals, built)
        await self._worker.run(self._leases.follow, clients)
        await self._listen(self._wanted(goals, built, routers, {client.uid for client in clients}))
        self._advertiser.follow(routers, {uid: link.host_interface for uid, link in built.ports.items()})
        self._news.set()

    async def keep(self, again: Callable[[], Awaitable[None]]) -> None:
        """Serve. `again` applies the goal state once more. Never ends; sockets are closed when it is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_time())
                tasks.create_task(self._keep_leases())
                tasks.create_task(self._keep_paths())
                tasks.create_task(self._keep_applied(again))
        finally:
            for key in list(self._sockets):
                self._close(key)
            if self._sender is not None:
                self._sender.close()

    async def _keep_time(self) -> None:
        while True:
            self._advertiser.run()
            if await self._worker.run(self._leases.expire):
                self._again.set()
            if self._paths.expires_in_s() == 0:
                self._paths.stale()
                self._again.set()
            self._news.clear()
            expires_s = self._paths.expires_in_s()
            ends = (self._advertiser.due_in_s(), self._leases.ends_in_s(), expires_s or None)
            next_s = min((end for end in ends if end is not None), default=None)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), next_s)

    async def _keep_leases(self) -> None:
        while True:
            message = parse(await self._frames.get())
            if message is not None and await self._worker.run(self._leases.see, message):
                self._again.set()
            self._news.set()

    async def _keep_paths(self) -> None:
        while True:
            await self._too_big.wait()
            await asyncio.sleep(SETTLE_S)
            self._too_big.clear()
            self._paths.stale()
            self._again.set()
            await asyncio.sleep(TOO_BIG_PAUSE_S)

    async def _keep_applied(self, again: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._again.wait()
            self._again.clear()
            await again()

    def _wanted(self, goals: Goals, built: Built, routers: Mapping[str, Router], clients: set[str]) -> set[Key]:
        ifindexes = {port.id: port.ifindex for port in built.engine.ports}
        wanted: set[Key] = {("solicitation", uid, ifindexes[built.port_ids[uid]]) for uid in routers}
        if clients:
            wanted |= {("asked", uid, ifindexes[built.port_ids[uid]]) for uid in clients}
            wanted |= {("answered", uplink.name, uplink.ifindex) for uplink in built.uplinks
                       if uplink.name in built.promiscuous}
        if built.tunnel is not None:
            wanted.add(("too big", "4", goals.host.vxlan_port))
            wanted.add(("too big", "6", goals.host.vxlan_port))
        return wanted

    async def _listen(self, wanted: set[Key]) -> None:
        for key in self._sockets.keys() - wanted:
            self._close(key)
        for key in wanted - self._sockets.keys():
            try:
                opened = await self._worker.run(self._open, key)
            except (OSError, VSwitchError) as error:
                _log.error("service has no socket", what=key[0], where=key[1], error=str(error))
                continue
            if opened is not None:
                self._sockets[key] = opened
                asyncio.get_running_loop().add_reader(opened.fileno(), self._read, key, opened)

    def _open(self, key: Key) -> socket.socket | None:
        what, where, number = key
        match what:
            case "solicitation":
                if self._sender is None:
                    self._sender = self._switch.open_sender(self._mark)
                return self._switch.open_solicitations(number)
            case "too big":
                return self._switch.open_too_big(number, int(where))
        return self._switch.open_dhcp(number, answers=what == "answered")

    def _close(self, key: Key) -> None:
        closing = self._sockets.pop(key)
        asyncio.get_running_loop().remove_reader(closing.fileno())
        closing.close()

    def _read(self, key: Key, opened: socket.socket) -> None:
        """At most so many at once: others want to be heard, too. What finds no room in the queue is asked again."""
        for _ in range(FRAMES_AT_ONCE):
            try:
                frame = opened.recv(FRAME_BYTES)
            except BlockingIOError:
                return
            except OSError:                 # the link is down, or gone: told once, then there is silence
                return
            match key[0]:
                case "solicitation":
                    self._advertiser.solicited(key[1], frame)
                    self._news.set()
                case "too big":
                    self._too_big.set()
                case _ if not self._frames.full():
                    self._frames.put_nowait(frame)

    def _send(self, link: str, frame: bytes) -> None:
        if self._sender is None:
            return
        try:
            self._sender.sendto(frame, (link, 0))
        except OSError as error:            # no buffer, or the link is down or gone; there will be another
            _log.debug("advertisement not sent", link=link, error=str(error))

