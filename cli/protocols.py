"""IP protocols by name."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.problems import USAGE, problem

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}

Protocol = Annotated[str, typer.Option("--proto", help="tcp, udp, icmp, sctp or an IP protocol number.")]


def protocol_number(text: str, option: str = "--proto") -> int:
    """The number of a name or of a number as text.

    Raises:
        Problem: neither.
    """
    word = text.lower()
    for number, name in PROTOCOLS.items():
        if word == name:
            return number
    if word.isascii() and word.isdecimal() and int(word) <= 255:
        return int(word)
    raise problem(option, "no such protocol", repr(text), "use tcp, udp, icmp, sctp or a number up to 255", USAGE)


def protocol_word(number: int) -> str:
    """`tcp`, or the number."""
    return PROTOCOLS.get(number, str(number))
