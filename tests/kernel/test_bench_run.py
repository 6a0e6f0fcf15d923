"""The benchmark builds every subject, reads every metric, writes its files and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.mappings import among, receive
from bench.measure import read_connections, servers
from bench.nat import PEERS, inbound, outbound
from bench.nat_engine import translating
from bench.packets import read_packets
from bench.processes import inside, run
from bench.rounds import Plan, measure
from bench.site import remove_stale
from bench.topologies import ACROSS, SAME, built

OPTIONAL = {"docker", "ovs"}                # their packages come with `make bench`, not with `make test`
LINKED = {"tcp_gbps", "tcp_rr_per_s", "tcp_p50_us", "tcp_p99_us", "udp_rr_per_s", "udp_p50_us", "udp_p99_us",
          "packets_per_s", "packet_cpu_ns", "crr_per_s", "crr_cpu_us"}


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def _measured(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    done = _bench("--quick", "--out", str(folder), *arguments)
    assert done.returncode == 0, done.stderr
    told = json.loads((folder / "latest.json").read_text())
    assert not told["absent"], told["absent"]
    rows: list[dict[str, Any]] = told["rows"]
    assert all(row["median"] > 0 for row in rows)
    assert "## Targets" in (folder / "latest.md").read_text()
    return rows


def test_every_metric_is_read_on_one_host(tmp_path: Path) -> None:
    rows = _measured(tmp_path, "--only", "same-host", "--peers", "raw")
    assert {row["metric"] for row in rows if row["subject"] == "raw"} == LINKED
    assert {row["metric"] for row in rows if row["subject"] == "sluice"} == {*LINKED, "packet_bpf_ns"}


def test_every_metric_is_read_across_hosts() -> None:
    told: list[str] = []
    samples, absences = measure(Plan(("cross-host",), ("sluice",), 1, 1.0), told.append)
    assert not absences
    assert {sample.key.metric for sample in samples} == {*LINKED, "packet_bpf_ns"}
    assert all(sample.value > 0 for sample in samples)
    assert told[-1] == "cross-host: round 1 of 1"


def test_containers_and_cni_are_measured(tmp_path: Path) -> None:
    rows = _measured(tmp_path, "--only", "containers")
    found = {(row["case"], row["subject"]) for row in rows}
    assert found == {("containers", "docker"), ("containers", "sluice"), ("cni", "reference"), ("cni", "sluice")}
    assert {row["metric"] for row in rows if row["case"] == "containers"} == {
        "tcp_gbps", "crr_per_s", "crr_cpu_us", "docker_run_ms"}
    assert {row["metric"] for row in rows if row["case"] == "cni"} == {"cni_add_ms", "cni_del_ms"}


def test_the_number_of_rules_and_of_layers_is_varied(tmp_path: Path) -> None:
    rows = _measured(tmp_path, "--only", "scale,engine", "--peers", "raw")
    scale = {row["rules"] for row in rows if row["case"] == "scale"}
    engine = {(row["rules"], row["layers"]) for row in rows if row["case"] == "engine"}
    assert scale == {20, 10_000}
    assert engine == {(rules, layers) for rules in (20, 10_000) for layers in (1, 5, 10)}
    hits = [row["median"] for row in rows if row["metric"] == "hit_ns"]
    assert max(hits) < 10_000


def test_every_subject_of_one_host_carries_packets_and_nothing_stays() -> None:
    with built(SAME) as made:
        assert made.pairs.keys() | OPTIONAL == SAME.keys(), made.absent
        names = [name for pair in made.pairs.values() for name in (pair.client, pair.server)]
        for pair in made.pairs.values():
            run(*inside(pair.client, "ping", "-c", "1", "-W", "2", pair.address))
            assert read_packets(pair, 0.05)["packets_per_s"] > 0
    left = run("ip", "netns", "list")
    assert not [name for name in names if name in left]


def test_every_subject_across_hosts_serves() -> None:
    with built({name: build for name, build in ACROSS.items() if name not in OPTIONAL}) as made:
        assert not made.absent
        for pair in made.pairs.values():
            with servers(pair):
                pass                        # it has waited for each server, and for an echo


def test_every_subject_that_translates_carries_packets_with_its_bindings_and_mappings() -> None:
    with built({**outbound([100], PEERS), **inbound([10], PEERS)}) as made:
        assert not made.absent
        assert len(made.pairs) == 6
        for pair in made.pairs.values():
            with servers(pair):
                assert read_packets(pair, 0.05)["packets_per_s"] > 0
                assert read_connections(pair, 1)["crr_per_s"] > 0


def test_the_program_alone_translates() -> None:
    with translating(10) as read:
        found = read()
    assert 0 < found["nat_out_hit_ns"] < found["nat_first_ns"]
    assert 0 < found["nat_in_hit_ns"] < found["nat_first_ns"]


def test_many_remote_endpoints_are_taken_and_one_moves() -> None:
    found = receive(1_000)
    assert len(found) == 10
    assert all(value > 0 for value in found.values())
    assert found["remotes_kernel_bytes"] < 2_000            # a table that is mostly empty


def test_the_program_alone_looks_among_mappings() -> None:
    with among((10, 1_000)) as engines:
        for read in engines.values():
            found = read()
            assert 0 < found["mapped_hit_ns"] < found["mapped_first_ns"]
            assert found["mapped_spread_ns"] > 0


def test_a_subject_that_cannot_be_built_is_told_with_the_reason() -> None:
    with built({"raw": SAME["raw"], "docker": ACROSS["docker"]}) as made:
        assert made.pairs.keys() == {"raw"}
        assert "swarm" in made.absent["docker"]


def test_what_a_killed_benchmark_left_is_removed() -> None:
    name = f"bench-{1 << 30}-raw0-a"
    run("ip", "netns", "add", name)
    process = subprocess.Popen([*inside(name, "sh", "-c", "echo; exec sleep 60")], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()        # from now on it is inside
        assert name in remove_stale()
        assert process.wait(5) < 0
    finally:
        process.kill()
        process.communicate()
    assert name not in run("ip", "netns", "list")
