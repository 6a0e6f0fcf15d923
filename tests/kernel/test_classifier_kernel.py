"""Groups in the kernel: golden answers, edits that equal a fresh load, atomic changes, restarts, tidiness."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from random import Random
from threading import Event, Thread
from unittest.mock import patch

import numpy as np
import pytest

import vfp.datapath.groups
from bench.classbench import Header, frame, perturbed, read_headers, read_rules
from bench.classifier import Run, Setup, answers, figures, main
from vfp.classifier import ALIVE
from vfp.datapath.engine import Datapath, Limits
from vfp.datapath.map import BpfMap
from vfp.layout import BUCKET, RULE
from vfp.model import Allow, Deny, EngineState, Group, Layer, Match, Port, PortRange, Rule

DATA = Path(__file__).parents[3] / "shared/data/classbench"
if not DATA.is_dir():
    DATA = Path("/work/shared/data/classbench")


def _golden(name: str) -> list[int]:
    with gzip.open(DATA / f"{name}.gold.gz", "rt") as lines:
        return [int(line.split()[5]) for line in lines]


@pytest.mark.parametrize("name", ["acl1_1k", "fw1_1k", "ipc1_1k", "acl1_10k", "fw1_10k", "ipc1_10k"])
def test_the_engine_gives_every_golden_answer(name: str) -> None:
    rules, headers = read_rules(DATA / f"{name}.gz"), read_headers(DATA / f"{name}.gold.gz")
    with Setup(len(rules)) as setup:
        assert list(answers(setup, rules, headers)) == _golden(name)


def test_the_bench_measures_first_packets_that_make_flows() -> None:
    """Each header in each round goes all the way: afterwards the table has both halves of every pair."""
    rules, headers = read_rules(DATA / "acl1_1k.gz"), read_headers(DATA / "acl1_1k.gold.gz")
    with Setup(2 * len(rules)) as setup:
        result = figures(setup, rules, headers)
        setup.forget_flows()
        frames = {frame(header) for header in headers}
        for raw in frames:
            setup.run(Run(raw))
        assert len(setup.datapath.flows()) == 2 * len(frames)
        assert not any(setup.datapath.drop_counts().values())
    assert result.rules == len(rules)
    assert 0 < result.decision_ns_median <= result.decision_ns_p99
    assert result.build_s > 0 < result.update_ms_median
    assert result.map_bytes > len(rules) * RULE.itemsize


def test_the_command_prints_a_line_a_header(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text("2954081542 883698240 65535 1350 6\n1 2 3 4 6\n")
    with patch("sys.argv", ["bench.classifier", str(DATA / "acl1_1k.gz"), str(headers), "--answers"]):
        assert main() == 0
    golden = _golden("acl1_1k")[0]
    first, second = capsys.readouterr().out.split()
    assert int(first) == golden
    assert int(second) >= -1
    with patch("sys.argv", ["bench.classifier", str(headers)]):
        assert main() == 1
    assert "line 1" in capsys.readouterr().err


def test_a_hundred_thousand_rules_decide_as_the_set_they_are_made_of() -> None:
    """Copies with other prefixes come after the originals, so what an original decides it still decides."""
    name = "acl1_1k"
    rules = perturbed(read_rules(DATA / f"{name}.gz"), 100_000)
    golden = _golden(name)
    with Setup(len(rules)) as setup:
        found = list(answers(setup, rules, read_headers(DATA / f"{name}.gold.gz")))
    assert [got for got, wanted in zip(found, golden, strict=True) if wanted >= 0] == [
        wanted for wanted in golden if wanted >= 0
    ]


@pytest.fixture(autouse=True)
def no_grace() -> Iterator[None]:
    """No packet is under way between two calls of a test that sends none meanwhile."""
    with patch.object(vfp.datapath.groups, "GRACE_S", 0.0):
        yield


def _changes(rules: tuple[Rule, ...], spare: list[Rule], random: Random) -> tuple[Rule, ...]:
    """A few rules less and a few more."""
    kept = list(rules)
    for _ in range(random.randrange(4)):
        spare.append(kept.pop(random.randrange(len(kept))))
    for _ in range(random.randrange(4)):
        if spare:
            kept.append(spare.pop(random.randrange(len(spare))))
    return tuple(sorted(kept, key=lambda rule: rule.priority))


@pytest.mark.parametrize("name", ["acl1_1k", "fw1_1k", "ipc1_1k"])
def test_after_any_edits_the_engine_decides_as_after_a_fresh_load(name: str) -> None:
    rules = tuple(replace(rule, action=Deny()) for rule in read_rules(DATA / f"{name}.gz"))
    headers, random = read_headers(DATA / f"{name}.gold.gz"), Random(name)
    current, spare = tuple(rule for rule in rules if rule.priority % 5), [r for r in rules if r.priority % 5 == 0]
    with Setup(2 * len(rules)) as edited, Setup(2 * len(rules)) as fresh:
        edited.load(current)
        instances = _instances(edited)
        for round in range(40):
            current = _changes(current, spare, random)
            edited.load(current)
            if round % 7 == 0:
                edited.datapath.sweep()
            if round % 13 == 0:
                fresh.load(())                  # so that the next load cannot be an edit
                assert list(_decided(edited, current, headers)) == list(answers(fresh, current, headers))
        assert _instances(edited) == instances, "every change was an edit"
        _check_tidy(edited.datapath)


def _decided(setup: Setup, rules: tuple[Rule, ...], headers: list[Header]) -> Iterator[int]:
    """As `answers`, without loading: `rules` deny already, and are what is loaded."""
    with patch.object(Setup, "load"):
        yield from answers(setup, rules, headers)


def _instances(setup: Setup) -> set[int]:
    return set(setup.datapath._groups._instances)


def _table(datapath: Datapath, name: str) -> BpfMap:
    return datapath._object.map(name)


def _check_tidy(datapath: Datapath) -> None:
    """After a sweep or two: no dead rule in a bucket, no rule taken that no bucket has."""
    for _ in range(3):
        datapath.sweep()
    groups = datapath._groups
    keys, values = _table(datapath, "buckets").lookup_all()
    _, words = _table(datapath, "filter").lookup_all()
    _, rows = _table(datapath, "rules").lookup_all()
    rules = np.ascontiguousarray(rows).reshape(-1).view(RULE)
    reached = np.zeros(len(rules), np.int64)
    keys = np.ascontiguousarray(keys)
    for bucket in np.ascontiguousarray(values).reshape(-1).view(BUCKET):
        run = slice(int(bucket["first"]), int(bucket["first"]) + int(bucket["count"]))
        reached[run] += 1
        assert (rules["died"][run] == ALIVE).all()
        assert (np.diff(rules["priority"][run].astype(np.int64)) >= 0).all()
    numbers, filter = keys.reshape(-1).view(np.uint64), np.ascontiguousarray(words).reshape(-1).view(np.uint64)
    places = ((numbers >> np.uint64(6)) & np.uint64(len(filter) - 1)).astype(np.int64)
    assert (filter[places] >> (numbers & np.uint64(63)) & np.uint64(1)).all(), "no bucket is hidden by the filter"
    assert reached.tolist() == np.frombuffer(groups._taken, np.uint8).tolist()
    assert len(values) == groups._bucket_count


def test_everything_is_free_when_the_rules_are_gone() -> None:
    rules = read_rules(DATA / "acl1_1k.gz")
    with Setup(len(rules)) as setup:
        for current in (rules, rules[1:], rules[5:], ()):
            setup.load(current)
        _check_tidy(setup.datapath)
        setup.datapath.apply(EngineState())
        _check_tidy(setup.datapath)
        assert setup.datapath._groups._taken.count(1) == 0
        assert setup.datapath._groups._instances == {}


def test_a_change_to_and_fro_stays_an_edit() -> None:
    rules = read_rules(DATA / "ipc1_1k.gz")
    with Setup(len(rules)) as setup:
        setup.load(rules)
        before = _instances(setup)
        for _ in range(50):
            setup.load(rules[1:])
            setup.load(rules)
        assert _instances(setup) == before
        _check_tidy(setup.datapath)


def test_bits_of_the_filter_that_nobody_needs_leave() -> None:
    rules = tuple(Rule(n, Match(dst=IPv4Network((n << 8, 32)), protocol=6), Deny(), str(n)) for n in range(1, 400))
    with Setup(4096) as setup:
        for start in range(0, 3000, 50):
            extra = (
                Rule(1000 + n, Match(dst=IPv4Network((n << 16, 32)), protocol=6), Deny(), f"x{n}")
                for n in range(start, start + 50)
            )
            setup.load((*rules, *extra))
            setup.datapath.sweep()
        _check_tidy(setup.datapath)
        _, words = _table(setup.datapath, "filter").lookup_all()
        assert np.unpackbits(np.ascontiguousarray(words)).sum() < 2 * 450 + 1100


def test_a_shape_that_no_mask_fits_gets_its_own_until_there_is_no_room() -> None:
    rules = tuple(Rule(n, Match(dst=IPv4Network((n << 8, 32)), protocol=6), Deny(), str(n)) for n in range(1, 400))
    odd = tuple(
        Rule(10_000 + n, Match(dst=IPv4Network((0xE0000000, 4 + n % 28)), src=IPv4Network((0x7F000000, 8 + n // 28))),
             Deny(), f"odd {n}") for n in range(120)
    )
    with Setup(4096) as setup:
        for count in range(0, len(odd), 5):
            current = rules + odd[:count]
            setup.load(current)
            asked = [Header(0x7F000000, 0xE0000000, 1, 1, 6), Header(1, 5 << 8, 1, 1, 6), Header(1, 2, 1, 1, 6)]
            assert list(_decided(setup, current, asked)) == [399 if count else -1, 4, -1]
        _check_tidy(setup.datapath)


# Restarts


@pytest.fixture
def pin_dir() -> Iterator[Path]:
    path = Path("/sys/fs/bpf/classifier-test")
    yield path
    Datapath.unpin(path)


def _state(rules: tuple[Rule, ...]) -> EngineState:
    layer = Layer("acl", groups_in=(Group("g", rules),), default_in=Allow())
    return EngineState(ports=(Port(1, "p1", 1001, bytes((2, 0, 0, 0, 0, 1)), bytes((2, 0, 0, 0, 0, 2)), (layer,)),))


_SMALL = Limits(flows=1024, rules=8192, bindings=64, ports=16, space_entries=64, mappings=64)


def _contents(datapath: Datapath) -> tuple[bytes, ...]:
    parts = []
    for name in ("groups", "buckets", "programs"):
        parts.append(b"".join(sorted(key + value for key, value in _table(datapath, name).items())))
    return tuple(parts)


def test_a_restart_finds_an_edited_group_again_and_goes_on_editing(pin_dir: Path) -> None:
    rules = read_rules(DATA / "acl1_1k.gz")
    with Datapath.open(pin_dir, _SMALL) as datapath:
        datapath.apply(_state(rules))
        datapath.apply(_state(rules[3:]))
        datapath.sweep()
        before = _contents(datapath)
    copies = tuple(replace(rule) for rule in rules)
    with Datapath.open(pin_dir, _SMALL) as datapath:
        datapath.apply(_state(copies[3:]))
        assert _contents(datapath) == before
        instances = set(datapath._groups._instances)
        datapath.apply(_state(copies[2:]))
        assert set(datapath._groups._instances) == instances
        _check_tidy(datapath)


def test_an_edit_that_was_cut_short_is_not_built_upon(pin_dir: Path) -> None:
    rules = read_rules(DATA / "acl1_1k.gz")
    with Datapath.open(pin_dir, _SMALL) as datapath:
        datapath.apply(_state(rules))
        (instance,) = datapath._groups._instances
        with patch.object(type(datapath._groups), "_put_record", side_effect=KeyboardInterrupt), pytest.raises(
            KeyboardInterrupt
        ):
            datapath.apply(_state(rules[3:]))
    with Datapath.open(pin_dir, _SMALL) as datapath:
        assert datapath._groups._instances[instance].broken
        datapath.apply(_state(rules))
        datapath.apply(_state(rules[1:]))
        _check_tidy(datapath)
        assert instance not in datapath._groups._instances


# Atomicity


def test_a_change_of_many_rules_is_whole_for_every_packet() -> None:
    """Between two policies, each of which denies what the other lets through by its first rules but by another rule:
    under a change in flight every packet is denied, by a rule of one of the two."""
    filler = tuple(Rule(1000 + n, Match(dst=IPv4Network((n << 8, 32)), protocol=6), Deny(), str(n)) for n in range(500))
    # Policy a: ten exceptions and the denial before them. Policy b: neither. In between lies a packet's way through.
    exceptions = tuple(
        Rule(100 + n, Match(dst=IPv4Network("10.0.0.0/8"), dst_ports=PortRange(n, 1000)), Allow(), f"x{n}")
        for n in range(10)
    )
    guard = tuple(
        Rule(n, Match(src=IPv4Network((0x0A000000, 8 + n)), dst=IPv4Network("10.0.0.1/32")), Deny(), f"g{n}")
        for n in range(10)
    )
    last = Rule(5000, Match(dst=IPv4Network("10.0.0.0/8")), Deny(), "last")
    with_both, with_none = (*guard, *exceptions, *filler, last), (*filler, last)
    header = Header(0x0A000000, 0x0A000001, 7, 80, 6)
    with Setup(1 << 17) as setup, patch.object(vfp.datapath.groups, "GRACE_S", 1.0):
        setup.load(with_none)
        instances = _instances(setup)
        stop, verdicts = Event(), []

        def ask() -> None:
            test = Run(frame(header))
            while not stop.is_set():
                setup.run(test)
                verdicts.append(test.was_dropped())

        thread = Thread(target=ask)
        thread.start()
        try:
            for _ in range(40):
                setup.load(with_both)
                setup.load(with_none)
        finally:
            stop.set()
            thread.join()
        assert _instances(setup) == instances
        assert len(verdicts) > 500
        assert all(verdicts)
