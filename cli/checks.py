"""What `sluice doctor` asks of a host. A check is a function that returns a `Finding`; none changes anything.

Links and queue disciplines are tried in a network namespace of a child process, which goes when that ends.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FLOOR = (6, 1)
BPFFS = Path("/sys/fs/bpf")
BPFFS_MAGIC = "cafe4a11"
# Bits of linux/capability.h, and what needs them.
CAPABILITIES = {
    12: ("CAP_NET_ADMIN", "no links, addresses or filters"),
    21: ("CAP_SYS_ADMIN", "no work inside the endpoints' namespaces"),
    38: ("CAP_PERFMON", "the verifier refuses the programs' pointer arithmetic"),
    39: ("CAP_BPF", "no programs or maps"),
}
LAB_TOOLS = {
    "nginx": "nginx-light",
    "curl": "curl",
    "iperf3": "iperf3",
    "ncat": "ncat",
    "ping": "iputils-ping",
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
}
TRY_S = 5.0

State = Literal["ok", "missing", "absent", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One row. `missing` fails the doctor; `absent` costs, but Sluice works; `unknown`: could not look."""

    name: str
    state: State
    found: str
    cost: str = ""
    todo: str = ""


Check = Callable[[], Finding]


def all_findings() -> Iterator[Finding]:
    """Every check, in the order in which one depends on another."""
    for check in (kernel, privileges, bpf_filesystem, btf, jit, libbpf):
        yield check()
    yield from features()
    for check in (packages, bpf_object, nftables, lab_tools, controller):
        yield check()


def kernel() -> Finding:
    """The floor is the kernel of Debian 12."""
    release = platform.release()
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers and (int(numbers[1]), int(numbers[2])) >= FLOOR:
        return Finding("kernel", "ok", release)
    return Finding(
        "kernel",
        "missing",
        release,
        "the BPF programs do not load",
        f"boot Linux {FLOOR[0]}.{FLOOR[1]} or later",
    )


