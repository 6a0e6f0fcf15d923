"""`install/install-debian`: does nothing when all is there, keeps services down, and says what to do when it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The script with a package list of its own, and an apt-get that only writes down what it was asked."""
    shutil.copy(ROOT / "install/install-debian", tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "dpkg-query").write_text("#!/bin/bash\necho 'here installed'\necho 'half half-configured'\n")
    (tools / "apt-get").write_text('#!/bin/bash\necho "$@" >> "$LOG"\n[ -x "$POLICY_RC_D" ] && "$POLICY_RC_D"\n'
                                   'echo "policy $?" >> "$LOG"\nexit "${APT_FAILS:-0}"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return tmp_path


def run(place: Path, packages: str, prefix: tuple[str, ...] = (),
        **environment: str) -> subprocess.CompletedProcess[str]:
    (place / "debian.packages").write_text(packages)
    return subprocess.run([*prefix, str(place / "install-debian")], capture_output=True, text=True, check=False,
                          env={**os.environ, "PATH": f"{place}/tools:{os.environ['PATH']}", "LOG": str(place / "log"),
                               "POLICY_RC_D": str(place / "policy-rc.d"), **environment})


def test_nothing_missing_asks_nobody(place: Path) -> None:
    done = run(place, "# comment\n\nhere /nonexistent\nelsewhere bash\nsomehow /bin\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (place / "log").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the script insists on root before it installs")
def test_missing_packages_are_installed_while_services_are_held_down(place: Path) -> None:
    done = run(place, "here bash\nabsent /nonexistent\nhalf /nonexistent\n")
    assert done.returncode == 0, done.stderr
    update, _, install, policy = (place / "log").read_text().splitlines()
    assert update.startswith("update")
    assert set(install.split()) >= {"install", "-y", "--no-install-recommends", "absent", "half"}
    assert "here" not in install.split()
    assert policy == "policy 101"           # what policy-rc.d says: do not start it
    assert not (place / "policy-rc.d").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the script insists on root before it installs")
def test_a_failing_apt_get_is_told_and_the_guard_goes(place: Path) -> None:
    done = run(place, "absent /nonexistent\n", APT_FAILS="100")
    assert done.returncode == 1
    assert "apt-get could not install absent" in done.stderr
    assert not (place / "policy-rc.d").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="drops privileges, which needs them")
def test_without_root_it_says_what_to_run(place: Path) -> None:
    for folder in (place, *place.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/tmp") and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    done = run(place, "absent /nonexistent\n", prefix=("setpriv", "--reuid", "65534", "--clear-groups"))
    assert done.returncode == 1
    assert "sudo make install" in done.stderr
    assert not (place / "log").exists()
