"""How a study stands: what is made, at work, rejected or missing. Read while others write; nothing is locked."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sae_pipeline.planning.gates import GATES, gate_file
from sae_pipeline.planning.lineage import Lineage, Node
from sae_pipeline.planning.staleness import is_current
from sae_pipeline.store import Outputs, Pointers, read_json
from sae_pipeline.store.disk import disk_use
from sae_pipeline.store.locks import holder
from sae_pipeline.store.repairs import REPAIRS

State = Literal["current", "in progress", "rejected", "stale", "never made"]
STATES: Final[tuple[State, ...]] = ("current", "in progress", "rejected", "stale", "never made")

CHECKPOINT: Final = "checkpoint.safetensors"
"""File of a training draft, as `sae_pipeline.training.checkpoint` names it; importing that would load torch."""


@dataclass(frozen=True)
class Attempt:
    """An unfinished draft of what the study asks for.

    Attributes:
        pid: the process at work on it; None: it was stopped, and a run goes on from there.
        shards: committed shards.
        step, steps: of a training, those done at its last checkpoint and those to do; None before the first.
        tokens, of_tokens: the same as tokens trained on.
    """

    pid: int | None
    shards: int
    step: int | None = None
    steps: int | None = None
    tokens: int | None = None
    of_tokens: int | None = None


@dataclass(frozen=True)
class NodeState:
    """One artefact the study asks for.

    Attributes:
        name: in the graph.
        state: `current`: the pointer names exactly what the study asks for. Else `in progress`: a process holds its
            draft; `rejected`: the last attempt at it failed its gate; `stale`: the pointer names another version;
            `never made`: there is no pointer.
        reason: why the gate rejected it.
        warnings: limits of the gate that were missed and do not block.
        attempt: the unfinished draft of it.
        n_bytes: on disk, of the version in use and of what the study asks for.
        remade: shards of the version in use that were made again with other bits (`sae-pipeline repair`).
    """

    name: str
    state: State
    n_bytes: int
    reason: str | None = None
    warnings: tuple[str, ...] = ()
    attempt: Attempt | None = None
    remade: int = 0

    @property
    def asset(self) -> str:
        """The asset this is a partition of."""
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Champion:
    """The best and the latest version of an autoencoder, as folders' names, and the last verdict about them."""

    place: str
    best: str | None
    latest: str | None
    verdict: str | None


@dataclass(frozen=True)
class LastRun:
    """The study's last Dagster run: id, job, Dagster's word for its end, Unix times, and what failed."""

    run_id: str
    job: str
    outcome: str
    started_s: float | None
    ended_s: float | None
    failure: str | None


@dataclass(frozen=True)
class StudyStatus:
    """How a study stands; `as_dict` is what `sae-pipeline status --json` prints.

    `null` names the null control that the study is; None where it is none.
    """

    study: str
    folder: Path
    nodes: tuple[NodeState, ...]
    champions: tuple[Champion, ...]
    last_run: LastRun | None
    null: str | None = None

    @property
    def current(self) -> bool:
        """Whether everything is made as the study asks for it."""
        return all(node.state == "current" for node in self.nodes)

    def assets(self) -> dict[str, list[NodeState]]:
        """The nodes by asset, inputs first."""
        found: dict[str, list[NodeState]] = {}
        for node in self.nodes:
            found.setdefault(node.asset, []).append(node)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "study": self.study,
            "null": self.null,
            "folder": str(self.folder),
            "current": self.current,
            "assets": {asset: totals(nodes) for asset, nodes in self.assets().items()},
            "nodes": [asdict(node) for node in self.nodes],
            "autoencoders": [asdict(champion) for champion in self.champions],
            "last_run": asdict(self.last_run) if self.last_run else None,
        }


def totals(nodes: list[NodeState]) -> dict[str, int]:
    """How many nodes there are, how many in each state, their warnings and their bytes."""
    states = Counter(node.state for node in nodes)
    return {
        "nodes": len(nodes),
        **{state.replace(" ", "_"): states[state] for state in STATES},
        "warnings": sum(len(node.warnings) for node in nodes),
        "n_bytes": sum(node.n_bytes for node in nodes),
    }


