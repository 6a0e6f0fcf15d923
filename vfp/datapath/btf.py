"""Layouts of C structs and enums, read from an object's BTF, to hold Python's twins against.

By libbpf's btf__* API rather than `bpftool`, which a host that only runs the product need not have. The
binary format is that of Documentation/bpf/btf.rst in the kernel: `struct btf_type` (12 bytes: name, info,
size or type) and, behind it, its members.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import string_at
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from vfp.datapath.errors import LayoutError
from vfp.datapath.libbpf import captured_log, check, check_pointer, library

__all__ = ["Btf", "Layout", "check_dtype", "enum_values", "kernel_btf", "layout_differences", "struct_layout"]


class _Kind(IntEnum):
    """BTF_KIND_*, those that are followed here."""

    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    ENUM64 = 19


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the fields of a C struct are.

    `fields`: name → (offset, size), in bytes; members of anonymous structs and unions as their own. `nested`:
    the layout of fields that are structs or unions, or arrays of them. `counts`: elements of fields that are
    arrays (of all dimensions together).
    """

    size: int
    fields: Mapping[str, tuple[int, int]]
    nested: Mapping[str, Layout] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Type:
    """struct btf_type, taken apart."""

    id: int
    name: str
    kind: int
    members: int
    flag: bool          # a struct: has bit-fields; an enum: is signed
    size: int           # or the type it refers to
    address: int        # of what follows struct btf_type


