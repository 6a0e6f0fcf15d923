"""What each kind of action does. `perform` raises `StepFailed` when an expectation does not hold."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labs import capture, fabric
from labs.checks import judge, save
from labs.errors import StepFailed
from labs.processes import Outcome, Spec
from labs.schema import (
    Apply,
    Capture,
    Captured,
    Check,
    Delete,
    Each,
    Finish,
    Kill,
    Log,
    Parallel,
    Ready,
    Restart,
    Run,
    Save,
    Start,
)
from labs.site import Site
from labs.topology import switch_of
from labs.values import fill, fill_text, mismatch, text_of

RETRY_S = 0.1
QUIET_S = 0.1

Names = Mapping[str, Any]


async def perform(site: Site, actions: Iterable[Any], local: Names) -> str:
    """Do actions one after the other; returns what the last command printed. `local` hides saved names."""
    seen = ""
    for action in actions:
        names = {**site.saved, **local}
        seen = await _one(site, action, names, local) or seen
    return seen


async def _one(site: Site, action: Any, names: Names, local: Names) -> str:
    match action:
        case Run():
            return await _run(site, action, names)
        case Start():
            await site.processes.start(Spec(
                fill_text(action.start, names), tuple(site.words(action.command, names)),
                site.namespace(action.in_, names), action.ready))
        case Finish():
            return await _finish(site, action, names)
        case Kill():
            name = fill_text(action.kill, names)
            began = asyncio.get_running_loop().time()
            await site.processes.kill(name, signal.Signals[f"SIG{action.signal}"])
            ended = asyncio.get_running_loop().time()
            save(site.saved, action.save, Outcome((), 0, "", "", began, ended), names)
        case Restart():
            await site.processes.restart(fill_text(action.restart, names))
        case Apply():
            arguments = ["apply", "-f", _written(site, action.apply, names), "--wait", f"{action.wait_s:g}"]
            return await _sluice(site, arguments, action.check, action.save, names)
        case Delete():
            arguments = ["delete", "-f", _written(site, action.delete, names), "--wait", f"{action.wait_s:g}"]
            return await _sluice(site, arguments, action.check, action.save, names)
        case Log():
            return await _log(site, action, names)
        case Capture():
            await _capture(site, action, names)
        case Captured():
            return await _captured(site, action, names)
        case Each():
            await _each(site, action, local)
        case Parallel():
            await side_by_side([perform(site, branch, local) for branch in action.parallel])
        case _:
            raise TypeError(f"no way to perform {type(action).__name__}")
    return ""


async def _run(site: Site, action: Run, names: Names) -> str:
    words, namespace = site.words(action.run, names), site.namespace(action.in_, names)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (action.within_s or 0)
    while True:
        outcome = await site.processes.run(words, namespace, action.timeout_s)
        try:
            judge(action.check, outcome, names)
            save(site.saved, action.save, outcome, names)
        except StepFailed as failed:
            if loop.time() >= deadline:
                late = f" (for {action.within_s:g} s)" if action.within_s else ""
                place = f" in {fill_text(action.in_, names)}" if action.in_ else ""
                raise StepFailed(f"{failed}{late}{place}", failed.details) from None
            await asyncio.sleep(RETRY_S)
        else:
            return _first_line(outcome.stdout)


async def _sluice(site: Site, arguments: Sequence[str], check: Check, wanted: Mapping[str, Save],
                  names: Names) -> str:
    command = site.words(["sluice", *arguments], {})
    outcome = await site.processes.run(command, timeout_s=75)
    judge(check, outcome, names)
    save(site.saved, wanted, outcome, names)
    return _first_line(outcome.stdout)


def _written(site: Site, documents: Sequence[dict[str, Any]], names: Names) -> str:
    number_ = next(_numbers)
    return fabric.write(site, [fill(document, names) for document in documents], f"step-{number_}")


_numbers = itertools.count(1)


async def _finish(site: Site, action: Finish, names: Names) -> str:
    name = fill_text(action.finish, names)
    if action.signal and site.processes.alive(name):
        await site.processes.kill(name, signal.Signals[f"SIG{action.signal}"])
    outcome = await site.processes.finish(name, action.timeout_s)
    judge(action.check, outcome, names)
    save(site.saved, action.save, outcome, names)
    return _first_line(outcome.stdout)


async def _log(site: Site, action: Log, names: Names) -> str:
    name = fill_text(action.log, names)
    if action.file is None:
        paths = list(site.processes.log_files(name))
    else:
        paths = [service_directory(site, name) / fill_text(action.file, names)]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + action.within_s
    while True:
        text = "".join(path.read_text(errors="replace") for path in paths if path.exists())
        why = mismatch(action.text, [text], names)
        outcome = Outcome(("log", name), 0, text, "", loop.time(), loop.time())
        if not why:
            save(site.saved, action.save, outcome, names)
            return ""
        if loop.time() > deadline:
            raise StepFailed(f"log of {name}: {why}", outcome.shown())
        await asyncio.sleep(RETRY_S)


def service_directory(site: Site, name: str) -> Path:
    """Where an instance of a service has its files."""
    return site.journal.directory / "services" / name.replace("/", "-")


async def _capture(site: Site, action: Capture, names: Names) -> None:
    name = fill_text(action.capture, names)
    if action.segment is not None:
        namespace, interface = switch_of(site.lab), action.segment
    else:
        namespace, interface = site.namespace(action.in_, names), action.interface or ""
    target = site.work / f"{name.replace('/', '-')}.pcap"
    target.unlink(missing_ok=True)
    command = capture.command(interface, target, fill_text(action.filter, names))
    await site.processes.start(Spec(f"capture {name}", tuple(command), namespace,
                                    Ready(log="listening on", timeout_s=10)))
    site.captures[name] = target


async def _captured(site: Site, action: Captured, names: Names) -> str:
    name = fill_text(action.captured, names)
    path = site.captures.get(name)
    if path is None:
        raise StepFailed(f"capture {name} was never started")
    await _until_quiet(path)
    await site.processes.kill(f"capture {name}", signal.SIGINT)
    outcome = await site.processes.finish(f"capture {name}", 5)
    if lost := re.search(r"^([1-9]\d*) packets dropped by kernel", outcome.stderr, re.MULTILINE):
        raise StepFailed(f"capture {name} lost {lost[1]} frames; it proves nothing", outcome.shown())
    counts = await asyncio.to_thread(capture.read, path)
    found = capture.judge(counts, action, names)
    for key, what in action.save.items():
        site.saved[fill_text(key, names)] = found[what]
    return str(found["summary"])


async def _until_quiet(path: Path, longest_s: float = 2.0) -> None:
    """tcpdump writes each frame as it comes; when the file stands still, nothing is on its way any more."""
    size = -1
    for _ in range(int(longest_s / QUIET_S)):
        before, size = size, capture.size_bytes(path)
        if before == size:
            return
        await asyncio.sleep(QUIET_S)


async def _each(site: Site, action: Each, local: Names) -> None:
    sets: Iterable[Mapping[str, Any]]
    if isinstance(action.each, dict):
        sets = [dict(zip(action.each, values, strict=True))
                for values in itertools.product(*action.each.values())]
    else:
        sets = action.each
    slots = asyncio.Semaphore(action.at_once)

    async def one(names: Mapping[str, Any]) -> None:
        async with slots:
            filled = {key: fill(value, {**site.saved, **local}) for key, value in names.items()}
            try:
                await perform(site, action.do, {**local, **filled})
            except StepFailed as failed:
                which = ", ".join(f"{key} {text_of(value)}" for key, value in filled.items()
                                  if not isinstance(value, Mapping))
                raise StepFailed(f"{failed} [{which}]", failed.details) from None

    await side_by_side([one(names) for names in sets])


async def side_by_side(tasks: Iterable[Any]) -> None:
    """All at once; the first failure stops the others and is the one that is told."""
    try:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)
    except BaseExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip()[:80] if lines else ""
