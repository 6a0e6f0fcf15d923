"""Address sets: who is in them, until when, and what a change of them means for flows that exist."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

from vfp.model import Address, AddressSet, EngineState, Prefix
from vfp.reference.index import rules_of

Members = dict[Prefix, float | None]        # a member and when it ends, s; None: never


class Sets:
    """Every set of one engine. `generation` is how often a set changed that could have turned a decision."""

    def __init__(self, state: EngineState) -> None:
        self.generation = 0
        self._names: dict[int, str] = {}
        self._dynamic: frozenset[int] = frozenset()
        self._named: frozenset[int] = frozenset()
        self._members: dict[int, Members] = {}
        self.update(state)

    def update(self, state: EngineState) -> None:
        """Take the sets of a new state. A dynamic set keeps its members; a set that is not in it loses them."""
        named = frozenset(_named_in(state))
        new = {given.id: self._members.get(given.id, {}) if given.dynamic else _static(given) for given in state.sets}
        changed = {id for id in new if new[id] != self._members.get(id, {})}
        self.generation += bool(changed & named & self._named)
        self._members, self._named = new, named
        self._names = {given.id: given.name for given in state.sets}
        self._dynamic = frozenset(given.id for given in state.sets if given.dynamic)

    def add(self, id: int, members: Iterable[Prefix], now_s: float, ttl_s: float | None, *, redecide: bool) -> None:
        """Put members into a dynamic set, or give them another end."""
        assert id in self._dynamic
        have = self._members[id]
        new = list(members)
        matters = any(prefix not in have or _is_over(have[prefix], now_s) for prefix in new)
        have.update(dict.fromkeys(new, None if ttl_s is None else now_s + ttl_s))
        self.generation += matters and redecide and id in self._named

    def remove(self, id: int, members: Iterable[Prefix], *, redecide: bool) -> None:
        """Take members out of a dynamic set."""
        assert id in self._dynamic
        gone = [prefix for prefix in set(members) if prefix in self._members[id]]
        for prefix in gone:
            del self._members[id][prefix]
        self.generation += bool(gone) and redecide and id in self._named

    def members(self, id: int) -> Members:
        """Who is in a set, those whose time is over included."""
        return self._members.get(id, {})

    def has(self, id: int, address: Address, now_s: float, *, again: bool) -> bool:
        """Whether an address is in a set. `again`: for a flow that exists, whom a member whose time is over still
        lets be what it was."""
        members = self._members.get(id, {})
        for length in {prefix.prefixlen for prefix in members if prefix.version == address.version}:
            prefix = ip_network((address, length), strict=False)
            if prefix in members and (again or not _is_over(members[prefix], now_s)):
                return True
        return False

    def name(self, id: int) -> str:
        """A set's name for people; its number if it has none."""
        return self._names.get(id) or str(id)


def _static(given: AddressSet) -> Members:
    return dict.fromkeys(given.members, None)


def _is_over(end_s: float | None, now_s: float) -> bool:
    return end_s is not None and end_s <= now_s


def _named_in(state: EngineState) -> Iterable[int]:
    for port in state.ports:
        for rule in rules_of(port):
            for id in (rule.match.src_set, rule.match.dst_set):
                if id is not None:
                    yield id
