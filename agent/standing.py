"""What this agent knows of ports that container runtimes asked for, beside their goals. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["NOTHING", "UNKNOWN", "Standing"]


@dataclass(frozen=True, slots=True)
class Standing:
    """One such port, by PortGoal.id.

    A port is gone, and never made again, when it was `taken` and its link is missing, or when its namespace is not
    the one that it was attached to.
    """

    taken: bool = False                     # handed: the runtime has the far end, or is about to take it
    namespace: str = ""                     # `Switch.identify` of its namespace when it was attached; "": not looked at


UNKNOWN = Standing()
NOTHING: Mapping[str, Standing] = MappingProxyType({})
