"""Reserved ports are merged with those of others and given back, whichever process died between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vswitch_kit import Namespace, World, world

from vswitch import LinkInvalid, Switch
from vswitch.reservations import SETTING, format_ranges, parse_ranges


@pytest.fixture
def w(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def host(w: World) -> Namespace:
    return w.namespace("host")


@pytest.fixture
def switch(w: World, host: Namespace) -> Switch:
    return w.switch(host)


def setting(host: Namespace) -> str:
    return host.call(lambda: SETTING.read_text().strip())


def others_set(host: Namespace, text: str) -> None:
    host.call(lambda: SETTING.write_text(text + "\n"))


def records(w: World) -> list[Path]:
    return list(w.scratch.glob("reserved-ports-*"))


def test_reserved_and_released(w: World, switch: Switch, host: Namespace) -> None:
    switch.reserve_ports([(20000, 32767), (8080, 8080)])
    assert setting(host) == "8080,20000-32767"
    switch.reserve_ports([(20000, 32767), (8080, 8080)])
    assert setting(host) == "8080,20000-32767"
    switch.release_ports()
    assert setting(host) == ""
    assert records(w) == []
    switch.release_ports()


def test_those_of_others_stay(switch: Switch, host: Namespace) -> None:
    others_set(host, "500,20005-20010,40000")
    switch.reserve_ports([(20000, 20007)])
    assert setting(host) == "500,20000-20010,40000"
    switch.release_ports()
    assert setting(host) == "500,20005-20010,40000"


def test_another_process_gives_back(w: World, switch: Switch, host: Namespace) -> None:
    others_set(host, "20005")
    switch.reserve_ports([(20000, 20010)])
    again = w.switch(host)
    again.reserve_ports([(20000, 20003)])                      # its configuration is another
    assert setting(host) == "20000-20003,20005"
    w.switch(host).release_ports()
    assert setting(host) == "20005"


def test_changes_of_others_in_between_are_kept(switch: Switch, host: Namespace) -> None:
    switch.reserve_ports([(20000, 20010)])
    others_set(host, "20000-20010,31337")
    switch.reserve_ports([(20000, 20020)])
    assert setting(host) == "20000-20020,31337"
    others_set(host, "31337")                                  # somebody overwrote ours
    switch.reserve_ports([(20000, 20020)])
    assert setting(host) == "20000-20020,31337"
    switch.release_ports()
    assert setting(host) == "31337"


@pytest.mark.parametrize("step", range(1, 4))
def test_death_at_any_step_is_mended(
    w: World, switch: Switch, host: Namespace, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Each write of a change in turn is the last one; the next process makes it right."""
    others_set(host, "20005,31337")
    switch.reserve_ports([(20000, 20010)])
    left = step - 1

    class Died(BaseException):
        pass

    real = Path.write_text

    def write_text(self: Path, *args: object, **kwargs: object) -> int:
        nonlocal left
        if left == 0:
            raise Died
        left -= 1
        return real(self, *args, **kwargs)                     # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", write_text)
        with pytest.raises(Died):
            switch.reserve_ports([(20008, 20030)])
    again = w.switch(host)
    again.reserve_ports([(20008, 20030)])
    assert setting(host) == "20005,20008-20030,31337"
    again.release_ports()
    assert setting(host) == "20005,31337"


def test_namespaces_do_not_share_a_record(w: World, switch: Switch, host: Namespace) -> None:
    other = w.namespace("other")
    switch.reserve_ports([(20000, 20010)])
    w.switch(other).release_ports()
    w.switch(other).reserve_ports([(1000, 1001)])
    assert (setting(host), setting(other)) == ("20000-20010", "1000-1001")
    w.switch(other).release_ports()
    assert (setting(host), setting(other)) == ("20000-20010", "")


@pytest.mark.parametrize("wrong", [(0, 10), (10, 9), (1, 65536)])
def test_impossible_range_is_refused(switch: Switch, host: Namespace, wrong: tuple[int, int]) -> None:
    with pytest.raises(LinkInvalid):
        switch.reserve_ports([wrong])
    assert setting(host) == ""


def test_ranges_are_read_and_written() -> None:
    assert format_ranges({1, 2, 3, 7, 9, 10}) == "1-3,7,9-10"
    assert parse_ranges("1-3,7,9-10\n") == {1, 2, 3, 7, 9, 10}
    assert parse_ranges("\n") == frozenset()
    assert format_ranges(()) == ""
    with pytest.raises(ValueError, match="not a list of ports"):
        parse_ranges("1-")
