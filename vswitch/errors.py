"""What can go wrong with links. Every error says what was asked, what was found and what to do."""

from __future__ import annotations


class VSwitchError(Exception):
    """Root of the tree. `asked`, `found` and `todo` are the three parts of the message."""

    def __init__(self, asked: str, found: str, todo: str) -> None:
        super().__init__(f"{asked}: {found}; {todo}")
        self.asked = asked
        self.found = found
        self.todo = todo


class LinkInvalid(VSwitchError):
    """A field of a link description cannot be right: a bad name, MAC, address or MTU."""


class LinkMissing(VSwitchError):
    """A link that must exist (a bridge to join, an interface to attach to) does not."""


class NamespaceMissing(VSwitchError):
    """The endpoint's network namespace does not exist (yet), or the path is not a namespace."""


class NamespaceGone(NamespaceMissing):
    """The namespace that the port was made for is no more; whatever is at its path now is another one."""


class UplinkMissing(VSwitchError):
    """No interface has that name, that address, or the default route."""


class InterfaceTaken(VSwitchError):
    """A link of somebody else has the name; it is left alone."""


class AddressTaken(VSwitchError):
    """A UDP port (or another resource of the host) that a link needs is in use by somebody else."""


class HookTaken(VSwitchError):
    """Somebody else's filter or qdisc is where ours must be."""


class InspectUnsupported(VSwitchError):
    """This host cannot hand packets to user space and take them back."""


class PermissionDenied(VSwitchError):
    """The process lacks CAP_NET_ADMIN, or CAP_SYS_ADMIN to enter a namespace."""


class KernelRefused(VSwitchError):
    """Netlink answered with an error that has no better name here. `code` is the errno."""

    def __init__(self, asked: str, found: str, todo: str, code: int) -> None:
        super().__init__(asked, found, todo)
        self.code = code
