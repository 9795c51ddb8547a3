"""Examples: where each latent fires most, and where it fires at all.

Random activations stand beside the largest ones: a latent that looks clear at its top may mean something else below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sae_pipeline.evaluation.inputs import FloatArray, Metric, MetricInputs, Number, metric_row
from sae_pipeline.evaluation.tables import MetricResult, frame
from sae_pipeline.study import VERSIONS

VERSION = VERSIONS["eval_examples"]
NUMBERS = {
    "top": Number(8, 0, 256),
    "random": Number(8, 0, 256),
    "before": Number(16, 0, 4096),
    "after": Number(4, 0, 4096),
}
_BLOCK_ROWS = 8192

IntArray = NDArray[np.int64]


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    return [_measure_one(one) for one in inputs]


def _measure_one(inputs: MetricInputs) -> MetricResult:
    number = {name: int(inputs.parameters.get(name, setting.default)) for name, setting in NUMBERS.items()}
    held_out = inputs.evaluation_set
    ids_cl, mask_cl = (read(0, held_out.n_contexts).numpy() for read in (held_out.ids, held_out.mask))
    context_r, position_r = np.nonzero(mask_cl)
    document_r = held_out.document[context_r]
    top, drawn = _Found.none(), _Found.none()
    for found in _active(inputs, document_r):
        top = top.join(found).one_a_document().first(number["top"])
        drawn = drawn.join(found.drawn(inputs.seed)).first(number["random"])
    windows = _Windows(ids_cl, held_out.length, context_r, position_r, number["before"], number["after"])
    rows = [
        inputs.key | {"kind": kind} | row | windows.at(row["row"])
        for kind, found in (("top", top), ("random", drawn))
        for row in found.rows()
    ]
    return MetricResult("examples", VERSION, _figure(inputs, top, drawn), examples=frame("examples", rows))


METRIC = Metric("examples", VERSION, needs_subject=False, measure=_measure, numbers=NUMBERS)
"""Table `examples`: of each latent that fires, the `top` rows by activation, at most one a document, and `random` rows
out of all on which it is active; `tokens` are the ids of `before` tokens, the row's own (at index `at`) and `after`.
`exemplified`: share of the latents that have any.
"""


@dataclass(frozen=True)
class _Found:
    """Active (latent, row) pairs [p] with document, value, and the key they are ranked by, larger first."""

    latent_p: IntArray
    row_p: IntArray
    document_p: IntArray
    value_p: FloatArray
    key_p: FloatArray

    @classmethod
    def none(cls) -> _Found:
        whole, real = np.empty(0, np.int64), np.empty(0)
        return cls(whole, whole, whole, real, real)

    def join(self, other: _Found) -> _Found:
        """Both, ranked: by latent, then by key, of equal keys the earlier row first."""
        pairs = zip(self._columns(), other._columns(), strict=True)
        both = _Found(*(np.concatenate(pair) for pair in pairs))
        return both._taken(np.lexsort((both.row_p, -both.key_p, both.latent_p)))

    def one_a_document(self) -> _Found:
        """Of ranked pairs the first of each latent in each document."""
        _, first = np.unique(self.latent_p << 32 | self.document_p, return_index=True)
        return self._taken(np.sort(first))

    def first(self, count: int) -> _Found:
        """Of ranked pairs the first `count` of each latent."""
        return self._taken(self.rank_p < count)

    def drawn(self, seed: int) -> _Found:
        """The same pairs ranked by a number that seed, latent and row decide alone, whatever block they come in."""
        mixed = _mixed(_mixed(self.row_p.astype(np.uint64) ^ np.uint64(seed)) ^ self.latent_p.astype(np.uint64))
        return _Found(self.latent_p, self.row_p, self.document_p, self.value_p, mixed / 2.0**64)

    @property
    def rank_p(self) -> IntArray:
        """How many ranked pairs of the same latent come before each."""
        return np.arange(len(self.latent_p)) - np.searchsorted(self.latent_p, self.latent_p)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Latent, rank, value, row and document of each."""
        columns = (self.latent_p, self.rank_p, self.value_p, self.row_p, self.document_p)
        for latent, rank, value, row, document in zip(*(column.tolist() for column in columns), strict=True):
            yield {"latent": latent, "rank": rank, "value": value, "row": row, "document": document}

    def _columns(self) -> tuple[NDArray[Any], ...]:
        return self.latent_p, self.row_p, self.document_p, self.value_p, self.key_p

    def _taken(self, which: NDArray[Any]) -> _Found:
        return _Found(*(column[which] for column in self._columns()))


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit of the result depends on every bit given."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _active(inputs: MetricInputs, document_r: IntArray) -> Iterator[_Found]:
    n_rows = inputs.evaluation_set.n_rows
    for start in range(0, n_rows, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, n_rows)
        codes = inputs.codes.codes(start, stop)
        active = codes.values > 0
        row_p = np.repeat(np.arange(start, stop), codes.l0_b.numpy())
        value_p = codes.values[active].double().numpy()
        yield _Found(codes.indices[active].numpy(), row_p, document_r[row_p], value_p, value_p)
        inputs.progress.update(stop, n_rows, "rows")


@dataclass(frozen=True)
class _Windows:
    """The tokens around a row, within its context: ids [contexts, length], tokens of each context, where rows are."""

    ids_cl: IntArray
    length_c: IntArray
    context_r: NDArray[Any]
    position_r: NDArray[Any]
    before: int
    after: int

    def at(self, row: int) -> dict[str, Any]:
        """Position, token ids of the window as text, and the index of the row's own among them."""
        context, position = int(self.context_r[row]), int(self.position_r[row])
        start, stop = max(0, position - self.before), min(int(self.length_c[context]), position + self.after + 1)
        tokens = " ".join(map(str, self.ids_cl[context, start:stop]))
        return {"position": position, "tokens": tokens, "at": position - start}


def _figure(inputs: MetricInputs, top: _Found, drawn: _Found) -> pd.DataFrame:
    shown = len(np.union1d(top.latent_p, drawn.latent_p)) / inputs.codes.n
    columns = {"unit": "fraction", "n_units": inputs.codes.n, "unit_kind": "latent"}
    return frame("metrics", [metric_row(inputs, VERSION, "exemplified", "all", shown, **columns)])
