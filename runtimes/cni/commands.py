"""The commands. Each asks the agent once, if all goes well and no ports are published; all is safe to repeat."""

from __future__ import annotations

import os
import time

from runtimes.cni.config import Config, parse_config
from runtimes.cni.errors import (
    EXISTS,
    FAILED,
    INVALID_CONFIG,
    NOT_AS_ADDED,
    NOT_AVAILABLE,
    CniError,
    of_local,
)
from runtimes.cni.invocation import Invocation
from runtimes.cni.ports import published
from runtimes.cni.results import VERSIONS, check_free, interfaces_of, result
from runtimes.lean import TYPE_CHECKING
from runtimes.local import SOCKET, SOCKET_VARIABLE, LocalError, call

if TYPE_CHECKING:
    from typing import Any

RESTART_S = 4.0                             # an agent that was killed is back by then; sooner than a refusal must come
RETRY_S = 0.1


def run(invocation: Invocation, data: bytes) -> dict[str, Any] | None:
    """What is to be printed; None: nothing.

    Raises:
        CniError
    """
    command = invocation.command
    if command == "VERSION":
        return _version(data)
    config = parse_config(data, lenient=command in ("DEL", "GC", "STATUS"))
    try:
        if command == "ADD":
            return _add(invocation, config)
        if command == "DEL":
            _ask(config, "detach", runtime="cni", id=config.attachment(invocation.container, invocation.interface))
        elif command == "CHECK":
            _check(invocation, config)
        elif command == "GC":
            _ask(config, "gc", runtime="cni", scope=config.scope, valid=config.valid())
        else:
            _status(config)
    except LocalError as error:
        raise of_local(error) from None
    return None


def _add(invocation: Invocation, config: Config) -> dict[str, Any]:
    previous = config.raw.get("prevResult")
    request, dns = config.request(invocation), config.dns()
    check_free(previous, request["interface"], invocation.netns)
    found, again = _attach(config, request)
    if found.get("existing") and not again:
        raise CniError(EXISTS, f"CNI_IFNAME: {request['interface']} of container {invocation.container} is attached "
                       f"to network {found['network']} already, as endpoint {found['name']}", "call DEL before")
    return result(config.version, invocation.netns, found, dns, previous)


def _attach(config: Config, request: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The attachment, and whether an earlier try of this very call may have made it."""
    try:
        return _attach_there(config, request)
    except LocalError as error:
        if error.code != "not_found" or not error.field.endswith("network") or "spec" not in config.raw:
            raise
    _ask(config, "network-create", runtime="cni", id=config.name, network=request["network"],
         tenant=request["tenant"], spec=config.raw["spec"])
    return _attach_there(config, request)


def _attach_there(config: Config, request: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    if not request["mappings"]:
        return _ask(config, "attach", **request)
    network, _ = _ask(config, "network", network=request["network"], tenant=request["tenant"])
    others, _ = _ask(config, "list", runtime="cni")
    mappings = published(request["mappings"], network, request["id"], others["attachments"])
    return _ask(config, "attach", **{**request, "mappings": mappings or None})


def _check(invocation: Invocation, config: Config) -> None:
    previous = config.raw.get("prevResult")
    if previous is None:
        raise CniError(INVALID_CONFIG, "prevResult: CHECK needs it (found: nothing)",
                       "the runtime passes what ADD answered")
    interface = config.interface(invocation.interface)
    numbers = {number: each for number, each in enumerate(interfaces_of(previous))
               if each.get("name") == interface and each.get("sandbox") == invocation.netns}
    found, _ = _ask(config, "check", runtime="cni", id=config.attachment(invocation.container, invocation.interface))
    if not found.get("ready"):
        raise CniError(NOT_AS_ADDED, f"endpoint {found['name']} is not ready: {found.get('error') or 'no reason told'}",
                       f"`sluice describe endpoint {found['name']}` says more")
    if not numbers:
        raise CniError(NOT_AS_ADDED, f"prevResult.interfaces: has no {interface} in {invocation.netns}",
                       "the runtime passes what ADD answered")
    from runtimes.cni.inside import compare  # ctypes and netlink: only for this command

    number, expected = numbers.popitem()
    addresses = [each["address"] for each in previous.get("ips") or () if each.get("interface") == number]
    wrong = compare(invocation.netns, interface, expected.get("mac", ""), addresses, found)
    if wrong:
        raise CniError(NOT_AS_ADDED, "; ".join(wrong), "start the container again: it has its own network in hand")


def _status(config: Config) -> None:
    """Ready: the agent is there, and an ADD would work.

    Raises:
        CniError: NOT_AVAILABLE. Containers that run keep their network without agent and controller.
    """
    try:
        hello, _ = _ask(config, "hello")
        if "spec" in config.raw and hello["controller"] == "connected":
            return
        found, _ = _ask(config, "network", network=config.network, tenant=config.raw.get("tenant"))
    except LocalError as error:
        problem = of_local(error)
        raise CniError(NOT_AVAILABLE, problem.msg, problem.details) from None
    if hello["controller"] != "connected" and not found.get("leased"):
        raise CniError(NOT_AVAILABLE, f"the controller is away, and host {hello['host']} has no leased address of "
                       f"network {config.network}", "containers that run keep their network; see `sluice get hosts`")


def _version(data: bytes) -> dict[str, Any]:
    from runtimes.cni.config import decode

    asked = decode(data).get("cniVersion", "") if data.strip() else ""
    return {"cniVersion": asked if isinstance(asked, str) and asked else VERSIONS[-1],
            "supportedVersions": list(VERSIONS)}


def _ask(config: Config, op: str, **arguments: Any) -> tuple[dict[str, Any], bool]:
    """The agent's answer, and whether it was asked more than once.

    One that goes away in between is asked again, and one that was killed (its socket is there, and nobody listens)
    is waited for.

    Raises:
        LocalError
    """
    path = config.socket or os.environ.get(SOCKET_VARIABLE, SOCKET)
    end, again = time.monotonic() + RESTART_S, False
    while True:
        try:
            answer = call(op, path, **arguments)
        except LocalError as error:
            there = error.code == "lost" or (error.code == "absent" and os.path.exists(path))  # noqa: PTH110
            if not there or time.monotonic() > end:
                raise
            again = again or error.code == "lost"
            time.sleep(RETRY_S)
            continue
        if not isinstance(answer, dict):
            raise CniError(FAILED, f"the agent answered {op} with {answer!r}", "use agent and plug-in of one version")
        return answer, again


__all__ = ["run"]
