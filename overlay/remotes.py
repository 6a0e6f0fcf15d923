"""Endpoints behind other hosts: columns of goals become blocks of the engine's, CA to PA, without an object for each.

What is made is made in *parts*: one for each goal, with the addresses that it gives, and one for each host, with those
that its endpoints make from their MACs: link-local ones, and with SLAAC one in each /64. Endpoints that are nested
behind another have its MAC, so that such an address is there once for all of them. A part whose goals are the same
objects is the same blocks again: a change of one endpoint costs its block and its host's part.

Nobody may have an address that somebody else has; of two parts that claim one the first keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Network, ip_address

import numpy as np
from numpy.typing import NDArray

from policy.addresses import LINK_LOCAL, network_prefixes
from policy.contribution import Fault, ObjectError
from southbound.messages import NetworkGoal, RemotesGoal, key_of
from southbound.vteps import choose_vtep, common_family
from vfp.errors import CompileError
from vfp.model import Address, RemoteBlock
from vfp.vteps import check_vtep

__all__ = ["Remotes", "autonomous_prefixes"]

_WIDTH = {4: 4, 6: 16}
_MAC = 6
_Bytes = NDArray[np.uint8]
_Goals = tuple[RemotesGoal, ...]
_PartKey = tuple[str, ...]                  # ("goal", its id), or ("host", NetworkGoal.id, host)


def autonomous_prefixes(network: NetworkGoal) -> tuple[bytes, ...]:
    """First 8 bytes of the prefixes in which endpoints make an address from their MAC (RFC 4862 5.5.3)."""
    if not network.slaac:
        return ()
    return tuple(prefix.network_address.packed[:8] for prefix in network_prefixes(network)
                 if isinstance(prefix, IPv6Network) and prefix.prefixlen == 64)


@dataclass(frozen=True, slots=True)
class _Part:
    """What is to be made of goals. `prefixes` None: what they give; else what their endpoints make in these."""

    goals: _Goals
    prefixes: tuple[bytes, ...] | None = None


@dataclass(slots=True)
class _Space:
    """What is in a space, of the goals of the last view."""

    made: dict[_PartKey, tuple[_Part, tuple[RemoteBlock, ...]]] = field(default_factory=dict)
    taken: set[bytes] = field(default_factory=set)              # addresses of all blocks
    blocks: tuple[RemoteBlock, ...] = ()
    context: object = None
    clean: bool = True                                          # nobody claims an address that is another's


class Remotes:
    """The blocks of each space, kept from view to view."""

    def __init__(self) -> None:
        self._spaces: dict[int, _Space] = {}

    def forget(self, but: set[int]) -> None:
        """Spaces that are no more."""
        for number in self._spaces.keys() - but:
            del self._spaces[number]

    def blocks(
        self, network: NetworkGoal, goals: Sequence[tuple[RemotesGoal, NetworkGoal]], ours: tuple[str, ...],
        own: Sequence[Address], faults: list[Fault],
    ) -> tuple[RemoteBlock, ...]:
        """The blocks of a network's space.

        Args:
            goals: each with the network that it is of: this one or a peer.
            ours: our VTEP addresses.
            own: all addresses of the space that are not in blocks.
            faults: gets the goals that are not, or not wholly, in it.
        """
        space = self._spaces.setdefault(network.space, _Space())
        parts = _parts(network, goals)
        if space.context != ours:
            space = self._spaces[network.space] = _Space(context=ours)
        if not (space.clean and self._changed(space, network.space, parts, ours)
                and space.taken.isdisjoint(address.packed for address in own)):
            space = self._spaces[network.space] = _Space(context=ours)
            self._anew(space, network, parts, ours, own, faults)
        return space.blocks

    def _changed(self, space: _Space, vni: int, parts: Mapping[_PartKey, _Part], ours: tuple[str, ...]) -> bool:
        """Take over what differs; False: something is wrong with it, and all must be looked at."""
        gone = [key for key, (part, _) in space.made.items() if parts.get(key) != part]
        new = [key for key in parts if key not in space.made]
        if not gone and not new:
            return True
        for key in gone:
            for block in space.made.pop(key)[1]:
                space.taken.difference_update(_each(block))
            if key in parts:
                new.append(key)
        for key in new:
            try:
                made = _blocks(parts[key], vni, ours)
            except ObjectError:
                return False
            for block in made:
                addresses = _each(block)
                before = len(space.taken)
                space.taken.update(addresses)
                if len(space.taken) != before + len(addresses):
                    return False
            space.made[key] = (parts[key], made)
        space.blocks = tuple(block for key in parts for block in space.made[key][1])
        return True

    def _anew(
        self, space: _Space, network: NetworkGoal, parts: Mapping[_PartKey, _Part], ours: tuple[str, ...],
        own: Sequence[Address], faults: list[Fault],
    ) -> None:
        """Each part by itself, without the addresses that are already somewhere else."""
        taken = {address.packed for address in own}
        for key, part in parts.items():
            goal = part.goals[0]
            try:
                made = _blocks(part, network.space, ours)
            except ObjectError as error:
                space.clean = False
                if part.prefixes is None:
                    faults.append(Fault(key_of(goal), str(error)))
                continue
            kept: list[RemoteBlock] = []
            for block in made:
                fit, lost = _without(block, taken)
                if lost:
                    space.clean = False
                    faults.append(Fault(key_of(goal), _claimed(goal, lost, network)))
                kept += [fit] if fit.addresses else []
            space.made[key] = (part, tuple(kept))
            space.blocks += tuple(kept)
        space.taken = taken - {address.packed for address in own}


def _parts(network: NetworkGoal, goals: Sequence[tuple[RemotesGoal, NetworkGoal]]) -> dict[_PartKey, _Part]:
    """Of a space. Link-local addresses are known in their own network only."""
    parts: dict[_PartKey, _Part] = {("goal", goal.id): _Part((goal,)) for goal, _ in goals}
    hosts: dict[tuple[str, str], list[RemotesGoal]] = {}
    networks: dict[str, NetworkGoal] = {}
    for goal, of in goals:
        if goal.addresses6:
            networks[of.id] = of
            hosts.setdefault((of.id, goal.host), []).append(goal)
    for (uid, host), found in hosts.items():
        local = (LINK_LOCAL.network_address.packed[:8],) if uid == network.id else ()
        prefixes = (*local, *autonomous_prefixes(networks[uid]))
        if prefixes:
            parts["host", uid, host] = _Part(tuple(found), prefixes)
    return parts


def _each(block: RemoteBlock) -> list[bytes]:
    return _split(block.addresses, _WIDTH[block.version])


def _split(raw: bytes, width: int) -> list[bytes]:
    return [raw[at : at + width] for at in range(0, len(raw), width)]


def _blocks(part: _Part, vni: int, ours: tuple[str, ...]) -> tuple[RemoteBlock, ...]:
    """The blocks of one part.

    Raises:
        ObjectError: columns do not fit, or the host and this one have no family of addresses in common.
    """
    found: list[RemoteBlock] = []
    given: list[tuple[str, _Bytes, _Bytes]] = []
    for goal in part.goals:
        macs, four, six = _columns(goal)
        for vtep, rows in _by_vtep(goal, _family(goal, ours)):
            own, fours = (macs, four) if rows is None else (macs[rows], four[rows])
            sixes = six if rows is None or not len(six) else six[rows]
            if part.prefixes is None:
                found += _given(_address(vtep), vni, own, fours, sixes)
            elif len(sixes) and (has := sixes.any(axis=1)).any():
                given.append((vtep, own[has], sixes[has]))
    if part.prefixes is not None:
        for vtep in sorted({vtep for vtep, _, _ in given}):
            macs = np.concatenate([own for of, own, _ in given if of == vtep])
            six = np.concatenate([sixes for of, _, sixes in given if of == vtep])
            found += _made(_address(vtep), vni, macs, six, part.prefixes)
    return tuple(found)


_address = lru_cache(maxsize=4096)(ip_address)  # hosts are few, their blocks many


def _columns(goal: RemotesGoal) -> tuple[_Bytes, _Bytes, _Bytes]:
    """MACs, IPv4 and IPv6 addresses, of which there may be none at all."""
    count = len(goal.names)
    if (len(goal.macs), len(goal.addresses)) != (count * _MAC, count * 4) or len(goal.addresses6) not in (
            0, count * 16):
        raise ObjectError(
            f"remote endpoints of host {goal.host}: {count} names, {len(goal.macs)} bytes of MACs,"
            f" {len(goal.addresses)} of IPv4 and {len(goal.addresses6)} of IPv6 addresses do not fit together")
    columns = ((goal.macs, _MAC), (goal.addresses, 4), (goal.addresses6, 16))
    macs, four, six = (np.frombuffer(raw, np.uint8).reshape(-1, width) for raw, width in columns)
    return macs, four, six


def _family(goal: RemotesGoal, ours: tuple[str, ...]) -> int:
    family = common_family(ours, goal.vteps)
    if not family:
        raise ObjectError(
            f"endpoints on host {goal.host} are not reachable: it has underlay addresses"
            f" {', '.join(goal.vteps) or '(none)'}, this host {', '.join(ours) or '(none)'}; give both one of a family")
    try:
        for vtep in goal.vteps:
            check_vtep("it", _address(vtep))
    except (ValueError, CompileError) as error:
        raise ObjectError(f"host {goal.host}: underlay address: {error}") from None
    return family


def _by_vtep(goal: RemotesGoal, family: int) -> Iterator[tuple[str, NDArray[np.intp] | None]]:
    """Each VTEP and whose it is; None: everybody's."""
    mark = "." if family == 4 else ":"
    if sum(mark in vtep for vtep in goal.vteps) == 1:
        yield choose_vtep(goal.vteps, family, b""), None
        return
    rows: dict[str, list[int]] = {}
    for row in range(len(goal.names)):
        vtep = choose_vtep(goal.vteps, family, goal.macs[row * _MAC : (row + 1) * _MAC])
        rows.setdefault(vtep, []).append(row)
    for vtep in sorted(rows):
        yield vtep, np.array(rows[vtep], np.intp)


