"""`sluice-cni`: one call of the CNI plug-in. Without CNI_COMMAND it tells what it is, and installs itself."""

from __future__ import annotations

import os
import sys

from runtimes.cni.commands import run
from runtimes.cni.config import version_of
from runtimes.cni.errors import FAILED, IO_FAILURE, CniError
from runtimes.cni.invocation import parse_environment
from runtimes.lean import TYPE_CHECKING, dumps

if TYPE_CHECKING:
    from typing import NoReturn

MAX_CONFIG_BYTES = 1 << 20


def main() -> NoReturn:
    """Read, do, print, end. Exit status 0 only on success."""
    if len(sys.argv) > 1 and "CNI_COMMAND" not in os.environ:
        from runtimes.cni.install import command

        sys.exit(command(sys.argv[1:]))
    data = b""
    try:
        if os.environ.get("CNI_COMMAND") or not os.isatty(0):
            data = _read()
        answer, status = run(parse_environment(os.environ), data), 0
    except CniError as error:
        answer, status = _refusal(error, data), 1
    except Exception as error:
        import traceback

        traceback.print_exc()               # to the runtime's log; a fault of ours still answers in the protocol
        fault = CniError(FAILED, f"sluice-cni: {type(error).__name__}: {error}", "report it with the lines on stderr")
        answer, status = _refusal(fault, data), 1
    if answer is not None:
        _write(dumps(answer) + b"\n")
    os._exit(status)                        # nothing is left to be closed, and the interpreter's end takes 3 ms


def _refusal(error: CniError, data: bytes) -> dict[str, object]:
    return {"cniVersion": version_of(data), "code": error.code, "msg": error.msg,
            **({"details": error.details} if error.details else {})}


def _read() -> bytes:
    data = b""
    try:
        while len(data) <= MAX_CONFIG_BYTES and (chunk := os.read(0, 1 << 16)):
            data += chunk
    except OSError as error:
        raise CniError(IO_FAILURE, f"standard input cannot be read: {error.strerror}",
                       "the runtime passes the network configuration there") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise CniError(IO_FAILURE, f"standard input has more than {MAX_CONFIG_BYTES} bytes",
                       "see the file that the runtime made it from")
    return data


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data):]


if __name__ == "__main__":
    main()
