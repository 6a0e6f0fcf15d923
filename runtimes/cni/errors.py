"""What `sluice-cni` answers when it cannot do as asked: codes of CNI 1.1, and its own from 100 on."""

from __future__ import annotations

from runtimes.local import LocalError

INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3                       # nothing is to be cleaned up
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50                          # STATUS
LIMITED_CONNECTIVITY = 51                   # STATUS
FAILED = 100                                # the kernel, or the plug-in itself
EXISTS = 101                                # a second ADD
TAKEN = 102                                 # address, MAC or name
IN_USE = 103                                # port of the host
FORBIDDEN = 104                             # the controller does not let this host
EXHAUSTED = 105                             # no address, or no port, is free
NOT_AS_ADDED = 106                          # CHECK

_CODES = {
    "invalid": INVALID_CONFIG, "not_found": INVALID_CONFIG, "outside": INVALID_CONFIG, "exists": EXISTS,
    "taken": TAKEN, "in_use": IN_USE, "forbidden": FORBIDDEN, "exhausted": EXHAUSTED, "gone": UNKNOWN_CONTAINER,
    "failed": FAILED, "unavailable": TRY_AGAIN_LATER, "timeout": TRY_AGAIN_LATER, "absent": TRY_AGAIN_LATER,
    "lost": TRY_AGAIN_LATER,
}


class CniError(Exception):
    """One error result. `details` says what was found and what to do."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        self.code, self.msg, self.details = code, msg, details
        super().__init__(f"{msg}; {details}" if details else msg)


def of_local(error: LocalError) -> CniError:
    """What the agent said, in the words of CNI."""
    message = f"{error.field}: {error.message}" if error.field else error.message
    found = f"found: {error.found}" if error.found and error.found not in message else ""
    if error.code == "gone" and "CNI_NETNS" not in message:
        message = f"CNI_NETNS: {error.message}"
    return CniError(_CODES.get(error.code, FAILED), message, "; ".join(part for part in (found, error.todo) if part))


__all__ = [
    "DECODING_FAILURE", "EXHAUSTED", "EXISTS", "FAILED", "FORBIDDEN", "INCOMPATIBLE_VERSION", "INVALID_CONFIG",
    "INVALID_ENVIRONMENT", "IN_USE", "IO_FAILURE", "LIMITED_CONNECTIVITY", "NOT_AS_ADDED", "NOT_AVAILABLE", "TAKEN",
    "TRY_AGAIN_LATER", "UNKNOWN_CONTAINER", "UNSUPPORTED_FIELD", "CniError", "of_local",
]
