"""Probe tasks: contexts of token ids, and rows that say which of their positions have which label."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

TRAIN, TEST = "train", "test"
SPLITS = (TRAIN, TEST)


@dataclass(frozen=True)
class Task:
    """A binary question about a token.

    Attributes:
        name: its name.
        description: what label 1 means.
        long_range: rows stand only at late positions, since what decides may lie far before.
    """

    name: str
    description: str
    long_range: bool = False


@dataclass(frozen=True)
class Dropped:
    """A task that was left out, and why."""

    name: str
    reason: str


class Places(NamedTuple):
    """Positions without repetition, sorted: context and position of each, `[places]`, and each row's place."""

    context_u: Ints
    position_u: Ints
    place_r: Ints


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Rows of several tasks over shared contexts.

    A row asks one task about one position of one context. Every document is on one side of the split.

    Attributes:
        ids_cl: token ids `[contexts, length]`, padded on the right, so that causal attention never sees the padding.
        length_c: tokens of each context, padding not counted.
        document_c: index in `documents` of the context's document.
        documents: names.
        tasks: what is asked.
        task_r: index in `tasks` of each row.
        context_r: its context.
        position_r: its position in the context.
        label_r: its label.
        test_r: whether it belongs to the test split.
        dropped: tasks that were left out.
        skipped: names of documents that could not be read as what they should be.
    """

    ids_cl: NDArray[np.int32]
    length_c: Ints
    document_c: Ints
    documents: tuple[str, ...]
    tasks: tuple[Task, ...]
    task_r: Ints
    context_r: Ints
    position_r: Ints
    label_r: Flags
    test_r: Flags
    dropped: tuple[Dropped, ...] = ()
    skipped: tuple[str, ...] = ()

    def rows(self, task: int, split: str) -> Ints:
        """Indices of a task's rows in one split."""
        return np.flatnonzero((self.task_r == task) & (self.test_r == (split == TEST)))

    @property
    def document_r(self) -> Ints:
        """Index of each row's document."""
        return self.document_c[self.context_r]

    @property
    def token_r(self) -> Ints:
        """Token id at each row's position."""
        return self.ids_cl[self.context_r, self.position_r].astype(np.int64)

    @property
    def previous_token_r(self) -> Ints:
        """Token id before each row's position; -1 at the start of a context."""
        before = self.ids_cl[self.context_r, np.maximum(self.position_r - 1, 0)].astype(np.int64)
        return np.where(self.position_r > 0, before, -1)

    @cached_property
    def places(self) -> Places:
        """The different positions that rows stand at, for whoever computes something there once."""
        width = self.ids_cl.shape[1]
        found, place_r = np.unique(self.context_r * width + self.position_r, return_inverse=True)
        return Places(found // width, found % width, place_r.astype(np.int64))

    def fingerprint(self) -> str:
        """SHA-256 of everything that a probe is fitted on."""
        digest = hashlib.sha256(repr((self.documents, self.tasks)).encode())
        for name in ("ids_cl", "length_c", "document_c", "task_r", "context_r", "position_r", "label_r", "test_r"):
            values = getattr(self, name)
            digest.update(f"{name}{values.dtype}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()
