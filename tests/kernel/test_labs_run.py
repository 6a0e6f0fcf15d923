"""The lab engine with plain nodes: it builds, checks, and leaves nothing, however it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from labs import journal, processes
from labs.journal import Journal
from labs.run import down, exec_, run, up

ROOT = Path(__file__).parents[2]
NAME = "labs-t"

TOPOLOGY = f"""
name: {NAME}
segments:
  wire: {{static_neighbours: true}}
  far: {{}}
nodes:
  a:
    interfaces: {{eth0: {{segment: wire, address: 10.77.0.1/24}}}}
    routes: [{{via: 10.77.0.254}}]
  b:
    interfaces: {{eth0: {{segment: wire, address: 10.77.0.2/24}}}}
    routes: [{{via: 10.77.0.254}}]
  r:
    ip_forward: true
    addresses: [10.79.0.1/32]
    interfaces:
      eth0: {{segment: wire, address: 10.77.0.254/24}}
      eth1: {{segment: far, address: 10.78.0.1/24}}
  c:
    interfaces: {{eth0: {{segment: far, address: 10.78.0.2/24}}}}
    routes: [{{via: 10.78.0.1}}]
services:
  echo:
    in: [b, c]
    command: probe udp-echo 7 --say ${{place}}
    ready: {{udp: [7]}}
"""


def remains() -> list[str]:
    """Everything of the test's lab that is on this host."""
    found = [str(path) for path in Path("/run/netns").glob(f"{NAME}-*")]
    found += [str(path) for path in journal.ROOT.glob(f"{NAME}*")]
    found += [f"process {pid}" for pid in processes.leftovers(Journal(NAME))]
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    assert not remains()
    yield
    left = remains()
    if left:
        down(NAME)
    assert not left


def lab(tmp_path: Path, chapters: str = "") -> Path:
    """A lab file: the topology above with `do` lists of steps."""
    file = tmp_path / "lab.yaml"
    file.write_text(TOPOLOGY + textwrap.dedent(chapters))
    return file


def step(actions: str) -> str:
    """One chapter with one step of these actions."""
    return ("chapters:\n- title: t\n  steps:\n  - try: it\n    expect: holds\n    do:\n"
            + textwrap.indent(textwrap.dedent(actions), " " * 6))


def told(tmp_path: Path, chapters: str) -> tuple[int, str, dict[str, object]]:
    """Run a lab: exit status, what it printed, its result file."""
    text = io.StringIO()
    result = tmp_path / "result.json"
    status = run(lab(tmp_path, chapters), Console(file=text, width=200), result_file=result)
    return status, text.getvalue(), json.loads(result.read_text())


def test_topology_routes_neighbours_and_silence(tmp_path: Path) -> None:
    status, text, result = told(tmp_path, step(r"""
        - capture: wire
          segment: wire
        - each: [{to: 10.77.0.2, who: b}, {to: 10.78.0.2, who: c}]
          do:
            - run: probe udp-ask ${to} 7
              in: a
              check: {stdout: "${who}: hello"}
        - run: ping -c 1 -W 1 10.79.0.1
          in: c
        - captured: wire
          every: [{protocol: udp}]
          none: [{arp: true}]
          some: [{protocol: udp, sources: [10.78.0.2]}, {payload: "b: hello"}]
          save: {frames: frames}
        - run: ip -o link show
          in: a
          check: {stdout: {contains: [eth0], lacks: inet6}}
        - run: ip -o -6 address show
          in: a
          check: {stdout: ""}
    """) + "    seen: ${frames} frames\n")
    assert status == 0, text
    assert result["exit"] == 0
    assert "4 frames" in text
    assert "1 of 1 held" in text


def test_failed_expectation_shows_command_and_output_and_the_rest_goes_on(tmp_path: Path) -> None:
    status, text, result = told(tmp_path, step("""
        - run: [sh, -c, "echo told; echo why >&2; exit 3"]
          in: a
    """) + "  - try: another\n    expect: fine\n    do: [{run: 'true'}]\n".replace("  -", "  -", 1))
    assert status == 1
    assert "exit status 3 instead of 0: why" in text
    assert "told" in text
    assert "1 of 2 held" in text
    assert [row["held"] for row in result["steps"]] == [False, True]  # type: ignore[index, union-attr, attr-defined]


def test_capture_condition_that_fails_lists_the_frames(tmp_path: Path) -> None:
    status, text, _ = told(tmp_path, step("""
        - {capture: wire, in: b, interface: eth0}
        - {run: ping -c 1 -W 1 10.77.0.2, in: a}
        - {captured: wire, none: [{protocol: icmp, sources: [10.77.0.1]}]}
    """))
    assert status == 1
    assert "1 frames, such as: Ether / IP / ICMP 10.77.0.1 > 10.77.0.2 echo-request" in text


def test_kill_restart_finish_log_save_and_parallel(tmp_path: Path) -> None:
    status, text, _ = told(tmp_path, step(r"""
        - kill: echo/b
          save: {gone: {clock: ended}}
        - run: probe udp-ask 10.77.0.2 7 --timeout 0.2
          in: a
          check: {exit: failure}
        - restart: echo/b
        - run: probe udp-ask 10.77.0.2 7
          in: a
          save: {word: {stdout: "^(\\w+):"}}
        - start: talker
          command: [sh, -c, 'echo "{\"n\": 4, \"who\": \"${word}\"}"; echo noise >&2; exit 5']
        - finish: talker
          check: {exit: 5, json: {n: {at_least: 4}, who: b}, stderr: noise}
          save: {n: {json: n}}
        - {log: talker, text: {contains: [noise, who]}}
        - parallel:
            - [{run: "probe udp-ask 10.78.0.2 7", in: a}]
            - [{run: "probe udp-ask 10.77.0.2 7", in: c}]
        - run: [sh, -c, "test -f ${work}/flag || { touch ${work}/flag; false; }"]
          within_s: 3
    """) + "    seen: ${n} of ${word}\n")
    assert status == 0, text
    assert "4 of b" in text


