"""`sluice capture`: the packets of an endpoint, before and after transposition, as a file that Wireshark reads."""

from __future__ import annotations

import sys
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from cli import options
from cli.connection import controller
from cli.kinds import DEFAULT_TENANT, kind_named, parse_reference
from cli.output import count
from cli.pcap import AFTER, BEFORE, INBOUND, OUTBOUND, CaptureWriter
from cli.problems import USAGE, problem

SNAP_BYTES = 2048
MOST_BYTES = 9216


def capture(
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="NAME or TENANT/NAME.")],
    write: Annotated[Path, typer.Option("-w", "--write", metavar="FILE", help="Where to; - is standard output.")],
    most: Annotated[
        int, typer.Option("-c", "--count", min=0, help="End after so many packets; each stage counts. 0: never.")
    ] = 0,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="End after so long. 0: never.")] = 0,
    snaplen: Annotated[
        int, typer.Option("--snaplen", min=14, max=MOST_BYTES, help="Bytes to keep of each packet.")
    ] = SNAP_BYTES,
    before: Annotated[bool, typer.Option("--before", help="Only as they came.")] = False,
    after: Annotated[bool, typer.Option("--after", help="Only as they left.")] = False,
    tenant: options.Tenant = None,
    api: options.Api = "",
) -> None:
    """Write the packets of an endpoint to a file, both ways, before and after transposition, until Ctrl-C.

    The file is pcapng: two interfaces, direction of each packet, and why it was dropped as its comment.
    """
    if before and after:
        raise problem("--before", "contradicts --after", "both", "leave both out to see both", USAGE)
    if str(write) == "-" and sys.stdout.isatty():
        raise problem("-w", "a terminal shows no packets", "-", "pipe it: sluice capture ... -w - | tshark -r -", USAGE)
    reference = parse_reference(kind_named("Endpoint"), endpoint, tenant)
    path = f"{reference.tenant or DEFAULT_TENANT}/{reference.name}"
    stage = "before" if before else "after" if after else ""
    with controller(api) as client:
        messages = client.capture(path, stage, snaplen, seconds)
        next(messages)                      # a refusal comes before there is a file
        with _opened(write) as stream:
            told = _Tally()
            try:
                _copy(messages, CaptureWriter(stream, path, snaplen), told, most)
            except KeyboardInterrupt:
                pass                        # the usual end
            finally:
                print(told.text(write), file=sys.stderr)
    if told.error:
        raise problem(f"endpoint {path}", "the capture ended", told.error, "see `sluice get endpoints`")


class _Tally:
    """What was written."""

    def __init__(self) -> None:
        self.stages: Counter[str] = Counter()
        self.lost = 0
        self.error = ""

    def text(self, path: Path) -> str:
        """`12 packets (6 before, 6 after) in x.pcap`, and what is missing."""
        stages = ", ".join(f"{self.stages[stage]} {stage}" for stage in ("before", "after"))
        lost = f"; {self.lost} lost: they came too fast" if self.lost else ""
        where = "written" if str(path) == "-" else f"in {path}"
        return f"{count(self.stages.total(), 'packet')} ({stages}) {where}{lost}"


def _copy(messages: Iterator[dict[str, Any]], to: CaptureWriter, told: _Tally, most: int) -> None:
    try:
        to.flush()
        for message in messages:
            if message.get("type") == "error":
                told.error = str(message["message"])
                return
            told.lost = message.get("lost", told.lost)
            for record in message.get("records") or []:
                _write(to, record)
                told.stages[record["stage"]] += 1
                if most and told.stages.total() >= most:
                    return
            to.flush()
    finally:
        to.statistics(time.time_ns(), told.lost)
        to.flush()


def _write(to: CaptureWriter, record: Mapping[str, Any]) -> None:
    interface = BEFORE if record["stage"] == "before" else AFTER
    direction = OUTBOUND if record["direction"] == "out" else INBOUND
    comment = f"dropped: {record['reason']}" if record.get("reason") else ""
    to.packet(interface, record["time_ns"], b64decode(record["data"]), record["length"], direction, comment)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield sys.stdout.buffer
        return
    try:
        stream = path.open("wb")
    except OSError as error:
        raise problem("-w", "cannot be written", f"{path}: {error.strerror}", "name a file in a folder that is yours") \
            from None
    with stream:
        yield stream
