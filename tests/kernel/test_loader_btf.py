"""C layouts read from BTF, against what the C says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from loader_kit import HEADER, compile_c

from vfp.datapath.btf import Layout, check_dtype, enum_values, struct_layout
from vfp.datapath.errors import DatapathError, KernelRefused, LayoutError

SOURCE = HEADER + """
enum color { RED, GREEN = 7, BLUE = 0x80000000 };
enum sign { MINUS = -1, PLUS = 1 };
struct address { __u32 w[4]; };
struct hop { __be16 port; __u8 mac[6]; };
struct everything {
    const volatile __u64 counter;
    struct address src;
    struct hop hops[2][3];
    enum color color;
    enum sign sign;
    __u8 pad1[2];
    union { __u32 mark; __u16 halves[2]; };
    struct { __u8 inner, pad_inner; };
    void *pointer;
} __attribute__((packed));
struct bits { __u32 low : 4, high : 28; };

struct everything everything;
struct bits bits;

SEC("tc") int program(struct __sk_buff *skb) { return everything.src.w[0] + bits.low; }
"""

HOP = np.dtype([("port", ">u2"), ("mac", "u1", 6)])
ADDRESS = np.dtype([("w", "<u4", 4)])
FIELDS = [
    ("counter", "<u8"), ("src", ADDRESS), ("hops", HOP, (2, 3)), ("color", "<u4"), ("sign", "<i4"),
    ("pad", "u1", 2), ("mark", "<u4"), ("inner", "u1"), ("pad2", "u1"), ("pointer", "<u8"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(SOURCE, tmp_path_factory.mktemp("loader"), "btf")


@pytest.fixture(scope="module")
def everything(source: Path) -> Layout:
    return struct_layout(source, "everything")


def test_offsets_and_sizes(everything: Layout) -> None:
    assert everything.size == 96
    assert everything.fields == {
        "counter": (0, 8), "src": (8, 16), "hops": (24, 48), "color": (72, 4), "sign": (76, 4), "pad1": (80, 2),
        "mark": (82, 4), "halves": (82, 4), "inner": (86, 1), "pad_inner": (87, 1), "pointer": (88, 8),
    }
    assert everything.nested == {
        "src": Layout(16, {"w": (0, 16)}, {}, {"w": 4}),
        "hops": Layout(8, {"port": (0, 2), "mac": (2, 6)}, {}, {"mac": 6}),
    }
    assert everything.counts == {"hops": 6, "pad1": 2, "halves": 2}


def test_enumerators(source: Path) -> None:
    assert enum_values(source, "color") == {"RED": 0, "GREEN": 7, "BLUE": 0x80000000}
    signed = enum_values(source, "sign")
    assert signed["PLUS"] == 1
    assert signed["MINUS"] in (-1, 2**32 - 1), "clang before 15 does not record the sign"


def test_a_twin_without_differences(everything: Layout) -> None:
    names = [name for name, *_ in FIELDS] + ["halves"]
    packed = np.dtype(FIELDS)
    twin = np.dtype({
        "names": names,
        "formats": [*(packed[name] for name in names[:-1]), np.dtype(("<u2", 2))],
        "offsets": [*(packed.fields[name][1] for name in names[:-1]), 82],  # type: ignore[index]
        "itemsize": packed.itemsize,
    })
    assert check_dtype(everything, twin) == []


def test_differences_are_named(everything: Layout) -> None:
    moved = [("hop", "<u2") if name == "hops" else (name, *rest) for name, *rest in FIELDS]
    found = check_dtype(everything, np.dtype(moved))
    assert "struct: 96 bytes in C, 50 in Python" in found
    assert "hops: in C only" in found
    assert "hop: in Python only" in found
    assert "color: 4 bytes at 72 in C, 4 bytes at 26 in Python" in found


def test_differences_inside_nested_structs_are_named() -> None:
    inner = Layout(8, {"port": (0, 2), "mac": (2, 6)})
    outer = Layout(16, {"hops": (0, 16)}, {"hops": inner}, {"hops": 2})
    swapped = np.dtype([("mac", "u1", 6), ("port", "<u2")])
    assert check_dtype(outer, np.dtype([("hops", swapped, 2)])) == [
        "hops.mac: 6 bytes at 2 in C, 6 bytes at 0 in Python",
        "hops.port: 2 bytes at 0 in C, 2 bytes at 6 in Python",
    ]
    whole = np.dtype([("port", "<u2"), ("mac", "u1", 14)])
    assert check_dtype(outer, np.dtype([("hops", whole)])) == ["hops: 2 elements in C, 1 in Python"]
    assert check_dtype(outer, np.dtype([("hops", "u1", 16)])) == []


def test_what_is_not_there_says_so(source: Path, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"struct absent: not in the BTF of .*compile with -g"):
        struct_layout(source, "absent")
    with pytest.raises(LayoutError, match="enum everything: not in the BTF"):
        enum_values(source, "everything")
    with pytest.raises(LayoutError, match="field low: a bit-field"):
        struct_layout(source, "bits")
    with pytest.raises(KernelRefused, match=r"read the BTF of .*nowhere\.o: ENOENT"):
        struct_layout(tmp_path / "nowhere.o", "everything")
    (tmp_path / "text.o").write_text("no ELF")
    with pytest.raises(DatapathError, match=r"read the BTF of .*text\.o"):
        struct_layout(tmp_path / "text.o", "everything")
