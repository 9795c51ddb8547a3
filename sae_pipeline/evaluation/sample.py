"""A few rows that stand for all of an evaluation set."""

import numpy as np
from numpy.typing import NDArray


def stratified(rows: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """`count` of the rows, in order: one drawn from each of `count` equal runs of them; all if there are no more.

    Rows lie in the order of their documents, so every document is drawn from in proportion to its length, and a mean
    over the sample estimates that over all rows.
    """
    if len(rows) <= count:
        return rows
    edges = np.linspace(0, len(rows), count + 1).astype(np.int64)
    return rows[np.random.default_rng(seed).integers(edges[:-1], edges[1:])]
