"""The agent is killed at random while policies change under traffic: every packet meets the old policy or the new one.

Short by default; `SLUICE_FAULTS=full` (`make faults`) does 10,000 changes and 200 kills. `SLUICE_FAULTS_SEED`: another
course of events.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from faults_host import HOST_NS, LIMITS, PINS, ROOT, Agent, Director, Namespaces, directed, enter_host, ip
from faults_judge import Timeline, judge
from faults_policy import FLOWS, State, changed, first
from faults_remains import remains
from faults_traffic import PACKET

CHANGES, KILLS = (10_000, 200) if os.environ.get("SLUICE_FAULTS") == "full" else (600, 12)
CHANGES, KILLS = (int(word) for word in os.environ.get("SLUICE_FAULTS_SIZE", f"{CHANGES},{KILLS}").split(","))
SEED = int(os.environ.get("SLUICE_FAULTS_SEED", "1"))
RATE = 2500.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")


@dataclass(slots=True)
class Course:
    """What was done."""

    kills: int = 0
    inside: int = 0             # while a change was not acknowledged
    starting: int = 0           # before the session was up
    anew: int = 0               # the next one loads its programs anew, as after an upgrade
    latencies: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)


class Traffic:
    """The process of `faults_traffic`."""

    def __init__(self, namespaces: Namespaces, scratch: Path) -> None:
        self._log, self._hot = scratch / "packets", scratch / "hot"
        self._hot.write_bytes(bytes(4))
        of = {name: namespace for name, namespace in namespaces.of.items() if name != "x"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("faults_traffic.py")), json.dumps(of), str(self._hot),
             str(self._log), str(RATE)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def heat(self, flow: int) -> None:
        """Send more of this one."""
        with self._hot.open("r+b") as file:
            file.write(flow.to_bytes(4, "little"))

    def end(self) -> np.ndarray:  # type: ignore[type-arg]
        """Stop; the record."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()
        return np.fromfile(self._log, PACKET)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def test_the_judge_knows_right_from_wrong() -> None:
    """Version 1 takes from a flow what version 0 allows, and gives to another."""
    timeline = Timeline(pushed_ns=[0, 100], acked_ns=[10, 200], allowed=[[True, False] * 42, [False, True] * 42])
    course = [                              # sent, came, flow, wrong
        (20, 30, 0, False), (40, 0, 0, True), (50, 0, 1, False), (60, 70, 1, True),     # by version 0
        (110, 0, 0, False), (120, 130, 0, False), (140, 0, 1, False), (150, 160, 1, False),     # by either
        (210, 220, 0, True), (230, 0, 0, False), (240, 0, 1, True), (250, 260, 1, False),       # by version 1
        (270, 0, 1, False),                 # nothing came after it: it may be on its way
    ]
    packets = np.array([(sent, came, flow, 0) for sent, came, flow, _ in course], PACKET)
    verdict = judge(packets, timeline)
    assert verdict.passed == [3, 8]
    assert verdict.lost == [1, 10]
    assert (verdict.judged, verdict.certain) == (12, 8)


@pytest.fixture
def stage() -> Iterator[Namespaces]:
    made = Namespaces()
    try:
        yield made
    finally:
        made.close()


def test_killed_at_random_no_packet_meets_another_policy_than_old_or_new(stage: Namespaces, tmp_path: Path) -> None:
    agent = Agent(stage.state_dir, tmp_path / "agent.log")
    raised: list[BaseException] = []

    def run() -> None:
        try:
            enter_host()
            asyncio.run(_play(stage, agent, tmp_path))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    try:
        if agent.process is not None:
            agent.end()
    finally:
        agent.purge()
    if raised:
        raise raised[0]
    assert not PINS.exists()
    links = {link["ifname"] for link in json.loads(ip(f"-n {HOST_NS} -j link show"))}
    assert links == {"lo", "lan0", "lan0-far", "under0", "under0-far"}
    assert all("eth0" not in ip(f"-n {namespace} link show") for namespace in stage.of.values())


