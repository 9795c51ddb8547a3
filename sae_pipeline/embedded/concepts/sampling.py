"""How rows are drawn from a document, each draw a function of the seed, the document and the concept alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.embedded.concepts.probe_set import Flags, Ints
from sae_pipeline.store import PipelineError

MAX_ROWS_PER_DOCUMENT = 50


@dataclass(frozen=True)
class Sampling:
    """What a probe set takes of its documents.

    Attributes:
        context: tokens of a context, at most what the subject was trained on.
        train_documents, test_documents: documents to read at most on each side, the first in a seeded order.
        contexts_per_document: contexts to keep of a document at most.
        rows_per_document: rows of a task from one document at most, half of them with each label.
        min_documents: documents with rows of a task that each split needs, or the task is dropped.
        first_position: first position in a context that may become a row.
        first_position_long_range: the same for tasks that need a long context.
        max_agreement: a task whose |φ| with an earlier one is higher is dropped.
        seed: of all choices.
    """

    context: int = 256
    train_documents: int = 200
    test_documents: int = 200
    contexts_per_document: int = 8
    rows_per_document: int = 24
    min_documents: int = 30
    first_position: int = 16
    first_position_long_range: int = 64
    max_agreement: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.rows_per_document <= MAX_ROWS_PER_DOCUMENT or self.rows_per_document % 2:
            raise PipelineError(
                f"rows_per_document = {self.rows_per_document}; take an even number from 2 to {MAX_ROWS_PER_DOCUMENT}"
            )
        if not 0 < self.first_position <= self.first_position_long_range < self.context:
            raise PipelineError(
                f"rows from position {self.first_position} (long-range: {self.first_position_long_range}) "
                f"do not fit contexts of {self.context} tokens; lengthen the context"
            )


def generator(*parts: str | int) -> np.random.Generator:
    """A generator seeded by names and numbers."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def choose_contexts(holds_kc: Flags, limit: int, random: np.random.Generator) -> Ints:
    """At most `limit` contexts of a document in which as many concepts as possible occur, sorted.

    Contexts are taken greedily, each adding the most concepts that the others lack; ties, and all choices when nothing
    is missing, follow a random order.

    Args:
        holds_kc: whether a concept has a positive row to offer in a context, `[concepts, contexts]`.
        limit: how many contexts.
        random: generator of the order.
    """
    order = random.permutation(holds_kc.shape[1])
    offers = holds_kc[:, order]
    chosen: list[int] = []
    missing = np.ones(holds_kc.shape[0], bool)
    for _ in range(min(limit, order.size)):
        gain = offers[missing].sum(axis=0)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        missing &= ~offers[:, chosen[-1]]
    return np.sort(order[chosen])


def draw_balanced(positive_t: Flags, eligible_t: Flags, half: int, random: np.random.Generator) -> tuple[Ints, Ints]:
    """As many tokens with the label as without it, at most `half` of each: two sorted arrays of equal length."""
    sides: list[NDArray[np.int64]] = [np.flatnonzero(eligible_t & positive_t), np.flatnonzero(eligible_t & ~positive_t)]
    n = min(half, *(side.size for side in sides))
    with_label, without = (np.sort(random.choice(side, n, replace=False)) for side in sides)
    return with_label, without
