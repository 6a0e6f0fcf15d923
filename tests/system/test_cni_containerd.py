"""containerd by `ctr run --cni`: Sluice's networks from /etc/cni/net.d, as any CNI runtime takes them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cni_stage import Stage, conflist, eventually, need, plugin, world

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces, which needs root")
ROOT = ("--env", "PATH=/bin", "--rootfs", "/run/root")
CONFIG = """\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "/run/containerd/containerd.sock"
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    need("containerd", "ctr", "runc", "/bin/busybox")
    files = {"/etc/cni/net.d/10-red.conflist": conflist("red", plugin()), "/etc/containerd/test.toml": CONFIG}
    with Stage(files) as made:
        made.network("red", "nat", "10.71.0.0/24")
        # ctr knows no other place for plug-ins. /opt and the root file system are the machine's own view of them.
        made("sh", "-c", "mount -t tmpfs none /opt && mkdir -p /opt/cni /run/root && cp -r /run/lab /opt/cni/bin && "
             f"tar -xf {made.folder}/image.tar -C /run/root")
        made.daemon("containerd", "--config", "/etc/containerd/test.toml", "--log-level", "warn")
        eventually(lambda: made.run("ctr", "version").returncode == 0, made.told, 40)
        yield made


def ctr(stage: Stage, *words: str) -> str:
    return stage("ctr", *words)


def run(stage: Stage, name: str, *command: str) -> None:
    ctr(stage, "run", "--detach", "--cni", *ROOT, name, *command)


def end(stage: Stage, *names: str) -> None:
    """As ctr ends a container: it asks the plug-in only for one that it runs itself."""
    for name in names:
        stage.run("ctr", "task", "kill", "--signal", "KILL", name)
        eventually(lambda name=name: stage.run("ctr", "task", "delete", name).returncode == 0 or name not in
                   ctr(stage, "task", "list"), f"{name} ends")
        ctr(stage, "container", "delete", name)


def test_containers_reach_each_other_and_the_world(stage: Stage) -> None:
    run(stage, "one", "httpd", "-f", "-p", "80", "-h", "/etc")
    run(stage, "two", "sleep", "1000")
    try:
        endpoints = stage.list("Endpoint")
        assert len(endpoints) == 2
        shown = ctr(stage, "task", "exec", "--exec-id", "a", "one", "ip", "-4", "address", "show", "dev", "eth0")
        address = shown.split("inet ")[1].partition("/")[0]
        assert address in {each["status"]["address"] for each in endpoints.values()}
        page = eventually(lambda: stage.run("ctr", "task", "exec", "--exec-id", "b", "two", "wget", "-qO-",
                                            f"http://{address}/passwd").stdout, "the page")
        assert "root" in page
        assert "1 packets received" in ctr(stage, "task", "exec", "--exec-id", "c", "two", "ping", "-c", "1",
                                           "172.16.7.1")
        assert world(stage.lan, "ping", "-c", "1", "172.16.7.10")
    finally:
        end(stage, "one", "two")
    # Their namespaces are gone, and nobody said DEL: the agent finds out.
    eventually(lambda: not stage.list("Endpoint") and not stage.links(), stage.told, 30)


def test_one_that_ends_by_itself_is_given_back_by_ctr(stage: Stage) -> None:
    said = ctr(stage, "run", "--rm", "--cni", *ROOT, "three", "ip", "-4", "route")
    assert "default via 10.71.0.1" in said
    assert not stage.list("Endpoint")


def test_a_refusal_is_told(stage: Stage) -> None:
    stage("sh", "-c", "mkdir -p /run/none && sed s/red/nowhere/ /etc/cni/net.d/10-red.conflist > /run/none/1.conflist "
          "&& mv /etc/cni/net.d/10-red.conflist /run/red && cp /run/none/1.conflist /etc/cni/net.d/")
    try:
        said = stage.refused("ctr", "run", "--rm", "--cni", *ROOT, "four", "true")
        assert "nowhere" in said
        assert "apply it" in said
    finally:
        stage("sh", "-c", "rm /etc/cni/net.d/1.conflist; mv /run/red /etc/cni/net.d/10-red.conflist")
        stage.run("ctr", "container", "delete", "four")
    assert not stage.list("Endpoint")
