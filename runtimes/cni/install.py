"""`sluice-cni install DIR`: a launcher where a runtime looks for plug-ins.

It runs this interpreter without `site`: that looks for packages, which the plug-in does not use.
"""

from __future__ import annotations

import argparse
import compileall
import os
import sys
from collections.abc import Sequence
from pathlib import Path

NAME = "sluice-cni"
MAX_SHEBANG = 254                           # BINPRM_BUF_SIZE of the kernel, with the newline
HOME = Path(__file__).resolve().parents[2]


def command(arguments: Sequence[str]) -> int:
    """The command line for people; exit status."""
    parser = argparse.ArgumentParser(NAME, description="CNI plug-in of Sluice. Container runtimes call it with "
                                     "CNI_COMMAND set; docs/runtimes.md has a configuration.")
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("install", help="put it where the runtime looks for plug-ins")
    verb.add_argument("folder", metavar="DIR", type=Path, help="/opt/cni/bin; Debian: /usr/lib/cni")
    folder: Path = parser.parse_args(arguments).folder
    try:
        print(install(folder))
    except OSError as error:
        print(f"{NAME}: {folder}: {error.strerror or error}; give a folder that is there and that you may write",
              file=sys.stderr)
        return 1
    return 0


def install(folder: Path) -> Path:
    """Write the launcher, and the bytecode of what it runs, so that no call compiles anything.

    Raises:
        OSError: the folder is not there or cannot be written, or the interpreter's path is too long for a script.
    """
    first = f"#!{os.path.realpath(sys.executable)} -IS"
    if len(first) > MAX_SHEBANG or " " in first.removesuffix(" -IS"):
        raise OSError(f"{sys.executable} cannot be named in the first line of a script")
    target = folder / NAME
    new = folder / f".{NAME}.{os.getpid()}"
    new.write_text(f"{first}\n# Written by `sluice-cni install`.\nimport sys\nsys.path.insert(0, {str(HOME)!r})\n"
                   "from runtimes.cni.main import main\nmain()\n", encoding="utf-8")
    new.chmod(0o755)
    new.rename(target)
    for part in (HOME / "runtimes", HOME / "runtimes/cni"):
        compileall.compile_dir(part, maxlevels=0, quiet=2)
    return target
