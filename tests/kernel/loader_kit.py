"""C sources small enough to read, compiled on the spot, for the loader's tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FRAME = bytes.fromhex("020000000001020000000002") + b"\x08\x00" + bytes(46)

HEADER = """
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
char _license[] SEC("license") = "Apache-2.0";
"""

COUNTER = HEADER + """
struct flow_key { __u32 src; __u32 dst; __u16 port; __u8 kind; __u8 pad; };
struct flow_value { __u64 packets; __u64 bytes; };

struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 16);
         __type(key, struct flow_key); __type(value, struct flow_value); } flows SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 4);
         __type(key, __u32); __type(value, __u32); } counts SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 4);
         __type(key, __u32); __type(value, __u32); } jumps SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 65536); } events SEC(".maps");

const volatile __u32 verdict = VERDICT;

SEC("tc") int classify(struct __sk_buff *skb)
{
    __u32 zero = 0, *count = bpf_map_lookup_elem(&counts, &zero);

    if (count)
        *count += 1;
    __u64 *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
    if (event) {
        *event = skb->len;
        bpf_ringbuf_submit(event, 0);
    }
    bpf_tail_call(skb, &jumps, 1);
    skb->mark += 1;
    skb->cb[2] = skb->ifindex;
    if (skb->priority == 7)
        bpf_skb_store_bytes(skb, 0, "\\xff\\xff\\xff\\xff\\xff\\xff", 6, 0);
    return verdict;
}

SEC("tc") int jumped(struct __sk_buff *skb)
{
    struct flow_key key = { .src = skb->mark };
    struct flow_value value = { .packets = 1, .bytes = skb->len };

    bpf_map_update_elem(&flows, &key, &value, BPF_ANY);
    return 42;
}

struct sum { __u64 a, b, result; };

SEC("syscall") int add(struct sum *sum)
{
    sum->result = sum->a + sum->b;
    return 7;
}
"""

REJECTED = HEADER + """
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 1);
         __type(key, __u32); __type(value, __u64); } numbers SEC(".maps");

SEC("tc") int careless(struct __sk_buff *skb)
{
    __u32 zero = 0;
    __u64 *number = bpf_map_lookup_elem(&numbers, &zero);

    return *number;   /* may be NULL, which the verifier must refuse */
}
"""


def names(directory: Path) -> list[str]:
    """What is in a directory, sorted."""
    return sorted(entry.name for entry in directory.iterdir())


def open_files() -> int:
    """How many file descriptors this process has."""
    return len(names(Path("/proc/self/fd")))


def compile_c(source: str, directory: Path, name: str = "test", **defines: int) -> Path:
    """Compile to a BPF object as the product does."""
    if not shutil.which("clang"):
        pytest.fail("clang is not here; install it: apt install clang libbpf-dev")
    text, target = directory / f"{name}.bpf.c", directory / f"{name}.bpf.o"
    text.write_text(source)
    machine = os.uname().machine
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-Wall", "-Werror", f"-I/usr/include/{machine}-linux-gnu",
         *(f"-D{key}={value}" for key, value in defines.items()), "-c", text, "-o", target],
        check=True,
    )
    return target
