"""The one place that decides what is stale, used by the command line, schedules and sensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sae_pipeline.planning.lineage import Lineage, Node
from sae_pipeline.store import Artefact, Outputs, Pointers


@dataclass(frozen=True)
class Status:
    """Whether a node is current, and if not, why."""

    node: Node
    current: bool
    reasons: tuple[str, ...] = ()


def stale(lineage: Lineage, outputs: Outputs, pointers: Pointers, names: Iterable[str] | None = None) -> list[Node]:
    """Nodes whose published artefact is not the one the study asks for, inputs first.

    Args:
        lineage: the study's graph.
        outputs: where artefacts lie.
        pointers: the study's `current.json`.
        names: restrict to these nodes; default all.
    """
    wanted = lineage if names is None else (lineage[name] for name in names)
    return [node for node in wanted if not is_current(node, outputs, pointers)]


def is_current(node: Node, outputs: Outputs, pointers: Pointers) -> bool:
    """True when the study's pointer names a published artefact of exactly this identity."""
    where = pointers.get(node.name)
    directory = outputs.artefact_dir(node.stage, node.key, node.identity)
    return where == str(directory.relative_to(outputs.root)) and (directory / "artefact.json").is_file()


def explain(node: Node, outputs: Outputs, pointers: Pointers) -> Status:
    """Say which fields made a node stale, by comparing its record with that of the artefact in use."""
    if is_current(node, outputs, pointers):
        return Status(node, True)
    where = pointers.get(node.name)
    if where is None:
        return Status(node, False, ("never made in this study",))
    if not (outputs.root / where / "artefact.json").is_file():
        return Status(node, False, (f"its artefact {where} is gone",))
    published = Artefact.open(outputs.root / where)
    if published.identity == node.identity:
        return Status(node, False, ("the pointer does not name its folder",))
    return Status(node, False, tuple(differences(published.lineage, node.record)))


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """List the leaves in which two records differ, as `path: old → new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(set(old) | set(new)):
            found += differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        return [
            line
            for index, (a, b) in enumerate(zip(old, new, strict=True))
            for line in differences(a, b, f"{path}[{index}]")
        ]
    return (
        []
        if old == new or (isinstance(old, list | tuple) and list(old) == list(new))
        else [f"{path}: {_short(old)} → {_short(new)}"]
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
