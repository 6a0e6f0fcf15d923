"""The switch of one host: every change to links goes through here."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Self

from vswitch import bridges, hooks, inspect, packets, ports, queues, sending, shaper, tunnels, underlay, uplinks
from vswitch.changes import changes
from vswitch.ears import Ears
from vswitch.errors import KernelRefused
from vswitch.links import (
    BridgeLink,
    Detour,
    HookedProgram,
    InspectPrograms,
    Limit,
    OwnedLink,
    PathState,
    PortLink,
    ShaperLink,
    Surroundings,
    TunnelLink,
    UnderlayState,
    UplinkState,
    Where,
)
from vswitch.listening import Listening
from vswitch.loopback import LOOPBACK, LoopbackSettings
from vswitch.namespaces import Visitor
from vswitch.netlink import Netlink
from vswitch.ownership import find_link
from vswitch.requests import link_delete
from vswitch.reservations import Reservations
from vswitch.surroundings import listeners, own_addresses, own_links, surroundings


class Switch:
    """Links of the network namespace in which it is opened, wherever its callers are.

    Calls block for milliseconds; any thread may call, one at a time is served. `ensure_*` adopt what fits,
    mend what differs and make what is missing, so that they can be called again after any failure. Every call
    may raise `PermissionDenied` or `KernelRefused` besides what it names.
    """

    def __init__(self, record_dir: Path = Path("/run/sluice")) -> None:
        self._lock = threading.Lock()
        self._netlink = Netlink()
        self._visitor = Visitor()
        self._ears = Ears(self._visitor)
        self._reservations = Reservations(self._visitor, record_dir)
        self._loopback = LoopbackSettings(self._visitor, record_dir)
        self._listening = Listening(self._netlink, self._visitor, record_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close sockets and end the thread; every link stays."""
        self._netlink.close()
        self._ears.close()
        self._visitor.close()

    def ensure_port(self, link: PortLink, hooked: Sequence[HookedProgram] = ()) -> int:
        """Make or mend a port; ifindex of the host side. Its hooks are in place before it carries anything.

        Raises:
            LinkInvalid: a field cannot be right. NamespaceMissing. NamespaceGone: it is not the one that
                the link names. InterfaceTaken: a name is another's, here or there. LinkMissing: the bridge
                does not exist.
        """
        with self._lock:
            return ports.ensure_port(self._netlink, self._visitor, link, hooked)

    def identify(self, netns: str) -> str:
        """What the namespace that is there now is called as long as it lives, and no other ever.

        Raises:
            LinkInvalid: the name cannot be one, or the namespace is this very one. NamespaceMissing.
        """
        with self._lock:
            return ports.identify(self._visitor, netns)

    def ensure_bridge(self, link: BridgeLink) -> int:
        """Make or mend a bridge; its ifindex.

        Raises:
            LinkInvalid, InterfaceTaken.
        """
        with self._lock:
            return bridges.ensure_bridge(self._netlink, self._visitor, link)

    def ensure_tunnel(self, link: TunnelLink) -> int:
        """Make or mend the tunnel device; its ifindex.

        Raises:
            LinkInvalid, InterfaceTaken. AddressTaken: the UDP port is another's.
        """
        with self._lock:
            return tunnels.ensure_tunnel(self._netlink, self._visitor, link)

    def ensure_inspection(self, programs: InspectPrograms, queues: Sequence[int]) -> Detour:
        """Make or mend the way to user space and back, for these queues.

        Raises:
            InspectUnsupported: this host cannot. InterfaceTaken, HookTaken, NamespaceMissing.
        """
        with self._lock:
            return inspect.ensure_inspection(self._netlink, self._visitor, programs, queues)

    def remove_inspection(self) -> bool:
        """Remove that; whether there was any. Idempotent."""
        with self._lock:
            return inspect.remove_inspection(self._netlink, self._visitor)

    def ensure_shaper(self, link: ShaperLink, hooked: Sequence[HookedProgram] = ()) -> int:
        """Make or mend the shaper, with these programs at its second end; ifindex of the first.

        Raises:
            LinkInvalid, InterfaceTaken, HookTaken.
        """
        with self._lock:
            return shaper.ensure_shaper(self._netlink, self._visitor, link, hooked)

    def ensure_classes(self, ifindex: int, limits: Mapping[int, Limit], total_bps: int = 0) -> None:
        """Let the shaper have these classes among others, and all together this rate (0: any).

        Raises:
            LinkInvalid.
        """
        with self._lock:
            queues.ensure_classes(self._netlink, ifindex, limits, total_bps)

    def prune_classes(self, ifindex: int, keep: Collection[int]) -> None:
        """Take all other classes off the shaper, each when what waits in it has left."""
        with self._lock:
            queues.prune_classes(self._netlink, ifindex, keep)

    def ensure_queue(self, ifindex: int, limit: Limit) -> None:
        """Let what leaves by a link of ours pass a queue of this bandwidth.

        Raises:
            LinkInvalid.
        """
        with self._lock:
            queues.ensure_classes(self._netlink, ifindex, {1: limit}, default=1)

    def remove_queue(self, ifindex: int) -> None:
        """Take it off, when what waits in it has left. Idempotent."""
        with self._lock:
            queues.remove_tree(self._netlink, ifindex)

    def remove(self, name: str) -> None:
        """Remove a link of ours, with all that hangs on it; one that is gone, or is another's, is left."""
        with self._lock:
            found = find_link(self._netlink, name)
            if found is None or not found.is_ours:
                return
            try:
                self._netlink.run(link_delete(found.ifindex))
            except KernelRefused as error:
                if error.code != errno.ENODEV:
                    raise

    def owned(self) -> dict[str, OwnedLink]:
        """Every link of ours by name, those included whose making was cut short."""
        with self._lock:
            return {link.name: link.as_owned() for link in own_links(self._netlink)}

    def set_neighbours(self, bridge: str, entries: Mapping[str, str]) -> None:
        """Make the permanent neighbours of a bridge exactly these, address to MAC.

        IPv6 ones only where the bridge has an IPv6 address. Which port a MAC is behind is no matter of this call:
        `ensure_port` says it.

        Raises:
            LinkInvalid, LinkMissing, InterfaceTaken.
        """
        with self._lock:
            bridges.set_neighbours(self._netlink, self._visitor, bridge, entries)

    def attach(self, ifindex: int, where: Where, program_fd: int, name: str) -> None:
        """Run a BPF program at a TC hook of a link, in place of any other of ours there, without a gap.

        `name` starts with `sluice_` and is how our filter is known.

        Raises:
            LinkMissing, LinkInvalid. HookTaken: another's filter or qdisc is in the way.
        """
        with self._lock:
            hooks.attach(self._netlink, ifindex, where, program_fd, name)

    def detach(self, ifindex: int, where: Where) -> None:
        """Take our filter off a hook, and the clsact qdisc too if we brought it and it is empty. Idempotent."""
        with self._lock:
            hooks.detach(self._netlink, ifindex, where)

    def hooked(self) -> dict[str, int]:
        """Links that are not ours and have a program of ours at their ingress: name and ifindex."""
        with self._lock:
            return hooks.hooked(self._netlink)

    def open_loopback(self, program_fd: int, name: str) -> int:
        """Let endpoints reach the host's own sockets by lo, and these mapped ports: settings and hook; its ifindex.

        Raises:
            LinkMissing, LinkInvalid, HookTaken.
        """
        with self._lock:
            hooks.attach(self._netlink, LOOPBACK, "ingress", program_fd, name)
            self._loopback.open()
            return LOOPBACK

    def close_loopback(self) -> bool:
        """Take that back, in whichever process it was done; whether there was any of it. Idempotent."""
        with self._lock:
            hooked = hooks.detach(self._netlink, LOOPBACK, "ingress")
            return self._loopback.close() or hooked

    def uplink(self, name: str = "") -> UplinkState:
        """The named interface, or the one that the default route leads through.

        Raises:
            UplinkMissing.
        """
        with self._lock:
            return uplinks.uplink(self._netlink, name)

    def set_listening(self, everything: Collection[str], groups: Collection[str] = ()) -> None:
        """Make exactly these links hear every frame, or every one to a group MAC, and take it back where we did before.

        Links that are not there are passed over.
        """
        with self._lock:
            self._listening.set(everything, groups)

    def underlays(self, addresses: Sequence[str]) -> dict[str, UnderlayState]:
        """Those of the addresses that this host has, in the order given.

        Raises:
            LinkInvalid.
        """
        with self._lock:
            return underlay.underlays(self._netlink, addresses)

    def paths(self, addresses: Iterable[str]) -> dict[str, PathState]:
        """How far packets get in one piece, to each address that there is a route to.

        Raises:
            LinkInvalid.
        """
        with self._lock:
            return underlay.paths(self._netlink, addresses)

    def facts(self) -> Surroundings:
        """Addresses, routes and listening sockets that Sluice did not make."""
        with self._lock:
            return surroundings(self._netlink, self._ears)

    def listeners(self) -> tuple[tuple[str, str, int], ...]:
        """Listening sockets, as in `facts`. Nothing tells when one comes: it must be looked for."""
        with self._lock:
            return listeners(self._netlink, self._ears)

    def addresses(self) -> tuple[tuple[str, str], ...]:
        """Addresses that Sluice did not make, as in `facts`."""
        with self._lock:
            return own_addresses(self._netlink)

    def reserve_ports(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Keep the host's sockets from picking these source ports (inclusive), beside what others reserved.

        A later call replaces what an earlier one asked for.

        Raises:
            LinkInvalid.
        """
        with self._lock:
            self._reservations.reserve(ranges)

    def release_ports(self) -> None:
        """Give back what `reserve_ports` took, in whichever process; what others reserved stays."""
        with self._lock:
            self._reservations.release()

    def send(self, ifindex: int, frames: Iterable[bytes]) -> None:
        """Send frames of our own out of a link.

        Raises:
            KernelRefused.
        """
        with self._lock:
            sending.send(ifindex, frames)

    def open_too_big(self, udp_port: int, version: int) -> socket.socket:
        """A socket that gets what routers say is "too big" of UDP packets to this port, in IPv4 or IPv6.

        Raises:
            OSError.
        """
        return self._visitor.at_home(lambda: packets.open_too_big(udp_port, version))

    def open_dhcp(self, ifindex: int, *, answers: bool) -> socket.socket:
        """A socket that gets what DHCP servers answer by a link, or what clients ask.

        Raises:
            OSError.
        """
        return self._visitor.at_home(lambda: packets.open_dhcp(ifindex, answers=answers))

    def open_solicitations(self, ifindex: int) -> socket.socket:
        """A socket that gets the router solicitations that come by a link.

        Raises:
            OSError.
        """
        return self._visitor.at_home(lambda: packets.open_solicitations(ifindex))

    def open_sender(self, mark: int = 0) -> socket.socket:
        """A socket that sends frames by any of our links; hooks see the mark.

        Raises:
            OSError.
        """
        return self._visitor.at_home(lambda: packets.open_sender(mark))

    async def watch(self) -> AsyncGenerator[None]:
        """Yield when the watch stands, then whenever links, addresses, routes or named namespaces changed.

        Bursts come as one. Our own changes are told as well. What happens inside the endpoints' namespaces is told
        only if it shows on the host side of a port. Close the generator when done (`contextlib.aclosing`); a
        cancelled `anext` ends it.
        """
        async with aclosing(changes(self._visitor)) as events:
            async for _ in events:
                yield
