"""`sluice-netavark`: one call. The subcommand is its first word, JSON comes and goes by the standard streams."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from runtimes.local import LocalError
from runtimes.netavark import containers, networks

API_VERSION = "1.0.0"
MOST_BYTES = 1 << 20
HELP = f"""sluice-netavark: network plug-in of Podman (netavark plugin API {API_VERSION})

Podman and netavark call:
  create              a network's configuration on standard input, and back on standard output
  setup NETNS         attach a container
  teardown NETNS      detach it
  info                versions
People call:
  install DIR         put it into a folder of netavark_plugin_dirs, as drivers {', '.join(networks.DRIVERS)}
  forget NETWORK      after `podman network rm`, of which Podman tells no plug-in: let go of Sluice's network
"""


def main() -> NoReturn:
    """Do what the command line says. Exit status 0 only on success."""
    try:
        answer, status = _do(sys.argv[1:]), 0
    except LocalError as error:
        answer, status = {"error": error.text}, 1
    except Exception as error:              # a fault of ours still answers in the protocol
        import traceback

        traceback.print_exc()
        answer, status = {"error": f"a bug in sluice-netavark: {type(error).__name__}: {error}; report it with the"
                                   " lines on stderr"}, 1
    if answer is not None:
        print(answer if isinstance(answer, str) else json.dumps(answer))
    sys.stdout.flush()
    os._exit(status)


def _do(words: Sequence[str]) -> Mapping[str, Any] | str | None:
    """What is to be printed; None: nothing."""
    match words:
        case [] | ["info"]:
            return {"version": _version(), "api_version": API_VERSION}
        case ["create"]:
            return networks.create(_read())
        case ["setup", netns]:
            return containers.setup(netns, _read())
        case ["teardown", netns]:
            containers.teardown(_read())
            return None
        case ["install", folder]:
            from runtimes.netavark.install import install

            return "\n".join(map(str, install(Path(folder))))
        case ["forget", network]:
            return networks.forget(network)
        case ["help" | "-h" | "--help"]:
            return HELP.rstrip()
        case ["setup" | "teardown"]:
            raise LocalError("invalid", "the path of the namespace is missing", words[0], "nothing",
                             f"call {words[0]} NETNS")
    raise LocalError("invalid", "unknown subcommand", "", " ".join(words)[:80],
                     "use create, setup, teardown, info, install or forget")


def _read() -> dict[str, Any]:
    """The object on standard input.

    Raises:
        LocalError: there is none.
    """
    data = sys.stdin.buffer.read(MOST_BYTES + 1)
    todo = "netavark and Podman send one JSON object there"
    if len(data) > MOST_BYTES:
        raise LocalError("invalid", f"more than {MOST_BYTES} bytes", "standard input", f"{len(data)} and more", todo)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LocalError("invalid", f"no JSON: {error}", "standard input", repr(data[:40]), todo) from None
    if not isinstance(found, dict):
        raise LocalError("invalid", "no JSON object", "standard input", repr(data[:40]), todo)
    return found


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sluice")
    except PackageNotFoundError:            # the launcher looks into no site-packages
        return "0"


if __name__ == "__main__":
    main()
