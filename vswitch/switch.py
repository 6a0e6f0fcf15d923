"""The switch of one host: every change to links goes through here."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from vswitch.links import BridgeLink, OwnedLink, PortLink, Surroundings, TunnelLink, UplinkState, Where


class Switch:
    """Links of the network namespace it was opened in. Calls block for milliseconds; any thread may call."""

    def __init__(self, record_dir: Path = Path("/run/sluice")) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close sockets; every link stays."""

    def ensure_port(self, link: PortLink) -> int:
        """Make or mend a port; host-side ifindex."""
        raise NotImplementedError

    def ensure_bridge(self, link: BridgeLink) -> int:
        """Make or mend a bridge; its ifindex."""
        raise NotImplementedError

    def ensure_tunnel(self, link: TunnelLink) -> int:
        """Make or mend the tunnel device; its ifindex."""
        raise NotImplementedError

    def remove(self, name: str) -> None:
        """Remove a link of ours; one that is gone, or is not ours, is left."""
        raise NotImplementedError

    def owned(self) -> dict[str, OwnedLink]:
        """Every link of ours by name."""
        raise NotImplementedError

    def set_neighbours(self, bridge: str, entries: Mapping[str, str]) -> None:
        """Make the permanent neighbours (IPv4 address -> MAC) of a bridge exactly these."""
        raise NotImplementedError

    def attach(self, ifindex: int, where: Where, program_fd: int, name: str) -> None:
        """Attach a program to a clsact hook; `name` starts with `sluice_`."""
        raise NotImplementedError

    def detach(self, ifindex: int, where: Where) -> None:
        """Take our filter off a hook."""
        raise NotImplementedError

    def uplink(self, name: str = "") -> UplinkState:
        """The named interface, or the one with the default route."""
        raise NotImplementedError

    def underlay(self, address: str) -> UplinkState:
        """The interface that has this address."""
        raise NotImplementedError

    def facts(self) -> Surroundings:
        """Addresses, routes and listening sockets that Sluice did not make."""
        raise NotImplementedError

    def reserve_ports(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Keep the stack from picking these source ports (inclusive ranges), beside what others reserved."""
        raise NotImplementedError

    def release_ports(self) -> None:
        """Give back what `reserve_ports` took; what others reserved stays."""
        raise NotImplementedError

    def watch(self) -> AsyncIterator[None]:
        """Yield when links, addresses, routes or namespaces changed; bursts come as one."""
        raise NotImplementedError
