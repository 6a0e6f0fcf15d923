"""What `sluice doctor` asks of a host. A check is a function that returns a `Finding`; none changes anything.

Links and queue disciplines are tried in a network namespace of a child process, which goes when that ends.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cli.checks_overlay import overlay_findings
from cli.checks_runtimes import runtime_findings
from cli.findings import TRY_S, Finding, State

CAP_SYS_ADMIN = 21  # linux/capability.h
LAB_TOOLS = {
    "nginx": "nginx-light",
    "curl": "curl",
    "iperf3": "iperf3",
    "ncat": "ncat",
    "tcpdump": "tcpdump",
    "ping": "iputils-ping",
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
}
INSPECT_TOOLS = ("iptables-legacy-restore", "iptables-nft-restore")   # as `vswitch.inspect` tries them
SUDO = "run sudo sluice doctor"
GAIN = "run as root, or add it to the unit or container"

_NEED_PRIVILEGE = (
    "program type",
    "helper",
    "BPF_PROG_TEST_RUN",
    "BPF JIT",
    "hash map",
    "LRU hash map",
    "per-CPU array map",
    "program array map",
    "ring buffer map",
    "memory lock limit",
)
_OPTIONAL = ("kernel BTF", "BPF JIT", "htb", "vxlan over ipv6")


def all_findings() -> Iterator[Finding]:
    """Every check, in the order in which one depends on another."""
    yield namespaces()
    yield from kernel()
    yield from features()
    yield from overlay_findings()
    for check in (inspection, packages, bpf_object, nftables, lab_tools, controller):
        yield check()
    yield from runtime_findings()


def kernel() -> Iterator[Finding]:
    """What the loader's own probe found: version, privileges, BPF file system, helpers, map types.

    Without the privilege to load anything the kernel gives no answer about helpers and maps: those are `unknown`.
    """
    from vfp.datapath.probe import probe

    found = probe()
    may_ask = all(feature.present for feature in found if feature.name.startswith("CAP_"))
    for feature in found:
        if feature.present:
            yield Finding(feature.name, "ok", feature.detail)
        elif may_ask or not feature.name.startswith(_NEED_PRIVILEGE):
            what, _, todo = feature.detail.partition("; ")
            state: State = "absent" if feature.name in _OPTIONAL else "missing"
            if feature.name.startswith("CAP_"):
                todo = todo or GAIN
            yield Finding(feature.name, state, what, feature.costs, todo)
    if not may_ask:
        yield Finding("BPF features", "unknown", "cannot be asked without CAP_BPF", "", SUDO)


def namespaces() -> Finding:
    """The privilege to work inside the endpoints' namespaces (setns(2))."""
    name = "CAP_SYS_ADMIN"
    status = Path("/proc/self/status").read_text()
    bits = int(re.split(r"^CapEff:\s*", status, flags=re.MULTILINE)[1].split()[0], 16)
    who = "root" if os.geteuid() == 0 else f"user id {os.geteuid()}"
    if bits >> CAP_SYS_ADMIN & 1:
        return Finding(name, "ok", who)
    return Finding(
        name,
        "missing",
        f"{who} lacks it",
        "no link can be put into an endpoint's namespace",
        GAIN,
    )


def features() -> Iterator[Finding]:
    """Link kinds and the queue discipline, each made once in a namespace that nobody sees."""
    pair = "ip link add name try0 type veth peer name try1"
    tries = (
        ("veth pairs", pair, "no endpoint can be attached", "CONFIG_VETH"),
        ("bridge", "ip link add name try0 type bridge", "no nat networks", "CONFIG_BRIDGE"),
        (
            "vxlan external",
            "ip link add name try0 type vxlan external dstport 4789",
            "no overlay networks",
            "CONFIG_VXLAN",
        ),
        (
            "vxlan over ipv6",
            "ip link add name try0 type vxlan external dstport 4789 udp6zerocsumtx udp6zerocsumrx",
            "no overlay networks on an IPv6 underlay",
            "CONFIG_VXLAN and CONFIG_IPV6",
        ),
        (
            "htb",
            f"{pair} && tc qdisc add dev try0 root handle 1: htb default 1"
            " && tc class add dev try0 parent 1: classid 1:1 htb rate 1mbit && tc qdisc add dev try0 parent 1:1 bfifo",
            "no bandwidth caps and no guaranteed minimums (qos.egress, qos.ingress, qos.minimum)",
            "CONFIG_NET_SCH_HTB",
        ),
        (
            "clsact",
            f"{pair} && tc qdisc add dev try0 clsact",
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
        yield Finding("link kinds", "unknown", "no network namespace can be made", "", SUDO)
        return
    for name, command, cost, option in tries:
        answer = _run([*namespace, "sh", "-c", command])
        if answer == "ok":
            yield Finding(name, "ok", "works")
        elif "not permitted" in answer:
            yield Finding(name, "unknown", "cannot be tried without CAP_NET_ADMIN", "", SUDO)
        else:
            state: State = "absent" if name in _OPTIONAL else "missing"
            yield Finding(name, state, answer, cost, f"use a kernel with {option}, or load its module")


def inspection() -> Finding:
    """The packet filter that hands packets to user space; tried in a namespace that nobody sees."""
    name, cost = "inspection", "no policy rules by domain name"
    tools = [tool for tool in INSPECT_TOOLS if shutil.which(tool)]
    if not tools:
        return Finding(name, "absent", f"no {' or '.join(INSPECT_TOOLS)}", cost, "apt-get install iptables")
    if os.geteuid() != 0:
        return Finding(name, "unknown", "cannot be tried without privileges", "", SUDO)
    table = "*raw\\n-A PREROUTING -m mark --mark 1/1 -j NFQUEUE --queue-num 0 --queue-bypass\\nCOMMIT\\n"
    said = []
    for tool in tools:
        six = tool.replace("ip", "ip6", 1)
        answer = _run(["unshare", "--net", "sh", "-c", f"printf '{table}' | {tool} && printf '{table}' | {six}"])
        if answer == "ok":
            return Finding(name, "ok", f"NFQUEUE by {tool.removesuffix('-restore')}")
        said.append(f"{tool}: {answer}")
    return Finding(name, "absent", "; ".join(said), cost, "use a kernel with CONFIG_NETFILTER_XT_TARGET_NFQUEUE")


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
    """The compiled programs, and whether this kernel's verifier takes them. They are not attached anywhere."""
    from vfp.datapath.engine import OBJECT, Datapath, Limits
    from vfp.datapath.errors import DatapathError, NotPermitted

    name = "BPF object"
    if not OBJECT.exists():
        return Finding(name, "missing", f"no {OBJECT}", "no agent can start", "make install (it needs clang)")
    try:
        Datapath.open(
            None, Limits(flows=1024, rules=1024, bindings=1024, space_entries=1024, mappings=1024)
        ).close()
    except NotPermitted:
        return Finding(name, "unknown", f"{OBJECT} cannot be tried without privileges", "", SUDO)
    except DatapathError as error:
        said = " ".join(str(error).split())
        return Finding(
            name, "missing", said, "no agent can start", "make install builds it anew; report this line"
        )
    return Finding(name, "ok", "loads")


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
