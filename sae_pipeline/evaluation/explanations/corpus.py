"""The held-out tokens as rows, cut between two documents: one side to build explanations on, one to score them on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.activations import EvaluationSet
from sae_pipeline.evaluation.errors import EvaluationError

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """Token ids of the contexts, and where in them each eligible row is.

    Attributes:
        ids_cl: [contexts, length] token ids, padding included.
        context_r, position_r: [rows] where a row is.
        unit_r: [rows] index of its document in `documents`.
        documents: [u] numbers of the documents.
        cut: rows before it build, rows from it on are scored; 0 if there is one document only.
        lead: the token that every context begins with, if there is one (a BOS policy); it is put before every excerpt.
        padding: the token that stands for "any other" when the importance of a token is measured.
    """

    ids_cl: IntArray
    context_r: NDArray[np.int32]
    position_r: NDArray[np.int32]
    unit_r: IntArray
    documents: IntArray
    cut: int
    lead: tuple[int, ...]
    padding: int

    @classmethod
    def of(cls, evaluation_set: EvaluationSet, padding: int | None = None) -> Corpus:
        """Read the tokens of an evaluation set.

        Args:
            evaluation_set: the held-out contexts.
            padding: a token id in place of the one that fills the set's contexts.

        Raises:
            EvaluationError: no context is padded and no padding token is given.
        """
        ids_cl, mask_cl = (getattr(evaluation_set, name)(0, evaluation_set.n_contexts) for name in ("ids", "mask"))
        context_r, position_r = np.nonzero(mask_cl.numpy())
        documents, unit_c = np.unique(evaluation_set.document, return_inverse=True)
        unit_r = unit_c[context_r]
        return cls(
            ids_cl.numpy(),
            context_r.astype(np.int32),
            position_r.astype(np.int32),
            unit_r,
            documents,
            _cut(unit_r),
            _lead(ids_cl.numpy()),
            _padding(evaluation_set, ids_cl.numpy()) if padding is None else padding,
        )

    @property
    def n_rows(self) -> int:
        """Eligible rows."""
        return len(self.context_r)

    def tokens(self, row: int) -> tuple[int, ...]:
        """The context of a row up to and with the row's own token."""
        return tuple(self.ids_cl[self.context_r[row], : self.position_r[row] + 1].tolist())

    def last(self, rows: slice, back: int = 0) -> IntArray:
        """The token `back` before each row's own; −1 before the start of its context."""
        position_r = self.position_r[rows] - back
        return np.asarray(np.where(position_r < 0, -1, self.ids_cl[self.context_r[rows], position_r]), np.int64)


def _cut(unit_r: IntArray) -> int:
    """The first row of a document with as nearly as possible half of the rows before it."""
    starts = np.flatnonzero(np.diff(unit_r)) + 1
    return int(starts[np.abs(starts - len(unit_r) / 2).argmin()]) if len(starts) else 0


def _lead(ids_cl: IntArray) -> tuple[int, ...]:
    first = np.unique(ids_cl[:, 0])
    return (int(first[0]),) if len(first) == 1 and len(ids_cl) > 1 else ()


def _padding(evaluation_set: EvaluationSet, ids_cl: IntArray) -> int:
    padded_cl = evaluation_set.position[None, :] >= evaluation_set.length[:, None]
    if not padded_cl.any():
        raise EvaluationError(
            "no held-out context is padded, so the padding token is not known; name a token of little meaning under "
            "evaluation.metrics.explanations: {padding_id: …}"
        )
    return int(ids_cl[padded_cl][0])
