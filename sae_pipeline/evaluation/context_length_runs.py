"""Longer contexts than those of the evaluation set, joined from them: its documents are whole and in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.activations import EvaluationSet

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class LongContext:
    """Contexts a to b of one document as a single one of l positions.

    Attributes:
        document: its number.
        ids_l: token ids.
        mask_l: eligible positions.
        context_l: which context, counted from a, and `position_l`, which position of it, each position was.
    """

    document: int
    a: int
    b: int
    ids_l: IntArray
    mask_l: NDArray[np.bool_]
    context_l: IntArray
    position_l: IntArray

    def __len__(self) -> int:
        return len(self.ids_l)


def long_contexts(evaluation_set: EvaluationSet, longest: int) -> Iterator[LongContext]:
    """All of a set, in order: of each document as many contexts together as fit into `longest` positions.

    Where every context begins with the same token (a BOS policy), only that of the first stays. Padding is left out.
    """
    heads = _heads(evaluation_set)
    step = 1 + max(0, (longest - evaluation_set.context) // (evaluation_set.context - heads))
    change = np.flatnonzero(np.diff(evaluation_set.document)) + 1
    ends = [*change.tolist(), evaluation_set.n_contexts]
    for first, end in pairwise([0, *ends]):
        for a in range(first, end, step):
            yield _joined(evaluation_set, a, min(a + step, end), heads)


def _heads(evaluation_set: EvaluationSet) -> int:
    """Tokens, 0 or 1, that stand at the head of every context and are no text of its document."""
    first_c = evaluation_set.ids(0, evaluation_set.n_contexts)[:, 0]
    return int(len(first_c) > 1 and bool((first_c == first_c[0]).all()))


def _joined(evaluation_set: EvaluationSet, a: int, b: int, heads: int) -> LongContext:
    place_cl = np.arange(evaluation_set.context)[None, :] < evaluation_set.length[a:b, None]
    place_cl[1:, :heads] = False
    context_l, position_l = np.nonzero(place_cl)
    ids_l = evaluation_set.ids(a, b).numpy()[context_l, position_l]
    mask_l = evaluation_set.mask(a, b).numpy()[context_l, position_l]
    return LongContext(int(evaluation_set.document[a]), a, b, ids_l, mask_l, context_l, position_l)


def drawn(contexts: list[LongContext], positions: int, seed: int) -> list[LongContext]:
    """Some of them, in order: drawn one after another, until they hold so many positions; all where they hold fewer."""
    chosen, held = [], 0
    for i in np.random.default_rng(seed).permutation(len(contexts)):
        if held >= positions:
            break
        chosen.append(int(i))
        held += len(contexts[i])
    return [contexts[i] for i in sorted(chosen)]


def stretches(context: int, longest: int) -> list[tuple[int, int]]:
    """The stretches of positions that figures are given of: 0 to `context`, then each twice as far, to `longest`."""
    edges = [0, context]
    while edges[-1] < longest:
        edges.append(min(2 * edges[-1], longest))
    return list(pairwise(edges))