def _given(vtep: Address, vni: int, macs: _Bytes, four: _Bytes, six: _Bytes) -> Iterator[RemoteBlock]:
    for version, column in ((4, four), (6, six)):
        if len(column) and (has := column.any(axis=1)).any():
            yield RemoteBlock(vtep, vni, version, column[has].tobytes(), macs[has].tobytes())


def _made(
    vtep: Address, vni: int, macs: _Bytes, six: _Bytes, prefixes: tuple[bytes, ...]
) -> Iterator[RemoteBlock]:
    """What endpoints make of their MACs, each once, without what they were given anyway."""
    _, first = np.unique(np.ascontiguousarray(macs).view(f"S{_MAC}").ravel(), return_index=True)
    macs = macs[np.sort(first)]
    addresses, owners = bytearray(), bytearray()
    for prefix in prefixes:
        made = _autonomous(prefix, macs)
        own = macs
        within = six[(six[:, :8] == np.frombuffer(prefix, np.uint8)).all(axis=1)]
        if len(within):
            known = set(_split(within.tobytes(), 16))
            fresh = np.array([address not in known for address in _split(made.tobytes(), 16)], bool)
            made, own = made[fresh], macs[fresh]
        addresses += made.tobytes()
        owners += own.tobytes()
    if addresses:
        yield RemoteBlock(vtep, vni, 6, bytes(addresses), bytes(owners))


