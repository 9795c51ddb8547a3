"""Which contexts a build keeps, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.int64]


def row_budgets(available: Mapping[str, int], shares: Mapping[str, float], budget: int) -> dict[str, int]:
    """Rows to take from each corpus: shares hold, so the corpus that has least for its share limits them all."""
    reachable = min([budget, *(int(rows / shares[name]) for name, rows in available.items())])
    return {name: int(reachable * shares[name]) for name in available}


def permuted(n: int, seed: int) -> Order:
    """The training order of `n` contexts: a permutation by seed."""
    return np.random.default_rng([seed, 1]).permutation(n)


def cut(order: Order, rows_c: NDArray[np.int64], corpus_c: NDArray[np.int64], budgets: Sequence[int]) -> Order:
    """Contexts of `order`, in that order: from each corpus as many whole ones as fit in its budget of rows.

    `rows_c` and `corpus_c` hold rows and corpus number of every context; `budgets` is indexed by corpus number.
    Contexts without rows are dropped.
    """
    kept = np.zeros(rows_c.size, bool)
    for number, budget in enumerate(budgets):
        own = order[corpus_c[order] == number]
        kept[own[: int(np.searchsorted(np.cumsum(rows_c[own]), budget, side="right"))]] = True
    return order[kept[order] & (rows_c[order] > 0)]
