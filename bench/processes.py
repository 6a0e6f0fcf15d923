"""Programs that the benchmark starts: in which namespace, for how long, and how they end."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CommandFailed", "ended", "inside", "run", "start", "within"]

NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_PATIENCE_S = 5.0


class CommandFailed(RuntimeError):
    """A command said no, or nothing for too long."""


def inside(namespace: str, *command: str) -> list[str]:
    """`command` run in a network namespace; the mounts stay the machine's."""
    return ["nsenter", f"--net={NAMESPACES / namespace}", *command]


def run(
    *command: str, text: str | None = None, environment: Mapping[str, str] | None = None, limit_s: float = 60
) -> str:
    """What the command prints, given `text` to read.

    Raises:
        CommandFailed: it failed, or has not ended after `limit_s`.
    """
    env = {**os.environ, **environment} if environment else None
    try:
        done = subprocess.run(
            command, input=text, env=env, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{_name(command)}: no end after {limit_s:g} s") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-1000:]
        raise CommandFailed(f"{_name(command)}: exit {done.returncode}: {said}")
    return done.stdout


def start(
    namespace: str, *command: str, log: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A program in the background, that ends when this process does, however that happens."""
    env = {**os.environ, **environment} if environment else None
    with (log or Path(os.devnull)).open("ab") as out:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *inside(namespace, *command)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env,
        )


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process when the block does: asked first, killed if it does not listen."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def within(namespace: str) -> Iterator[None]:
    """This thread is in the namespace for as long as the block runs: sockets, /proc/net and interface names."""
    with Path("/proc/thread-self/ns/net").open("rb") as home, (NAMESPACES / namespace).open("rb") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _name(command: tuple[str, ...]) -> str:
    """Without the nsenter before it and the flood behind it."""
    words = command[2:] if command[0] == "nsenter" else command
    return " ".join(words[:6])


_LIBC = ctypes.CDLL(None, use_errno=True)
