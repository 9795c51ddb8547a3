"""Hashes of all runs of n tokens: what near-duplicate and overlap search compare instead of the runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
_BASE = 0x9E3779B97F4A7C15


def mix(x: U64) -> U64:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection that spreads every input bit over the word."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def run_hashes(tokens: NDArray[np.integer], length: int) -> U64:
    """64-bit hash of every run of `length` tokens, `[n] -> [max(0, n - length + 1)]`; equal runs have equal hashes.

    Polynomial in a fixed base over mixed token values; long runs are put together from halves, in log2(length) passes.
    """
    if tokens.size < length:
        return np.zeros(0, np.uint64)
    return mix(_polynomial(mix(tokens.astype(np.uint64) + np.uint64(1)), length))


def _polynomial(values: U64, length: int) -> U64:
    if length == 1:
        return values
    half = length // 2
    halves = _polynomial(values, half)
    power = np.uint64(pow(_BASE, half, 1 << 64))
    total = halves[:-half] * power + halves[half:]
    return total[:-1] * np.uint64(_BASE) + values[length - 1 :] if length % 2 else total
