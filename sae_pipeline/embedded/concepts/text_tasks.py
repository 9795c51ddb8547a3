"""Probe tasks in files: one text a line with its label and its split, asked at the text's last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_pipeline.embedded.concepts.probe_set import SPLITS, TEST, ProbeSet, Task
from sae_pipeline.store import PipelineError
from sae_pipeline.tokens.files import find_files, kind_of, read_records, text_of
from sae_pipeline.tokens.tokenizer import Tokenizer

_SUFFIX = ".jsonl"


class TextTaskError(PipelineError):
    """A file that is no probe task; the message names file and line."""


@dataclass(frozen=True)
class TextTask:
    """The rows of one file: line number, text, label and split of each."""

    name: str
    lines: tuple[int, ...]
    texts: tuple[str, ...]
    labels: tuple[bool, ...]
    splits: tuple[str, ...]


def read_text_tasks(source: str, *, root: Path) -> list[TextTask]:
    """Read probe tasks, one a file, named by the file's path below the folder.

    Every line is a JSON object with `text`, `label` (0 or 1) and `split` ("train" or "test"); other keys are ignored.
    In a folder or glob, files whose first line has no `text` are left out: manifests.

    Args:
        source: a `.jsonl` or `.jsonl.gz` file, a folder of them or a glob.
        root: folder that a relative `source` starts from.

    Raises:
        PipelineError: a file cannot be read or breaks a rule above, a text is in both splits, or a split lacks a label.
    """
    return [_read(name, path) for name, path in find_files(source, root, "text").items()]


def _read(name: str, path: Path) -> TextTask:
    if kind_of(path) != _SUFFIX:
        raise TextTaskError(f"{path} is no {_SUFFIX} file; probe tasks are {_SUFFIX} or {_SUFFIX}.gz, narrow the glob")
    rows = [(number, *_checked(record, f"{path}, line {number}")) for number, record in read_records(path)]
    if not rows:
        raise TextTaskError(f"{path} holds no rows; write one JSON object a line, or take the file out")
    lines, texts, labels, splits = zip(*rows, strict=True)
    task = TextTask(name.removesuffix(".gz").removesuffix(_SUFFIX), lines, texts, labels, splits)
    _check_disjoint(task, path)
    for split in SPLITS:
        _check_labels(task, split, path)
    return task


def _checked(record: dict[str, Any], place: str) -> tuple[str, bool, str]:
    missing = [key for key in ("text", "label", "split") if key not in record]
    if missing:
        raise TextTaskError(f"{place} has no {' and no '.join(missing)}; it has {sorted(record)}")
    text, label, split = text_of(record, "text", place), record["label"], record["split"]
    if not text:
        raise TextTaskError(f"{place}: the text is empty; take the line out")
    if isinstance(label, bool) or label not in (0, 1):
        raise TextTaskError(f"{place}: label {label!r} is neither 0 nor 1")
    if split not in SPLITS:
        raise TextTaskError(f"{place}: split {split!r} is neither {' nor '.join(map(repr, SPLITS))}")
    return text, label == 1, split


def _check_disjoint(task: TextTask, path: Path) -> None:
    first: dict[str, tuple[int, str]] = {}
    for line, text, split in zip(task.lines, task.texts, task.splits, strict=True):
        earlier, other = first.setdefault(text, (line, split))
        if split != other:
            raise TextTaskError(
                f"{path}, line {line}: this text is a {split} row and, in line {earlier}, a {other} row; keep one"
            )


def _check_labels(task: TextTask, split: str, path: Path) -> None:
    found = {label for label, of in zip(task.labels, task.splits, strict=True) if of == split}
    if len(found) < 2:
        what = f"no label {int(not found.pop())}" if found else "no rows"
        raise TextTaskError(f"{path} has {what} in its {split} split; a probe needs both labels in both splits")


def text_probe_set(tasks: Sequence[TextTask], tokenizer: Tokenizer, *, context: int) -> ProbeSet:
    """One context and one row per text.

    A context is the tokenizer's beginning-of-text token, where there is one, and the text; a text that is too long
    keeps its last tokens. The row stands at the last token. Every text is a document of its own, `<task>#<line>`.

    Args:
        tasks: what `read_text_tasks` read.
        tokenizer: that of the subject.
        context: tokens of a context at most, the beginning-of-text token included.
    """
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    room = context - len(bos)
    if room < 1:
        raise PipelineError(f"contexts of {context} tokens hold no text; lengthen them")
    encoded = [bos + ids[-room:] for task in tasks for ids in tokenizer.encode_batch(list(task.texts))]
    length_c = np.array([len(ids) for ids in encoded])
    ids_cl = np.full((len(encoded), length_c.max(initial=0)), tokenizer.pad_id, np.int32)
    for ids_l, ids in zip(ids_cl, encoded, strict=True):
        ids_l[: len(ids)] = ids
    each_c = np.arange(len(encoded))
    return ProbeSet(
        ids_cl=ids_cl,
        length_c=length_c,
        document_c=each_c,
        documents=tuple(f"{task.name}#{line}" for task in tasks for line in task.lines),
        tasks=tuple(Task(task.name, "label 1 of the file") for task in tasks),
        task_r=np.repeat(np.arange(len(tasks)), [len(task.texts) for task in tasks]),
        context_r=each_c,
        position_r=length_c - 1,
        label_r=np.array([label for task in tasks for label in task.labels], np.bool_),
        test_r=np.array([split == TEST for task in tasks for split in task.splits], np.bool_),
    )
