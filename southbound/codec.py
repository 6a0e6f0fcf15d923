"""Messages to msgpack maps and back, from the type hints of the dataclasses alone.

A message travels as `{"t": "Hello", field: value, ...}` with every field present and no other. A goal-state
object has `"kind"` in place of `"t"`, from its class variable. A tuple is an array; `Any` is JSON-like data
(null, bool, int, finite float, text, array, map with text keys). What does not fit exactly is a
`ProtocolError`, on the way out as on the way in. A new message or field needs no code here; a type hint that
is not known fails at import.

For each hint a `_Codec` is built once: two closures, `pack` (value to plain) and `unpack` (plain to value). A
mismatch travels up as `_Mismatch` and collects the path on its way, so that good data pay nothing for good
error messages.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter, itemgetter
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgpack

from southbound import messages
from southbound.errors import ProtocolError
from southbound.messages import PROTOCOL_VERSION, Message

__all__ = ["MAX_CONTAINERS", "MAX_DEPTH", "MAX_ITEMS", "MAX_TEXT_BYTES", "decode", "encode", "encode_goal",
           "encode_sync"]

MAX_TEXT_BYTES = 1 << 20                    # one string or byte string
MAX_ITEMS = 1 << 20                         # entries of one array or map
MAX_CONTAINERS = 2 << 20                    # arrays and maps of one message; 1 byte there, ~70 in memory
MAX_DEPTH = 32                              # nesting of JSON-like data
_SHOWN_CHARACTERS = 60

_SCALARS = (str, int, bool, bytes)
_NAMES = {str: "text", int: "an integer", bool: "true or false", bytes: "bytes", float: "a finite number",
          type(None): "nothing"}


class _Mismatch(Exception):
    """Something does not fit; `path` is completed by the containers it passes through, innermost first."""

    def __init__(self, problem: str, found: str) -> None:
        self.problem = problem
        self.found = found
        self.path: list[str] = []

    def location(self) -> str:
        return "".join(reversed(self.path)).removeprefix(".")


@dataclass(frozen=True, slots=True)
class _Codec:
    """`pack`: value to what msgpack takes; `unpack`: the reverse. Both check."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]
    scalar: type | None = None              # packed as it is, and its exact type is the whole check


def encode(message: Message) -> bytes:
    """The msgpack form of a message.

    Raises:
        ProtocolError: a field holds a value that its type hint does not allow.
    """
    name = type(message).__name__
    codec = _MESSAGES.get(name)
    if codec is None:
        raise ProtocolError("not a message of this protocol", found=name)
    try:
        return bytes(msgpack.packb(codec.pack(message)))
    except _Mismatch as mismatch:
        raise ProtocolError(mismatch.problem, message=name, field=mismatch.location(),
                            found=mismatch.found) from None
    except (OverflowError, UnicodeEncodeError, ValueError) as error:
        raise ProtocolError(f"msgpack cannot hold it: {error}", message=name) from error


def encode_goal(goal: messages.Goal) -> bytes:
    """One goal-state object, for `encode_sync`.

    Raises:
        ProtocolError: as `encode`.
    """
    try:
        return bytes(msgpack.packb(_GOAL.pack(goal)))
    except _Mismatch as mismatch:
        raise ProtocolError(mismatch.problem, message=type(goal).__name__, field=mismatch.location(),
                            found=mismatch.found) from None
    except (OverflowError, UnicodeEncodeError, ValueError) as error:
        raise ProtocolError(f"msgpack cannot hold it: {error}", message=type(goal).__name__) from error


def encode_sync(revision: int, goals: Sequence[bytes]) -> bytes:
    """A `FullSync` of goal-state objects that are encoded already."""
    packer = msgpack.Packer()
    head = (packer.pack_map_header(3), *map(packer.pack, ("t", "FullSync", "revision", revision, "goals")))
    return b"".join((*head, packer.pack_array_header(len(goals)), *goals))


def decode(payload: bytes | bytearray) -> Message:
    """The message in a frame's payload.

    Raises:
        ProtocolError: not msgpack, beyond a bound, of another version, or not exactly a message's fields.
    """
    raw = _unpack_bounded(payload)
    if type(raw) is not dict:
        raise ProtocolError("expected a map with key 't'", message="frame", found=_show(raw))
    name = raw.get("t")
    codec = _MESSAGES.get(name) if type(name) is str else None
    if codec is None:
        raise ProtocolError("not a message of this protocol", message="frame", field="t", found=_show(name))
    assert type(name) is str
    version = raw.get("version", PROTOCOL_VERSION) if name in _VERSIONED else PROTOCOL_VERSION
    if version != PROTOCOL_VERSION:         # before the fields, which another version may have changed
        raise ProtocolError(f"this side speaks protocol version {PROTOCOL_VERSION}; upgrade the older side",
                            message=name, field="version", found=_show(version))
    try:
        message: Message = codec.unpack(raw)
    except _Mismatch as mismatch:
        raise ProtocolError(mismatch.problem, message=name, field=mismatch.location(),
                            found=mismatch.found) from None
    return message


