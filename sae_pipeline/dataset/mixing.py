"""How well the read order mixes: rows of one context, or one document, that meet in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sae_pipeline.dataset.order import ReadOrder
from sae_pipeline.store import PipelineError

Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Mixing:
    """Pairs of rows in a batch from one context (or document), over what batches drawn at random would hold.

    1 is perfect; `n_shards / resident_shards` is what an order gives that leaves each context within one shard.
    """

    batch: int
    n_batches: int
    same_context_ratio: float
    same_document_ratio: float


def measure_mixing(
    order: ReadOrder, row_offsets: Ints, document_of_context: Ints, *, batch: int = 4096, n_batches: int = 32
) -> Mixing:
    """Measure `n_batches` batches spread evenly over the first epoch.

    `row_offsets` (contexts + 1,) counts the rows before each context, `document_of_context` (contexts,) numbers its
    document. Cost: one permutation of a group per batch measured.
    """
    if int(row_offsets[-1]) != order.n_rows or len(row_offsets) != len(document_of_context) + 1:
        raise PipelineError(
            f"row_offsets end at {row_offsets[-1]} for {len(document_of_context)} contexts, but there are "
            f"{order.n_rows} rows of activations; pass the contexts the activations were made from"
        )
    batch = min(batch, order.n_rows)
    steps = np.unique(np.linspace(0, order.n_rows // batch - 1, n_batches).astype(int))
    contexts_sb = [
        np.searchsorted(row_offsets, order.rows(step * batch, (step + 1) * batch), side="right") - 1 for step in steps
    ]
    sizes = np.diff(row_offsets)
    document_sizes = np.bincount(document_of_context, weights=sizes)
    pairs = batch * (batch - 1) * len(steps)
    return Mixing(
        batch=batch,
        n_batches=len(steps),
        same_context_ratio=_ratio(contexts_sb, pairs, sizes),
        same_document_ratio=_ratio([document_of_context[c] for c in contexts_sb], pairs, document_sizes),
    )


def _ratio(labels_sb: Sequence[Ints], pairs: int, sizes: npt.NDArray[Any]) -> float:
    met = sum(_ordered_pairs(np.unique(labels, return_counts=True)[1]) for labels in labels_sb)
    expected = pairs * _ordered_pairs(sizes) / max(1.0, sizes.sum() * (sizes.sum() - 1.0))
    # Without a single pair to meet there is nothing to separate.
    return float(met / expected) if expected > 0 else 1.0


def _ordered_pairs(counts: npt.NDArray[Any]) -> float:
    n = counts.astype(np.float64)
    return float((n * (n - 1)).sum())
