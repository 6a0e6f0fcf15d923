"""Network address translation in any order of events: both engines agree, and what must hold does after each.

A Hypothesis state machine. What happens to the host, as rules: packets out, in, answered, complained about and
hairpinned, time, pools that run out, and policies that change under it, down to a port whose id another one gets.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from secrets import randbits

import pytest
from engine_frames import ACK, FIN, GRE, ICMP, RST, SCTP, SYN, TCP, UDP, IpFrame
from engine_prefixes import TRANSLATIONS, prefix_mappings, targets
from engine_states import (
    GATEWAY_MAC,
    INSIDE,
    LOCALHOST,
    LOCALHOST_6,
    MACS,
    NAT_SPACE,
    TIMEOUTS,
    UPLINKS,
    WORLD,
    four,
    mappings,
    nat_tail,
    pools,
    six,
    uplink,
)
from engine_steps import Again, Answer, Complain, Send, Update, Wait
from engine_storms import AgeingBpf, Duel
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from test_engine_invariants import has_right_checksums, was_right

from vfp.model import Address, EngineState, LocalPort, Port, Space
from vfp.reference import Hook, Result, Verdict
from vfp.reference.packet import parse

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loads BPF programs, which needs root")

FUZZ = bool(os.environ.get("SLUICE_FUZZ"))
BUDGET_S = 1200 if FUZZ else 50             # rounds end after that: a busy machine plays fewer
LEAST_ROUNDS = 3
STEPS = 40

PORTS = (1, 2, 3)
FEW_PORTS = (53, 80, 1000, 20000, 20001, 20002)
pick = st.sampled_from
numbers, families = pick(PORTS), pick((4, 4, 6))
protocols = pick((TCP, TCP, UDP, UDP, UDP, ICMP, SCTP, GRE))
local_ports, flags = pick(FEW_PORTS), pick((SYN, ACK, SYN | ACK, FIN | ACK, RST, RST | ACK))
back = st.integers(0, 12)


_CHANGES = (*("pool",) * 4, "pool goes", *("mappings",) * 3, "prefixes", "port goes", *("port",) * 5)


def in_family(address: Address, family: int) -> Address:
    if address.version == family:
        return address
    return six(four(address)) if family == 6 else four(address)


def port(number: int, pool: int, owner: int, timeouts: int, prefix: int | None) -> Port:
    """One whose endpoint has the address of `owner`; its layers let everything pass and translate it by `pool`."""
    tail = nat_tail(pool, UPLINKS[pool - 1], None if prefix is None else TRANSLATIONS[prefix])
    return Port(number, f"p{number}", 10 + number, MACS[owner], GATEWAY_MAC, tail, timeouts=(None, *TIMEOUTS)[timeouts])


ports_of = {number: st.builds(
    port, st.just(number), pick((1, 1, 2)), pick((number, number, number, 4)), pick((0, 0, 1, 2)),
    pick((None, None, 0, 1)),
) for number in PORTS}


def at_home(ports: tuple[Port, ...]) -> tuple[Space, ...]:
    """Each inside address is where its MAC is."""
    owners = {each.mac: each.id for each in ports}
    entries = [(address, LocalPort(owners[MACS[owner]], MACS[owner]))
               for owner in (1, 2, 3, 4) if MACS[owner] in owners
               for address in (INSIDE[owner - 1], six(INSIDE[owner - 1]))]
    return (Space(NAT_SPACE, tuple(entries)),)


@st.composite
def hosts(draw: st.DrawFn) -> EngineState:
    """Three ports behind two pools, with mappings of all kinds and prefixes."""
    ports = tuple(draw(ports_of[number]) for number in PORTS)
    return EngineState(
        ports=ports, spaces=at_home(ports), pools=(draw(pools(1)), draw(pools(2))), mappings=draw(mappings(PORTS)),
        uplinks=(uplink(1), uplink(2, draw(st.booleans()))), prefixes=draw(prefix_mappings(UPLINKS, (NAT_SPACE,))))


class NatMachine(RuleBasedStateMachine):
    """One host, in both engines at once."""

    bpf: AgeingBpf
    seen: Counter[str]

    @initialize(state=hosts())
    def begin(self, state: EngineState) -> None:
        self.duel = Duel(self.bpf, state)
        self.answered = 0

    # Packets.

    @rule(number=numbers, family=families, protocol=protocols, source_port=local_ports, to=pick(WORLD),
          to_port=pick((53, 80)), tcp_flags=flags)
    def goes_out(self, number: int, family: int, protocol: int, source_port: int, to: Address, to_port: int,
                 tcp_flags: int) -> None:
        self._from_inside(number, in_family(to, family), protocol, source_port, to_port, tcp_flags)

    @rule(number=numbers, family=families, protocol=protocols, first=st.integers(1024, 60000), many=st.integers(3, 12))
    def asks_for_many(self, number: int, family: int, protocol: int, first: int, many: int) -> None:
        """More than most pools have."""
        for source_port in range(first, first + many):
            self._from_inside(number, in_family(WORLD[0], family), protocol, source_port, 80, SYN)

    @rule(number=numbers, which=st.integers(0, 20), protocol=protocols, source_port=local_ports, tcp_flags=flags)
    def turns_round(self, number: int, which: int, protocol: int, source_port: int, tcp_flags: int) -> None:
        """To the external side of a mapping or binding, perhaps its own, from inside."""
        if (found := self._outside(which)) is not None:
            _, address, its, to_port = found
            self._from_inside(number, address, its or protocol, source_port, to_port, tcp_flags)

    @rule(which=st.integers(0, 20), protocol=protocols, source=pick((*WORLD, LOCALHOST)), source_port=pick((53, 80)),
          tcp_flags=flags)
    def comes_in(self, which: int, protocol: int, source: Address, source_port: int, tcp_flags: int) -> None:
        """To the external side of a mapping, binding or prefix."""
        if (found := self._outside(which)) is not None:
            number, address, its, to_port = found
            if source == LOCALHOST:
                source = LOCALHOST_6 if address.version == 6 else LOCALHOST
            frame = IpFrame(MACS[6], GATEWAY_MAC, in_family(source, address.version) if source in WORLD else source,
                            address, its or protocol, source_port, to_port, tcp_flags)
            self._take(Send(Hook.UPLINK_IN, number, self._built(frame, to_port)))

    @rule(back=back, tcp_flags=flags)
    def is_answered(self, back: int, tcp_flags: int) -> None:
        """By who got it, and what comes of that is an answer to what was asked."""
        past = self.duel.player.past
        result = self._step(Answer(back, tcp_flags))
        if result is None:
            return
        asked, way = past[-1 - back % len(past)]
        keys = {view.key for view in self.duel.engine.flows(0.0)}
        if len(way.flows) == 2 and keys >= set(way.flows) and set(result.flows) == set(way.flows):
            assert parse(result.frame).tuple == parse(asked.frame).tuple.reversed()
            self.answered += 1

    @rule(number=numbers, family=families, protocol=pick((TCP, UDP, ICMP, SCTP)), source_port=st.integers(1024, 60000))
    def goes_out_and_back(self, number: int, family: int, protocol: int, source_port: int) -> None:
        """Translate-then-untranslate, at once: nothing can have changed."""
        way = self._from_inside(number, in_family(WORLD[1], family), protocol, source_port, 80, SYN)
        if way.verdict is Verdict.REDIRECT_UPLINK and len(way.flows) == 2:
            asked = self.duel.player.past[-1][0]
            result = self._step(Answer(0, SYN | ACK))
            assert result is not None
            assert result.verdict is Verdict.REDIRECT_PORT
            assert parse(result.frame).tuple == parse(asked.frame).tuple.reversed()
            self.answered += 1

    @rule(back=back, tcp_flags=flags)
    def comes_again(self, back: int, tcp_flags: int) -> None:
        self._step(Again(back, tcp_flags))

    @rule(back=back, kind=pick((3, 11)), code=pick((0, 3, 4)), quoted=pick((28, 40, 68, 200)),
          source=pick((None, *WORLD)))
    def is_complained_about(self, back: int, kind: int, code: int, quoted: int, source: Address | None) -> None:
        self._step(Complain(back, kind, code, quoted, source if source is None else four(source)))

    # Time and policies.

    @rule(seconds=pick((0.53, 1.59, 3.17, 5.3, 31.7, 61.3, 302.3)))     # no sum of them is one of `TIMEOUTS`
    def time_passes(self, seconds: float) -> None:
        if self.duel.can_wait(seconds):
            self.duel.take(Wait(seconds))

    @rule(what=pick(_CHANGES), data=st.data())
    def the_policy_changes(self, what: str, data: st.DataObject) -> None:
        """A port perhaps has the id of one that is gone, and another's address; who had that has none then."""
        state = self.duel.state
        ids = tuple(each.id for each in state.ports)
        match what:
            case "pool" | "pool goes":
                pool = data.draw(pick((1, 2)).flatmap(pools))
                kept = tuple(each for each in state.pools if each.id != pool.id)
                self._become(replace(state, pools=kept if what == "pool goes" else (*kept, pool)))
            case "mappings" if ids:
                self._become(replace(state, mappings=data.draw(mappings(ids))))
            case "prefixes":
                self._become(replace(state, prefixes=data.draw(prefix_mappings(UPLINKS, (NAT_SPACE,)))))
            case "port goes":
                number = data.draw(numbers)
                self._have(tuple(each for each in state.ports if each.id != number))
            case "port":
                given = data.draw(numbers.flatmap(ports_of.__getitem__))
                self._have((*(each for each in state.ports if each.id != given.id and each.mac != given.mac), given))

    # What holds after each.

    @invariant()
    def the_tables_are_the_same(self) -> None:
        if hasattr(self, "duel"):
            self.duel.compare_tables()

    @invariant()
    def no_two_bindings_share_an_external_side(self) -> None:
        if hasattr(self, "duel"):
            external = [(each.protocol, each.external, each.external_port) for each in self.bpf.bindings()]
            assert len(external) == len(set(external))

    @invariant()
    def nothing_is_left_of_ports_and_pools_that_are_gone(self) -> None:
        if hasattr(self, "duel"):
            state = self.duel.state
            ports, its_pools = {each.id for each in state.ports}, {each.id for each in state.pools}
            assert all(each.port in ports and each.pool in its_pools for each in self.bpf.bindings())

    def teardown(self) -> None:
        if hasattr(self, "duel"):
            self.duel.compare_all()
            self.seen.update(self.duel.seen)
            self.seen["answered"] += self.answered

    # Private.

    def _outside(self, which: int) -> tuple[int, Address, int, int] | None:
        """Uplink, address, protocol and port where somebody of ours may be reached; protocol 0: any."""
        state = self.duel.state
        uplinks = {pool.id: pool.uplink for pool in state.pools}
        found = [(uplinks.get(each.key.pool, 1), each.external.address, each.external.protocol, each.external.port)
                 for each in self.duel.engine.bindings.live()]
        found += [(each.uplink, each.external, each.protocol, each.external_port) for each in state.mappings]
        found += [(number, address, 0, 80) for number, address in targets(state)[:6]]
        found += [(pool.uplink, pool.addresses[-1], UDP, pool.ports.low) for pool in state.pools]
        return found[which % len(found)] if found else None

    def _from_inside(self, number: int, to: Address, protocol: int, source_port: int, to_port: int,
                     tcp_flags: int) -> Result:
        mac = next((each.mac for each in self.duel.state.ports if each.id == number), MACS[number])
        owner = next(owner for owner, its in MACS.items() if its == mac)
        frame = IpFrame(mac, GATEWAY_MAC, in_family(INSIDE[owner - 1], to.version), to, protocol, source_port, to_port,
                        tcp_flags)
        return self._take(Send(Hook.PORT_OUT, number, self._built(frame, source_port)))

    def _built(self, frame: IpFrame, identifier: int) -> bytes:
        """Of an echo request the port is the identifier."""
        if frame.protocol in (ICMP, 58):
            frame = replace(frame, protocol=ICMP, src_port=identifier)
        return frame.build()

    def _step(self, step: Answer | Again | Complain) -> Result | None:
        if not self.duel.player.past:
            return None
        send = self.duel.player.frame_of(step)
        return self._take(send) if send is not None else None

    def _take(self, send: Send) -> Result:
        note(f"{send.hook} {send.number} {send.frame.hex()}")
        self.duel.take(send)
        result = self.duel.player.past[-1][1]
        if was_right(send.frame) and result.verdict is not Verdict.DROP:
            assert has_right_checksums(result.frame)
        return result

    def _have(self, ports: tuple[Port, ...]) -> None:
        ids, state = {each.id for each in ports}, self.duel.state
        self._become(replace(state, ports=ports, spaces=at_home(ports),
                             mappings=tuple(each for each in state.mappings if each.port in ids)))

    def _become(self, state: EngineState) -> None:
        note(f"policy becomes {state}")
        self.duel.take(Update(state))


@pytest.fixture(scope="module")
def bpf() -> Iterator[AgeingBpf]:
    backend = AgeingBpf()
    yield backend
    backend.close()


def test_translation_is_the_same_whole_and_free_of_conflicts_whatever_happens(bpf: AgeingBpf) -> None:
    seen: Counter[str] = Counter()
    begun_s = time.monotonic()

    class Machine(NatMachine):
        """With this test's engine."""

        def __init__(self) -> None:
            super().__init__()
            self.bpf, self.seen = bpf, seen

    for number in count():
        if number >= LEAST_ROUNDS and time.monotonic() - begun_s > BUDGET_S * number / (number + 1):
            break
        seed(randbits(64) if FUZZ else number)(Machine)
        run_state_machine_as_test(Machine, settings=settings(
            max_examples=5, stateful_step_count=STEPS, deadline=None, derandomize=False, database=None,
            suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink)))
    wanted = {"redirect_uplink", "redirect_port", "answered", "stack", "NAT_EXHAUSTED", "NAT_FILTERED", "NAT_QUOTA",
              "NAT_UNSUPPORTED"}
    assert not wanted - seen.keys(), seen
