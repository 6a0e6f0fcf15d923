"""What this kernel and this process can do, asked of the kernel rather than derived from its version."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vfp.datapath.errors import DatapathError, KernelRefused, errno_name
from vfp.datapath.libbpf import ProgLoadOpts, check, library
from vfp.datapath.map import MapType
from vfp.datapath.object import BpfObject
from vfp.datapath.pins import BPF_FS, on_bpffs
from vfp.datapath.program import Program, ProgType

__all__ = ["FLOOR", "Feature", "probe", "probe_object"]

FLOOR = (6, 1)
"""The oldest kernel that the engine is written for."""

_FLOOR = ".".join(map(str, FLOOR))
_KERNEL_TODO = f"boot Linux {_FLOOR} or later with its default options"
_PRIVILEGES_TODO = "run as root, or add the capability to the unit or container"

OBJECT = Path(__file__).with_name("vfp.bpf.o")

# enum bpf_func_id, with what each is for.
_HELPERS = (
    ("bpf_redirect_peer", 155, "packets to a local endpoint cannot enter its namespace directly"),
    ("bpf_redirect_neigh", 152, "packets to an uplink have no neighbour resolution: no NAT"),
    ("bpf_loop", 181, "the bounds of rule search and port allocation do not pass the verifier"),
    ("bpf_skb_set_tunnel_key", 21, "no VXLAN tunnel key can be set: no overlay networks"),
    ("bpf_fib_lookup", 69, "the host's routes cannot be asked: no uplink traffic"),
    ("bpf_clone_redirect", 13, "packets cannot be mirrored"),
    ("bpf_skb_adjust_room", 50, "rejected packets are not answered"),
)
_KTIME_GET_COARSE_NS = 160  # came with memory accounting by cgroup (Linux 5.11); libbpf asks by it, too

_MAPS = (
    ("hash map", MapType.HASH, "the engine has no tables"),
    ("LRU hash map", MapType.LRU_HASH, "fragments cannot be followed"),
    ("per-CPU array map", MapType.PERCPU_ARRAY, "drops cannot be counted"),
    ("per-CPU hash map", MapType.PERCPU_HASH, "meters cannot count"),
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
    """One thing that was asked for. `detail`: what was found; `costs`: what does not work without it; `todo`: how
    to get it, empty when it is there.
    """

    name: str
    present: bool
    detail: str
    costs: str
    todo: str = ""


_Answer = tuple[bool, str, str]  # present, detail, todo


def probe() -> tuple[Feature, ...]:
    """Ask for everything; never raises, and leaves nothing behind."""
    privileges = _privileges(Path("/proc/self/status").read_text())
    may_ask = all(feature.present for feature in privileges)
    questions: list[tuple[str, Callable[[], _Answer], str]] = [
        ("program type sched_cls", _sched_cls, "the engine cannot be attached"),
        *((f"helper {name}", partial(_helper, number), costs) for name, number, costs in _HELPERS),
        *((name, partial(_map, kind), costs) for name, kind, costs in _MAPS),
        ("BPF JIT", _jit, "programs are interpreted, several times slower"),
        ("BPF_PROG_TEST_RUN", _test_run, "flows cannot be swept, nor the engine tested"),
        ("memory lock limit", _memory_lock, "large tables cannot be made"),
    ]
    return (
        _kernel(os.uname().release),
        *privileges,
        _asked("libbpf", _libbpf, "nothing can be loaded"),
        _asked("kernel BTF", _btf, "maps and programs cannot be told by their types"),
        _asked("BPF file system", _bpf_fs, "the data path ends with the agent"),
        # Without the right to ask, the kernel's no means nothing, and libbpf takes some for a yes.
        *(_asked(name, ask if may_ask else _unasked, costs) for name, ask, costs in questions),
    )


def probe_object(source: Path = OBJECT) -> Feature:
    """Whether this kernel's verifier accepts a compiled object: loaded once, unpinned, and let go."""
    return _asked("BPF programs", partial(_load, source), "the engine does not run here")


def _asked(name: str, ask: Callable[[], _Answer], costs: str) -> Feature:
    try:
        present, detail, todo = ask()
    except KernelRefused as error:
        present, detail, todo = False, f"{error.asked}: {errno_name(error.errno)}", error.todo
    except DatapathError as error:
        present, (detail, _, todo) = False, str(error).partition("; ")
    return Feature(name, present, detail, costs, todo)