@dataclass(frozen=True, slots=True)
class Btf:
    """A struct btf of libbpf; valid as long as its owner is (`opened_btf`, `kernel_btf`, or an open object)."""

    handle: int
    source: str

    def find(self, name: str, kinds: tuple[_Kind, ...]) -> int:
        """The id of a type by its C name.

        Raises:
            LayoutError: there is none.
        """
        for kind in kinds:
            found: int = library().btf__find_by_name_kind(self.handle, name.encode(), int(kind))
            if found > 0:
                return found
        raise LayoutError(
            f"{kinds[0].name.lower()} {name}: not in the BTF of {self.source}; compile with -g, and make it "
            f"the type of a field or variable: clang leaves out what only names constants"
        )

    def type(self, type_id: int) -> _Type:
        """A type by its id."""
        pointer = library().btf__type_by_id(self.handle, type_id)
        pointer = check_pointer(pointer, f"read type {type_id} of the BTF of {self.source}")
        name, info, size = struct.unpack("3I", string_at(pointer, 12))
        kind, members, flag = info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31)
        return _Type(type_id, self.text(name), kind, members, flag, size, pointer + 12)

    def text(self, offset: int) -> str:
        """A string of the string section."""
        found: bytes | None = library().btf__name_by_offset(self.handle, offset)
        return (found or b"").decode()

    def resolved(self, type_id: int) -> _Type:
        """The type behind typedefs and qualifiers."""
        return self.type(check(library().btf__resolve_type(self.handle, type_id), f"resolve type {type_id}"))

    def size_of(self, type_id: int) -> int:
        """Bytes of a type."""
        return check(library().btf__resolve_size(self.handle, type_id), f"size type {type_id}")

    def layout(self, type_id: int) -> Layout:
        """The layout of a struct or union; of anything else, its size and no fields.

        Raises:
            LayoutError: it has bit-fields, which have no offset in bytes.
        """
        this = self.resolved(type_id)
        if this.kind not in (_Kind.STRUCT, _Kind.UNION):
            return Layout(self.size_of(type_id), {})
        fields: dict[str, tuple[int, int]] = {}
        nested: dict[str, Layout] = {}
        counts: dict[str, int] = {}
        for name, member_id, offset in self._members(this):
            fields[name] = (offset, self.size_of(member_id))
            member = self.resolved(member_id)
            if member.kind == _Kind.ARRAY:
                counts[name], member = self._elements(member)
            if member.kind in (_Kind.STRUCT, _Kind.UNION):
                nested[name] = self.layout(member.id)
        return Layout(this.size, fields, nested, counts)

    def _members(self, this: _Type, base: int = 0) -> Iterator[tuple[str, int, int]]:
        """Name, type and offset (bytes) of each field; those of anonymous structs and unions as their own."""
        for index in range(this.members):  # struct btf_member: name, type, offset in bits
            name_offset, type_id, bits = struct.unpack("3I", string_at(this.address + 12 * index, 12))
            name = self.text(name_offset)
            if this.flag:  # the struct has bit-fields: 8 bits of size, 24 of offset
                if bits >> 24:
                    raise LayoutError(f"struct {this.name}, field {name}: a bit-field has no offset in bytes")
                bits &= 0xFFFFFF
            if name:
                yield name, type_id, base + bits // 8
            else:
                yield from self._members(self.resolved(type_id), base + bits // 8)

    def _elements(self, array: _Type) -> tuple[int, _Type]:
        """How many elements, over all dimensions, of which type."""
        count = 1
        while array.kind == _Kind.ARRAY:  # struct btf_array: element type, index type, number of elements
            element, _, length = struct.unpack("3I", string_at(array.address, 12))
            count *= length
            array = self.resolved(element)
        return count, array

    def enumerators(self, type_id: int) -> dict[str, int]:
        """Names and values of an enum."""
        this = self.resolved(type_id)
        values: dict[str, int] = {}
        for index in range(this.members):
            if this.kind == _Kind.ENUM:  # struct btf_enum: name, value
                width, form = 8, "=Ii" if this.flag else "=II"
            else:  # struct btf_enum64: name, low half, high half
                width, form = 12, "=Iq" if this.flag else "=IQ"
            name, value = struct.unpack(form, string_at(this.address + width * index, width))
            values[self.text(name)] = value
        return values


@contextmanager
def opened_btf(object_path: Path) -> Iterator[Btf]:
    """The BTF of an ELF object.

    Raises:
        KernelRefused: there is no such file, or it has no BTF.
    """
    with captured_log() as log:
        handle = check_pointer(
            library().btf__parse(os.fsencode(object_path), None), f"read the BTF of {object_path}", log
        )
    try:
        yield Btf(handle, str(object_path))
    finally:
        library().btf__free(handle)


@contextmanager
def kernel_btf(btf_id: int) -> Iterator[Btf]:
    """BTF that was loaded into the kernel, by id (as `struct bpf_map_info` has)."""
    handle = library().btf__load_from_kernel_by_id(btf_id)
    handle = check_pointer(handle, f"read BTF id {btf_id} from the kernel")
    try:
        yield Btf(handle, f"BTF id {btf_id}")
    finally:
        library().btf__free(handle)


def struct_layout(object_path: Path, name: str) -> Layout:
    """The layout of `struct NAME` (or union) in an ELF object compiled with -g.

    Raises:
        LayoutError: no such struct, or it has bit-fields.
        KernelRefused: the file has no BTF.
    """
    with opened_btf(object_path) as btf:
        return btf.layout(btf.find(name, (_Kind.STRUCT, _Kind.UNION)))


def enum_values(object_path: Path, name: str) -> dict[str, int]:
    """The enumerators of `enum NAME` in an ELF object compiled with -g.

    clang before 15 does not record that an enum is signed: its negative values then read as 2**32 minus them.

    Raises:
        LayoutError: no such enum.
        KernelRefused: the file has no BTF.
    """
    with opened_btf(object_path) as btf:
        return btf.enumerators(btf.find(name, (_Kind.ENUM, _Kind.ENUM64)))


def check_dtype(layout: Layout, dtype: np.dtype[Any], where: str = "") -> list[str]:
    """What differs between a C struct and its numpy twin; empty: nothing.

    Compared: total size; for each field its presence, offset and size; for nested structs, and arrays of
    them, the same inside. Fields whose names start with "pad", on either side, are padding and not compared.
    How a field is read (integer, bytes, array) is the twin's own business.
    """
    differences = []
    if layout.size != dtype.itemsize:
        differences.append(f"{where or 'struct'}: {layout.size} bytes in C, {dtype.itemsize} in Python")
    twins = {name: (twin[1], twin[0]) for name, twin in (dtype.fields or {}).items() if not _padding(name)}
    fields = [name for name in layout.fields if not _padding(name)]
    path = f"{where}." if where else ""
    differences += [f"{path}{name}: in C only" for name in fields if name not in twins]
    differences += [f"{path}{name}: in Python only" for name in twins if name not in fields]
    for name in set(fields) & set(twins):
        differences += _check_field(path + name, layout, name, *twins[name])
    return sorted(differences)


def layout_differences(there: Layout, here: Layout, where: str) -> list[str]:
    """What differs between two versions of a C struct: `there` in the kernel, `here` in an object."""
    if there.size != here.size:
        return [f"{where} has {there.size} bytes, the object's {here.size}"]
    differences = []
    for name in sorted({*there.fields, *here.fields}):
        if _padding(name) or there.fields.get(name) == here.fields.get(name):
            continue
        was, now = (f"{size} bytes at {at}" if size else "absent"
                    for at, size in (layout.fields.get(name, (0, 0)) for layout in (there, here)))
        differences.append(f"{where}.{name} is {was}, in the object {now}")
    for name in sorted(set(there.nested) & set(here.nested)):
        if there.fields[name] == here.fields[name]:
            differences += layout_differences(there.nested[name], here.nested[name], f"{where}.{name}")
    return differences


def _padding(name: str) -> bool:
    return name.startswith("pad")


def _check_field(where: str, layout: Layout, name: str, offset: int, twin: np.dtype[Any]) -> list[str]:
    if layout.fields[name] != (offset, twin.itemsize):
        at, size = layout.fields[name]
        return [f"{where}: {size} bytes at {at} in C, {twin.itemsize} bytes at {offset} in Python"]
    element, count = (twin.base, twin.itemsize // twin.base.itemsize) if twin.subdtype else (twin, 1)
    if name in layout.nested and element.fields is not None:
        if layout.counts.get(name, 1) != count:
            return [f"{where}: {layout.counts.get(name, 1)} elements in C, {count} in Python"]
        return check_dtype(layout.nested[name], element, where)
    return []
