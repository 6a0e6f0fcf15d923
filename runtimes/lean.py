"""JSON and a Unix socket for programs that live some milliseconds, by the interpreter's own C parts.

`json` and `socket` are Python around them and bring `re`, `enum` and `selectors` along: 20 ms of processor time, more
than the interpreter itself needs to start. An interpreter without those parts is served by the modules.
"""

from __future__ import annotations

import _socket
import time

TYPE_CHECKING = False                       # what `typing` calls so; importing that costs 15 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SPACE = " \t\n\r"
_CHUNK_BYTES = 1 << 16


class _Reading:
    """How `_json` is to read: as `json.loads` does by default."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012

    @staticmethod
    def parse_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")


def _foreign(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is not JSON")


def _parts() -> tuple[Callable[[str, int], tuple[Any, int]], Callable[[Any, int], Any]]:
    import _json

    context: Any = _Reading
    scan = _json.make_scanner(context)
    encode = _json.make_encoder(None, _foreign, _json.encode_basestring_ascii, None, ": ", ", ", False, False, False)
    if scan('{"a": [1]}', 0)[0] != {"a": [1]} or "".join(encode({"a": [1, None]}, 0)) != '{"a": [1, null]}':
        raise TypeError("another _json")
    return scan, encode


def _by_module(text: str) -> Any:
    """The module knows how to say what is wrong; without it `_json` raises a SystemError."""
    import json

    try:
        return json.loads(text, parse_constant=_Reading.parse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


try:
    _scan, _encode = _parts()
except (ImportError, AttributeError, TypeError):
    import json

    def loads(data: bytes) -> Any:
        """What a JSON text says.

        Raises:
            ValueError: it is none.
        """
        return _by_module(data.decode())

    def dumps(value: Any) -> bytes:
        """One line of JSON, without its end."""
        return json.dumps(value, allow_nan=False).encode()
else:
    def loads(data: bytes) -> Any:
        """What a JSON text says.

        Raises:
            ValueError: it is none.
        """
        text = data.decode().strip(_SPACE)
        try:
            value, end = _scan(text, 0)
        except (StopIteration, SystemError, ValueError, RecursionError):
            end = -1
        if end == len(text):
            return value
        return _by_module(text)

    def dumps(value: Any) -> bytes:
        """One line of JSON, without its end."""
        return "".join(_encode(value, 0)).encode()


def exchange(path: str, line: bytes, deadline_s: float, max_bytes: int) -> bytes:
    """Send a line to a Unix stream socket and return the line that comes back; a short one if the peer went away.

    Raises:
        ConnectionError: nobody listens there (`ConnectionAbortedError`), or the peer went away.
        TimeoutError: no whole line within the time.
        OSError
    """
    end = time.monotonic() + deadline_s
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.settimeout(deadline_s)
        try:
            connection.connect(path)
        except OSError as error:
            raise ConnectionAbortedError(error.errno, error.strerror or str(error)) from None
        connection.sendall(line + b"\n")
        answer = b""
        while not answer.endswith(b"\n") and len(answer) < max_bytes:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            chunk = connection.recv(_CHUNK_BYTES)
            if not chunk:
                break
            answer += chunk
        return answer
    finally:
        connection.close()


__all__ = ["TYPE_CHECKING", "dumps", "exchange", "loads"]
