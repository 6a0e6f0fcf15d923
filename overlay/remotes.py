"""Endpoints behind other hosts: columns of goals become blocks of the engine's, CA to PA, without an object for each.

A goal that did not change gives the same blocks again, and a space whose goals are the same costs nothing: a change
of one endpoint costs its block. Nobody may have an address that somebody else has; of two goals that claim one the
first by id keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Network, ip_address

import numpy as np
from numpy.typing import NDArray

from policy.addresses import LINK_LOCAL, network_prefixes
from policy.contribution import Fault, ObjectError
from southbound.messages import NetworkGoal, RemotesGoal, key_of
from southbound.vteps import choose_vtep, common_family
from vfp.model import Address, RemoteBlock

__all__ = ["Remotes", "autonomous_prefixes"]

_WIDTH = {4: 4, 6: 16}
_MAC = 6
_Bytes = NDArray[np.uint8]


def autonomous_prefixes(network: NetworkGoal) -> tuple[bytes, ...]:
    """First 8 bytes of the prefixes in which endpoints make an address from their MAC (RFC 4862 5.5.3)."""
    if not network.slaac:
        return ()
    return tuple(prefix.network_address.packed[:8] for prefix in network_prefixes(network)
                 if isinstance(prefix, IPv6Network) and prefix.prefixlen == 64)


@dataclass(slots=True)
class _Space:
    """What is in a space, of the goals of the last view."""

    made: dict[str, tuple[RemotesGoal, tuple[RemoteBlock, ...]]] = field(default_factory=dict)
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
        context = (ours, *((peer.id, autonomous_prefixes(peer)) for peer in {id(n): n for _, n in goals}.values()))
        if space.context != context:
            space = self._spaces[network.space] = _Space(context=context)
        if not (space.clean and self._changed(space, network.space, goals, ours)
                and space.taken.isdisjoint(address.packed for address in own)):
            space = self._spaces[network.space] = _Space(context=context)
            self._anew(space, network, goals, ours, own, faults)
        return space.blocks

    def _changed(
        self, space: _Space, vni: int, goals: Sequence[tuple[RemotesGoal, NetworkGoal]], ours: tuple[str, ...]
    ) -> bool:
        """Take over what differs; False: something is wrong with it, and all must be looked at."""
        now = {goal.id: goal for goal, _ in goals}
        gone = [uid for uid, (goal, _) in space.made.items() if now.get(uid) is not goal]
        new = [(goal, network) for goal, network in goals
               if (known := space.made.get(goal.id)) is None or known[0] is not goal]
        if not gone and not new:
            return True
        for uid in gone:
            for block in space.made.pop(uid)[1]:
                space.taken.difference_update(_each(block))
        for goal, network in new:
            try:
                made = _blocks(goal, network, vni, ours)
            except ObjectError:
                return False
            for block in made:
                addresses = _each(block)
                before = len(space.taken)
                space.taken.update(addresses)
                if len(space.taken) != before + len(addresses):
                    return False
            space.made[goal.id] = (goal, made)
        space.blocks = tuple(block for goal, _ in goals for block in space.made[goal.id][1])
        return True

    def _anew(
        self, space: _Space, network: NetworkGoal, goals: Sequence[tuple[RemotesGoal, NetworkGoal]],
        ours: tuple[str, ...], own: Sequence[Address], faults: list[Fault],
    ) -> None:
        """Each goal by itself, without the addresses that are already somewhere else."""
        taken = {address.packed for address in own}
        for goal, of in goals:
            try:
                made = _blocks(goal, of, network.space, ours)
            except ObjectError as error:
                space.clean = False
                faults.append(Fault(key_of(goal), str(error)))
                continue
            kept: list[RemoteBlock] = []
            for block in made:
                fit, lost = _without(block, taken)
                if lost:
                    space.clean = False
                    faults.append(Fault(key_of(goal), _claimed(goal, lost, network)))
                kept += [fit] if fit.addresses else []
            space.made[goal.id] = (goal, tuple(kept))
            space.blocks += tuple(kept)
        space.taken = taken - {address.packed for address in own}


def _each(block: RemoteBlock) -> list[bytes]:
    width = _WIDTH[block.version]
    raw = block.addresses
    return [raw[at : at + width] for at in range(0, len(raw), width)]


def _blocks(goal: RemotesGoal, network: NetworkGoal, vni: int, ours: tuple[str, ...]) -> tuple[RemoteBlock, ...]:
    """The blocks of one goal.

    Raises:
        ObjectError: its columns do not fit, or its host and this one have no family of addresses in common.
    """
    count = len(goal.names)
    if (len(goal.macs), len(goal.addresses)) != (count * _MAC, count * 4) or len(goal.addresses6) not in (
            0, count * 16):
        raise ObjectError(
            f"remote endpoints of host {goal.host}: {count} names, {len(goal.macs)} bytes of MACs,"
            f" {len(goal.addresses)} of IPv4 and {len(goal.addresses6)} of IPv6 addresses do not fit together")
    family = common_family(ours, goal.vteps)
    if not family:
        raise ObjectError(
            f"endpoints on host {goal.host} are not reachable: it has underlay addresses"
            f" {', '.join(goal.vteps) or '(none)'}, this host {', '.join(ours) or '(none)'}; give both one of a family")
    try:
        [ip_address(vtep) for vtep in goal.vteps]
    except ValueError as error:
        raise ObjectError(f"host {goal.host}: underlay address: {error}") from None
    macs = np.frombuffer(goal.macs, np.uint8).reshape(-1, _MAC)
    found: list[RemoteBlock] = []
    for vtep, rows in _by_vtep(goal, family):
        found += _of_one_vtep(goal, ip_address(vtep), vni, macs, rows, autonomous_prefixes(network))
    return tuple(found)


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


def _of_one_vtep(
    goal: RemotesGoal, vtep: Address, vni: int, macs: _Bytes, rows: NDArray[np.intp] | None, prefixes: tuple[bytes, ...]
) -> Iterator[RemoteBlock]:
    four = np.frombuffer(goal.addresses, np.uint8).reshape(-1, 4)
    six = np.frombuffer(goal.addresses6, np.uint8).reshape(-1, 16)
    if rows is not None:
        macs, four = macs[rows], four[rows]
        six = six[rows] if len(six) else six
    has = four.any(axis=1)
    if has.any():
        yield RemoteBlock(vtep, vni, 4, four[has].tobytes(), macs[has].tobytes())
    if len(six) and (has := six.any(axis=1)).any():
        six, macs = six[has], macs[has]
        columns = [six, *(_autonomous(prefix, macs) for prefix in (LINK_LOCAL.network_address.packed[:8], *prefixes))]
        unlike = [column[(column != six).any(axis=1)] for column in columns[1:]]    # as given, it is there already
        given = [macs[(column != six).any(axis=1)] for column in columns[1:]]
        yield RemoteBlock(vtep, vni, 6, b"".join(part.tobytes() for part in (six, *unlike)),
                          b"".join(part.tobytes() for part in (macs, *given)))


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
