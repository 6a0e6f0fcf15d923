"""Policies that change, and what each of them allows: the oracle of the fault proof. Values only.

A state says, for each endpoint and direction, which (peer, service) pairs are allowed. A packet is allowed if its
sender's `out` and its receiver's `in` allow it. One state has many spellings (allow list, deny list, two tiers, a large
group), so that a change of words that changes no meaning is a change too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal

from southbound.messages import AclRule, AclTier, Goal, HostGoal, NetworkGoal, PortGoal, Subnet

Direction = Literal["in", "out"]
Place = tuple[str, Direction]
Pair = tuple[str, int]                      # (peer, service)
SPELLINGS = ("allow", "deny", "tiers")
LARGE = ("a", "e")                          # endpoints whose groups have hundreds of rules, and are edited

SERVICES = tuple(range(7000, 7006))
UDP = 17
RED = NetworkGoal("n1", "red", "red", "overlay", 5001, (Subnet("10.1.0.0/24", "10.1.0.1"),), "02:fe:00:00:51:01", 0)
BLUE = NetworkGoal(
    "n2", "blue", "default", "nat", (1 << 24) + 1, (Subnet("192.168.50.0/24", "192.168.50.1"),), "02:fe:00:00:50:01", 0
)
HOST = HostGoal("self", underlay="172.31.0.1", uplink="lan0")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of the stage: its network, address and MAC."""

    name: str
    network: NetworkGoal
    address: str
    mac: str


ENDPOINTS = {
    name: Endpoint(name, network, network.subnets[0].prefix.replace("0/24", str(10 + n)), f"02:00:00:00:51:{n:02x}")
    for n, (name, network) in enumerate([("a", RED), ("b", RED), ("c", RED), ("d", RED), ("e", BLUE), ("f", BLUE)], 1)
}
EXTRA = Endpoint("x", RED, "10.1.0.99", "02:00:00:00:51:99")     # comes and goes; nobody talks to it


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """What packets of one kind have in common."""

    source: str
    destination: str
    service: int


FLOWS = tuple(
    Flow(source, destination, service)
    for source, destination in permutations(ENDPOINTS, 2)
    if ENDPOINTS[source].network is ENDPOINTS[destination].network
    for service in SERVICES
)
ALWAYS = frozenset({Flow("a", "b", 7000), Flow("c", "a", 7000), Flow("e", "f", 7000)})
NEVER = frozenset({Flow("a", "c", 7005), Flow("f", "e", 7005)})
TURNS = tuple(Flow(s, d, 7004) for s, d in (("a", "b"), ("b", "a"), ("c", "d"), ("d", "b"), ("e", "f")))
"""Never allowed either, but now it is the sender's policy that says so, now the receiver's."""


@dataclass(frozen=True, slots=True)
class State:
    """One policy of the whole stage. `extra`: the endpoint that comes and goes is there."""

    allowed: Mapping[Place, frozenset[Pair]]
    spelling: Mapping[str, str]
    salt: Mapping[str, int]                 # changes words, never meaning
    extra: bool = False

    def allows(self, flow: Flow) -> bool:
        """Whether both ends do."""
        return (
            (flow.destination, flow.service) in self.allowed[flow.source, "out"]
            and (flow.source, flow.service) in self.allowed[flow.destination, "in"]
        )


def first(rng: random.Random) -> State:
    """A state to begin with."""
    allowed = {place: _random_pairs(rng, place[0]) for place in _places()}
    spelling = {name: SPELLINGS[n % len(SPELLINGS)] for n, name in enumerate(ENDPOINTS)}
    return _fixed(State(allowed, spelling, dict.fromkeys(ENDPOINTS, 0)), rng)


def changed(state: State, rng: random.Random) -> tuple[State, Flow | None]:
    """The next state, and a flow that it concerns most."""
    kind = rng.choices(("toggle", "turn", "anew", "words", "all", "extra"), (35, 25, 15, 13, 10, 2))[0]
    allowed = dict(state.allowed)
    if kind == "toggle":
        flow = rng.choice(FLOWS)
        place, pair = _ends(flow)[rng.randrange(2)]
        allowed[place] = allowed[place] ^ {pair}
        return _fixed(replace(state, allowed=allowed), rng, keep=True), flow
    if kind == "turn":
        flow = rng.choice(TURNS)
        for place, pair in _ends(flow):
            allowed[place] = allowed[place] ^ {pair}
        return _fixed(replace(state, allowed=allowed), rng, keep=True), flow
    if kind == "anew":
        place = rng.choice(_places())
        allowed[place] = _random_pairs(rng, place[0])
        return _fixed(replace(state, allowed=allowed), rng), None
    if kind == "words":
        name = rng.choice(tuple(ENDPOINTS))
        spelling = {**state.spelling, name: rng.choice(SPELLINGS)}
        return replace(state, spelling=spelling, salt={**state.salt, name: rng.randrange(1 << 20)}), None
    if kind == "all":
        allowed = {place: _random_pairs(rng, place[0]) for place in _places()}
        return _fixed(replace(state, allowed=allowed), rng), None
    return replace(state, extra=not state.extra), None