def _unasked() -> _Answer:
    return False, "not asked: this process may not", _PRIVILEGES_TODO


def _kernel(release: str) -> Feature:
    found = re.match(r"(\d+)\.(\d+)", release)
    present = found is not None and (int(found[1]), int(found[2])) >= FLOOR
    costs = "the engine does not pass an older verifier"
    return Feature(f"Linux {_FLOOR} or later", present, release, costs, "" if present else _KERNEL_TODO)


def _privileges(status: str) -> tuple[Feature, ...]:
    """Capabilities by the text of /proc/self/status."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    user = "root" if os.geteuid() == 0 else f"user id {os.geteuid()}"
    features = []
    for name, bit, costs in _CAPABILITIES:
        # Before CAP_BPF there was CAP_SYS_ADMIN, and the kernel still takes it in its place.
        present = bool(effective >> bit & 1) or (name == "CAP_BPF" and bool(effective >> _CAP_SYS_ADMIN & 1))
        detail, todo = (user, "") if present else (f"{user} lacks it", _PRIVILEGES_TODO)
        features.append(Feature(name, present, detail, costs, todo))
    return tuple(features)


def _libbpf() -> _Answer:
    version: bytes = library().libbpf_version_string()
    return True, version.decode(), ""


def _btf() -> _Answer:
    path = Path("/sys/kernel/btf/vmlinux")
    if path.exists():
        return True, str(path), ""
    return False, f"no {path}", "boot a kernel with CONFIG_DEBUG_INFO_BTF"


def _bpf_fs() -> _Answer:
    if BPF_FS.is_dir() and on_bpffs(BPF_FS):
        return True, str(BPF_FS), ""
    if BPF_FS.is_dir() and os.geteuid() == 0:
        return True, f"not mounted at {BPF_FS}; the agent mounts it", ""
    return False, f"nothing is mounted at {BPF_FS}", f"mount -t bpf bpf {BPF_FS}"


def _supported(result: int, asked: str) -> _Answer:
    if check(result, asked):
        return True, "supported", ""
    return False, "the kernel says no", _KERNEL_TODO


def _sched_cls() -> _Answer:
    result = library().libbpf_probe_bpf_prog_type(int(ProgType.SCHED_CLS), None)
    return _supported(result, "ask for program type sched_cls")


def _helper(number: int) -> _Answer:
    result = library().libbpf_probe_bpf_helper(int(ProgType.SCHED_CLS), number, None)
    return _supported(result, f"ask for helper {number}")


def _map(kind: MapType) -> _Answer:
    result = library().libbpf_probe_bpf_map_type(int(kind), None)
    return _supported(result, f"ask for map type {kind.name.lower()}")


def _trivial() -> Program:
    """A tc program that returns 0: `r0 = 0; exit` (struct bpf_insn: code, registers, offset, immediate)."""
    instructions = struct.pack("=BBhi BBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
    opts = ProgLoadOpts(sz=ctypes.sizeof(ProgLoadOpts))
    fd = library().bpf_prog_load(
        int(ProgType.SCHED_CLS), b"sluice_probe", b"GPL", instructions, 2, ctypes.byref(opts)
    )
    return Program(check(fd, "load a program of two instructions"))


def _jit() -> _Answer:
    with _trivial() as program:
        if program.jited:
            return True, "on", ""
    return False, "off", "sysctl -w net.core.bpf_jit_enable=1"


def _test_run() -> _Answer:
    with _trivial() as program:
        program.test_run(bytes(64))
    return True, "works", ""


def _memory_lock() -> _Answer:
    if _helper(_KTIME_GET_COARSE_NS)[0]:
        return True, "none: BPF memory counts to the cgroup", ""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY:
        return True, "unlimited", ""
    return False, f"{soft} bytes", "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit"


def _load(source: Path) -> _Answer:
    with BpfObject.load(source) as loaded:
        walked = sum(program.instructions for program in loaded.programs.values())
        return True, f"{len(loaded.programs)} programs verified, {walked} instructions walked", ""