def _autonomous(prefix: bytes, macs: _Bytes) -> _Bytes:
    """The addresses that interfaces make from their MACs (RFC 4291 appendix A)."""
    made = np.empty((len(macs), 16), np.uint8)
    made[:, :8] = np.frombuffer(prefix, np.uint8)
    made[:, 8:11], made[:, 13:16] = macs[:, :3], macs[:, 3:]
    made[:, 11], made[:, 12] = 0xFF, 0xFE
    made[:, 8] ^= 2
    return made


def _without(block: RemoteBlock, taken: set[bytes]) -> tuple[RemoteBlock, list[Address]]:
    """The block without addresses that are taken, and those; what stays is taken now."""
    kept: list[int] = []
    lost: list[Address] = []
    for row, address in enumerate(_each(block)):
        if address in taken:
            lost.append(ip_address(address))
        else:
            taken.add(address)
            kept.append(row)
    if not lost:
        return block, lost
    addresses = _each(block)
    return RemoteBlock(
        block.vtep, block.vni, block.version, b"".join(addresses[row] for row in kept),
        b"".join(block.macs[row * _MAC : (row + 1) * _MAC] for row in kept)), lost


def _claimed(goal: RemotesGoal, lost: list[Address], network: NetworkGoal) -> str:
    """One is named; the others follow when it is mended."""
    address = lost[0]
    column, width = (goal.addresses, 4) if address.version == 4 else (goal.addresses6, 16)
    place = next((row for row in range(len(goal.names)) if column[row * width : (row + 1) * width] == address.packed),
                 None)
    who = f"remote endpoint {goal.names[place]}" if place is not None else f"a remote endpoint on host {goal.host}"
    more = f" ({len(lost) - 1} more)" if len(lost) > 1 else ""
    return (f"{who} has address {address}, which is already in network {network.tenant}/{network.name}"
            f" on this host; one of them must go{more}")
