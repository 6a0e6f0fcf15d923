"""The watch tells that something changed, soon, once a burst, and is silent otherwise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from vswitch_kit import Namespace, Notices, World, run, world

from vswitch import Switch, changes

SOON_S = 2.0                                # carrier changes are told with a delay of up to a second
QUIET_S = 0.3


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    made = w.namespace("host")
    made.ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    for name in ("lan0", "lan1"):           # without link-local addresses, which tell of themselves seconds later
        made.ip("link", "set", name, "addrgenmode", "none")
        made.ip("link", "set", name, "up")
    notices = made.call(Notices)
    notices.settle()                        # the carrier is told a while later
    notices.close()
    return made


@pytest.fixture
def switch(w: World, host: Namespace) -> Switch:
    return w.switch(host)


async def told(events: AsyncGenerator[None], within_s: float) -> bool:
    """Whether a change is told. The generator survives a timeout: the wait is shielded and taken up again."""
    waiting = asyncio.ensure_future(anext(events))
    done, _pending = await asyncio.wait([waiting], timeout=within_s)
    if not done:
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    return bool(done)


def watched(switch: Switch, body: Callable[[AsyncGenerator[None]], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        async with aclosing(switch.watch()) as events:
            await anext(events)                                # the watch stands
            await body(events)

    asyncio.run(all_of_it())


@pytest.mark.parametrize(
    "change",
    [
        "link add other type bridge",
        "link set lan0 mtu 1300",
        "link set lan0 down",
        "link del lan0",
        "address add 192.0.2.1/24 dev lan0",
        "address add 2001:db8::1/64 dev lan0",
        "route add blackhole 10.0.0.0/8",
        "-6 route add blackhole 2001:db8:1::/48",
    ],
)
def test_change_is_told(switch: Switch, host: Namespace, change: str) -> None:
    async def body(events: AsyncGenerator[None]) -> None:
        host.ip(*change.split())
        assert await told(events, SOON_S)

    watched(switch, body)


def test_new_namespace_is_told_when_it_can_be_entered(w: World, switch: Switch) -> None:
    async def body(events: AsyncGenerator[None]) -> None:
        made = await asyncio.to_thread(w.namespace, "new")
        assert await told(events, SOON_S)
        assert made.call(lambda: True)

    watched(switch, body)


def test_mount_that_follows_its_file_much_later_is_told(w: World, switch: Switch) -> None:
    other = w.namespace("other")
    path = Path(f"/run/netns/{other.name}-late")

    async def body(events: AsyncGenerator[None]) -> None:
        await asyncio.to_thread(path.touch)
        assert await told(events, SOON_S)
        run("mount", "--bind", f"/run/netns/{other.name}", str(path))
        assert await told(events, SOON_S)

    try:
        watched(switch, body)
    finally:
        run("umount", str(path), check=False)
        path.unlink(missing_ok=True)


def test_namespace_that_goes_is_told(w: World, switch: Switch) -> None:
    gone = w.namespace("gone")

    async def body(events: AsyncGenerator[None]) -> None:
        run("ip", "netns", "del", gone.name)
        assert await told(events, SOON_S)

    watched(switch, body)


def test_symbolic_link_to_a_namespace_is_told(w: World, switch: Switch, tmp_path: Path) -> None:
    other = w.namespace("other")
    path = Path(f"/run/netns/{other.name}-link")

    async def body(events: AsyncGenerator[None]) -> None:
        await asyncio.to_thread(path.symlink_to, f"/run/netns/{other.name}")
        assert await told(events, SOON_S)

    try:
        watched(switch, body)
    finally:
        path.unlink(missing_ok=True)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look elsewhere for named namespaces: others may make and remove some on this machine."""
    monkeypatch.setattr(changes, "NAMED", tmp_path / "run" / "netns")


@pytest.mark.usefixtures("alone")
def test_burst_is_told_once(switch: Switch, host: Namespace) -> None:
    lines = "".join(f"route add blackhole 10.{number}.0.0/16\n" for number in range(200))

    async def body(events: AsyncGenerator[None]) -> None:
        host.batch(lines)
        assert await told(events, SOON_S)
        assert not await told(events, QUIET_S)

    watched(switch, body)


def test_flood_beyond_the_socket_buffer_is_still_told(switch: Switch, host: Namespace) -> None:
    lines = "".join(f"route add blackhole 10.{number >> 8}.{number & 255}.0/24\n" for number in range(5000))

    async def body(events: AsyncGenerator[None]) -> None:
        host.batch(lines)
        assert await told(events, SOON_S)
        await told(events, QUIET_S)

    watched(switch, body)


@pytest.mark.usefixtures("alone")
def test_silence_is_silent_and_costs_nothing(switch: Switch) -> None:
    async def body(events: AsyncGenerator[None]) -> None:
        before = time.process_time()
        assert not await told(events, 0.5)
        assert time.process_time() - before < 0.1

    watched(switch, body)