def _unpack_bounded(payload: bytes | bytearray) -> Any:
    containers = 0

    def count(container: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise ProtocolError(f"more than {MAX_CONTAINERS} arrays and maps", message="frame")
        return container

    try:
        return msgpack.unpackb(payload, object_hook=count, list_hook=count, max_str_len=MAX_TEXT_BYTES,
                               max_bin_len=MAX_TEXT_BYTES, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS,
                               max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        # ValueError covers truncation, trailing bytes, bounds, bad UTF-8 and map keys that are not text
        raise ProtocolError(f"not an acceptable msgpack document: {type(error).__name__} {error}",
                            message="frame", found=_show(bytes(payload[:16]))) from error


def _show(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value[:_SHOWN_CHARACTERS] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


# One builder per sort of type hint.

def _build(hint: Any) -> _Codec:
    origin, args = get_origin(hint), get_args(hint)
    if hint in _SCALARS:
        return _scalar(hint)
    if hint is float:
        return _Codec(_finite, _finite)
    if hint is Any:
        return _Codec(_json_like, _json_like)
    if origin is dict and args == (str, Any):
        return _Codec(_json_map, _json_map)
    if origin is Literal:
        return _literal(args)
    if origin is tuple:
        if args[1:] == (Ellipsis,):
            return _array(_build(args[0]))
        return _fixed(tuple(_build(arg) for arg in args))
    if origin in (Union, types.UnionType):
        return _union(args)
    if hasattr(hint, "__dataclass_fields__"):
        return _record(hint, "kind" if hasattr(hint, "kind") and isinstance(hint.kind, str) else "")
    raise TypeError(f"southbound.codec has no wire form for the type hint {hint!r}")


def _scalar(kind: type) -> _Codec:
    def check(value: Any) -> Any:
        if type(value) is not kind:         # exact: bool is no int
            raise _Mismatch(f"expected {_NAMES[kind]}", _show(value))
        return value

    return _Codec(check, check, scalar=kind)


def _finite(value: Any) -> float:
    if type(value) not in (float, int) or not math.isfinite(value):
        raise _Mismatch("expected a finite number", _show(value))
    return float(value)


def _json_like(value: Any, depth: int = 0) -> Any:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return _finite(value)
    if depth >= MAX_DEPTH:
        raise _Mismatch(f"nested deeper than {MAX_DEPTH}", kind.__name__)
    if kind is dict:
        return _json_map(value, depth)
    if kind is list or kind is tuple:
        return _each(lambda item: _json_like(item, depth + 1), value)
    raise _Mismatch("expected JSON-like data", f"{kind.__name__} {_show(value)}")


def _json_map(value: Any, depth: int = 0) -> dict[str, Any]:
    if type(value) is not dict:
        raise _Mismatch("expected a map", _show(value))
    out = {}
    for key, item in value.items():
        if type(key) is not str:
            raise _Mismatch("expected text as map key", _show(key))
        try:
            out[key] = _json_like(item, depth + 1)
        except _Mismatch as mismatch:
            mismatch.path.append(f".{key}")
            raise
    return out


def _literal(allowed: tuple[Any, ...]) -> _Codec:
    choices = " or ".join(repr(choice) for choice in allowed)

    def check(value: Any) -> Any:
        if type(value) is not str or value not in allowed:
            raise _Mismatch(f"expected {choices}", _show(value))
        return value

    if not all(type(choice) is str for choice in allowed):
        raise TypeError(f"southbound.codec knows only text in Literal, found {allowed!r}")
    return _Codec(check, check)


def _each(convert: Callable[[Any], Any], values: Any) -> list[Any]:
    out: list[Any] = []
    try:
        for value in values:
            out.append(convert(value))      # len(out) is the index of what fails
    except _Mismatch as mismatch:
        mismatch.path.append(f"[{len(out)}]")
        raise
    return out


def _array(item: _Codec) -> _Codec:
    plain = {item.scalar}                   # all of one scalar type, as the names of a block: one look at the types

    def pack(value: Any) -> list[Any]:
        if type(value) is not tuple:
            raise _Mismatch("expected a tuple", _show(value))
        if set(map(type, value)) == plain:
            return list(value)
        return _each(item.pack, value)

    def unpack(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _Mismatch("expected an array", _show(value))
        if set(map(type, value)) == plain:
            return tuple(value)
        return tuple(_each(item.unpack, value))

    return _Codec(pack, unpack)


def _fixed(items: tuple[_Codec, ...]) -> _Codec:
    def check(value: Any, kind: type[list[Any]] | type[tuple[Any, ...]]) -> None:
        if not isinstance(value, kind) or len(value) != len(items):
            raise _Mismatch(f"expected an array of {len(items)}", _show(value))

    def pack(value: Any) -> list[Any]:
        check(value, tuple)
        converters = iter(items)
        return _each(lambda part: next(converters).pack(part), value)

    def unpack(value: Any) -> tuple[Any, ...]:
        check(value, list)
        converters = iter(items)
        return tuple(_each(lambda part: next(converters).unpack(part), value))

    return _Codec(pack, unpack)


def _union(args: tuple[Any, ...]) -> _Codec:
    if type(None) in args and len(args) == 2:
        return _optional(_build(next(arg for arg in args if arg is not type(None))))
    return _tagged(args)


def _optional(inner: _Codec) -> _Codec:
    return _Codec(lambda value: None if value is None else inner.pack(value),
                  lambda value: None if value is None else inner.unpack(value))


def _tagged(classes: tuple[Any, ...]) -> _Codec:
    """A union of dataclasses that have a class variable `kind`."""
    by_class = {cls: _build(cls).pack for cls in classes}
    by_kind = {cls.kind: _build(cls).unpack for cls in classes}

    def pack(value: Any) -> Any:
        packer = by_class.get(type(value))
        if packer is None:
            raise _Mismatch("expected a goal-state object", _show(value))
        return packer(value)

    def unpack(value: Any) -> Any:
        if type(value) is not dict:
            raise _Mismatch("expected a map", _show(value))
        kind = value.get("kind")
        unpacker = by_kind.get(kind) if type(kind) is str else None
        if unpacker is None:
            raise _Mismatch(f"expected 'kind' to be one of {', '.join(by_kind)}", _show(kind))
        return unpacker(value)

    return _Codec(pack, unpack)


def _record(cls: type[Any], tag: str, tag_value: str = "") -> _Codec:
    """A dataclass as a map. `tag`: the key that says which class it is (checked by the caller), or empty."""
    hints = get_type_hints(cls)
    names = tuple(item.name for item in fields(cls))
    codecs = tuple(_build(hints[name]) for name in names)
    if not names or tag in names:
        raise TypeError(f"southbound.codec cannot tag {cls.__name__}: no fields, or a field is named {tag!r}")
    tags: dict[str, str] = {tag: tag_value or cls.kind} if tag else {}
    size = len(names) + len(tags)
    read = attrgetter(*names) if len(names) > 1 else lambda value: (getattr(value, names[0]),)
    take = itemgetter(*names) if len(names) > 1 else lambda raw: (raw[names[0]],)
    # All fields scalars, as in Subnet: one comparison of types checks the whole record.
    plain = tuple(codec.scalar for codec in codecs)

    def pack(value: Any) -> dict[str, Any]:
        if type(value) is not cls:
            raise _Mismatch(f"expected {cls.__name__}", _show(value))
        values = read(value)
        if tuple(map(type, values)) != plain:
            values = convert(values, packers)
        return {**tags, **dict(zip(names, values, strict=True))}

    def unpack(raw: Any) -> Any:
        if type(raw) is not dict:
            raise _Mismatch("expected a map", _show(raw))
        try:
            values = take(raw)
        except KeyError as error:
            raise _Mismatch(f"field {error.args[0]!r} is missing", f"fields {_show(sorted(raw))}") from None
        if len(raw) != size:
            unknown = next(key for key in raw if key not in names and key not in tags)
            raise _Mismatch("unknown field", _show(unknown))
        if tuple(map(type, values)) != plain:
            values = convert(values, unpackers)
        return cls(*values)

    packers = tuple(codec.pack for codec in codecs)
    unpackers = tuple(codec.unpack for codec in codecs)

    def convert(values: tuple[Any, ...], converters: tuple[Callable[[Any], Any], ...]) -> tuple[Any, ...]:
        out: list[Any] = []
        try:
            for converter, value in zip(converters, values, strict=True):
                out.append(converter(value))
        except _Mismatch as mismatch:
            mismatch.path.append(f".{names[len(out)]}")
            raise
        return tuple(out)

    return _Codec(pack, unpack)


def _build_messages() -> dict[str, _Codec]:
    return {cls.__name__: _record(cls, "t", cls.__name__) for cls in get_args(messages.Message)}


_MESSAGES: dict[str, _Codec] = _build_messages()
_GOAL = _build(messages.Goal)
_VERSIONED = frozenset(cls.__name__ for cls in get_args(messages.Message) if hasattr(cls, "version"))
_VERSIONED = frozenset(cls.__name__ for cls in get_args(messages.Message) if hasattr(cls, "version"))
