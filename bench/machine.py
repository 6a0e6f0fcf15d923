"""Where figures come from: machine, kernel, versions of what was measured, and the revision of Sluice."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

__all__ = ["facts"]

ROOT = Path(__file__).parents[1]
_PACKAGES = (
    "iperf3", "sockperf", "wrk", "nginx-light", "iptables", "nftables", "docker.io", "openvswitch-switch", "iproute2",
    "libbpf1", "clang",
)


def facts() -> dict[str, str]:
    """One line each."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "revision": _revision(),
        "processors": f"{os.cpu_count()} x {_field('/proc/cpuinfo', 'model name')}",
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 1048576:.0f} GiB",
        "system": _field("/etc/os-release", "PRETTY_NAME").strip('"'),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_version()}, pyroute2 {version('pyroute2')}, numpy {version('numpy')}",
        "packages": ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _debian(name))),
    }


def _field(file: str, name: str) -> str:
    found = re.search(rf"^{name}\s*[:=]\s*(.+)$", Path(file).read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def _revision() -> str:
    """The commit, and whether files differ from it."""
    if shutil.which("git") is None:
        return "unknown"
    git = ("git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT))
    head = _say(*git, "rev-parse", "--short=12", "HEAD")
    changed = _say(*git, "status", "--porcelain", "--untracked-files=no")
    return f"{head} with changes" if changed else head or "unknown"


def _debian(package: str) -> str:
    return _say("dpkg-query", "-W", "-f", "${Version}", package) if shutil.which("dpkg-query") else ""


def _say(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
