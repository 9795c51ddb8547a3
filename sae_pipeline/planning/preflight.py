"""What can be known to go wrong before anything is made: disk, folders, what lies there, the subject, the corpora."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sae_pipeline.planning.earlier import bytes_kept
from sae_pipeline.planning.lineage import Lineage, Node
from sae_pipeline.planning.plan import Plan, make_plan
from sae_pipeline.planning.staleness import stale
from sae_pipeline.store import (
    Artefact,
    Busy,
    Damaged,
    NewerFormat,
    NotPublished,
    Outputs,
    PipelineError,
    Pointers,
    Progress,
    read_json,
    silent,
)
from sae_pipeline.store.array_format import FORMAT
from sae_pipeline.store.disk import disk_use
from sae_pipeline.store.draft import DRAFT
from sae_pipeline.store.locks import holder
from sae_pipeline.store.outputs import BEST
from sae_pipeline.store.progress import human
from sae_pipeline.study import Study

_RUNS_SUBJECT = ("activations", "evaluation_set", "probe_set", "eval_downstream")
_RUNS_AUTOENCODERS = ("autoencoder", "codes", "eval_reconstruction", "eval_density")
_LAST, _LAST_ASSETS = "tables, laws, report", ("evaluation_table", "scaling_laws", "report")
_CHECKPOINT = 4  # times the weights: weights, two moments and their average, deleted when the autoencoder is saved
_TOKEN_BYTES = 4  # of each token while the tokens are made, deleted afterwards


def preflight(
    lineage: Lineage,
    outputs: Outputs,
    pointers: Pointers,
    *,
    root: Path,
    nodes: Sequence[Node] | None = None,
    progress: Progress = silent,
) -> None:
    """Refuse a run that would fail for a reason that can be seen now; nothing is written.

    Args:
        lineage: the study's graph.
        outputs: where artefacts lie.
        pointers: the study's `current.json`.
        root: folder that relative paths of the study start from.
        nodes: what is to be made; default everything that is stale.
        progress: told the bytes of the corpora read, where they have to be.

    Raises:
        PipelineError: the first reason found, with what to change.
    """
    _check_folders(outputs, lineage.study.study)
    waiting = stale(lineage, outputs, pointers) if nodes is None else nodes
    if not waiting:
        return
    _check_writable(outputs, lineage.study.study, {node.stage for node in waiting})
    _check_what_is_there(lineage, outputs)
    _check_champions(lineage.study, outputs, waiting)
    _check_subject(lineage, {node.asset for node in waiting}, root)
    _check_shards(lineage, waiting)
    _check_disk(lineage, outputs, pointers, waiting)
    if any(node.asset == "tokens" and not _is_published(outputs, node) for node in waiting):
        _check_corpora(lineage, root, progress)


def _is_published(outputs: Outputs, node: Node) -> bool:
    return outputs.published(node.stage, node.key, node.identity) is not None


def _folders(outputs: Outputs, study: str, stages: Collection[str]) -> Iterator[Path]:
    """The nearest existing place of every folder that a run writes into."""
    artefacts = outputs.root / "artefacts"
    for folder in (outputs.root, artefacts, *(artefacts / stage for stage in sorted(stages)), outputs.study_dir(study)):
        yield next(place for place in (folder, *folder.parents) if os.path.lexists(place))


def _check_folders(outputs: Outputs, study: str) -> None:
    for place in _folders(outputs, study, ()):
        if not place.is_dir():
            raise PipelineError(f"{place} is not a folder; move it away, or choose another folder with --outputs")


def _check_writable(outputs: Outputs, study: str, stages: Collection[str]) -> None:
    for place in _folders(outputs, study, stages):
        if not os.access(place, os.W_OK | os.X_OK):
            raise PipelineError(
                f"{place} is read-only for this user, so nothing can be saved there; change its permissions, or choose "
                "another folder with --outputs"
            )


def _check_what_is_there(lineage: Lineage, outputs: Outputs) -> None:
    """Artefacts that will be read or reused, drafts that will be continued: of a known format, whole, not in use."""
    for node in lineage:
        folder = outputs.artefact_dir(node.stage, node.key, node.identity)
        try:
            if not _is_published(outputs, node):
                _check_draft(folder)
        except Damaged as error:
            raise PipelineError(f"{error}; move {folder} away and run again, it is made anew") from None


def _check_draft(folder: Path) -> None:
    if (folder / DRAFT).is_file():
        found = read_json(folder / DRAFT)
        if not isinstance(found, dict) or not isinstance(found.get("format"), int):
            raise Damaged(folder / DRAFT, "names no format")
        if found["format"] > FORMAT:
            raise NewerFormat(folder / DRAFT, found["format"], FORMAT)
    pid = holder(folder / ".lock")
    if pid is not None and pid != os.getpid():
        raise Busy(folder, str(pid))
    _check_checkpoint(folder)


def _check_checkpoint(folder: Path) -> None:
    from sae_pipeline.training import checkpoint

    path = folder / checkpoint.NAME
    if path.is_file():
        checkpoint.check(path)


def _check_champions(study: Study, outputs: Outputs, waiting: Sequence[Node]) -> None:
    """The best versions so far, which the new ones of a run are compared with at its end."""
    path = outputs.study_dir(study.study) / BEST
    places = [node.name.partition("/")[2] for node in waiting if node.asset == "champion"]
    if not places or not path.is_file():
        return
    remedy = f"move {path} away and run again, the next versions become the best"
    try:
        found = read_json(path)
        if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
            raise Damaged(path, "does not map autoencoders to versions")
        for place in places:
            if name := found.get(place, {}).get("artefact"):
                Artefact.open(outputs.root / name)
    except (Damaged, NotPublished) as error:
        raise PipelineError(f"{error}; {remedy}") from None


def _check_subject(lineage: Lineage, assets: Collection[str], root: Path) -> None:
    from sae_pipeline.subjects import check_complete, pick_device

    subject = lineage.study.subject
    if any(asset in (*_RUNS_SUBJECT, *_RUNS_AUTOENCODERS) for asset in assets):
        pick_device(subject.device)
    if any(asset in _RUNS_SUBJECT for asset in assets):
        check_complete(subject, lineage.facts.n_params, root=root)


def _check_shards(lineage: Lineage, waiting: Sequence[Node]) -> None:
    from sae_pipeline.activations.layout import check_shard_bytes, shard_rows_of

    config, train = lineage.study.activations, lineage.study.tokens.train
    for site, width in lineage.facts.widths.items():
        if any(node.name == f"activations/{site}" for node in waiting):
            check_shard_bytes(shard_rows_of(train, config.shard_tokens), width, config.dtype)


def _check_disk(lineage: Lineage, outputs: Outputs, pointers: Pointers, waiting: Sequence[Node]) -> None:
    place = next(_folders(outputs, lineage.study.study, ()))
    there = _in_windows(lineage, outputs, waiting)
    for node in waiting:
        in_draft = disk_use(outputs.artefact_dir(node.stage, node.key, node.identity))[0]
        there += max(in_draft, bytes_kept(lineage, node, outputs, pointers))
    needed = bytes_to_make(lineage, make_plan(lineage.study, lineage.facts, flops_per_s=1.0), waiting) - there
    free = shutil.disk_usage(place).free
    if needed > free:
        raise PipelineError(
            f"the disk of {place} is too small: what is still to be made takes about {human(needed)}B, "
            f"{human(free)}B are free; free some, lower the budgets (`sae-pipeline plan` shows which stage takes "
            "what), or choose a folder on another disk with --outputs"
        )


def _in_windows(lineage: Lineage, outputs: Outputs, waiting: Sequence[Node]) -> int:
    """Bytes that lie in the windows of the sites at which there is something to train."""
    from sae_pipeline.activations.window import FOLDER

    sites = {node.name.split("/")[1] for node in waiting if node.asset == "autoencoder"}
    nodes = [lineage[f"activations/{site}"] for site in sites]
    return sum(disk_use(outputs.artefact_dir(node.stage, node.key, node.identity) / FOLDER)[0] for node in nodes)


def bytes_to_make(lineage: Lineage, plan: Plan, waiting: Sequence[Node]) -> int:
    """Bytes on disk that making these nodes takes at the worst moment, by the plan; drafts that are there not counted.

    Args:
        lineage: the study's graph.
        plan: the plan of the whole study.
        waiting: nodes to be made.
    """
    names = [node.name for node in waiting]
    total = 0.0
    for row in plan.rows:
        share = min(1.0, sum(_belongs(name, row.what) for name in names) / max(1, row.partitions))
        total += share * row.bytes_ * (1 + _CHECKPOINT * row.what.startswith("autoencoder "))
    tokens = lineage.study.tokens
    return round(total) + ("tokens" in names) * _TOKEN_BYTES * (tokens.train_tokens + tokens.held_out)


def _belongs(name: str, what: str) -> bool:
    """Whether a node is in a plan's line: `tokens`, or `<asset> <site>`, where metrics and last steps share a line."""
    label, _, site = what.rpartition(" ")
    asset, _, path = name.partition("/")
    if not label or path.partition("/")[0] not in (site, ""):
        return name == what
    of_label = {
        "metrics": asset.startswith("eval_"),
        _LAST: asset in _LAST_ASSETS,
        "window": asset == "autoencoder",
    }
    return of_label.get(label, asset == label)


def _check_corpora(lineage: Lineage, root: Path, progress: Progress) -> None:
    from sae_pipeline.subjects import load_tokenizer
    from sae_pipeline.tokens import check_corpora

    study = lineage.study
    check_corpora(
        study.tokens,
        study.corpora,
        load_tokenizer(study.subject, root=root),
        root=root,
        split_list=lineage.facts.split_list,
        progress=progress,
    )