def goals(state: State, netns: Mapping[str, str]) -> dict[tuple[str, str], Goal]:
    """The goal state of the host. `netns`: of each endpoint."""
    found: list[Goal] = [HOST, RED, BLUE]
    for name, endpoint in ENDPOINTS.items():
        port = _port(endpoint, netns[name])
        out, out_tiers = _spelled(state, name, "out")
        in_, in_tiers = _spelled(state, name, "in")
        found.append(replace(port, tiers=(*out_tiers, *in_tiers), default_out=out, default_in=in_))
    if state.extra:
        found.append(_port(EXTRA, netns[EXTRA.name]))
    return {(goal.kind, goal.id): goal for goal in found}


def _port(endpoint: Endpoint, netns: str) -> PortGoal:
    network = endpoint.network
    return PortGoal(
        f"uid-{endpoint.name}", endpoint.name, network.tenant, network.id, f"{endpoint.address}/24", endpoint.mac,
        netns, "eth0",
    )


def _places() -> list[Place]:
    return [(name, direction) for name in ENDPOINTS for direction in ("in", "out")]


def _peers(name: str) -> list[str]:
    return [peer for peer in ENDPOINTS if peer != name and ENDPOINTS[peer].network is ENDPOINTS[name].network]


def _universe(name: str) -> list[Pair]:
    return [(peer, service) for peer in _peers(name) for service in SERVICES]


def _random_pairs(rng: random.Random, name: str) -> frozenset[Pair]:
    return frozenset(pair for pair in _universe(name) if rng.random() < 0.7)


def _ends(flow: Flow) -> tuple[tuple[Place, Pair], tuple[Place, Pair]]:
    out, in_ = (flow.source, "out"), (flow.destination, "in")
    return (out, (flow.destination, flow.service)), (in_, (flow.source, flow.service))


def _fixed(state: State, rng: random.Random, keep: bool = False) -> State:
    """With what holds in every state. `keep`: whose turn it is to deny was decided by the caller."""
    allowed = dict(state.allowed)
    for flow in ALWAYS:
        for place, pair in _ends(flow):
            allowed[place] |= {pair}
    for flow in NEVER:
        place, pair = _ends(flow)[1]
        allowed[place] -= {pair}
    for flow in TURNS:
        ends = _ends(flow)
        if keep and sum(pair in allowed[place] for place, pair in ends) == 1:
            continue
        turn = rng.randrange(2)
        for side, (place, pair) in enumerate(ends):
            allowed[place] = allowed[place] | {pair} if side == turn else allowed[place] - {pair}
    return replace(state, allowed=allowed)


def _spelled(state: State, name: str, direction: Direction) -> tuple[Literal["allow", "deny"], tuple[AclTier, ...]]:
    """The port's default of a direction, and its tiers."""
    allowed = state.allowed[name, direction]
    denied = frozenset(_universe(name)) - allowed
    tier = f"{name}/{direction}-{state.salt[name]}"
    spelling = state.spelling[name]
    if name not in LARGE and spelling == "deny":
        return "allow", (AclTier(tier, 10, tuple(_rules("deny", denied, direction))),)
    if name not in LARGE and spelling == "tiers":
        early = (*_by_service("deny", denied, direction), *_rules("pass", allowed, direction, 100))
        return "deny", (AclTier(f"{tier}-1", 10, early), AclTier(f"{tier}-2", 20, (AclRule(5, direction, "allow"),)))
    rules = tuple(_rules("allow", allowed, direction))
    if name in LARGE:
        rules += tuple(AclRule(1000 + n, direction, "deny", (f"10.99.{n}.0/24",), UDP) for n in range(250))
        tier = f"{name}/{direction}"        # the same group, edited
    return "deny", (AclTier(tier, 10, rules),)


def _by_service(
    action: Literal["allow", "deny", "pass"], pairs: frozenset[Pair], direction: Direction
) -> Iterator[AclRule]:
    """A rule a service, of all its peers: a set, which changes at the moment when the rules do."""
    for service in sorted({service for _, service in pairs}):
        peers = tuple(f"{ENDPOINTS[peer].address}/32" for peer, its in sorted(pairs) if its == service)
        yield AclRule(10 + service - SERVICES[0], direction, action, peers, UDP, ((service, service),))


def _rules(
    action: Literal["allow", "deny", "pass"], pairs: frozenset[Pair], direction: Direction, first: int = 10
) -> Iterator[AclRule]:
    """A rule a peer."""
    for n, peer in enumerate(sorted({peer for peer, _ in pairs})):
        ports = tuple((service, service) for its, service in sorted(pairs) if its == peer)
        yield AclRule(first + n, direction, action, (f"{ENDPOINTS[peer].address}/32",), UDP, ports)
