"""The engine's programs at links that are not ours: uplinks, underlays, lo. What is there is not put there again."""

from __future__ import annotations

from agent.build import LOOPBACK_IFINDEX
from agent.seams import DatapathSeam, SwitchSeam
from vfp.datapath.engine import Hook

__all__ = ["Hooks"]


class Hooks:
    """Those of one host. Methods raise as those of the switch do."""

    def __init__(self, switch: SwitchSeam, datapath: DatapathSeam) -> None:
        self._switch = switch
        self._datapath = datapath
        self._ingress: dict[int, Hook] = {}     # by ifindex: what we put there last

    def put(self, ifindex: int, hook: Hook) -> None:
        """Have the hook's program at the ingress of a link, in place of any other of ours."""
        fd, name = self._datapath.program_fd(hook), f"sluice_{hook.value}"
        if ifindex == LOOPBACK_IFINDEX:
            self._switch.open_loopback(fd, name)
        else:
            self._switch.attach(ifindex, "ingress", fd, name)

    def keep(self, ifindex: int, hook: Hook) -> None:
        """The same, unless it is what was put there last."""
        if self._ingress.get(ifindex) is not hook:
            self._ingress.pop(ifindex, None)
            self.put(ifindex, hook)
            self._ingress[ifindex] = hook

    def remove(self, ifindex: int) -> None:
        """Have none of ours there. Idempotent."""
        self._ingress.pop(ifindex, None)
        if ifindex == LOOPBACK_IFINDEX:
            self._switch.close_loopback()
        else:
            self._switch.detach(ifindex, "ingress")

    def doubt(self) -> None:
        """Somebody may have taken them off: the next `keep` puts each there again."""
        self._ingress.clear()
