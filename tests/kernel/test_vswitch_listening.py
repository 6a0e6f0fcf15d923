"""Links with stations behind them hear everything, as long as we want it, and no longer than others did before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vswitch_kit import Namespace, World, world


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    made = w.namespace("host")
    for name in ("lan0", "lan1"):
        made.ip("link", "add", name, "type", "bridge")
    return made


def hearing(host: Namespace, name: str) -> set[str]:
    return set(host.link(name)["flags"]) & {"PROMISC", "ALLMULTI"}


def test_what_we_turn_on_we_turn_off(w: World, host: Namespace) -> None:
    switch = w.switch(host)
    switch.set_listening(["lan0", "nowhere"], ["lan1"])
    assert (hearing(host, "lan0"), hearing(host, "lan1")) == ({"PROMISC"}, {"ALLMULTI"})
    w.switch(host).set_listening(["lan1"])                   # another process goes on
    assert (hearing(host, "lan0"), hearing(host, "lan1")) == (set(), {"PROMISC"})
    w.switch(host).set_listening([])
    assert hearing(host, "lan1") == set()
    assert not list(w.scratch.glob("listening*"))


def test_what_somebody_else_turned_on_stays(w: World, host: Namespace) -> None:
    switch = w.switch(host)
    host.ip("link", "set", "lan0", "promisc", "on")
    switch.set_listening(["lan0"])
    switch.set_listening([])
    assert hearing(host, "lan0") == {"PROMISC"}


def test_turned_off_by_somebody_it_is_mended(w: World, host: Namespace) -> None:
    switch = w.switch(host)
    switch.set_listening(["lan0"])
    host.ip("link", "set", "lan0", "promisc", "off")
    switch.set_listening(["lan0"])
    assert hearing(host, "lan0") == {"PROMISC"}
    switch.set_listening([])
    assert hearing(host, "lan0") == set()
