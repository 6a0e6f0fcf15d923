"""The shape of a lab file. `labs/schema.json` is generated from here (`python -m labs.schema`).

Field names are those of the file; `docs/labs.md` explains them with examples. What one model alone cannot
see (names that must exist elsewhere in the file) is in `labs.cross`.
"""

from __future__ import annotations

import json
import sys
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

WAIT_S = 15                                 # of `sluice apply`
SCHEMA_FILE = Path(__file__).with_name("schema.json")

LabName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,14}[a-z0-9])?$",
                               description="lower-case letters, digits and dashes, at most 16 characters")]
NodeName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$")]
LinkName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,14}$",
                                description="interface name, at most 15 characters (IFNAMSIZ)")]
Address = IPv4Interface | IPv6Interface
Seconds = Annotated[float, Field(gt=0, le=600)]
Signal = Literal["TERM", "KILL", "INT", "HUP", "STOP", "CONT", "USR1"]


class Model(BaseModel):
    """Unknown fields are refused; values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


# Topology

class Segment(Model):
    """One L2 segment: a bridge in the lab's switch namespace."""

    mtu: int = Field(default=1500, ge=576, le=9000)
    static_neighbours: bool = Field(
        default=False, description="every node has permanent entries for the others, so that no ARP crosses")


class Interface(Model):
    """One link of a node into a segment."""

    segment: str
    address: Address | None = Field(default=None, description="with prefix length: 172.16.0.10/24")
    extra_addresses: tuple[Address, ...] = ()
    mac: str | None = Field(default=None, pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$", description="default: of a hash")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All of them."""
        return (*((self.address,) if self.address else ()), *self.extra_addresses)


class Route(Model):
    """A static route of a node."""

    to: str = Field(default="default", pattern=r"^(default|[0-9a-f.:]+(/[0-9]+)?)$")
    via: IPv4Address | IPv6Address
    mtu: int | None = Field(default=None, ge=576, le=9000, description="of the path, where it is less than the link's")


class Docker(Model):
    """A dockerd of a host."""

    bridge: bool = Field(default=False, description="with Docker's own bridge, its iptables rules and addresses")
    options: tuple[str, ...] = Field(default=(), description="more words for dockerd")


class Podman(Model):
    """Podman with CNI on a host; there is no daemon."""


class Runtimes(Model):
    """Container runtimes of a host, which is a machine of its own then (`labs.machine`)."""

    docker: Docker | None = None
    podman: Podman | None = None


class Image(Model):
    """A container image, made here: busybox with all its applets, and what is given."""

    files: dict[Annotated[str, Field(pattern="^/")], str] = Field(
        default_factory=dict, description="path in the image: content; one that starts with #! is executable")
    command: tuple[str, ...] = Field(default=("sleep", "1000000"), description="what a container runs; SIGTERM ends it")
    expose: tuple[int, ...] = Field(default=(), description="TCP ports, for `-P`")


class Node(Model):
    """One network namespace, `<lab>-<node>`."""

    kind: Literal["plain", "host", "controller", "manager"] = Field(
        "plain", description="host: an agent runs here; controller: the controller runs here; manager: both do")
    interfaces: dict[LinkName, Interface] = Field(default_factory=dict)
    routes: tuple[Route, ...] = ()
    addresses: tuple[Address, ...] = Field(default=(), description="further addresses, on the loopback")
    ip_forward: bool = False
    runtimes: Runtimes | None = Field(default=None, description="the node has its own /run, /etc, /var/lib, pids and "
                                      "control groups then")
    files: dict[Annotated[str, Field(pattern="^/(etc|run|var/lib)/")], str] = Field(
        default_factory=dict, description="of a node with runtimes, path: content, below /etc, /run, /var/lib")

    @property
    def controls(self) -> bool:
        """Whether the controller runs here."""
        return self.kind in ("controller", "manager")

    @property
    def hosts(self) -> bool:
        """Whether an agent runs here."""
        return self.kind in ("host", "manager")


# Expectations

Scalar = str | int | float | bool | None


class Matcher(Model):
    """What a value must be; everything that is given must hold. `${names}` are filled in first."""

    equals: Scalar = None
    differs: Scalar = Field(default=None, description="must not be equal to this")
    matches: str | None = Field(default=None, description="regular expression, found anywhere (re.search, MULTILINE)")
    lacks: str | None = Field(default=None, description="regular expression that must not be found")
    contains: tuple[str, ...] | None = Field(default=None, description="texts that must all occur")
    one_of: tuple[Scalar, ...] | None = None
    at_least: float | str | None = None
    at_most: float | str | None = None
    more_than: float | str | None = None
    less_than: float | str | None = None
    minus: float | str | None = Field(default=None, description="subtracted before the value, a number, is compared")
    sum: bool = Field(default=False, description="add up the values that the path finds")
    count: int | None = Field(default=None, description="number of values that the path finds")
    empty: bool | None = Field(default=None, description="whether nothing (or only empty text) is found")


def _matcher(value: Any) -> Any:
    """A bare value means `equals`."""
    return value if isinstance(value, dict | Matcher) else {"equals": value}


Expected = Annotated[Matcher, BeforeValidator(_matcher, json_schema_input_type=Matcher | Scalar)]


class Check(Model):
    """What the end of a command must look like."""

    exit: int | Literal["any", "failure"] = Field(default=0, description="exit status; failure: anything but 0")
    stdout: Expected | None = None
    stderr: Expected | None = None
    json_: dict[str, Expected] = Field(
        default_factory=dict, alias="json", description="path in the JSON on stdout: what is expected there")


class Save(Model):
    """Where a `${name}` for later steps comes from."""

    json_: str | None = Field(default=None, alias="json", description="path in the JSON on stdout")
    sum: bool = Field(default=False, description="add up the values that the path finds")
    stdout: str | None = Field(default=None, description="regular expression; its first group, or all it matched")
    clock: Literal["began", "ended"] | None = Field(default=None, description="CLOCK_MONOTONIC seconds")
    default: Scalar = Field(default=None, description="when nothing is found; without it that is a failure")


class Ready(Model):
    """When a background process counts as started. Nothing given: as soon as it runs."""

    tcp: tuple[int, ...] = Field(default=(), description="ports on which something listens in its namespace")
    udp: tuple[int, ...] = Field(default=(), description="ports that are bound in its namespace")
    log: str | None = Field(default=None, description="regular expression that its output must show")
    timeout_s: Seconds = 15


# Actions. Each is a mapping with one key that names its kind.

Place = Annotated[str, Field(description="node, endpoint as tenant/name, or namespace")]
Command = Annotated[str | tuple[str, ...], Field(
    description="words as a shell splits them (there is no shell), or a list; a first word `sluice` or "
                "`probe` is this installation's command, or `python -m labs.probe`")]


class Run(Model):
    """Run a command to its end and check it."""

    run: Command
    in_: Place | None = Field(default=None, alias="in", description="nothing: the root namespace, to use the API")
    check: Check = Field(default_factory=Check)
    save: dict[str, Save] = Field(default_factory=dict)
    within_s: Seconds | None = Field(default=None, description="run again until the check holds, at most this long")
    timeout_s: Seconds = Field(default=20, description="longest duration of one run")


class Start(Model):
    """Start a background process; it ends with the lab at the latest."""

    start: str = Field(description="name for finish, kill, restart and log")
    command: Command
    in_: Place | None = Field(default=None, alias="in")
    ready: Ready = Field(default_factory=Ready)


class Finish(Model):
    """Wait for a background process to end (after a signal, if one is given and it still runs) and check its output."""

    finish: str
    signal: Signal | None = None
    check: Check = Field(default_factory=Check)
    save: dict[str, Save] = Field(default_factory=dict)
    timeout_s: Seconds = 20


class Kill(Model):
    """Signal a background process; TERM, KILL and INT: wait until it is gone."""

    kill: str = Field(description="of start or services; `controller`; `agent/<node>`")
    signal: Signal = "KILL"
    save: dict[str, Save] = Field(default_factory=dict, description="`clock` only")


class Restart(Model):
    """Start a background process that has ended again, as it was, and wait until it is ready."""

    restart: str


class Apply(Model):
    """`sluice apply` of documents; returns when they are in the kernels of the hosts."""

    apply: tuple[dict[str, Any], ...] = Field(min_length=1)
    wait_s: float = Field(default=WAIT_S, ge=0, le=60, description="for hosts that cannot do it at once")
    check: Check = Field(default_factory=Check)
    save: dict[str, Save] = Field(default_factory=dict)


class Delete(Model):
    """`sluice delete` of documents (kind and metadata are enough)."""

    delete: tuple[dict[str, Any], ...] = Field(min_length=1)
    wait_s: float = Field(default=WAIT_S, ge=0, le=60, description="for hosts that cannot do it at once")
    check: Check = Field(default_factory=Check)
    save: dict[str, Save] = Field(default_factory=dict)


class Log(Model):
    """Look into what a background process wrote."""

    log: str
    file: str | None = Field(default=None, description="file in the service's directory; nothing: its output")
    text: Expected
    save: dict[str, Save] = Field(default_factory=dict)
    within_s: Seconds = 2


class Capture(Model):
    """Start capturing: everything that crosses a segment, or one interface."""

    capture: str = Field(description="name for captured")
    segment: str | None = None
    in_: Place | None = Field(default=None, alias="in")
    interface: LinkName | None = None
    filter: str = Field(default="", description="pcap filter expression, as for tcpdump")


class Frames(Model):
    """Which frames: every given condition holds. The innermost headers are meant, but for `outer_*`."""

    vnis: tuple[int | str, ...] | None = Field(default=None, description="VXLAN with one of these VNIs")
    vxlan_port: int | None = Field(default=None, description="VXLAN on this UDP destination port")
    sources: tuple[str, ...] | None = Field(default=None, description="IP source or ARP sender is one of these")
    macs: tuple[str, ...] | None = Field(default=None, description="source and destination MAC are among these")
    mac: str | None = Field(default=None, description="source or destination MAC is this")
    arp: bool | None = None
    outer_arp: bool | None = None
    broadcast: bool | None = Field(default=None, description="destination MAC is broadcast or multicast")
    outer_broadcast: bool | None = None
    protocol: Literal["tcp", "udp", "icmp"] | None = None
    dscp: int | None = Field(default=None, ge=0, le=63)
    outer_dscp: int | None = Field(default=None, ge=0, le=63)
    payload: str | None = Field(default=None, description="this text occurs in the frame")


class Captured(Model):
    """Stop a capture, decode every frame with scapy, and check."""

    captured: str
    every: tuple[Frames, ...] = Field(default=(), description="each frame is one of these")
    none: tuple[Frames, ...] = Field(default=(), description="no frame is one of these")
    some: tuple[Frames, ...] = Field(default=(), description="of each there is at least one")
    save: dict[str, str] = Field(default_factory=dict, description="name: frames | kinds | summary")


class Each(Model):
    """Do the actions once for each set of names, side by side.

    A list gives the sets; a mapping of lists gives all combinations.
    """

    each: tuple[dict[str, Any], ...] | dict[str, tuple[Any, ...]]
    do: tuple[Action, ...] = Field(min_length=1)
    at_once: int = Field(default=8, ge=1, le=64)


class Parallel(Model):
    """Do several lists of actions side by side."""

    parallel: tuple[tuple[Action, ...], ...] = Field(min_length=1)


ACTIONS: dict[str, type[Model]] = {
    "run": Run, "start": Start, "finish": Finish, "kill": Kill, "restart": Restart, "apply": Apply,
    "delete": Delete, "log": Log, "capture": Capture, "captured": Captured, "each": Each,
    "parallel": Parallel,
}


def kind_of_action(value: Any) -> str | None:
    """The kind that a mapping is; None when none, or several, of the kind keys are in it."""
    if isinstance(value, Model):
        return next(name for name, model in ACTIONS.items() if type(value) is model)
    kinds = [name for name in ACTIONS if name in value] if isinstance(value, dict) else []
    return kinds[0] if len(kinds) == 1 else None


Action = Annotated[
    Annotated[Run, Tag("run")] | Annotated[Start, Tag("start")] | Annotated[Finish, Tag("finish")]
    | Annotated[Kill, Tag("kill")] | Annotated[Restart, Tag("restart")] | Annotated[Apply, Tag("apply")]
    | Annotated[Delete, Tag("delete")] | Annotated[Log, Tag("log")] | Annotated[Capture, Tag("capture")]
    | Annotated[Captured, Tag("captured")] | Annotated[Each, Tag("each")]
    | Annotated[Parallel, Tag("parallel")],
    Discriminator(kind_of_action),
]


# The rest of the file

Places = Annotated[tuple[Place, ...], BeforeValidator(
    lambda value: (value,) if isinstance(value, str) else value,
    json_schema_input_type=str | tuple[str, ...])]


class Service(Model):
    """A program that runs from before the first step, one instance for each place, `<service>/<place>`.

    In `files` and `command`, `${place}` is the place and `${dir}` the instance's own directory.
    """

    in_: Places = Field(alias="in")
    command: Command
    files: dict[str, str] = Field(default_factory=dict, description="name: content, written to ${dir}")
    ready: Ready = Field(default_factory=Ready)


class Step(Model):
    """One row of the table: what is tried, what is expected, and the actions that see whether it holds."""

    name: str = ""
    try_: str = Field(alias="try", description="text for the table")
    expect: str = Field(description="text for the table")
    do: tuple[Action, ...] = Field(min_length=1)
    seen: str = Field(default="", description="text for the table, with ${saved} names; nothing: the last output")


class Chapter(Model):
    """Steps under one title."""

    title: str
    steps: tuple[Step, ...] = Field(min_length=1)


class Lab(Model):
    """A lab: segments and nodes, what is declared on them, what runs on them, and what must be seen."""

    name: LabName
    title: str = ""
    segments: dict[LinkName, Segment] = Field(default_factory=dict)
    nodes: dict[NodeName, Node] = Field(default_factory=dict)
    prepare: tuple[Action, ...] = Field(default=(), description="actions before anything is applied, side by side "
                                        "with the start of the controller")
    resources: tuple[dict[str, Any], ...] = Field(default=(), description="sluice/v1 documents, applied by the CLI")
    images: dict[NodeName, Image] = Field(default_factory=dict, description="what all runtimes of the lab have")
    services: dict[NodeName, Service] = Field(default_factory=dict)
    chapters: tuple[Chapter, ...] = ()
    timeout_s: float = Field(default=180, gt=0, description="the whole lab is given up after this long")


for _model in (Each, Parallel, Step, Chapter, Lab):
    _model.model_rebuild()


def published() -> str:
    """The JSON schema of a lab file, as it stands in `labs/schema.json`."""
    schema = Lab.model_json_schema(by_alias=True)
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(published(), encoding="utf-8")
    sys.stdout.write(f"wrote {SCHEMA_FILE}\n")
