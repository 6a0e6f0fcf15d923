"""Draws the topology of a lab file: as a tree for people, or in the DOT language for graphviz."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cli.output import plain, styled

if TYPE_CHECKING:
    from rich.tree import Tree

    from labs.schema import Lab

Resource = Mapping[str, Any]


def tree(lab: Lab) -> Tree:
    """Segments with the nodes on them, then networks with their endpoints."""
    from rich.tree import Tree

    root = Tree(styled(f"lab {lab.name}", "bold"), guide_style="dim")
    for segment in lab.segments:
        branch = root.add(plain(f"segment {segment}"))
        for node, interface, address in _links(lab, segment):
            kind = lab.nodes[node].kind
            branch.add(
                plain(f"{node}{'' if kind == 'plain' else f' ({kind})'}  {interface} {address}".rstrip())
            )
    for network in _of_kind(lab, "Network"):
        spec = network["spec"]
        prefixes = ", ".join(subnet["prefix"] for subnet in spec.get("subnets", ()))
        branch = root.add(plain(f"network {_path(network)}  {spec.get('mode', '')} {prefixes}"))
        for endpoint in _endpoints(lab, network):
            on = endpoint["spec"].get("host", "")
            branch.add(
                plain(f"{endpoint['metadata']['name']}  {endpoint['spec'].get('address', '')} on {on}")
            )
    return root


def dot(lab: Lab) -> str:
    """The same as a graph: `sluice lab graph FILE --dot | dot -Tsvg`."""
    lines = [f"graph {_quoted(lab.name)} {{", "  rankdir=LR; node [fontname=sans];"]
    lines += [
        f"  {_quoted('segment ' + name)} [label={_quoted(name)} shape=plaintext];" for name in lab.segments
    ]
    for name, node in lab.nodes.items():
        shape = "box" if node.kind == "plain" else "box3d"
        lines.append(f"  {_quoted('node ' + name)} [label={_quoted(name)} shape={shape}];")
    for segment in lab.segments:
        for node_name, _, address in _links(lab, segment):
            ends = f"{_quoted('node ' + node_name)} -- {_quoted('segment ' + segment)}"
            lines.append(f"  {ends} [label={_quoted(address)}];")
    for network in _of_kind(lab, "Network"):
        key = _quoted(f"network {_path(network)}")
        lines.append(f"  {key} [label={_quoted(_path(network))} shape=ellipse];")
        for endpoint in _endpoints(lab, network):
            own = _quoted(f"endpoint {_path(endpoint)}")
            lines.append(f"  {own} [label={_quoted(_path(endpoint))} shape=box style=rounded];")
            lines.append(f"  {own} -- {key} [label={_quoted(str(endpoint['spec'].get('address', '')))}];")
            if endpoint["spec"].get("host") in lab.nodes:
                lines.append(f"  {own} -- {_quoted('node ' + endpoint['spec']['host'])} [style=dashed];")
    return "\n".join([*lines, "}"]) + "\n"


def _links(lab: Lab, segment: str) -> Iterator[tuple[str, str, str]]:
    """(node, interface, address) of every link into a segment."""
    for name, node in lab.nodes.items():
        for interface, link in node.interfaces.items():
            if link.segment == segment:
                yield name, interface, str(link.address or "")


def _of_kind(lab: Lab, kind: str) -> list[Resource]:
    return [resource for resource in lab.resources if resource.get("kind") == kind]


def _endpoints(lab: Lab, network: Resource) -> list[Resource]:
    return [
        endpoint
        for endpoint in _of_kind(lab, "Endpoint")
        if endpoint["spec"].get("network") == network["metadata"]["name"]
        and _tenant(endpoint) == _tenant(network)
    ]


def _tenant(resource: Resource) -> str:
    return str(resource["metadata"].get("tenant", "default"))


def _path(resource: Resource) -> str:
    return f"{_tenant(resource)}/{resource['metadata']['name']}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
