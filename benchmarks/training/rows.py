"""Write the rows that all trainers see: `rows.py FILE ROWS D [SEED]`.

Sparse sums of planted directions, a few common ones and many rare, and noise; then as the paper normalises its rows:
less their mean over d, of unit norm. The directions come from NumPy's generator and a seed of their own, weights from
PyTorch's: drawn alike, half of a dictionary would be known before the first step.
"""

from __future__ import annotations

import sys

import numpy as np

SEED = 314_159
FEATURES_PER_D, ACTIVE, ZIPF, NOISE = 8, 24, 0.7, 0.03
BLOCK = 8192


def directions(d: int, generator: np.random.Generator) -> np.ndarray:
    """The planted ones, unit, [features, d]."""
    drawn = generator.standard_normal((FEATURES_PER_D * d, d), dtype=np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def block(rows: int, directions_fd: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """So many rows, [rows, d]."""
    features, d = directions_fd.shape
    weights = np.arange(1, features + 1) ** -ZIPF
    x_bd = NOISE * generator.standard_normal((rows, d), dtype=np.float32)
    for _ in range(ACTIVE):
        chosen = np.searchsorted(np.cumsum(weights) / weights.sum(), generator.random(rows)).clip(max=features - 1)
        x_bd += generator.exponential(size=(rows, 1)).astype(np.float32) * directions_fd[chosen]
    x_bd -= x_bd.mean(1, keepdims=True)
    return x_bd / np.linalg.norm(x_bd, axis=1, keepdims=True)


def main() -> None:
    path, rows, d = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    generator = np.random.default_rng(int(sys.argv[4]) if len(sys.argv) > 4 else SEED)
    directions_fd = directions(d, generator)
    rows_xd = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, d))
    for start in range(0, rows, BLOCK):
        stop = min(start + BLOCK, rows)
        rows_xd[start:stop] = block(stop - start, directions_fd, generator)


if __name__ == "__main__":
    main()
