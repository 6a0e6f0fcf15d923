"""Take everything of ours off this host: links, filters, pins, port reservations, state. Idempotent."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from agent.attachment_files import RUNTIME_FOLDERS
from agent.goal_files import GOAL_FILES
from vfp.datapath.engine import Datapath
from vswitch.errors import VSwitchError
from vswitch.links import Where
from vswitch.switch import Switch

__all__ = ["purge_host"]

P = ParamSpec("P")

_HOOKS: tuple[Where, ...] = ("ingress", "egress")
_STATE_FILES = (*GOAL_FILES, "agent.json", "leases.json")


def purge_host(state_dir: Path, pin_dir: Path) -> list[str]:
    """Remove all of it; a line for each thing that went, or that did not and why.

    In the order in which traffic stops first: links, so that endpoints are cut off; then filters on links that are
    not ours; then pins and settings. Whose state was lost is found all the same: links by their marks, filters by
    their names, pins by their directory.
    """
    lines: list[str] = []
    with Switch(state_dir) as switch:
        for name in sorted(switch.owned()):
            lines.append(_try(f"link {name}", switch.remove, name))
        lines.append(_try("inspect namespace", switch.remove_inspection))
        for ifindex, name in socket.if_nameindex():
            for where in _HOOKS:
                try:                        # silent where there is nothing of ours
                    switch.detach(ifindex, where)
                except VSwitchError as error:
                    lines.append(f"filter at {where} of {name} not removed: {error}")
        lines.append(_try("settings of lo", switch.close_loopback))
        lines.append(_try("settings of uplinks", switch.set_listening, ()))
        lines.append(_try("reserved ports", switch.release_ports))
    if pin_dir.is_dir():
        Datapath.unpin(pin_dir)
        lines.append(f"removed pins in {pin_dir}")
    for name in _STATE_FILES:
        path = state_dir / name
        if path.exists():
            path.unlink()
            lines.append(f"removed {path}")
    for name in RUNTIME_FOLDERS:
        if (state_dir / name).is_dir():
            shutil.rmtree(state_dir / name)
            lines.append(f"removed {state_dir / name}")
    return lines


def _try(what: str, remove: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> str:
    """Remove one thing; what became of it. One that resists does not save the others."""
    try:
        remove(*args, **kwargs)
    except VSwitchError as error:
        return f"{what} not removed: {error}"
    return f"removed {what}"
