"""The same generated cases every time; and a run that leaves something on the machine fails (see `tests/leaks.py`)."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import settings

from tests import leaks
from tests.figures import FIGURES
from vfp.datapath.pins import mount_bpffs

SHOWN = 30

# `make test` tries the same generated cases every time, so that it fails for a reason in the change at hand; new
# cases are looked for with SLUICE_FUZZ=1.
settings.register_profile("repeatable", derandomize=True)
if not os.environ.get("SLUICE_FUZZ"):
    settings.load_profile("repeatable")

_WATCH = pytest.StashKey[leaks.Watch]()
_LEAKS = pytest.StashKey[leaks.Leaks]()


def pytest_sessionstart(session: pytest.Session) -> None:
    mount_bpffs()                           # as the agent does; it stays, like any system's
    if not os.environ.get(leaks.WATCHED):   # by who runs all parts
        session.config.stash[_WATCH] = leaks.begin()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    watch = session.config.stash.get(_WATCH, None)
    if watch is None:
        return
    gc.collect()                            # descriptors of maps and programs that a failed test still holds
    found = leaks.end(watch)
    session.config.stash[_LEAKS] = found
    good = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if found.things and found.certain and session.exitstatus in good:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for figure in config.stash.get(FIGURES, []):
        terminalreporter.line(figure)
    found = config.stash.get(_LEAKS, None)
    if found is None or not found.things:
        return
    if found.certain:
        terminalreporter.section("left behind by the tests", red=True)
    else:
        terminalreporter.section("new on this machine; others use Sluice here, so it may be theirs", yellow=True)
    for thing in found.things[:SHOWN]:
        terminalreporter.line(thing)
    if len(found.things) > SHOWN:
        terminalreporter.line(f"and {len(found.things) - SHOWN} more")
