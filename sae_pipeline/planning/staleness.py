"""The one place that decides what is stale, used by the command line, schedules and sensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from sae_pipeline.planning.continuation import CONTINUES
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
    return Status(node, False, tuple(_reasons(published, node)))


def _reasons(published: Artefact, node: Node) -> list[str]:
    earlier = node.record.get(CONTINUES)
    if earlier is None:
        return differences(published.lineage, node.record)
    changed = differences(published.lineage, {**node.record, CONTINUES: published.lineage.get(CONTINUES)})
    which = "the version in use" if earlier == published.identity else f"version {earlier[:12]}"
    return [*changed, f"continues {which}: begins with its contexts, so that its whole shards of activations are kept"]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """List the leaves in which two records differ, as `path: old → new`; items of a list that have names by name."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted(set(old) | set(new)):
            found += differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        return found
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        pairs = list(zip_longest(old, new))
        if len(old) == len(new) or any(isinstance(item, dict) for item in (*old, *new)):
            return [
                line
                for index, (a, b) in enumerate(pairs)
                for line in differences(a, b, f"{path}[{_name(a) or _name(b) or index}]")
            ]
    return (
        []
        if old == new or (isinstance(old, list | tuple) and list(old) == list(new))
        else [f"{path}: {_short(old)} → {_short(new)}"]
    )


def _name(item: Any) -> str | None:
    return item.get("name") if isinstance(item, dict) else None


def _short(value: Any) -> str:
    text = _name(value) or str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
