"""What this kernel and this process can do, asked of the kernel rather than derived from its version."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vfp.datapath.errors import DatapathError
from vfp.datapath.libbpf import ProgLoadOpts, check, library
from vfp.datapath.map import MapType
from vfp.datapath.pins import on_bpffs
from vfp.datapath.program import Program, ProgType

__all__ = ["FLOOR", "Feature", "probe"]

FLOOR = (6, 1)
"""The oldest kernel that the engine is written for."""

BPF_FS = Path("/sys/fs/bpf")

# enum bpf_func_id, with what each is for.
_HELPERS = (
    ("bpf_redirect_peer", 155, "packets to a local endpoint cannot enter its namespace directly"),
    ("bpf_redirect_neigh", 152, "packets to an uplink have no neighbour resolution: no NAT"),
    ("bpf_loop", 181, "the bounds of rule search and port allocation do not pass the verifier"),
    ("bpf_skb_set_tunnel_key", 21, "no VXLAN tunnel key can be set: no overlay networks"),
    ("bpf_fib_lookup", 69, "the host's routes cannot be asked: no uplink traffic"),
)
_KTIME_GET_COARSE_NS = 160  # came with memory accounting by cgroup (Linux 5.11); libbpf asks by it, too

_MAPS = (
    ("hash map", MapType.HASH, "the engine has no tables"),
    ("LRU hash map", MapType.LRU_HASH, "fragments cannot be followed"),
    ("per-CPU array map", MapType.PERCPU_ARRAY, "drops cannot be counted"),
    ("program array map", MapType.PROG_ARRAY, "the engine's slow path cannot be entered"),
    ("ring buffer map", MapType.RINGBUF, "drop events cannot be shown"),
)

_CAPABILITIES = (
    ("CAP_BPF", 39, "maps and programs cannot be loaded"),
    ("CAP_NET_ADMIN", 12, "tc programs, links and addresses cannot be made"),
)
_CAP_SYS_ADMIN = 21


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that was asked for. `detail`: what was found; `costs`: what does not work without it."""

    name: str
    present: bool
    detail: str
    costs: str


def probe() -> tuple[Feature, ...]:
    """Ask for everything; never raises, and leaves nothing behind. A lack comes with what to do in `detail`."""
    return (
        _kernel(os.uname().release),
        *_privileges(Path("/proc/self/status").read_text()),
        _asked("libbpf", _libbpf, "nothing can be loaded"),
        _file("kernel BTF", Path("/sys/kernel/btf/vmlinux"), "CONFIG_DEBUG_INFO_BTF",
              "map layouts and programs cannot be checked by type"),
        _bpf_fs(),
        _asked("program type sched_cls", _sched_cls, "the engine cannot be attached"),
        *(_asked(f"helper {name}", lambda number=number: _helper(number), costs)  # type: ignore[misc]
          for name, number, costs in _HELPERS),
        *(_asked(name, lambda kind=kind: _map(kind), costs)  # type: ignore[misc]
          for name, kind, costs in _MAPS),
        _asked("BPF JIT", _jit, "programs are interpreted, several times slower"),
        _asked("BPF_PROG_TEST_RUN", _test_run, "flows cannot be swept, nor the engine tested"),
        _asked("memory lock limit", _memory_lock, "large tables cannot be made"),
    )


def _asked(name: str, ask: Callable[[], tuple[bool, str]], costs: str) -> Feature:
    try:
        present, detail = ask()
    except DatapathError as error:
        present, detail = False, str(error).splitlines()[0]
    return Feature(name, present, detail, costs)


def _kernel(release: str) -> Feature:
    found = re.match(r"(\d+)\.(\d+)", release)
    present = found is not None and (int(found[1]), int(found[2])) >= FLOOR
    floor = ".".join(map(str, FLOOR))
    detail = release if present else f"{release}; boot Linux {floor} or later"
    return Feature(f"Linux {floor} or later", present, detail, "the engine does not pass an older verifier")


def _privileges(status: str) -> tuple[Feature, ...]:
    """Capabilities by the text of /proc/self/status."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    uid = os.geteuid()
    user = "root" if uid == 0 else f"user id {uid}"
    features = []
    for name, bit, costs in _CAPABILITIES:
        # Before CAP_BPF there was CAP_SYS_ADMIN, and the kernel still takes it in its place.
        present = bool(effective >> bit & 1) or (name == "CAP_BPF" and bool(effective >> _CAP_SYS_ADMIN & 1))
        detail = user if present else f"{user} lacks it; run as root, or add it to the unit or container"
        features.append(Feature(name, present, detail, costs))
    return tuple(features)


def _file(name: str, path: Path, option: str, costs: str) -> Feature:
    present = path.exists()
    return Feature(name, present, str(path) if present else f"no {path}; use a kernel with {option}", costs)


def _bpf_fs() -> Feature:
    present = BPF_FS.is_dir() and on_bpffs(BPF_FS)
    detail = str(BPF_FS) if present else f"nothing mounted at {BPF_FS}; mount -t bpf bpf {BPF_FS}"
    return Feature("BPF file system", present, detail, "the data path ends with the agent")


def _libbpf() -> tuple[bool, str]:
    version: bytes = library().libbpf_version_string()
    return True, version.decode()


def _supported(result: int, asked: str) -> tuple[bool, str]:
    if check(result, asked):
        return True, "supported"
    return False, f"the kernel says no; use Linux {'.'.join(map(str, FLOOR))} or later with its default options"


def _sched_cls() -> tuple[bool, str]:
    result = library().libbpf_probe_bpf_prog_type(int(ProgType.SCHED_CLS), None)
    return _supported(result, "ask for program type sched_cls")


def _helper(number: int) -> tuple[bool, str]:
    result = library().libbpf_probe_bpf_helper(int(ProgType.SCHED_CLS), number, None)
    return _supported(result, f"ask for helper {number}")


def _map(kind: MapType) -> tuple[bool, str]:
    return _supported(library().libbpf_probe_bpf_map_type(int(kind), None), f"ask for map type {kind.name.lower()}")


def _trivial() -> Program:
    """A tc program that returns 0: `r0 = 0; exit` (struct bpf_insn: code, registers, offset, immediate)."""
    instructions = struct.pack("=BBhi BBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
    opts = ProgLoadOpts(sz=ctypes.sizeof(ProgLoadOpts))
    fd = library().bpf_prog_load(
        int(ProgType.SCHED_CLS), b"sluice_probe", b"GPL", instructions, 2, ctypes.byref(opts)
    )
    return Program(check(fd, "load a program of two instructions"))


def _jit() -> tuple[bool, str]:
    with _trivial() as program:
        if program.jited:
            return True, "on"
    return False, "off; sysctl -w net.core.bpf_jit_enable=1"


def _test_run() -> tuple[bool, str]:
    with _trivial() as program:
        program.test_run(bytes(64))
    return True, "works"


def _memory_lock() -> tuple[bool, str]:
    present, _ = _helper(_KTIME_GET_COARSE_NS)
    if present:
        return True, "not needed: BPF memory counts to the cgroup"
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY:
        return True, "unlimited"
    return False, f"{soft} bytes; ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit"
