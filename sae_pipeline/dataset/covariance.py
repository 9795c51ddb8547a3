"""The exact mean and covariance of all normalised rows, in one pass over the shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt
import torch

from sae_pipeline.dataset.normaliser import Normaliser
from sae_pipeline.store import Progress, ShardedArray, silent

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Covariance:
    """Moments of `count` rows in float64: mean_d (d,), and m2_dd (d, d) = Σ (u - mean)(u - mean)ᵀ."""

    count: int
    mean_d: Floats
    m2_dd: Floats

    @classmethod
    def empty(cls, d: int) -> Covariance:
        """Of no rows, the neutral element of `merge`."""
        return cls(0, np.zeros(d), np.zeros((d, d)))

    @classmethod
    def of(cls, u_rd: Floats) -> Covariance:
        """Of rows (r, d), two passes."""
        if not len(u_rd):
            return cls.empty(u_rd.shape[1])
        mean_d = u_rd.mean(0)
        centred_rd = u_rd - mean_d
        return cls(len(u_rd), mean_d, centred_rd.T @ centred_rd)

    def merge(self, other: Covariance) -> Covariance:
        """Of both sets together (Chan, Golub & LeVeque 1979: the pairwise update of mean and M2)."""
        count = self.count + other.count
        share = other.count / count if count else 0.0
        shift_d = other.mean_d - self.mean_d
        between_dd = self.count * share * np.outer(shift_d, shift_d)
        return Covariance(count, self.mean_d + share * shift_d, self.m2_dd + other.m2_dd + between_dd)

    @property
    def sigma_dd(self) -> Floats:
        """Σ (d, d), of the rows themselves: divided by their number."""
        return self.m2_dd / max(1, self.count)


def covariance_of(
    acts: ShardedArray, normaliser: Normaliser, n_rows: int | None = None, progress: Progress = silent
) -> Covariance:
    """Moments of the first `n_rows` rows of `acts` (None: of all) as training sees them, normalised in float32.

    Rows that are not finite are left out.
    """
    n_rows = acts.n_rows if n_rows is None else n_rows
    return reduce(Covariance.merge, map(Covariance.of, _blocks(acts, normaliser, n_rows, progress)), _start(acts))


def _start(acts: ShardedArray) -> Covariance:
    return Covariance.empty(acts.shape[1])


def _blocks(acts: ShardedArray, normaliser: Normaliser, n_rows: int, progress: Progress) -> Iterator[Floats]:
    for start in range(0, n_rows, acts.chunk_rows):
        stop = min(start + acts.chunk_rows, n_rows)
        u_rd = normaliser.normalise(torch.from_numpy(acts.read_float32(start, stop)))[0].double()
        yield u_rd[u_rd.sum(1).isfinite()].numpy()
        progress.update(stop, n_rows, "rows")
