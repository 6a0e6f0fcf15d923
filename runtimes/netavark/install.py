"""Launchers where Podman and netavark look for plug-ins: the name of the file is the name of the driver."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from runtimes.local import LocalError
from runtimes.netavark.networks import DRIVERS

HOME = Path(__file__).resolve().parents[2]
_MARK = "# Written by `sluice-netavark install`."
_MOST_SHEBANG = 254                         # BINPRM_BUF_SIZE of the kernel, with the newline


def install(folder: Path) -> list[Path]:
    """Write them all; plug-ins of others are left alone.

    Raises:
        LocalError: the folder is not there or cannot be written, or somebody else's plug-in has a name.
    """
    first = f"#!{os.path.realpath(sys.executable)} -IS"
    if len(first) > _MOST_SHEBANG or " " in first.removesuffix(" -IS"):
        raise LocalError("failed", "the interpreter cannot be named in the first line of a script", "", sys.executable,
                         "install Sluice under a shorter path without blanks")
    code = (f"{first}\n{_MARK}\nimport sys\nsys.path.insert(0, {str(HOME)!r})\n"
            "from runtimes.netavark.main import main\nmain()\n")
    written = []
    try:
        for name in DRIVERS:
            target = folder / name
            if target.exists() and _MARK not in target.read_text(errors="replace"):
                raise LocalError("exists", "another plug-in has the name", "install", str(target),
                                 "remove it, or choose another folder")
        for name in DRIVERS:
            new = folder / f".{name}.{os.getpid()}"
            new.write_text(code, encoding="utf-8")
            new.chmod(0o755)
            written.append(new.rename(folder / name))
    except OSError as error:
        raise LocalError("failed", error.strerror or str(error), "install", str(folder),
                         "give a folder that is there and that you may write") from None
    return written


__all__ = ["install"]