def privileges() -> Finding:
    """The effective capabilities of this process."""
    status = Path("/proc/self/status").read_text()
    bits = int(re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    lacking = {name: cost for bit, (name, cost) in CAPABILITIES.items() if not bits >> bit & 1}
    who = "root" if os.geteuid() == 0 else f"user id {os.geteuid()}"
    if not lacking:
        return Finding("privileges", "ok", f"{who}, all capabilities that are needed")
    todo = "run sudo sluice doctor" if os.geteuid() else "give the container or service these capabilities"
    return Finding(
        "privileges", "missing", f"{who} without {', '.join(lacking)}", "; ".join(lacking.values()), todo
    )


def bpf_filesystem() -> Finding:
    """Where programs and maps outlive the agent."""
    name = "bpf file system"
    found = subprocess.run(
        ["stat", "-f", "-c", "%t", str(BPFFS)], capture_output=True, text=True, check=False
    )
    if found.stdout.strip() == BPFFS_MAGIC:
        return Finding(name, "ok", f"mounted on {BPFFS}")
    if "ermission" in found.stderr:
        return Finding(name, "unknown", f"{BPFFS} cannot be read", "", "run sudo sluice doctor")
    return Finding(
        name,
        "missing",
        f"{BPFFS} is not one",
        "the data path would end with the agent",
        f"mount -t bpf bpf {BPFFS}",
    )


def btf() -> Finding:
    """Type information of the kernel: for people and tools that look inside, not for Sluice itself."""
    path = Path("/sys/kernel/btf/vmlinux")
    if path.exists():
        return Finding("kernel BTF", "ok", str(path))
    return Finding(
        "kernel BTF",
        "absent",
        "no /sys/kernel/btf/vmlinux",
        "bpftool cannot show maps by field",
        "use a kernel with CONFIG_DEBUG_INFO_BTF",
    )


def jit() -> Finding:
    """Whether BPF runs as machine code."""
    path = Path("/proc/sys/net/core/bpf_jit_enable")
    try:
        enabled = path.read_text().strip() != "0"
    except FileNotFoundError:
        return Finding(
            "BPF JIT",
            "absent",
            "the kernel has none",
            "each packet costs several times more",
            "use a kernel with CONFIG_BPF_JIT",
        )
    except PermissionError:
        return Finding("BPF JIT", "unknown", f"{path} cannot be read", "", "run sudo sluice doctor")
    if enabled:
        return Finding("BPF JIT", "ok", "on")
    return Finding(
        "BPF JIT",
        "absent",
        "off",
        "each packet costs several times more",
        "sysctl -w net.core.bpf_jit_enable=1",
    )


def libbpf() -> Finding:
    """The library that loads the programs."""
    import ctypes

    try:
        library = ctypes.CDLL("libbpf.so.1")
        library.libbpf_version_string.restype = ctypes.c_char_p
        version = library.libbpf_version_string().decode()
    except (OSError, AttributeError) as error:
        return Finding(
            "libbpf", "missing", str(error), "programs cannot be loaded", "apt-get install libbpf1"
        )
    return Finding("libbpf", "ok", version)


def features() -> Iterator[Finding]:
    """Link kinds and the queue discipline, each made once in a namespace that nobody sees."""
    pair = "ip link add a type veth peer name b"
    tries = (
        ("veth pairs", pair, "no endpoint can be attached", "CONFIG_VETH"),
        ("bridge", "ip link add a type bridge", "no nat networks", "CONFIG_BRIDGE"),
        (
            "vxlan external",
            "ip link add a type vxlan external dstport 4789",
            "no overlay networks",
            "CONFIG_VXLAN",
        ),
        (
            "clsact",
            f"{pair} && tc qdisc add dev a clsact",
            "the programs cannot be attached",
            "CONFIG_NET_SCH_INGRESS",
        ),
    )
    if not shutil.which("ip") or not shutil.which("tc"):
        yield Finding(
            "iproute2",
            "missing",
            "no ip or tc on the path",
            "labs and these checks need it",
            "apt-get install iproute2",
        )
        return
    namespace = (
        ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    )
    if not _run([*namespace, "true"]).startswith("ok"):
        yield Finding(
            "link kinds", "unknown", "no network namespace can be made", "", "run sudo sluice doctor"
        )
        return
    for name, command, cost, option in tries:
        answer = _run([*namespace, "sh", "-c", command])
        if answer == "ok":
            yield Finding(name, "ok", "works")
        else:
            yield Finding(name, "missing", answer, cost, f"use a kernel with {option}, or load its module")


def packages() -> Finding:
    """The Python packages that the project file names."""
    from importlib.metadata import PackageNotFoundError, requires, version

    try:
        needed = [
            re.split(r"[^\w.-]", line)[0] for line in requires("sluice") or [] if "extra ==" not in line
        ]
    except PackageNotFoundError:
        return Finding(
            "python packages", "missing", "sluice itself is not installed", "nothing works", "make install"
        )
    lacking = []
    for name in needed:
        try:
            version(name)
        except PackageNotFoundError:
            lacking.append(name)
    if lacking:
        return Finding(
            "python packages",
            "missing",
            f"not installed: {', '.join(lacking)}",
            "parts of sluice cannot start",
            "make install",
        )
    return Finding("python packages", "ok", f"{len(needed)} of {len(needed)}")


def nftables() -> Finding:
    """Not needed: NAT and policy are in Sluice's own programs."""
    if shutil.which("nft"):
        return Finding("nftables", "ok", "nft is there (Sluice does not need it)")
    return Finding("nftables", "ok", "no nft; Sluice does not need it")


def lab_tools() -> Finding:
    """The real programs with which labs check the network."""
    lacking = {tool: package for tool, package in LAB_TOOLS.items() if not shutil.which(tool)}
    if not lacking:
        return Finding("lab tools", "ok", ", ".join(LAB_TOOLS))
    return Finding(
        "lab tools",
        "absent",
        f"no {', '.join(lacking)}",
        "labs that use them fail",
        f"apt-get install {' '.join(sorted(set(lacking.values())))}",
    )


def bpf_object() -> Finding:
    """The compiled programs, and whether this kernel's verifier takes them."""
    from vfp.datapath.probe import probe_object

    return probe_object()


def controller() -> Finding:
    """The controller that the other commands would ask."""
    from cli.connection import api_in_use
    from controller.client import Client, ClientError

    api = api_in_use("")
    socket = Path(api.removeprefix("unix:")) if api.startswith("unix:") else None
    if not os.environ.get("SLUICE_API") and socket is not None and not socket.exists():
        return Finding("controller", "ok", f"none runs here ({api}); `sluice up` starts one")
    try:
        with Client(timeout_s=TRY_S) as client:
            hosts = client.health().get("hosts") or {}
    except ClientError as error:
        return Finding(
            "controller",
            "missing",
            str(error),
            "nothing can be declared or looked at",
            "start it with `sluice up`, or set SLUICE_API",
        )
    return Finding(
        "controller",
        "ok",
        f"{api}, {hosts.get('connected', 0)} of {hosts.get('declared', 0)} hosts connected",
    )


def _run(command: list[str]) -> str:
    """`ok`, or what the command said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRY_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "ok" if done.returncode == 0 else " ".join(done.stderr.split()) or f"status {done.returncode}"
