"""What the runtime says by environment variables: command, container, namespace, interface, CNI_ARGS."""

from __future__ import annotations

from runtimes.cni.errors import INVALID_ENVIRONMENT, CniError
from runtimes.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
MAX_INTERFACE_NAME = 15
# Of CNI_ARGS; others are refused without IgnoreUnknown=1, as the conventions say.
ARGUMENTS = ("IgnoreUnknown", "IP", "MAC", "K8S_POD_NAME", "K8S_POD_NAMESPACE", "K8S_POD_UID",
             "K8S_POD_INFRA_CONTAINER_ID", "SLUICE_NETWORK", "SLUICE_TENANT", "SLUICE_NAME")
_NEEDED = {"ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"), "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
           "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")}


class Invocation:
    """One call. What its command does not use is empty."""

    __slots__ = ("arguments", "command", "container", "interface", "netns")

    def __init__(self, command: str, container: str, netns: str, interface: str, arguments: Mapping[str, str]) -> None:
        self.command, self.container, self.netns, self.interface = command, container, netns, interface
        self.arguments = arguments


def parse_environment(environment: Mapping[str, str]) -> Invocation:
    """The call, its variables checked.

    Raises:
        CniError: INVALID_ENVIRONMENT, with every variable that is wrong.
    """
    command = environment.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        found = repr(command) if command else "nothing"
        raise CniError(INVALID_ENVIRONMENT, f"CNI_COMMAND: no command of CNI (found: {found})",
                       f"a container runtime calls this program, with one of {', '.join(COMMANDS)}; "
                       "`sluice-cni install DIR` puts it where yours looks")
    checks = {"CNI_CONTAINERID": _container, "CNI_NETNS": _netns, "CNI_IFNAME": _interface}
    values, problems = {}, []
    for name in _NEEDED.get(command, ()):
        values[name] = environment.get(name, "")
        wrong = checks[name](values[name]) if values[name] else "must be set"
        if wrong:
            problems.append(f"{name}: {wrong} (found: {values[name]!r})" if values[name] else f"{name}: {wrong}")
    arguments: dict[str, str] = {}
    if command in _NEEDED:
        arguments = _arguments(environment.get("CNI_ARGS", ""), problems, lenient=command == "DEL")
    if problems:
        raise CniError(INVALID_ENVIRONMENT, "; ".join(problems), f"the runtime sets them for {command}")
    netns = values.get("CNI_NETNS", environment.get("CNI_NETNS", ""))
    return Invocation(command, values.get("CNI_CONTAINERID", ""), netns, values.get("CNI_IFNAME", ""), arguments)


def is_identifier(text: str) -> bool:
    """As the spec has it of container ids and names of networks: letters, digits, '_', '.', '-', the first no sign."""
    return text[:1].isalnum() and text.isascii() and all(sign.isalnum() or sign in "_.-" for sign in text)


def interface_fault(text: str) -> str:
    """What is wrong with the name of an interface; empty: nothing."""
    if len(text.encode()) > MAX_INTERFACE_NAME:
        return f"longer than {MAX_INTERFACE_NAME} characters"
    if text in (".", "..") or any(sign in "/:%" or sign.isspace() or not sign.isprintable() for sign in text):
        return "no name of an interface: use letters, digits, '-', '_', '.', as in eth0"
    return ""


def _interface(text: str) -> str:
    return interface_fault(text)


def _container(text: str) -> str:
    return "" if is_identifier(text) else "must be letters, digits, '_', '.', '-', beginning with a letter or digit"


def _netns(text: str) -> str:
    return "" if text.startswith("/") and "\0" not in text else "must be an absolute path"


def _arguments(text: str, problems: list[str], lenient: bool) -> dict[str, str]:
    """CNI_ARGS as a mapping; a DEL takes what it understands."""
    found: dict[str, str] = {}
    for pair in text.split(";"):
        name, equals, value = pair.partition("=")
        if equals and name:
            found[name] = value
        elif pair and not lenient:
            problems.append(f"CNI_ARGS: {pair!r} is not of the form NAME=VALUE")
    unknown = [name for name in found if name not in ARGUMENTS]
    if unknown and not lenient and found.get("IgnoreUnknown", "").lower() not in ("1", "true"):
        shown = ", ".join(f"{name}={found[name]}" for name in unknown)
        problems.append(f"CNI_ARGS: no arguments of sluice-cni (found: {shown}; it knows {', '.join(ARGUMENTS)}, and "
                        "others pass with IgnoreUnknown=1)")
    return found


__all__ = ["Invocation", "interface_fault", "is_identifier", "parse_environment"]
