"""Whether a pinned map can serve an object that declares it, asked before libbpf refuses without saying why.

libbpf compares type, sizes and flags. It does not look inside keys and values: a field that moved within a struct of
the same size would be read wrongly for ever, so layouts are compared too, by the BTF that the kernel keeps of the map.
"""

from __future__ import annotations

from vfp.datapath.btf import Btf, kernel_btf, layout_differences
from vfp.datapath.errors import NotPermitted
from vfp.datapath.libbpf import library, map_info
from vfp.datapath.map import BpfMap, MapFlag, MapType

__all__ = ["pinned_differences"]


def pinned_differences(pinned: BpfMap, handle: int, declared: int) -> list[str]:
    """What differs between a pinned map and one that an open object declares; empty: it can be adopted.

    Args:
        pinned: the map in the kernel.
        handle: struct bpf_object, opened, not loaded.
        declared: its struct bpf_map, sized as it would be made.
    """
    lib = library()
    flags = pinned.flags
    if pinned.type in (MapType.DEVMAP, MapType.DEVMAP_HASH):
        flags &= ~MapFlag.RDONLY_PROG  # the kernel adds it
    attributes = {
        "type": (_type_name(pinned.type), _type_name(lib.bpf_map__type(declared))),
        "key_size": (pinned.key_size, lib.bpf_map__key_size(declared)),
        "value_size": (pinned.value_size, lib.bpf_map__value_size(declared)),
        "max_entries": (pinned.max_entries, lib.bpf_map__max_entries(declared)),
        "flags": (flags, lib.bpf_map__map_flags(declared)),
    }
    differences = [
        f"{what} is {there}, the object has {here}" for what, (there, here) in attributes.items() if there != here
    ]
    return differences or _layouts(pinned, handle, declared)


def _layouts(pinned: BpfMap, handle: int, declared: int) -> list[str]:
    """Differences inside keys and values, where both sides have BTF for them."""
    lib = library()
    info = map_info(pinned.fd)
    here_handle = lib.bpf_object__btf(handle)
    key, value = lib.bpf_map__btf_key_type_id(declared), lib.bpf_map__btf_value_type_id(declared)
    if not (info.btf_id and info.btf_key_type_id and here_handle and key):
        return []
    here = Btf(here_handle, "the object")
    try:
        with kernel_btf(info.btf_id) as there:
            return [
                *layout_differences(there.layout(info.btf_key_type_id), here.layout(key), "key"),
                *layout_differences(there.layout(info.btf_value_type_id), here.layout(value), "value"),
            ]
    except NotPermitted:
        return []  # reading BTF by id wants CAP_SYS_ADMIN, more than loading does


def _type_name(number: int) -> str:
    return MapType(number).name.lower() if number in set(MapType) else str(number)