def study_status(
    lineage: Lineage, outputs: Outputs, pointers: Pointers, last_run: LastRun | None = None
) -> StudyStatus:
    """Look at every node of a study.

    Args:
        lineage: the study's graph.
        outputs: where artefacts lie.
        pointers: the study's `current.json`.
        last_run: what Dagster knows of its last run.
    """
    study = lineage.study.study
    folder = outputs.study_dir(study)
    named = dict(pointers.items())
    nodes = tuple(_state(node, outputs, pointers, named, folder / GATES) for node in lineage)
    champions = tuple(_champions(lineage, named, folder))
    return StudyStatus(study, folder, nodes, champions, last_run, lineage.study.null)


def _state(node: Node, outputs: Outputs, pointers: Pointers, named: Mapping[str, str], gates: Path) -> NodeState:
    wanted = outputs.artefact_dir(node.stage, node.key, node.identity)
    in_use = outputs.root / named[node.name] if node.name in named else wanted
    n_bytes = sum(disk_use(path)[0] for path in {wanted, in_use})
    missed = list(_missed(node, gates / gate_file(node.name)))
    warnings = tuple(_sentence(verdict) for verdict in missed if verdict["severity"] != "block")
    if is_current(node, outputs, pointers):
        remade = sum(1 for _ in (in_use / REPAIRS).glob("*/*.json"))
        return NodeState(node.name, "current", n_bytes, warnings=warnings, remade=remade)
    attempt = _attempt(node, wanted)
    reason = "; ".join(_sentence(verdict) for verdict in missed if verdict["severity"] == "block") or None
    state: State = "stale" if node.name in named else "never made"
    if attempt is not None and attempt.pid is not None:
        state = "in progress"
    elif reason is not None:
        state = "rejected"
    return NodeState(node.name, state, n_bytes, reason, warnings, attempt)


def _missed(node: Node, file: Path) -> Iterator[dict[str, Any]]:
    """Limits that the last attempt at exactly this node missed."""
    record = read_json(file) if file.exists() else None
    if record is not None and record["identity"] == node.identity:
        yield from (verdict for verdict in record["verdicts"] if not verdict["passed"])


def _sentence(verdict: Mapping[str, Any]) -> str:
    value = verdict["value"]
    text = "missing" if value is None else f"{value:.6g}" if isinstance(value, int | float) else value or "none"
    place = f" at {verdict['where']}" if verdict["where"] else ""
    return f"{verdict['check']}: {verdict['column']} is {text}{place}, limit {verdict['limit']}"


def _attempt(node: Node, folder: Path) -> Attempt | None:
    if not (folder / "draft.json").is_file() or (folder / "artefact.json").exists():
        return None
    shards = sum(1 for _ in (folder / "commits").glob("*/*.json"))
    record = read_checkpoint_record(folder / CHECKPOINT)
    config = node.record["config"]
    if record is None or "batch" not in config:
        return Attempt(holder(folder / ".lock"), shards)
    step, batch = int(record["step"]), int(config["batch"])
    steps = int(config["tokens"]) // batch
    return Attempt(holder(folder / ".lock"), shards, step, steps, step * batch, steps * batch)


def read_checkpoint_record(path: Path) -> dict[str, Any] | None:
    """The record in the header of a training checkpoint, or None if there is no checkpoint that can be read.

    Reads the header alone (safetensors: 8 bytes of length, little-endian, then JSON). A checkpoint is replaced as a
    whole, so what is opened stays whole while its writer goes on.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, os.fstat(file.fileno()).st_size)))
        return dict(json.loads(header["__metadata__"]["record"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _champions(lineage: Lineage, named: Mapping[str, str], folder: Path) -> Iterator[Champion]:
    best = folder / "best.json"
    entries = read_json(best) if best.exists() else {}
    for node in lineage.of_asset("autoencoder"):
        place = node.name.partition("/")[2]
        entry = entries.get(place, {"artefact": None, "history": []})
        last = entry["history"][-1] if entry["history"] else {}
        yield Champion(place, _name(entry["artefact"]), _name(named.get(node.name)), last.get("reason"))


def _name(where: str | None) -> str | None:
    return None if where is None else Path(where).name
