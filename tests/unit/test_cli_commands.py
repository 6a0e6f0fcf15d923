"""The command line itself: references, error messages, statuses and how fast it starts. No controller is needed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli.kinds import KINDS, Reference, kind_named, parse_reference
from cli.main import command_line
from cli.problems import Fault, Problem
from cli.trace_view import draw, summary

NETWORK = kind_named("Network")


def sluice(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cli.main", *arguments], capture_output=True, text=True, timeout=30,
                          env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize("word", ["network", "networks", "Network", "net", "NETWORKS"])
def test_kinds_go_by_many_words(word: str) -> None:
    assert kind_named(word) is NETWORK


def test_the_kinds_are_those_of_the_client() -> None:
    from controller.client import CLUSTER_KINDS, PLURALS

    assert {kind.name: kind.plural for kind in KINDS} == PLURALS
    assert {kind.name for kind in KINDS if not kind.tenanted} == set(CLUSTER_KINDS)


def test_references() -> None:
    assert parse_reference(NETWORK, "red", None) == Reference(NETWORK, "red", "default")
    assert parse_reference(NETWORK, "red", "acme") == Reference(NETWORK, "red", "acme")
    assert parse_reference(NETWORK, "acme/red", None) == Reference(NETWORK, "red", "acme")
    assert parse_reference(kind_named("host"), "h1", "acme") == Reference(kind_named("host"), "h1")


@pytest.mark.parametrize(("kind", "text", "tenant"), [
    ("network", "", None), ("network", "/red", None), ("network", "a/", None), ("network", "a/b/c", None),
    ("network", "a/b", "c"), ("host", "a/h1", None),
])
def test_bad_references_are_refused(kind: str, text: str, tenant: str | None) -> None:
    with pytest.raises(Problem) as caught:
        parse_reference(kind_named(kind), text, tenant)
    assert caught.value.status == 2


def test_faults_are_single_lines_without_control_characters() -> None:
    lines = Fault("spec.mode", "bad\x1b[31m\nmode", "a\nb", "do\tthis").lines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(("arguments", "words"), [
    (("get", "netwrk"), ("KIND", "did you mean network")),
    (("get", "network", "a/b/c"), ("NAME", "tenant/name")),
    (("apply", "-f", "/nonexistent.yaml"), ("/nonexistent.yaml", "No such file")),
    (("delete",), ("KIND NAME", "-f FILE")),
    (("trace", "a", "b"), ("--port", "destination port")),
    (("trace", "a", "b", "--proto", "tpc"), ("--proto", "tcp, udp, icmp")),
    (("trace", "a"), ("TO", "--pcap")),
    (("trace", "a", "b", "--pcap", "x.pcap"), ("--pcap", "leave one")),
    (("trace", "a", "b", "--port", "1", "--packet", "2"), ("--packet", "--pcap")),
    (("trace", "a", "--pcap", "/nonexistent.pcap"), ("--pcap", "cannot be read")),
    (("trace", "a", "b", "--proto", "udp", "--port", "1", "--flags", "syn"), ("--flags", "--proto tcp")),
    (("trace", "a", "b", "--port", "1", "--flags", "fun"), ("--flags", "fin,syn")),
    (("flows", "--address", "10.1.0"), ("--address", "10.1.0.0/24")),
    (("flows", "--proto", "tpc"), ("--proto", "tcp, udp")),
    (("capture", "a", "-w", "x", "--before", "--after"), ("--before", "--after")),
    (("agent", "run", "--limit", "flow=3"), ("--limit", "flows")),
    (("agent", "run", "--timeout", "udp=soon"), ("--timeout", "udp_new")),
    (("agent", "run", "--timeout", "udp_s=3"), ("--timeout", "udp_new")),
    (("agent", "run", "--timeout", "icmp=0"), ("--timeout", "udp_new")),
    (("controller", "run", "--api", "http://x"), ("--api", "unix:/path")),
    (("join", "--controller", "here", "--token", "x"), ("--controller", "ADDR:PORT")),
    (("get", "hosts", "--api", "ftp://x"), ("ftp://x", "unix:/path")),
    (("get", "hosts"), ("unix:/nonexistent/api.sock", "sluice up")),
])
def test_mistakes_are_named_and_never_show_a_traceback(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    done = sluice(*arguments, SLUICE_API="unix:/nonexistent/api.sock")
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_unknown_commands_and_options_fail() -> None:
    assert sluice("frobnicate").returncode == 2
    assert sluice("get", "hosts", "--frob").returncode == 2


def test_every_command_has_help() -> None:
    assert sluice("get", "--help").returncode == 0
    for command in ("apply", "diff", "get", "describe", "delete", "watch", "attach", "detach", "trace", "flows",
                    "rules", "drops", "logs", "meters", "nat", "capture", "up", "join", "doctor", "controller run",
                    "agent run", "agent purge", "token create", "lab run", "lab graph", "lab up", "lab down",
                    "lab exec"):
        done = CliRunner().invoke(command_line(command.split()[0]), [*command.split(), "--help"], prog_name="sluice")
        assert done.exit_code == 0, command
        assert f"Usage: sluice {command} [OPTIONS]" in done.output


def test_help_imports_nothing_heavy() -> None:
    code = ("import sys\nsys.argv = ['sluice', '--help']\nimport cli.main\n"
            "try:\n    cli.main.main()\nexcept SystemExit:\n    pass\n"
            "heavy = {'httpx', 'pydantic', 'fastapi', 'scapy', 'pyroute2', 'numpy', 'yaml', 'cryptography'}\n"
            "print(sorted(heavy & set(sys.modules)), file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_help_comes_at_once() -> None:
    """Little more than the libraries that print it take. Alternating: a loaded machine must not fail it."""
    def seconds(*command: str) -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        return time.monotonic() - began

    rounds = [(seconds("-m", "cli.main", "--help"), seconds("-c", "import typer, rich.table")) for _ in range(5)]
    assert min(ours / theirs for ours, theirs in rounds) < 3


@pytest.mark.skipif(os.geteuid() != 0, reason="drops privileges, which needs them")
def test_doctor_works_without_root_and_says_so(tmp_path: Path) -> None:
    done = subprocess.run(["setpriv", "--reuid", "65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all",
                           sys.executable, "-m", "cli.main", "doctor", "-o", "json"],
                          capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
                          env={**os.environ, "SLUICE_API": ""})
    assert done.returncode == 1, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    for privilege in ("CAP_BPF", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"):
        assert rows[privilege]["state"] == "missing"
        assert rows[privilege]["cost"]
        assert "root" in rows[privilege]["todo"]
    assert rows["BPF object"]["state"] == "unknown"


@pytest.mark.skipif(os.geteuid() != 0, reason="drops privileges, which needs them")
def test_daemons_without_root_say_so(tmp_path: Path) -> None:
    for command in (["up"], ["agent", "run"], ["agent", "purge"], ["lab", "run", "labs/tour.yaml"]):
        done = subprocess.run(["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-m", "cli.main",
                               *command], capture_output=True, text=True, check=False,
                              cwd=Path(__file__).parents[2])
        assert done.returncode == 1
        assert "needs root" in done.stderr
        assert "sudo" in done.stderr


DENIED = {
    "verdict": "drop", "reason": "DENIED",
    "denied_by": {"port": "red/a", "layer": "acl", "group": "red/no-web", "rule": "web"},
    "hops": [{
        "host": "h1", "verdict": "drop", "reason": "DENIED",
        "denied_by": {"port": "red/a", "layer": "acl", "group": "red/no-web", "rule": "web"},
        "steps": [
            {"port": "red/a", "direction": "out", "layer": "guard", "group": "source", "rule": "own", "matched": True,
             "action": "allow", "note": ""},
            {"port": "red/a", "direction": "out", "layer": "acl", "group": "red/no-web", "rule": "dns",
             "matched": False, "action": "allow", "note": ""},
            {"port": "red/a", "direction": "out", "layer": "acl", "group": "red/no-web", "rule": "web",
             "matched": True, "action": "deny", "note": "tcp to 10.1.0.6 port 80"}],
        "transposition": {"set": {}, "encapsulate": None}, "leaves": {"to": ""}, "flow": None}],
}


def drawn(answer: dict[str, object]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(draw("red/a → b", answer))
    return console.export_text()


def test_a_trace_names_the_layer_and_rule_that_denies() -> None:
    assert summary(DENIED) == "dropped: DENIED by rule web of red/no-web (layer acl, port red/a)"
    text = drawn(DENIED)
    decides = next(line for line in text.splitlines() if "decides" in line)
    assert "web → deny" in decides
    assert "dns no match" in text
    assert text.count("layer acl") == 2      # the stage, and the summary at the end


def test_a_trace_without_a_denying_rule_shows_where_it_ended() -> None:
    step = {"port": "red/a", "direction": "out", "layer": "vnet", "group": "route", "rule": "inside", "matched": True,
            "action": "forward(5)", "note": "space 5 has no 10.1.0.9"}
    text = drawn({"verdict": "drop", "reason": "NO_MAPPING", "hops": [
        {"host": "h1", "verdict": "drop", "reason": "NO_MAPPING", "denied_by": None, "steps": [step]}]})
    assert "inside → forward(5) ← decides" in text


def test_a_trace_through_many_rules_stays_short() -> None:
    steps = [{"port": "p", "direction": "out", "layer": "acl", "group": "g", "rule": f"r{n}", "matched": n == 999,
              "action": "allow", "note": ""} for n in range(1000)]
    text = drawn({"verdict": "forward", "reason": "", "hops": [{"host": "h", "verdict": "forward", "steps": steps}]})
    assert "987 more without a match" in text
    assert "r999 → allow" in text
    assert len(text.splitlines()) < 30


def test_the_tour_can_be_drawn() -> None:
    done = sluice("lab", "graph", "labs/tour.yaml")
    assert done.returncode == 0, done.stderr
    assert "segment underlay" in done.stdout
    assert "network red/red" in done.stdout
    dot = sluice("lab", "graph", "labs/tour.yaml", "--dot").stdout
    assert dot.startswith('graph "tour" {')
    assert dot.count("{") == dot.count("}")
    missing = sluice("lab", "graph", "labs/none.yaml")
    assert missing.returncode == 1
    assert "labs/none.yaml" in missing.stderr


def test_a_trace_shows_where_the_packet_leaves() -> None:
    hop = {"host": "h1", "verdict": "forward", "reason": "", "denied_by": None, "steps": [],
           "transposition": {"set": {"dst_mac": "02:00:00:00:00:02"}, "encapsulate": {"vtep": "172.31.0.2", "vni": 5}},
           "leaves": {"to": "vtep", "vtep": "172.31.0.2", "vni": 5},
           "flow": {"state": "established", "packets": 3, "bytes": 180}}
    text = drawn({"verdict": "forward", "reason": "", "hops": [hop]})
    assert "destination MAC := 02:00:00:00:00:02" in text
    assert "VXLAN to VTEP 172.31.0.2, VNI 5" in text
    assert "leaves to VTEP 172.31.0.2" in text
    assert "established 3 packets" in text
    assert text.rstrip().endswith("forwarded")
