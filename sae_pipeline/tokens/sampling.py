"""Positions drawn from contexts: a function of seed and context alone, not of where among others a context stands.

A context is known by its document's number and the position of its first token, which it keeps when the corpora grow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def drawn(
    eligible_cl: NDArray[np.bool_],
    document_c: NDArray[np.integer],
    start_c: NDArray[np.integer],
    *,
    n: int,
    seed: int,
) -> NDArray[np.bool_]:
    """At most `n` of the eligible positions of each context `[c, L]`, drawn without replacement, each alike likely.

    Every position gets a 64-bit number; those with the smallest are drawn. No position's number depends on which others
    are eligible.
    """
    context_c = _mixed(_mixed(np.uint64(seed) ^ _words(document_c)) ^ _words(start_c))
    with np.errstate(over="ignore"):
        number_cl = _mixed(context_c[:, None] + np.arange(eligible_cl.shape[1], dtype=np.uint64) * _GAMMA)
    number_cl[~eligible_cl] = np.iinfo(np.uint64).max
    largest_c1 = np.partition(number_cl, n - 1, axis=1)[:, n - 1 : n]
    return np.asarray(eligible_cl & (number_cl <= largest_c1))


def _words(values: NDArray[np.integer]) -> NDArray[np.uint64]:
    return values.astype(np.int64).view(np.uint64)


def _mixed(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea & Flood 2014), a bijection of 64-bit words."""
    with np.errstate(over="ignore"):
        word = word + _GAMMA
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return word ^ (word >> np.uint64(31))
