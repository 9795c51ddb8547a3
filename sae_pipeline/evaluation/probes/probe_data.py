"""The probe tasks of a site: rows with labels, the subject's activations at them, controls without an autoencoder.

It is an artefact of its own, so that probing an autoencoder needs no subject.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from sae_pipeline.embedded.concepts import (
    TEST,
    TRAIN,
    Dropped,
    ProbeSet,
    Sampling,
    Task,
    build_probe_set,
    by_card,
    read_text_tasks,
    text_probe_set,
)
from sae_pipeline.embedded.concepts.controls import Controls, Score, fit_controls
from sae_pipeline.embedded.concepts.drawing import OffsetTokenizer
from sae_pipeline.embedded.concepts.residuals import activations_at_places
from sae_pipeline.evaluation.errors import EvaluationError
from sae_pipeline.store import Artefact, Damaged, Draft, Progress, silent
from sae_pipeline.study import EMBEDDED_TASKS, Site, SubjectConfig
from sae_pipeline.subjects import Subject
from sae_pipeline.tokens import stdlib_documents

RECORD: Final = "probe_set.json"
ROWS: Final = "rows.npz"
ACTIVATIONS: Final = "activations"
LEAST_ROWS: Final = 10
"""Rows of each label that a task needs in each split."""

_ARRAYS = ("ids_cl", "length_c", "document_c", "task_r", "context_r", "position_r", "label_r", "test_r")
_SHARD_VALUES = 1 << 24
_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class ProbeData:
    """Probe tasks with activations.

    Attributes:
        probe_set: tasks and rows.
        x_ud: raw activations at `probe_set.places`, [places, d] float32.
        controls: by the number of the task, for those with enough rows.
    """

    probe_set: ProbeSet
    x_ud: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    controls: Mapping[int, Controls]

    @classmethod
    def open(cls, source: Artefact | Draft) -> ProbeData:
        """Read what `build_probe_data` wrote, published or still a draft."""
        record, array = source.read_json(RECORD), source.array(ACTIVATIONS)
        with np.load(source.file(ROWS)) as rows:
            probe_set = ProbeSet(
                **{name: rows[name] for name in _ARRAYS},
                documents=tuple(record["documents"]),
                tasks=tuple(Task(**task) for task in record["tasks"]),
                dropped=tuple(Dropped(**task) for task in record["dropped"]),
                skipped=tuple(record["skipped"]),
            )
        return cls(
            probe_set,
            array.read_float32(0, array.n_rows),
            {int(task): _controls(found) for task, found in record["controls"].items()},
        )

    @cached_property
    def reasons(self) -> dict[int, str]:
        """Why a task cannot be probed, by its number."""
        found = {task: _lacking(self.probe_set, task) for task in range(len(self.probe_set.tasks))}
        return {task: reason for task, reason in found.items() if reason is not None}


def make_probe_set(
    tasks: str,
    subject: SubjectConfig,
    tokenizer: OffsetTokenizer,
    *,
    context: int,
    seed: int,
    root: Path,
    progress: Progress = silent,
) -> ProbeSet:
    """The tasks that a study names.

    Args:
        tasks: `embedded` (concepts of the standard library's source, with the split of the subject's card), or a file,
            a folder or a glob of labelled lines.
        subject: whose card it is.
        tokenizer: that of the subject.
        context: tokens of a context: those that the autoencoders are trained on.
        seed: of what is drawn.
        root: folder that relative paths start from.
        progress: told the documents done.

    Raises:
        PipelineError: the card lists no documents, or a file breaks a rule.
    """
    if tasks != EMBEDDED_TASKS:
        return text_probe_set(read_text_tasks(tasks, root=root), tokenizer, context=context)
    train, test = by_card(stdlib_documents(), subject, root=root)
    return build_probe_set(train, test, tokenizer, sampling_for(context, seed), progress=progress)


def sampling_for(context: int, seed: int) -> Sampling:
    """The usual draw, with first positions in the proportion that they have to contexts of 256 tokens."""
    usual = Sampling()
    first, late = (
        max(1, round(position * context / usual.context))
        for position in (usual.first_position, usual.first_position_long_range)
    )
    return Sampling(context=context, first_position=first, first_position_long_range=late, seed=seed)


def build_probe_data(
    draft: Draft,
    subject: Callable[[], Subject],
    site: Site,
    probe_set: ProbeSet,
    *,
    batch: int,
    seed: int,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run the subject over the contexts of a probe set and fit the controls, into a draft.

    Args:
        draft: the open draft.
        subject: gives the model.
        site: where activations are read.
        probe_set: the tasks.
        batch: contexts of one forward pass.
        seed: of the controls.
        progress: told the contexts done.

    Returns:
        Summary: tasks, unusable (tasks without enough rows), dropped, rows, places, d.
    """
    x_ud = activations_at_places(subject(), site, probe_set, batch=batch, progress=progress)
    data = ProbeData(probe_set, x_ud, {})
    usable = [task for task in range(len(probe_set.tasks)) if task not in data.reasons]
    controls = {str(task): asdict(fit_controls(probe_set, task, x_ud, seed=seed)) for task in usable}
    shard_rows = max(_CHUNK_ROWS, _SHARD_VALUES // x_ud.shape[1])
    array = draft.array(ACTIVATIONS, shape=x_ud.shape, dtype="float32", shard_rows=shard_rows, chunk_rows=_CHUNK_ROWS)
    for i in range(array.n_shards):
        array.write_shard(i, x_ud[array.rows(i)])
    held = io.BytesIO()
    np.savez(held, **{name: getattr(probe_set, name) for name in _ARRAYS})
    draft.write_bytes(ROWS, held.getvalue())
    record = {
        "site": str(site),
        "documents": list(probe_set.documents),
        "tasks": [asdict(task) for task in probe_set.tasks],
        "dropped": [asdict(task) for task in probe_set.dropped],
        "skipped": list(probe_set.skipped),
        "controls": controls,
    }
    draft.write_json(RECORD, record)
    return {
        "tasks": len(probe_set.tasks),
        "unusable": len(data.reasons),
        "dropped": len(probe_set.dropped),
        "rows": len(probe_set.label_r),
        "places": len(x_ud),
        "d": x_ud.shape[1],
    }


def audit_probe_data(source: Draft | Artefact) -> pd.DataFrame:
    """One row on a probe set, read back from disk.

    Columns: damage ("" or what is wrong with a file; the rest is missing then), tasks, usable (those with enough rows),
    non_finite (activations), documents_in_both (splits).
    """
    columns = ["damage", "tasks", "usable", "non_finite", "documents_in_both"]
    try:
        data = ProbeData.open(source)
    except Damaged as error:
        return pd.DataFrame([{"damage": error.cause}], columns=columns)
    probe_set = data.probe_set
    train, test = (np.unique(probe_set.document_r[probe_set.test_r == side]) for side in (False, True))
    figures = {
        "damage": "",
        "tasks": len(probe_set.tasks),
        "usable": len(probe_set.tasks) - len(data.reasons),
        "non_finite": int((~np.isfinite(data.x_ud)).sum()),
        "documents_in_both": len(np.intersect1d(train, test)),
    }
    return pd.DataFrame([figures], columns=columns)


def check_width(data: ProbeData, d: int) -> None:
    """Raise EvaluationError if the activations have another width than an autoencoder reads."""
    if data.x_ud.shape[1] != d:
        raise EvaluationError(
            f"the autoencoder reads {d} values a token, the probe set holds {data.x_ud.shape[1]}; are they of one site?"
        )


def _controls(record: Mapping[str, Any]) -> Controls:
    scores = {name: Score(**record[name]) for name in ("token", "token_pair", "linear", "permuted")}
    return Controls(**scores, l2=record["l2"])


def _lacking(probe_set: ProbeSet, task: int) -> str | None:
    for split in (TRAIN, TEST):
        label = probe_set.label_r[probe_set.rows(task, split)]
        for value in (False, True):
            found = int((label == value).sum())
            if found < LEAST_ROWS:
                return f"{found} {split} rows with label {int(value)}; {LEAST_ROWS} are needed"
    return None
