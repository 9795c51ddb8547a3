"""What the last token, or the last two, say of a latent: the explanations that need no subject."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy import sparse

from sae_pipeline.evaluation.explanations.corpus import Corpus, IntArray
from sae_pipeline.evaluation.explanations.sampling import Active
from sae_pipeline.evaluation.inputs import FloatArray


@dataclass
class MeanAfter:
    """Mean activation of each latent on the build side given the last tokens; unseen ones fall back to fewer.

    The least-squares predictor of its kind, so no scale is to be fitted. Fill with `add`, block by block.

    Attributes:
        tokens: how many are read; with none it is the mean over the build side.
        vocabulary: one more than the largest token of the corpus.
        keys, counts: the last tokens seen, as one number, rising; how often.
        sums: [keys, slots] sparse, activations after each.
        fewer: what answers for unseen keys; None where there are none.
    """

    tokens: int
    vocabulary: int
    keys: IntArray
    counts: IntArray
    sums: Any
    fewer: MeanAfter | None

    @classmethod
    def of(cls, corpus: Corpus, slots: int, tokens: int, fewer: MeanAfter | None = None) -> Self:
        """For one number of tokens, nothing added yet."""
        vocabulary = int(corpus.ids_cl.max()) + 1
        keys, counts = np.unique(_keys(corpus, slice(0, corpus.cut), tokens, vocabulary), return_counts=True)
        return cls(tokens, vocabulary, keys, counts, sparse.csr_array((len(keys), slots)), fewer)

    def add(self, corpus: Corpus, active: Active) -> None:
        """Add a block of the build side, to `fewer` as well."""
        key_r = _keys(corpus, slice(active.start, active.stop), self.tokens, self.vocabulary)
        key_p = np.searchsorted(self.keys, key_r[active.row_p - active.start])
        self.sums = (
            self.sums + sparse.coo_array((active.value_p, (key_p, active.slot_p)), shape=self.sums.shape).tocsr()
        )
        if self.fewer is not None:
            self.fewer.add(corpus, active)

    def predict(self, corpus: Corpus, start: int, stop: int) -> FloatArray:
        """Activations [rows, slots] of rows `start` to `stop`."""
        key_r = _keys(corpus, slice(start, stop), self.tokens, self.vocabulary)
        place_r = np.minimum(np.searchsorted(self.keys, key_r), len(self.keys) - 1)
        seen = self.keys[place_r] == key_r
        predicted_rs = np.zeros((stop - start, self.sums.shape[1]))
        predicted_rs[seen] = self.sums[place_r[seen]].toarray() / self.counts[place_r[seen], None]
        if self.fewer is not None and not seen.all():
            predicted_rs[~seen] = self.fewer.predict(corpus, start, stop)[~seen]
        return predicted_rs


def _keys(corpus: Corpus, rows: slice, tokens: int, vocabulary: int) -> IntArray:
    """The last tokens of each row as one number; the place before a context counts as a token of its own."""
    key_r = np.zeros(len(corpus.context_r[rows]), np.int64)
    for back in range(tokens):
        key_r = key_r * (vocabulary + 1) + corpus.last(rows, back) + 1
    return key_r
