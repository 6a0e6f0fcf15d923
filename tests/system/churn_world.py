"""What is declared in the churn proof, and what follows from it: who reaches whom, and what each host must hold.

Values only, all from one seed. Networks have the same prefixes in pairs, so an address alone says nobody's name;
endpoints are told apart by name and MAC. The oracle knows nothing of goal states or engines: it is a page of set
arithmetic over documents.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Any, NamedTuple

API = "sluice/v1"
FAMILIES = (4, 6)
OLD_ADDRESSES = 24                          # of endpoints that are gone, by network, which nobody may answer to


class Slot(NamedTuple):
    """A place for an endpoint: a namespace of a host."""

    host: int
    number: int


@dataclass(frozen=True, slots=True)
class Network:
    """An overlay network of a tenant of its own; `block` chooses its prefixes."""

    number: int
    block: int
    peers: tuple[int, ...] = ()             # numbers of networks with other prefixes that it names as peers

    @property
    def tenant(self) -> str:
        return f"t{self.number}"

    @property
    def vni(self) -> int:
        return 7000 + self.number

    def address(self, version: int, offset: int) -> str:
        """The `offset`th address; 1 is the gateway's."""
        if version == 4:
            return str(ip_address(int(ip_address(f"10.{self.block}.0.0")) + offset))
        return str(ip_address(int(ip_address(f"fd00:{self.block:x}::")) + offset))

    def documents(self) -> list[dict[str, Any]]:
        """Tenant and network."""
        spec: dict[str, Any] = {
            "mode": "overlay", "vni": self.vni,
            "subnets": [{"prefix": f"10.{self.block}.0.0/22"}, {"prefix": f"fd00:{self.block:x}::/64"}],
        }
        if self.peers:
            spec["peers"] = [f"t{number}/net" for number in self.peers]
        return [
            {"apiVersion": API, "kind": "Tenant", "metadata": {"name": self.tenant}},
            {"apiVersion": API, "kind": "Network", "metadata": {"name": "net", "tenant": self.tenant}, "spec": spec},
        ]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Declared, and where. `offset` is that of both its addresses."""

    name: str
    network: Network
    slot: Slot
    offset: int
    mac: str

    def address(self, version: int) -> str:
        return self.network.address(version, self.offset)

    def document(self, netns: str) -> dict[str, Any]:
        return {
            "apiVersion": API, "kind": "Endpoint", "metadata": {"name": self.name, "tenant": self.network.tenant},
            "spec": {"network": "net", "host": host_name(self.slot.host), "netns": netns, "mac": self.mac,
                     "address": self.address(4), "address6": self.address(6)},
        }


def host_name(number: int) -> str:
    return f"h{number}"


def underlays(host: int, version: int) -> tuple[str, ...]:
    """The VTEP addresses of a host, in the order declared.

    All hosts have one of the family `version`; some have both families, and of IPv4 some have two.
    """
    four, six = f"172.31.{host // 200}.{host % 200 + 1}", f"fd31::{host + 1:x}"
    if version == 6:
        return ((six,), (four, six), (six, four))[host % 3]
    return ((four,), (four, four.replace("172.31.", "172.31.1")), (six, four))[host % 3]


def link_local(mac: str) -> str:
    """RFC 4291 appendix A."""
    raw = bytes.fromhex(mac.replace(":", ""))
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + bytes((raw[0] ^ 2,)) + raw[1:3] + b"\xff\xfe" + raw[3:]))


@dataclass(slots=True)
class Change:
    """One request each, in this order: endpoints that go, then endpoints that are put (made, or moved)."""

    remove: list[Endpoint] = field(default_factory=list)
    put: list[Endpoint] = field(default_factory=list)
    what: str = ""


class World:
    """All that is declared; `step` changes it."""

    def __init__(self, hosts: int, endpoints: int, networks: int, rng: random.Random) -> None:
        """`endpoints`: on each host at the beginning; a fifth more have room there."""
        self.hosts, self._rng = hosts, rng
        self.version = rng.choice(FAMILIES)     # that all hosts have on the underlay
        self.slots = endpoints + max(2, endpoints // 5)
        # Blocks 1, 1, 2, 2, ..: two networks with the same addresses each. The third is peered with the first.
        self.networks = [Network(number, 1 + number // 2, (0,) if number == 2 else ()) for number in range(networks)]
        self._joined = {network: frozenset(other for other in self.networks if other.number in network.peers
                                           or network.number in other.peers) | {network} for network in self.networks}
        self.endpoints: dict[str, Endpoint] = {}
        self.gone: dict[Network, list[int]] = {network: [] for network in self.networks}   # offsets, oldest first
        self._free = {Slot(host, number) for host in range(hosts) for number in range(self.slots)}
        self._made = 0
        self._next = dict.fromkeys(self.networks, 10)
        for host in range(hosts):
            for number in range(endpoints):
                self._add(self._make(rng.choice(self.networks), Slot(host, number)))

    # What follows from it

    def at(self) -> dict[Slot, Endpoint]:
        """Endpoints by place."""
        return {endpoint.slot: endpoint for endpoint in self.endpoints.values()}

    def targets(self) -> list[tuple[int, str]]:
        """(family, address): every address that somebody has, or lately had, each once."""
        found: dict[tuple[int, str], None] = {}
        for version in FAMILIES:
            for endpoint in self.endpoints.values():
                found[version, endpoint.address(version)] = None
            for network, offsets in self.gone.items():
                for offset in offsets:
                    found[version, network.address(version, offset)] = None
        return list(found)

    def reached(self) -> dict[tuple[Network, str], Endpoint]:
        """Who has an address, as seen from a network: the declared matrix, whoever in the network sends."""
        return {(network, endpoint.address(version)): endpoint for endpoint in self.endpoints.values()
                for network in self.joined(endpoint.network) for version in FAMILIES}

    def joined(self, network: Network) -> frozenset[Network]:
        """The network and its peers."""
        return self._joined[network]

    def known(self, host: int) -> set[Network]:
        """The networks that a host must know: those of its endpoints, and their peers."""
        own = {endpoint.network for endpoint in self.endpoints.values() if endpoint.slot.host == host}
        return {other for network in own for other in self.joined(network)}

    def mappings(self, host: int) -> Iterator[tuple[int, str, int | None, str]]:
        """(VNI, address, host where it is behind or None: here, MAC): all that a host must know of endpoints."""
        known = self.known(host)
        for endpoint in self.endpoints.values():
            there = None if endpoint.slot.host == host else endpoint.slot.host
            for network in known & self.joined(endpoint.network):
                if endpoint.network in known:
                    addresses = [endpoint.address(version) for version in FAMILIES]
                    if endpoint.network == network:         # links of peers are not this one
                        addresses.append(link_local(endpoint.mac))
                    for address in addresses:
                        yield network.vni, address, there, endpoint.mac

    # What happens

    def step(self) -> Change:
        """A few of: moves, deletions, new ones on old addresses, and two that trade addresses."""
        change = Change()
        touched: set[str] = set()
        for _ in range(self._rng.randint(1, 4)):
            kind = self._rng.choices(("move", "delete", "readd", "trade", "relink"), (8, 4, 5, 1, 2))[0]
            done = getattr(self, f"_{kind}")(change, touched)
            change.what += f" {kind}" if done else ""
        return change

    def _some(self, touched: set[str]) -> Endpoint | None:
        names = sorted(self.endpoints.keys() - touched)
        if not names:
            return None
        chosen = self.endpoints[self._rng.choice(names)]
        touched.add(chosen.name)
        return chosen

    def _slot(self, but: int = -1) -> Slot | None:
        found = sorted(slot for slot in self._free if slot.host != but)
        return self._rng.choice(found) if found else None

    def _move(self, change: Change, touched: set[str]) -> bool:
        endpoint = self._some(touched)
        slot = self._slot(endpoint.slot.host) if endpoint else None
        if endpoint is None or slot is None:
            return False
        self._remove(endpoint)
        change.put.append(self._add(Endpoint(endpoint.name, endpoint.network, slot, endpoint.offset, endpoint.mac)))
        return True

    def _relink(self, change: Change, touched: set[str]) -> bool:
        """To another namespace of the same host."""
        endpoint = self._some(touched)
        free = sorted(slot for slot in self._free if endpoint and slot.host == endpoint.slot.host)
        if endpoint is None or not free:
            return False
        self._remove(endpoint)
        change.put.append(self._add(
            Endpoint(endpoint.name, endpoint.network, self._rng.choice(free), endpoint.offset, endpoint.mac)))
        return True

    def _delete(self, change: Change, touched: set[str]) -> bool:
        endpoint = self._some(touched)
        if endpoint is None or len(self.endpoints) <= 2 * len(self.networks):
            return False
        self._remove(endpoint)
        self.gone[endpoint.network].append(endpoint.offset)
        del self.gone[endpoint.network][:-OLD_ADDRESSES]
        change.remove.append(endpoint)
        return True

    def _readd(self, change: Change, touched: set[str]) -> bool:
        """A new endpoint, mostly with the address of one that is gone, often of the last one."""
        slot = self._slot()
        if slot is None:
            return False
        network = self._rng.choice(self.networks)
        old = self.gone[network]
        offset = None
        if old and self._rng.random() < 0.8:
            offset = old.pop() if self._rng.random() < 0.6 else old.pop(self._rng.randrange(len(old)))
        made = self._make(network, slot, offset)
        touched.add(made.name)
        change.put.append(self._add(made))
        return True

    def _trade(self, change: Change, touched: set[str]) -> bool:
        """Two of a network go, and two new ones in their places have each other's addresses."""
        one = self._some(touched)
        others = sorted(each.name for each in self.endpoints.values()
                        if one and each.network == one.network and each.name not in touched)
        if one is None or not others:
            return False
        other = self.endpoints[self._rng.choice(others)]
        touched.add(other.name)
        for endpoint in (one, other):
            self._remove(endpoint)
            change.remove.append(endpoint)
        for slot, offset in ((one.slot, other.offset), (other.slot, one.offset)):
            made = self._make(one.network, slot, offset)
            touched.add(made.name)
            change.put.append(self._add(made))
        return True

    def _make(self, network: Network, slot: Slot, offset: int | None = None) -> Endpoint:
        self._made += 1
        if offset is None:
            offset, self._next[network] = self._next[network], self._next[network] + 1
        number = self._made
        return Endpoint(f"e{number}", network, slot, offset, f"02:c4:{number >> 16:02x}:{number >> 8 & 255:02x}:"
                                                             f"{number & 255:02x}:01")

    def _add(self, endpoint: Endpoint) -> Endpoint:
        self._free.discard(endpoint.slot)
        self.endpoints[endpoint.name] = endpoint
        return endpoint

    def _remove(self, endpoint: Endpoint) -> None:
        del self.endpoints[endpoint.name]
        self._free.add(endpoint.slot)
