"""Label selectors and pages of listings."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from controller.errors import Invalid, Malformed, Problem
from controller.state import AnyStored

MAX_PAGE = 1000

Selects = Callable[[Mapping[str, str]], bool]

_KEY = r"[A-Za-z0-9][-A-Za-z0-9_./]*"
_REQUIREMENT = re.compile(rf"\s*(?:(?P<key>{_KEY})\s*(?P<operator>==|=|!=)\s*(?P<value>[-A-Za-z0-9_./]*)"
                          rf"|(?P<absent>!)?\s*(?P<name>{_KEY}))\s*")


def selector(text: str) -> Selects:
    """`app=web,tier!=db,gpu,!old` as a predicate over labels; all parts must hold.

    Raises:
        Invalid: it cannot be read.
    """
    parts = [_requirement(part) for part in text.split(",")] if text.strip() else []
    return lambda labels: all(part(labels) for part in parts)


def _requirement(text: str) -> Selects:
    found = _REQUIREMENT.fullmatch(text)
    if found is None:
        raise Invalid(Problem("invalid", "not a label selector", "labelSelector", text,
                              "write for example app=web,tier!=db,gpu,!old"))
    if found["name"]:
        name, absent = found["name"], bool(found["absent"])
        return lambda labels: (name in labels) != absent
    key, value, equal = found["key"], found["value"], found["operator"] != "!="
    return lambda labels: (labels.get(key) == value) == equal


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a listing; `token` leads to the next, empty: this is the last."""

    items: tuple[AnyStored, ...]
    token: str


def page(objects: Iterable[AnyStored], limit: int, token: str) -> Page:
    """The page that begins behind `token`, ordered by tenant and name.

    Pages of one listing are not of one revision: an object that comes or goes meanwhile may be in or not, every
    other one is in exactly once.

    Raises:
        Malformed: the token is not one of ours.
    """
    ordered = sorted(objects, key=lambda s: (s.ref.tenant, s.ref.name))
    if token:
        after = _place(token)
        ordered = [s for s in ordered if (s.ref.tenant, s.ref.name) > after]
    items = tuple(ordered[:limit])
    if len(ordered) <= limit:
        return Page(items, "")
    last = json.dumps([items[-1].ref.tenant, items[-1].ref.name]).encode()
    return Page(items, base64.urlsafe_b64encode(last).decode())


def _place(token: str) -> tuple[str, str]:
    try:
        tenant, name = json.loads(base64.urlsafe_b64decode(token.encode()))
        return str(tenant), str(name)
    except (ValueError, TypeError, binascii.Error):
        raise Malformed(Problem("invalid", "not a continue token of this listing", "continue", token,
                                "list again from the start")) from None


__all__ = ["MAX_PAGE", "Page", "Selects", "page", "selector"]
