"""Domain names of rules: one name, or all below one."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["NameInvalid", "Names", "check_name", "normal"]

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_MAX_NAME = 253


class NameInvalid(ValueError):
    """Not a name that a rule can have; the text says what to write."""


def normal(name: str) -> str:
    """Lower case, without the final dot: names that differ only so are the same (RFC 4343)."""
    return name.rstrip(".").lower()


def check_name(name: str) -> str:
    """The normal form of a rule's name: `api.example.com`, or `*.example.com`.

    Raises:
        NameInvalid: it is neither.
    """
    found = normal(name)
    labels = found.removeprefix("*.").split(".")
    if len(found) > _MAX_NAME or len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        raise NameInvalid(
            f"domain {name!r}: write a full name like api.example.com, or *.example.com for all names below it"
            f" (letters, digits, - and _; international names in their xn-- form)"
        )
    return found


class Names:
    """The names of one rule. `*.example.com` is every name below example.com, however deep, and not itself: as a
    wildcard of DNS (RFC 4592), and as Kubernetes' policies have it."""

    def __init__(self, names: Iterable[str]) -> None:
        checked = [check_name(name) for name in names]
        self._exact = frozenset(name for name in checked if not name.startswith("*."))
        self._above = frozenset(name[2:] for name in checked if name.startswith("*."))

    def match(self, name: str) -> bool:
        """Whether the rule is about this name, which is in normal form."""
        if name in self._exact:
            return True
        labels = name.split(".")
        return any(".".join(labels[i:]) in self._above for i in range(1, len(labels)))
