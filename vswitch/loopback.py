"""What lo needs when it is an uplink: the host's own sockets are reached, and reach mapped ports, by 127.0.0.1 too.

Without route_localnet the kernel drops what comes to a loopback address or from one and was not sent on lo; without
accept_local, what comes from an address of the host. Which of the two we switched on is on record before it is done:
what somebody else had switched on stays.
"""

from __future__ import annotations

from pathlib import Path

from vswitch.errors import KernelRefused, PermissionDenied
from vswitch.namespaces import Visitor
from vswitch.records import read_record, record_path, write_record
from vswitch.settings import IPV4, get_setting, set_setting

LOOPBACK = 1  # ifindex of lo in every namespace
SETTINGS = ("route_localnet", "accept_local")
_OFF, _ON = "0", "1"


class LoopbackSettings:
    """The settings of lo in one network namespace, the visitor's home."""

    def __init__(self, visitor: Visitor, record_dir: Path) -> None:
        self._visitor = visitor
        self._directory = record_dir

    def open(self) -> None:
        """Switch them on.

        Raises:
            PermissionDenied: a setting or the record cannot be written. KernelRefused: no such setting.
        """
        self._visitor.at_home(self._open)

    def close(self) -> bool:
        """Switch off those that were off before; whether there were any. Idempotent.

        Raises:
            PermissionDenied.
        """
        return self._visitor.at_home(self._close)

    def _open(self) -> None:
        wrong = [name for name in SETTINGS if get_setting(IPV4 / "lo" / name) != _ON]
        if not wrong:
            return
        path = self._record_path()
        try:
            write_record(path, {"switched_on": sorted({*self._ours(path), *wrong})})
        except PermissionError as error:
            raise PermissionDenied(f"write {error.filename or path}", error.strerror or "", "run as root") from None
        for name in wrong:
            if not set_setting(IPV4 / "lo" / name, _ON):
                raise KernelRefused(f"setting {name} of lo", "the kernel has none such", "use Linux 6.1 or later", 0)

    def _close(self) -> bool:
        path = self._record_path()
        ours = self._ours(path)
        for name in ours:
            set_setting(IPV4 / "lo" / name, _OFF)
        try:
            path.unlink(missing_ok=True)
        except PermissionError as error:
            raise PermissionDenied(f"remove {path}", error.strerror or "", "run as root") from None
        return bool(ours)

    def _record_path(self) -> Path:
        return record_path(self._directory, "loopback")

    @staticmethod
    def _ours(path: Path) -> list[str]:
        names = read_record(path).get("switched_on", [])
        return [name for name in names if name in SETTINGS] if isinstance(names, list) else []
