"""Draws the answer of a trace as a tree: hop, direction, layer, group, rule; what decided stands out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from cli.output import plain

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

Data = Mapping[str, Any]

MOST_SHOWN = 12  # rules of one group; `-o json` has all

_VERDICTS = {
    "forward": ("forwarded", "bold green"),
    "stack": ("left to the host's stack", "bold green"),
    "reply": ("answered on the spot", "bold green"),
    "drop": ("dropped", "bold red"),
}
_FIELDS = {
    "src": "source address",
    "dst": "destination address",
    "src_port": "source port",
    "dst_port": "destination port",
    "source": "source address",
    "destination": "destination address",
    "source_port": "source port",
    "destination_port": "destination port",
    "src_mac": "source MAC",
    "dst_mac": "destination MAC",
    "ttl": "TTL",
}


def draw(question: str, answer: Data) -> Tree:
    """The tree of a whole trace; `question` is its title."""
    from rich.tree import Tree

    tree = Tree(_line((question, "bold")), guide_style="dim")
    for hop in answer.get("hops") or []:
        _draw_hop(tree, hop)
    tree.add(_verdict(answer))
    return tree


def summary(answer: Data) -> str:
    """The outcome in one line: `dropped: DENIED by red/deny-web rule 0 (layer acl, port red/b)`."""
    words = _VERDICTS.get(str(answer.get("verdict")), (str(answer.get("verdict")), ""))[0]
    reason = answer.get("reason")
    text = f"{words}: {reason}" if reason else words
    denied = answer.get("denied_by") or next(
        (hop["denied_by"] for hop in answer.get("hops") or [] if hop.get("denied_by")), None
    )
    if denied:
        rule = f"rule {denied['rule']}" if denied.get("rule") else "the default"
        group = f" of {denied['group']}" if denied.get("group") else ""
        text += f" by {rule}{group} (layer {denied.get('layer')}, port {denied.get('port')})"
    return text


def _draw_hop(tree: Tree, hop: Data) -> None:
    branch = tree.add(_line(("host ", ""), (hop.get("host", "?"), "bold cyan")))
    steps: Sequence[Data] = hop.get("steps") or []
    denied = hop.get("denied_by") or {}
    decider = _decider(steps, denied) if hop.get("verdict") == "drop" else None
    for (port, direction), of_port in _runs(steps, "port", "direction"):
        side = branch.add(_line((f"port {port} ", ""), (str(direction).upper(), "bold")))
        for (layer,), of_layer in _runs(of_port, "layer"):
            stage = side.add(_line(("layer ", "dim"), (layer, "bold")))
            for (group,), of_group in _runs(of_layer, "group"):
                within = stage.add(_line(("group ", "dim"), (group, ""))) if group else stage
                for line in _considered(of_group, decider):
                    within.add(line)
    for line in _transposition(hop.get("transposition") or {}):
        branch.add(line)
    if (hop.get("leaves") or {}).get("to"):
        branch.add(_leaves(hop["leaves"]))
    flow = hop.get("flow")
    if flow:
        branch.add(
            _line(
                ("flow in the table: ", "dim"),
                (
                    f"{flow.get('state', '')} {flow.get('packets', 0)} packets, {flow.get('bytes', 0)} bytes, goes to "
                    f"{flow.get('place', '')}",
                    "",
                ),
                ("" if flow.get("current", True) else "; decided again with its next packet: policy changed", "dim"),
            )
        )
    if hop.get("live"):
        _draw_live(branch, hop["live"])


def _draw_live(branch: Tree, live: Data) -> None:
    """What the kernel's programs say, beside the reference if it is something else."""
    if live.get("agrees"):
        branch.add(_line(("kernel ", "dim"), ("agrees: verdict, reason, rules and bytes", "green")))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "REFERENCE", "KERNEL"):
        table.add_column(title, overflow="fold")
    for each in live.get("differences") or []:
        table.add_row(*(plain(each[name] or "-") for name in ("field", "reference", "kernel")))
    differs = branch.add(_line(("kernel ", "dim"), ("differs", "bold red")))
    differs.add(table)


def _decider(steps: Sequence[Data], denied: Data) -> Data | None:
    """The step that settled a dropped packet's fate: the one that denied it, or the last that matched."""
    fitting = [step for step in steps if (_same(step, denied) if denied else step.get("matched"))]
    return fitting[-1] if fitting else None


def _considered(steps: Sequence[Data], decider: Data | None) -> Iterator[Text]:
    """The rules of a group that were looked at; of a long run without a match only the first few."""
    shown = skipped = 0
    for step in steps:
        if step is decider or step.get("matched") or shown < MOST_SHOWN:
            if skipped:
                yield _line((f"○ {skipped} more without a match", "dim"))
            skipped = 0
            shown += 1
            yield _step(step, step is decider)
        else:
            skipped += 1
    if skipped:
        yield _line((f"○ {skipped} more without a match", "dim"))


def _same(step: Data, denied: Data) -> bool:
    return all(
        (step.get(field) or "") == (denied.get(field) or "") for field in ("port", "layer", "group", "rule")
    )


def _step(step: Data, decided: bool) -> Text:
    matched = bool(step.get("matched"))
    mark, style = ("✗" if decided else "●", "") if matched else ("○", "dim")
    if decided:
        mark, style = "✗", "bold white on red"
    rule = step.get("rule") or "default"
    parts = [(f"{mark} ", style), (str(rule), style)]
    if step.get("action") and (matched or decided):
        parts.append((f" → {step['action']}", style or "green"))
    if not matched and not decided:
        parts.append((" no match", "dim"))
    if decided:
        parts.append((" ← decides", "bold red"))
    if step.get("note"):
        parts.append((f"  {step['note']}", "dim"))
    return _line(*parts)


def _transposition(transposition: Data) -> Iterator[Text]:
    changes = [
        f"{_FIELDS.get(field, field)} := {value}" for field, value in (transposition.get("set") or {}).items()
    ]
    if changes:
        yield _line(("rewrite ", "dim"), ("; ".join(changes), "yellow"))
    outer = transposition.get("encapsulate")
    if outer:
        yield _line(
            ("encapsulate ", "dim"), (f"VXLAN to VTEP {outer.get('vtep')}, VNI {outer.get('vni')}", "yellow")
        )


def _leaves(leaves: Data) -> Text:
    words = {
        "port": f"to port {leaves.get('name', '')}",
        "vtep": f"to VTEP {leaves.get('vtep', leaves.get('name', ''))}, VNI {leaves.get('vni', '')}",
        "uplink": f"by uplink {leaves.get('name', '')}",
        "stack": "to the host's own stack",
        "many": "as a copy to each who may want it",
    }
    return _line(("leaves ", "dim"), (words.get(leaves["to"], str(leaves["to"])), "bold"))


def _verdict(answer: Data) -> Text:
    verdict = str(answer.get("verdict"))
    return _line((summary(answer), _VERDICTS.get(verdict, ("", "bold"))[1]))


def _runs(steps: Sequence[Data], *fields: str) -> Iterator[tuple[tuple[Any, ...], list[Data]]]:
    """Neighbouring steps that agree in `fields`."""
    for key, group in groupby(steps, key=lambda step: tuple(step.get(field, "") for field in fields)):
        yield key, list(group)


def _line(*parts: tuple[Any, str]) -> Text:
    from rich.text import Text

    line = Text()
    for text, style in parts:
        line.append(str(plain(text)), style=style)
    return line
