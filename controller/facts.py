"""What a host reports of itself, as far as it can be read: a host is believed nothing that would hurt others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, TypeVar

from southbound.messages import HostFacts

T = TypeVar("T", bound=tuple[Any, ...])


def readable(facts: HostFacts) -> HostFacts:
    """The facts without addresses, routes and listeners that are none."""
    return replace(
        facts, addresses=_those(facts.addresses, lambda each: ip_interface(each[1])),
        routes=_those(facts.routes, lambda each: ip_network(each[1], strict=False)),
        listeners=_those(facts.listeners, lambda each: ip_address(each[1])))


def _those(entries: tuple[T, ...], read: Callable[[T], object]) -> tuple[T, ...]:
    found = []
    for each in entries:
        try:
            read(each)
        except ValueError:
            continue
        found.append(each)
    return tuple(found)


__all__ = ["readable"]
