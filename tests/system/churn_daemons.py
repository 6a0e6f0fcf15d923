"""Agents and the controller as real processes that start at once: one process imports everything, and forks.

`python churn_daemons.py` reads a JSON object a line and answers with one: {start: agent|controller|sluice, netns, log,
...} with a process id, {end: process id, signal} with its status. All that it started dies with it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
_CLONE_NEWNET, _PR_SET_PDEATHSIG = 0x40000000, 1


class Daemons:
    """The other end: starts and ends daemons."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert self._read() == "ready"

    def agent(self, netns: str, log: Path, state_dir: Path, pins: Path, limits: dict[str, int]) -> int:
        """The process id of a new agent."""
        return self._ask(start="agent", netns=netns, log=str(log), state=str(state_dir), pins=str(pins), limits=limits)

    def controller(self, netns: str, log: Path, state_dir: Path, api: str, southbound: str, name: str) -> int:
        """The process id of a new controller."""
        return self._ask(start="controller", netns=netns, log=str(log), state=str(state_dir), api=api,
                         southbound=southbound, name=name)

    def sluice(self, netns: str, log: Path, *words: str) -> int:
        """The process id of a `sluice WORDS`."""
        return self._ask(start="sluice", netns=netns, log=str(log), words=words)

    def wait(self, process: int) -> int:
        """Its exit status, once it has ended."""
        return self._ask(wait=process)

    def end(self, process: int, which: signal.Signals = signal.SIGKILL) -> int:
        """End one, and wait; its exit status, negative: the signal."""
        return self._ask(end=process, signal=int(which))

    def purge(self, netns: str, log: Path, state_dir: Path, pins: Path) -> int:
        """Run `purge` of a host to its end."""
        process = self._ask(start="purge", netns=netns, log=str(log), state=str(state_dir), pins=str(pins), limits={})
        return self.wait(process)

    def close(self) -> None:
        """End all."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _ask(self, **what: Any) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return int(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that forks daemons is gone"
        return json.loads(line)


def _become(what: dict[str, Any]) -> NoReturn:
    """In the child."""
    status = 1
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        log = os.open(what["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        with Path(f"/run/netns/{what['netns']}").open() as netns:
            if libc.setns(netns.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        _run(what)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _run(what: dict[str, Any]) -> None:
    from agent import app as agent
    from cli import main as cli
    from controller import app as controller
    from vfp.datapath.engine import Limits

    if what["start"] == "sluice":
        cli.command_line(what["words"][0])(what["words"], standalone_mode=False)
        return
    state = Path(what["state"])
    if what["start"] == "controller":
        controller.run(controller.Config(state, what["api"], southbound=what["southbound"], names=(what["name"],)))
        return
    config = agent.Config(state, Path(what["pins"]), limits=replace(Limits(flows=65536), **what["limits"]))
    if what["start"] == "purge":
        print("\n".join(agent.purge(config)))
    else:
        agent.run(config)


def main() -> None:
    """See the module."""
    import agent.app
    import cli.main
    import controller.app

    assert agent.app
    assert cli.main
    assert controller.app
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # of the terminal: whoever started us tells us
    gc.freeze()
    children: set[int] = set()

    def say(what: object) -> None:
        print(json.dumps(what), flush=True)

    say("ready")
    for line in sys.stdin:
        what = json.loads(line)
        if "start" in what:
            child = os.fork()
            if not child:
                _become(what)
            children.add(child)
            say(child)
            continue
        child = what.get("end") or what["wait"]
        if "end" in what:
            os.kill(child, what["signal"])
        children.discard(child)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