async def _play(stage: Namespaces, agent: Agent, scratch: Path) -> None:
    async with directed(stage.of, scratch, agent.state_dir) as director:
        rng = random.Random(SEED)
        state = first(rng)
        agent.start()
        await director.until_connected()
        await director.push(state)
        await director.until_acknowledged()
        stage.make_neighbours_known()
        traffic = Traffic(stage, scratch)
        try:
            began = time.monotonic()
            state, course = await _change_and_kill(director, agent, traffic, state, rng)
            took = time.monotonic() - began
            packets = traffic.end()
        finally:
            traffic.close()
        left = await _settled(agent, scratch)
        verdict = judge(packets, director.timeline)
        violations = len(verdict.passed) + len(verdict.lost)
        change_ms, start_s = float(np.median(course.latencies)) * 1e3, float(np.median(course.starts))
        print(
            f"\nfaults: {len(director.timeline.pushed_ns) - 1} changes, {course.kills} kills, {verdict.judged} packets "
            f"judged, {violations} violations\n({course.inside} kills inside a change, {course.starting} while "
            f"starting, {course.anew} starts with new programs; {verdict.certain} judged by policies that agree, "
            f"{verdict.came} came; {took:.0f} s; medians: change {change_ms:.1f} ms, start {start_s:.2f} s; "
            f"seed {SEED})"
        )
        for name, numbers in (("passed", verdict.passed), ("lost", verdict.lost)):
            for number in numbers[:20]:
                one = packets[number]
                print(name, FLOWS[one["flow"]], ("long", "new", "answer")[one["kind"]], _when(one, director))
        if violations and os.environ.get("SLUICE_FAULTS_KEEP"):
            for name in ("packets", "agent.log"):
                shutil.copy(scratch / name, os.environ["SLUICE_FAULTS_KEEP"])
            (Path(os.environ["SLUICE_FAULTS_KEEP"]) / "timeline").write_bytes(pickle.dumps(director.timeline))
        assert left == []
        assert director.errors == []
        assert violations == 0


async def _settled(agent: Agent, scratch: Path) -> list[str]:
    """What the maps still hold too much, after some patience: replaced groups stay for a grace."""
    for _ in range(40):
        left = remains(PINS, agent.state_dir, scratch / "look", LIMITS["ports"])
        if not left:
            break
        await asyncio.sleep(0.25)
    return left


def _when(packet: np.void, director: Director) -> str:
    pushed, acked = director.timeline.pushed_ns, director.timeline.acked_ns
    version = int(np.searchsorted(pushed, packet["sent_ns"], side="right")) - 1
    return (f"sent {(packet['sent_ns'] - pushed[version]) / 1e6:.3f} ms after push of {version}, acked "
            f"{(acked[version] - pushed[version]) / 1e6:.3f} ms after it")


async def _change_and_kill(
    director: Director, agent: Agent, traffic: Traffic, state: State, rng: random.Random
) -> tuple[State, Course]:
    course = Course()
    for number in range(CHANGES):
        due = KILLS * (number + 1) // CHANGES > course.kills
        state, hot = changed(state, rng)
        traffic.heat(0 if hot is None else FLOWS.index(hot) + 1)
        began = time.monotonic()
        await director.push(state, whole=rng.random() < 0.02)
        if due and rng.random() < 0.8:
            typical = float(np.median(course.latencies or [0.01]))
            await asyncio.sleep(rng.uniform(0, 1.2 * typical))
            await _kill_and_start(director, agent, course, rng)
            if rng.random() < 0.5:              # else the next change brings it along
                await director.catch_up()
                await director.until_acknowledged()
        elif rng.random() < 0.85 or due:
            await director.until_acknowledged()
            course.latencies.append(time.monotonic() - began)
            if due:
                await asyncio.sleep(rng.uniform(0, 0.02))
                await _kill_and_start(director, agent, course, rng)
    await director.catch_up()
    await director.until_acknowledged()
    return state, course


async def _kill_and_start(director: Director, agent: Agent, course: Course, rng: random.Random) -> None:
    course.inside += not director.is_acknowledged
    while True:
        agent.end()
        course.kills += 1
        await director.until_gone()
        began = time.monotonic()
        if rng.random() < 0.05:
            (PINS / "loaded").unlink(missing_ok=True)
            course.anew += 1
        agent.start()
        if course.kills < KILLS and rng.random() < 0.1:
            await asyncio.sleep(rng.uniform(0, 1.0) * float(np.median(course.starts or [1.0])))
            course.starting += 1
            continue
        await director.until_connected()
        course.starts.append(time.monotonic() - began)
        return