def test_crafted_frames_arrive(tmp_path: Path) -> None:
    frame = ('Ether(src="02:00:00:00:00:09", dst="ff:ff:ff:ff:ff:ff")/IP(src="192.0.2.1", dst="192.0.2.2")'
             '/"crafted"')
    status, text, _ = told(tmp_path, step("""
        - {capture: at-b, in: b, interface: eth0}
        - run: [probe, send, eth0, --count, "3", '${frame}']
          in: a
        - {captured: at-b, every: [{sources: [192.0.2.1], broadcast: true, payload: crafted}], save: {n: frames}}
    """.replace("${frame}", frame)) + "    seen: ${n} frames\n")
    assert status == 0, text
    assert "3 frames" in text


def test_service_that_is_not_ready_fails_the_lab_with_its_log(tmp_path: Path) -> None:
    file = lab(tmp_path, step("- {run: 'true'}"))
    file.write_text(file.read_text().replace("probe udp-echo 7 --say ${place}", "sh -c 'echo no luck >&2; exit 1'"))
    text = io.StringIO()
    assert run(file, Console(file=text, width=200)) == 1
    assert "echo/b ended at once, exit status 1" in text.getvalue()
    assert "no luck" in text.getvalue()


def test_up_exec_down(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = lab(tmp_path)
    quiet = Console(file=io.StringIO())
    assert up(file, quiet) == 0
    assert exec_(NAME, "a", ["no-such-program"]) == 127
    assert exec_(str(file), "a", ["ping", "-c", "1", "-W", "1", "10.77.0.2"]) == 0
    assert exec_(NAME, "a", ["--", "sh", "-c", "exit 7"]) == 7
    assert exec_(NAME, "nowhere", ["true"], quiet) == 2
    assert up(file, quiet) == 0             # again: the earlier one is removed
    assert down(file, quiet) == 0
    assert not remains()
    assert down(NAME, quiet) == 2
    capfd.readouterr()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_cleans_up_fully(tmp_path: Path, number: signal.Signals) -> None:
    with runner(tmp_path) as process:
        process.send_signal(number)
        assert process.wait(10) == 130
    assert not remains()


def test_ctrl_c_at_any_moment_cleans_up(tmp_path: Path) -> None:
    file = sleeping(tmp_path)
    for moment_s in (0.25, 0.4, 0.5, 0.6, 0.7):
        process = subprocess.Popen([sys.executable, "-c", RUN, str(file)], cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(moment_s)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) != 0
        assert not remains(), f"after {moment_s} s"


def test_after_sigkill_of_the_runner_the_next_run_cleans_first(tmp_path: Path) -> None:
    with runner(tmp_path) as process:
        process.kill()
    assert remains()
    text = io.StringIO()
    assert run(lab(tmp_path, step("- {run: 'true'}")), Console(file=text, width=200)) == 0
    assert f"remove what is left of an earlier {NAME}" in text.getvalue()


def test_after_sigkill_of_the_runner_down_finds_everything(tmp_path: Path) -> None:
    with runner(tmp_path) as process:
        process.kill()
    left = processes.leftovers(Journal.find(NAME) or Journal(NAME))
    assert {"echo/b", "echo/c", "sleep"} <= set(left.values())
    assert down(NAME, Console(file=io.StringIO())) == 0


def test_second_runner_is_refused_and_the_first_undisturbed(tmp_path: Path) -> None:
    with runner(tmp_path) as process:
        text = io.StringIO()
        assert run(lab(tmp_path), Console(file=text, width=200)) == 2
        assert f"in the hands of another `sluice lab` (pid {process.pid})" in text.getvalue()
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_foreign_namespace_is_not_touched(tmp_path: Path) -> None:
    subprocess.run(["ip", "netns", "add", f"{NAME}-b"], check=True)
    try:
        text = io.StringIO()
        assert run(lab(tmp_path), Console(file=text, width=200)) == 2
        assert f"{NAME}-b exist, and no lab made them" in text.getvalue()
        assert Path(f"/run/netns/{NAME}-b").exists()
    finally:
        subprocess.run(["ip", "netns", "delete", f"{NAME}-b"], check=True)


def test_reused_pid_is_not_taken_for_ours() -> None:
    known = Journal(NAME, processes=[journal.Identity("someone", os.getppid(), 1)])
    assert os.getppid() not in processes.leftovers(known)


def test_lab_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    file = lab(tmp_path, step("- {run: sleep 30, timeout_s: 40}"))
    file.write_text(file.read_text() + "\ntimeout_s: 0.5\n")
    began = time.monotonic()
    text = io.StringIO()
    assert run(file, Console(file=text)) == 1, text.getvalue()
    assert time.monotonic() - began < 10


RUN = "import sys; from labs.run import run; sys.exit(run(sys.argv[1]))"


def sleeping(tmp_path: Path) -> Path:
    """A lab whose step takes long."""
    return lab(tmp_path, step("- {run: [sh, -c, 'touch ${work}/here; sleep 60'], timeout_s: 70}"))


class runner:
    """A lab runner in a process of its own, in the middle of its step."""

    def __init__(self, tmp_path: Path) -> None:
        self._file = sleeping(tmp_path)

    def __enter__(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen([sys.executable, "-c", RUN, str(self._file)], cwd=ROOT,
                                         stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 15
        while not (journal.ROOT / NAME / "work" / "here").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self._process

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
