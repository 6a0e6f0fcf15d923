"""What a machine of a lab finds out of its host, and the images for it."""

from __future__ import annotations

import tarfile
from pathlib import Path

from labs.images import pack
from labs.machine import CGROUPS, Hierarchy, enter, hierarchies_in, remove_groups
from labs.runtimes import options
from labs.schema import Docker, Image

HYBRID = """\
24 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 29 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
34 30 0:30 / /somewhere/else rw,relatime - cgroup cgroup rw,pids
"""
UNIFIED = "31 30 0:27 /outer /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_every_hierarchy_of_a_hybrid_host_with_our_place_in_it() -> None:
    assert hierarchies_in(HYBRID, "3:cpu,cpuacct:/a/b\n2:name=systemd:/\n1:pids:/\n0::/c\n") == [
        Hierarchy(CGROUPS / "cpu,cpuacct", "cgroup", "cpu,cpuacct", CGROUPS / "cpu,cpuacct/a/b"),
        Hierarchy(CGROUPS / "systemd", "cgroup", "none,name=systemd", CGROUPS / "systemd"),
        Hierarchy(CGROUPS / "unified", "cgroup2", "", CGROUPS / "unified/c"),
    ]


def test_the_one_hierarchy_of_version_2_in_a_container() -> None:
    assert hierarchies_in(UNIFIED, "0::/outer/user\n") == [Hierarchy(CGROUPS, "cgroup2", "", CGROUPS / "user")]


def test_groups_are_removed_from_below_and_what_stays_is_told(tmp_path: Path) -> None:
    (tmp_path / "a/docker/c1").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/busy").touch()
    assert remove_groups([tmp_path / "a", tmp_path / "b", tmp_path / "gone"], 0.1) == [str(tmp_path / "b")]
    assert not (tmp_path / "a").exists()


def test_commands_enter_everything_that_a_machine_has_of_its_own() -> None:
    words = enter(77, Path("/run/netns/x"), ["docker", "ps"])
    assert {"--target=77", "--mount", "--pid", "--cgroup", "--net=/run/netns/x"} <= set(words)
    assert words[-2:] == ["docker", "ps"]


def test_dockers_own_networks_are_off_unless_wanted() -> None:
    assert {"--bridge=none", "--iptables=false"} <= set(options(Docker()))
    assert not {"--bridge=none", "--iptables=false"} & set(options(Docker(bridge=True)))
    assert options(Docker(options=("--live-restore",)))[-1] == "--live-restore"


def test_an_image_has_busybox_and_the_files(tmp_path: Path) -> None:
    pack(Image(files={"/www/cgi-bin/x": "#!/bin/sh\n", "/etc/motd": "hello"}), tmp_path / "image.tar")
    with tarfile.open(tmp_path / "image.tar") as tar:
        assert tar.getmember("www/cgi-bin/x").mode == 0o755
        assert tar.getmember("etc/motd").mode == 0o644
        assert tar.getmember("bin/sh").linkname == "busybox"
        assert tar.getmember("www/cgi-bin").isdir()
        assert tar.getmember("bin/busybox").uid == 0
