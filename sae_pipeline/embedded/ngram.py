"""The count model that a language model has to beat: interpolated modified Kneser-Ney (Chen and Goodman 1999)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
_KEY_BITS = 62


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order, each packed into an integer, and the histories they follow, sorted for look-up."""

    grams_g: Ids
    share_g: NDArray[np.float64]  # (count - discount) / total of the history
    histories_h: Ids
    backoff_h: NDArray[np.float64]  # what the discounts leave to the next lower order


class NGram:
    """P(token | the `order - 1` tokens before it) from the counts of one stream.

    Below the highest order a token counts once for every different token seen before it, and each count gives up one
    of three discounts, for counts of 1, 2 and more. The lowest order is mixed with the uniform distribution.
    """

    def __init__(self, stream: Ids, vocab_size: int, *, order: int = 5) -> None:
        """Count the stream.

        Raises:
            ValueError: it is shorter than one n-gram, or `order` tokens of this vocabulary do not fit 62 bits.
        """
        if order * (vocab_size - 1).bit_length() > _KEY_BITS:
            raise ValueError(f"{order}-grams over {vocab_size} tokens do not fit {_KEY_BITS} bits; lower the order")
        if stream.size < order:
            raise ValueError(f"{stream.size} tokens hold no {order}-gram")
        self.vocab_size, self.order = vocab_size, order
        grams_g, counts_g = np.unique(_packed(stream, order, vocab_size), return_counts=True)
        levels = [_level(grams_g, counts_g, vocab_size)]
        for length in range(order - 1, 0, -1):
            grams_g, counts_g = np.unique(grams_g % vocab_size**length, return_counts=True)
            levels.append(_level(grams_g, counts_g, vocab_size))
        self._levels = levels[::-1]

    def probabilities(self, ids_t: Ids) -> NDArray[np.float64]:
        """P of every token but the first given those before it in the document: `[t] -> [t - 1]`."""
        p = np.full(ids_t.size - 1, 1 / self.vocab_size)
        for length, level in enumerate(self._levels, start=1):
            if ids_t.size < length:
                break
            # Near the start of the document the history is short, and so is the longest n-gram.
            known = slice(max(0, length - 2), None)
            grams = _packed(ids_t, length, self.vocab_size)[1 if length == 1 else 0 :]
            p[known] = _interpolated(level, grams, p[known], self.vocab_size)
        return p

    def nats_per_token(self, documents: Sequence[Ids]) -> float:
        """Mean of -ln P over all tokens but the first of each document."""
        return float(-np.log(np.concatenate([self.probabilities(ids_t) for ids_t in documents])).mean())


def _packed(ids_t: Ids, length: int, vocab_size: int) -> Ids:
    """All n-grams of this length as integers in base `vocab_size`: `[t] -> [t - length + 1]`."""
    keys = np.zeros(ids_t.size - length + 1, np.int64)
    for i in range(length):
        keys = keys * vocab_size + ids_t[i : i + keys.size]
    return keys


def _level(grams_g: Ids, counts_g: Ids, vocab_size: int) -> _Level:
    histories_h, history_g = np.unique(grams_g // vocab_size, return_inverse=True)
    discounts_g = _discounts(counts_g)[np.minimum(counts_g, 3)]
    totals_h = np.bincount(history_g, weights=counts_g)
    return _Level(
        grams_g,
        (counts_g - discounts_g) / totals_h[history_g],
        histories_h,
        np.bincount(history_g, weights=discounts_g) / totals_h,
    )


def _discounts(counts_g: Ids) -> NDArray[np.float64]:
    """D_1, D_2 and D_3+ at those indices (Chen and Goodman 1999, eq. 26), kept within [0, count]."""
    n = [0, *(int((counts_g == count).sum()) for count in (1, 2, 3, 4))]
    y = n[1] / max(1, n[1] + 2 * n[2])
    return np.array([0.0, *(min(c, max(0.0, c - (c + 1) * y * n[c + 1] / max(1, n[c]))) for c in (1, 2, 3))])


def _interpolated(level: _Level, grams: Ids, lower: NDArray[np.float64], vocab_size: int) -> NDArray[np.float64]:
    share = _look_up(level.grams_g, level.share_g, grams, otherwise=0.0)
    backoff = _look_up(level.histories_h, level.backoff_h, grams // vocab_size, otherwise=1.0)
    return share + backoff * lower


def _look_up(keys: Ids, values: NDArray[np.float64], wanted: Ids, *, otherwise: float) -> NDArray[np.float64]:
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[at] == wanted, values[at], otherwise)
