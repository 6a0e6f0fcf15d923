"""What no single field of a lab file can tell: names that must exist, values that must not clash."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from labs.schema import (
    Apply,
    Capture,
    Captured,
    Each,
    Finish,
    Kill,
    Lab,
    Log,
    Parallel,
    Restart,
    Run,
    Start,
)

RUNTIME_COMMANDS = {"docker": "docker", "docker-compose": "docker", "dockerd": "docker", "podman": "podman"}

FieldPath = tuple[str | int, ...]
Found = tuple[FieldPath, str]


def flaws_across(lab: Lab) -> Iterator[Found]:
    """(field, what is wrong and what to do) of everything that does not fit together."""
    yield from _links(lab)
    yield from _documents(lab)
    known = places(lab)
    yield from _runtimes(lab)
    processes = set(process_names(lab))
    own = {f"machine/{name}" for name, node in lab.nodes.items() if node.runtimes is not None}
    captures = {a.capture for _, a in actions(lab) if isinstance(a, Capture)}
    for name, service in lab.services.items():
        for place in service.in_:
            yield from _place(place, known, ("services", name, "in"))
    for path, action in actions(lab):
        if isinstance(action, Run | Start | Capture) and action.in_ is not None:
            yield from _place(action.in_, known, (*path, "in"))
        if isinstance(action, Run | Start):
            yield from _runtime_command(action, lab, path)
        if isinstance(action, Capture):
            yield from _capture(action, lab, path)
        if isinstance(action, Finish | Kill | Restart | Log):
            field = type(action).__name__.lower()
            wanted = getattr(action, field)
            if not _meant(wanted, processes):
                yield (*path, field), (f"no process is called {wanted!r}; there are "
                                       f"{', '.join(sorted(processes)) or 'none'}")
        if isinstance(action, Restart) and action.restart in own:
            yield (*path, "restart"), "a machine does not come back, as its disk is memory; restart what runs in it"
        if isinstance(action, Captured) and not _meant(action.captured, captures):
            yield (*path, "captured"), (f"no capture is called {action.captured!r}; there are "
                                        f"{', '.join(sorted(captures)) or 'none'}")


def places(lab: Lab) -> dict[str, str]:
    """Every name under which a namespace can be meant, and the namespace."""
    found = {node: f"{lab.name}-{node}" for node in lab.nodes}
    for _, document in documents(lab):
        netns = document["spec"].get("netns") if isinstance(document.get("spec"), dict) else None
        if document.get("kind") == "Endpoint" and isinstance(netns, str):
            metadata = document["metadata"]
            found.setdefault(netns, netns)  # an endpoint that moves has one after the other
            found[f"{metadata.get('tenant', 'default')}/{metadata['name']}"] = netns
            if metadata.get("tenant", "default") == "default":
                found.setdefault(str(metadata["name"]), netns)
    for namespace in list(found.values()):
        found.setdefault(namespace, namespace)
        found.setdefault(namespace.removeprefix(f"{lab.name}-"), namespace)
    return found


def process_names(lab: Lab) -> Iterator[str]:
    """Names that finish, kill, restart and log may use."""
    for name, node in lab.nodes.items():
        if node.controls:
            yield "controller"
        if node.hosts:
            yield f"agent/{name}"
        if node.runtimes is not None:
            yield f"machine/{name}"
            if node.runtimes.docker is not None:
                yield f"docker/{name}"
    for name, service in lab.services.items():
        yield from (f"{name}/{place}" for place in service.in_)
    for _, action in actions(lab):
        if isinstance(action, Start):
            yield action.start


def documents(lab: Lab) -> Iterator[tuple[FieldPath, dict[str, Any]]]:
    """Every sluice/v1 document that has a name: the resources, and those that steps apply."""
    for index, document in enumerate(lab.resources):
        if _named(document):
            yield ("resources", index), document
    for path, action in actions(lab):
        if isinstance(action, Apply):
            yield from (((*path, "apply", index), document)
                        for index, document in enumerate(action.apply) if _named(document))


def actions(lab: Lab) -> Iterator[tuple[FieldPath, Any]]:
    """Every action with its field, also those inside `each` and `parallel`."""
    yield from _nested(lab.prepare, ("prepare",))
    for number, chapter in enumerate(lab.chapters):
        for index, step in enumerate(chapter.steps):
            yield from _nested(step.do, ("chapters", number, "steps", index, "do"))


def _nested(group: tuple[Any, ...], path: FieldPath) -> Iterator[tuple[FieldPath, Any]]:
    for index, action in enumerate(group):
        here = (*path, index)
        yield here, action
        if isinstance(action, Each):
            yield from _nested(action.do, (*here, "do"))
        elif isinstance(action, Parallel):
            for number, branch in enumerate(action.parallel):
                yield from _nested(branch, (*here, "parallel", number))


def _meant(wanted: str, names: set[str]) -> bool:
    """Whether a name is one of `names`, of which some have parts that are filled in later, as may this one."""
    if "${" in wanted:
        return True
    return any(re.fullmatch(".+".join(map(re.escape, re.split(r"\$\{[^}]*\}", name))), wanted) for name in names)


def _links(lab: Lab) -> Iterator[Found]:
    taken: dict[tuple[str, IPv4Address | IPv6Address], str] = {}
    for name, node in lab.nodes.items():
        for interface, link in node.interfaces.items():
            path = ("nodes", name, "interfaces", interface)
            if link.segment not in lab.segments:
                yield (*path, "segment"), (f"no segment is called {link.segment!r}; there are "
                                           f"{', '.join(lab.segments) or 'none'}")
            for address in link.addresses:
                key = (link.segment, address.ip)
                if key in taken:
                    yield (*path, "address"), (f"{address.ip} is also {taken[key]}'s on {link.segment}; "
                                               "change one")
                taken[key] = f"{name}/{interface}"
        for index, route in enumerate(node.routes):
            on_link = [address.network for link in node.interfaces.values() for address in link.addresses]
            if not any(route.via in network for network in on_link):
                yield ("nodes", name, "routes", index, "via"), (
                    f"{route.via} is on no link of {name}; use an address in one of "
                    f"{', '.join(map(str, on_link)) or '(it has none)'}")
    controllers = [name for name, node in lab.nodes.items() if node.controls]
    for extra in controllers[1:]:
        yield ("nodes", extra, "kind"), f"{controllers[0]} is the controller already; a lab has one"
    hosts = [name for name, node in lab.nodes.items() if node.hosts]
    if hosts and not controllers:
        yield ("nodes", hosts[0], "kind"), "a host needs a node of kind controller or manager; add one"


def first_word(command: str | tuple[str, ...]) -> str:
    """The program that a command starts."""
    return next(iter(command.split(maxsplit=1) if isinstance(command, str) else command), "")


def _runtimes(lab: Lab) -> Iterator[Found]:
    there = [name for name, node in lab.nodes.items() if node.runtimes is not None]
    for name, node in lab.nodes.items():
        if node.files and node.runtimes is None:
            yield ("nodes", name, "files"), "only a node with `runtimes` has files of its own; use a service's `files`"
    if lab.images and not there:
        yield ("images",), "no node has `runtimes` that could use an image; give one of them `runtimes: {docker: {}}`"


def _runtime_command(action: Run | Start, lab: Lab, path: FieldPath) -> Iterator[Found]:
    """Nothing of a lab speaks to the runtimes of the machine that it runs on."""
    command = action.run if isinstance(action, Run) else action.command
    program = first_word(command)
    runtime = RUNTIME_COMMANDS.get(program)
    if runtime is None or (action.in_ is not None and "${" in action.in_):
        return
    has = [name for name, node in lab.nodes.items() if node.runtimes is not None
           and getattr(node.runtimes, runtime) is not None]
    if action.in_ not in has:
        yield (*path, "in"), (f"`{program}` runs in a node with `runtimes: {{{runtime}: {{}}}}`, found "
                              f"{action.in_ or 'none'}; there are {', '.join(has) or 'none'}")


def _documents(lab: Lab) -> Iterator[Found]:
    for index, document in enumerate(lab.resources):
        if not _named(document):
            yield ("resources", index), "a document has at least kind and metadata.name; add them"
    if lab.resources and not any(node.controls for node in lab.nodes.values()):
        yield ("resources",), "resources need a node of kind controller or manager; add one"
    agents = {name for name, node in lab.nodes.items() if node.hosts}
    for path, document in documents(lab):
        if document["kind"] != "Endpoint":
            continue
        spec = document["spec"] if isinstance(document.get("spec"), dict) else {}
        netns = spec.get("netns")
        if netns is None and ("tap" in spec or "behind" in spec or spec.get("host") not in agents):
            continue    # its other end is a service (`probe vm`), inside of another endpoint, or on an external host
        if not isinstance(netns, str) or not netns.startswith(f"{lab.name}-"):
            yield (*path, "spec", "netns"), (f"found {netns!r}; the lab makes the namespace, so its name "
                                             f"starts with {lab.name + '-'!r}")


def _named(document: dict[str, Any]) -> bool:
    metadata = document.get("metadata")
    return isinstance(document.get("kind"), str) and isinstance(metadata, dict) and "name" in metadata


def _place(place: str, known: dict[str, str], path: FieldPath) -> Iterator[Found]:
    if "${" not in place and place not in known:
        names = sorted(name for name in known if name not in known.values())
        yield path, f"no node or endpoint is called {place!r}; there are {', '.join(names) or 'none'}"


def _capture(action: Capture, lab: Lab, path: FieldPath) -> Iterator[Found]:
    if (action.segment is None) == (action.in_ is None or action.interface is None):
        yield path, "a capture needs either `segment`, or `in` and `interface`; give one of the two"
    if action.segment is not None and action.segment not in lab.segments:
        yield (*path, "segment"), (f"no segment is called {action.segment!r}; there are "
                                   f"{', '.join(lab.segments) or 'none'}")
