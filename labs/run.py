"""Entry points: run a lab, put it up, take it down, run a command in it.

    run   build, start, apply, check every step, remove everything; also on Ctrl-C
    up    the same without steps, and it stays
    down  remove a lab, whole or in parts, however it came to be left

Exit status: 0 all held; 1 something did not; 2 the lab itself is wrong or cannot be built; 130 interrupted.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from labs import fabric, journal, machine, processes, runtimes, steps, topology
from labs.cross import places
from labs.errors import InvalidLab, LabError, StepFailed
from labs.journal import Journal
from labs.load import load
from labs.report import Report, Row
from labs.schema import Lab, Service, Step
from labs.site import Site, environment
from labs.values import fill_text

HELD, NOT_HELD, WRONG, INTERRUPTED = 0, 1, 2, 130
BEFORE_HOSTS = ("Tenant", "Host")


def run(path: Path | str, console: Console | None = None, keep: bool = False,
        result_file: Path | None = None) -> int:
    """Run a lab from beginning to end; `keep` leaves it up, for a look at it after a failure.

    Prints progress, a table, and what is needed to understand a failure. Never raises for a bad lab.
    """
    report = Report(console or Console(), str(path))
    try:
        lab = load(Path(path))
        report.lab = lab.name
        report.planned = sum(len(chapter.steps) for chapter in lab.chapters)
        with journal.exclusive(lab.name):
            status = _interruptible(_whole(lab, Path(path), report, keep), report)
    except LabError as error:
        _complain(report, error)
        status = WRONG
    report.table()
    if result_file:
        report.write_json(result_file, status)
    return status


def up(path: Path | str, console: Console | None = None) -> int:
    """Build a lab, start and apply everything, and leave it; no step is done."""
    report = Report(console or Console(), str(path))
    try:
        lab = load(Path(path))
        report.lab = lab.name
        with journal.exclusive(lab.name):
            status = _interruptible(_up(lab, Path(path), report), report)
    except LabError as error:
        _complain(report, error)
        return WRONG
    if status == HELD:
        found = Journal.find(lab.name)
        report.console.print(f"lab {lab.name} is up: export SLUICE_API={found.api if found else ''}; "
                             f"`sluice lab exec {lab.name} NODE COMMAND`; `sluice lab down {lab.name}`",
                             soft_wrap=True)
    return status


def down(path_or_name: Path | str, console: Console | None = None) -> int:
    """Remove a lab by its name or its file, with every process, namespace, pin and file of it."""
    report = Report(console or Console(), str(path_or_name))
    try:
        name = _name_of(path_or_name)
        with journal.exclusive(name):
            found = Journal.find(name)
            if found is None:
                raise LabError(f"there is no lab {name}; there are "
                               f"{', '.join(_others()) or 'none'} (`sluice lab up FILE` makes one)")
            with report.stage(f"take lab {name} down"):
                clean(found)
    except LabError as error:
        _complain(report, error)
        return WRONG
    return HELD


def exec_(name: str, node: str, command: Sequence[str], console: Console | None = None) -> int:
    """Run a command in a node or endpoint of a lab that is up; returns its exit status."""
    report = Report(console or Console(stderr=True), name)
    try:
        found = Journal.find(_name_of(name))
        if found is None:
            raise LabError(f"there is no lab {name}; there are {', '.join(_others()) or 'none'}")
        if node not in found.places:
            raise LabError(f"lab {name} has no node or endpoint {node!r}; there are "
                           f"{', '.join(sorted(set(found.places) - set(found.places.values())))}")
    except LabError as error:
        _complain(report, error)
        return WRONG
    variables = {**os.environ, **environment(found), processes.MARK: found.name}
    wanted = list(command[1:] if command[:1] == ["--"] else command)
    try:
        words = processes.inside(found, found.places[node], wanted or [os.environ.get("SHELL", "/bin/sh")])
        return subprocess.run(words, env=variables, check=False).returncode
    except StepFailed as failed:
        report.note(str(failed), "red")
        return WRONG
    except KeyboardInterrupt:
        return INTERRUPTED


def clean(found: Journal) -> None:
    """End and remove everything that a journal names.

    Raises:
        LabError: something cannot be removed; the journal stays, so that it can be tried again.
    """
    processes.end_all(found)
    stuck = topology.remove(found.namespaces)
    stuck += machine.remove_groups(map(Path, found.groups))
    for pin in map(Path, found.pins):
        shutil.rmtree(pin, ignore_errors=True)
        stuck += [str(pin)] if pin.exists() else []
    if stuck:
        raise LabError(f"lab {found.name}: cannot remove {', '.join(stuck)}; see who uses it "
                       f"(`ip netns pids`, `ls -R`), then `sluice lab down {found.name}`")
    shutil.rmtree(found.directory, ignore_errors=True)


async def _whole(lab: Lab, path: Path, report: Report, keep: bool) -> int:
    site = _site(lab, path)
    _clear_ground(site, report)
    done = finished = False
    try:
        await _prepare(site, report)
        await _tell_chapters(site, report)
        done = finished = True
    except (StepFailed, LabError) as failed:
        finished = True
        report.add(Row("the lab itself", "build the lab", "it comes up", str(failed), False, report.seconds(),
                       getattr(failed, "details", "")))
    finally:
        held = done and all(row.held for row in report.rows)
        if not held and site.processes.names():
            _show_logs(site, report)
        if keep and finished:
            report.note(f"the lab stays: export SLUICE_API={site.journal.api}; `sluice lab down {lab.name}`")
            site.processes.release()
        else:
            await _tear_down(site, report)
    return HELD if held else NOT_HELD


async def _up(lab: Lab, path: Path, report: Report) -> int:
    site = _site(lab, path)
    _clear_ground(site, report)
    done = False
    try:
        await _prepare(site, report)
        done = True
    except (StepFailed, LabError) as failed:
        report.note(str(failed), "red")
        report.console.print(getattr(failed, "details", ""), markup=False)
        _show_logs(site, report)
    finally:
        if done:
            site.processes.release()
        else:
            await _tear_down(site, report)
    return HELD if done else WRONG


def _site(lab: Lab, path: Path) -> Site:
    record = Journal(lab.name, str(path.resolve()))
    running = processes.Processes(record, environment(record))
    site = Site(lab, record, running, places(lab))
    site.saved.update(lab=lab.name, work=str(site.work), logs=str(record.directory / "logs"), api=record.api,
                      socket=record.api.removeprefix("unix:"))
    return site


def _clear_ground(site: Site, report: Report) -> None:
    """Remove an earlier lab of this name.

    Raises:
        LabError: it cannot be removed, or the names that we need are someone else's.
    """
    earlier = Journal.find(site.lab.name)
    if earlier is not None:
        with report.stage(f"remove what is left of an earlier {site.lab.name}"):
            clean(earlier)
    taken = topology.occupied(topology.plan(site.lab))
    if taken:
        raise LabError(f"namespaces {', '.join(taken)} exist, and no lab made them; rename the lab, or "
                       "remove them with `ip netns delete`")


async def _prepare(site: Site, report: Report) -> None:
    """Everything up to the first step."""
    lab = site.lab
    wanted = topology.plan(lab)
    site.journal.namespaces = list(wanted.namespaces)
    site.journal.pins = [fabric.pin_directory(lab, host) for host in fabric.hosts(lab)]
    site.journal.places = dict(site.places)
    site.journal.groups = runtimes.groups(lab)
    site.journal.save()
    site.work.mkdir()
    with report.stage(f"build {len(lab.segments)} segments, {len(wanted.namespaces)} namespaces"):
        topology.build(wanted)              # not in a thread: it is to be whole, or failed, when we clean up
    if runtimes.machines(lab):
        with report.stage(f"make {len(runtimes.machines(lab))} machines for container runtimes"):
            await runtimes.start_machines(site)
    with report.stage("start controller, agents and services"):
        await steps.side_by_side([
            _start_fabric(site),
            runtimes.start(site),
            *(_start_service(site, name, service, place)
              for name, service in lab.services.items() for place in service.in_),
            steps.perform(site, lab.prepare, {}),
        ])
    rest = [document for document in lab.resources if document["kind"] not in BEFORE_HOSTS]
    if rest:
        with report.stage(f"apply {len(rest)} resources"):
            await fabric.apply(site, rest)


async def _start_fabric(site: Site) -> None:
    node = fabric.controller(site.lab)
    if node is None:
        return
    await fabric.start_controller(site, node)
    first = [document for document in site.lab.resources if document["kind"] in BEFORE_HOSTS]
    await fabric.apply(site, first, "hosts")
    names = fabric.hosts(site.lab)
    await steps.side_by_side([fabric.start_agent(site, name, node) for name in names])
    await fabric.wait_connected(site, names)


async def _start_service(site: Site, name: str, service: Service, place: str) -> None:
    instance = f"{name}/{place}"
    directory = steps.service_directory(site, instance)
    directory.mkdir(parents=True)
    names = {**site.saved, "place": place, "dir": str(directory)}
    for file, content in service.files.items():
        (directory / file).write_text(fill_text(content, names), encoding="utf-8")
    await site.processes.start(processes.Spec(
        instance, tuple(site.words(service.command, names)), site.namespace(place, names), service.ready))


async def _tell_chapters(site: Site, report: Report) -> None:
    async with asyncio.timeout(site.lab.timeout_s):
        for chapter in site.lab.chapters:
            report.chapter(chapter.title)
            for step in chapter.steps:
                await _step(site, report, chapter.title, step)


async def _step(site: Site, report: Report, chapter: str, step: Step) -> None:
    began = time.monotonic()
    details = ""
    with report.busy(step.try_):
        try:
            seen = await steps.perform(site, step.do, {})
            seen, held = (fill_text(step.seen, site.saved) if step.seen else seen), True
        except StepFailed as failed:
            seen, held, details = str(failed), False, failed.details
    report.add(Row(chapter, step.try_, step.expect, seen, held, time.monotonic() - began, details))


async def _tear_down(site: Site, report: Report) -> None:
    """Not to be disturbed: a second Ctrl-C is only noted."""
    with report.stage("remove processes, namespaces, pins and files"):
        clean(site.journal)
        await site.processes.reap()


def _show_logs(site: Site, report: Report) -> None:
    for name in site.processes.names():
        if name == "controller" or name.startswith("agent/"):
            report.log_tail(name, site.processes.output(name))


def _interruptible(work: Coroutine[Any, Any, int], report: Report) -> int:
    """Run to the end; the first signal cancels the work, which then cleans up; further ones are ignored."""
    interrupted = False

    async def watched() -> int:
        nonlocal interrupted
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()

        def stop(name: str) -> None:
            nonlocal interrupted
            if interrupted:
                report.note("still cleaning up; a moment please")
                return
            interrupted = True
            report.note(f"{name}: cleaning up")
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number.name)
        try:
            return await task
        except asyncio.CancelledError:
            return INTERRUPTED
        except TimeoutError:
            report.note("the lab took longer than its timeout_s", "red")
            return NOT_HELD

    return asyncio.run(watched())


def _name_of(path_or_name: Path | str) -> str:
    """A lab's name from its file, or the name itself."""
    text = str(path_or_name)
    if "/" not in text and not text.endswith((".yaml", ".yml")):
        return text
    return load(Path(text)).name


def _others() -> list[str]:
    return [name for name in journal.existing() if not name.endswith(".lock")]


def _complain(report: Report, error: LabError) -> None:
    report.console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
    if isinstance(error, InvalidLab):
        report.console.print(f"{len(error.flaws)} wrong; docs/labs.md and labs/schema.json say what a lab is",
                             style="dim", soft_wrap=True)
