"""How far a shard that was made again is from the one that was lost, by what is still known of that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from sae_pipeline.activations.layout import TORCH_DTYPES
from sae_pipeline.activations.moments import Floats, Moments
from sae_pipeline.store import ShardedArray, decode_float32
from sae_pipeline.store.repairs import whole_chunks

_LEAST: Final = 1e-4
_STORED_ULPS: Final = 4
_COMPUTED_ULPS: Final = 16


def rounding_tolerance(stored: str, computed: str) -> float:
    """The largest difference (as `closeness` takes it) that other rounding on another machine explains.

    Four units in the last place as stored, and sixteen as computed (the walk of a residual through some dozen layers,
    at its largest over millions of values), but for these at least 1e-4: outlier channels are large numbers, and what
    is rounded away from them weighs on the small ones.

    Args:
        stored: dtype of the array.
        computed: dtype of the subject.
    """
    stored_eps, computed_eps = (torch.finfo(TORCH_DTYPES[dtype]).eps for dtype in (stored, computed))
    return _STORED_ULPS * stored_eps + max(_LEAST, _COMPUTED_ULPS * computed_eps)


@dataclass(frozen=True)
class Closeness:
    """Differences between the lost shard and the one made again.

    Attributes:
        values: the largest |x' - x| / (|x| + rms of x's dimension), over the whole chunks; 0 if there are none.
        chunks: how many chunks were compared.
        moments: the largest difference of a mean or a standard deviation, over the rms of its dimension; inf if other
            rows are finite.
    """

    values: float
    chunks: int
    moments: float

    def within(self, tolerance: float) -> bool:
        """Whether neither is larger than `tolerance`."""
        return self.values <= tolerance and self.moments <= tolerance

    def __str__(self) -> str:
        moments = f"moments differ by up to {self.moments:.2g}"
        if not self.chunks:
            return f"{moments}, no chunk is whole"
        return f"values differ by up to {self.values:.2g} over {self.chunks} whole chunks, {moments}"


def closeness(
    array: ShardedArray, i: int, records: Sequence[dict[str, Any]], x_rd: npt.NDArray[np.float32]
) -> Closeness:
    """Compare rows made again with what a damaged shard and its record tell.

    Args:
        array: the published array.
        i: the damaged shard.
        records: its commit record, with moments, and the record of an earlier repair, if there was one.
        x_rd: [r, d] the rows made again.
    """
    lost, made = Moments.from_json(records[0]["info"]["moments"]), Moments.of(torch.from_numpy(x_rd))
    rms_d = np.sqrt(lost.mean**2 + _variance(lost))
    chunks = [
        _difference(decode_float32(rows, array.logical_dtype), x_rd[j * array.chunk_rows :][: len(rows)], rms_d)
        for j, rows in whole_chunks(array, i, records)
    ]
    return Closeness(max(chunks, default=0.0), len(chunks), _moments_difference(lost, made, rms_d))


def _variance(moments: Moments) -> Floats:
    return moments.m2 / max(1, moments.count)


def _difference(x_rd: npt.NDArray[np.float32], y_rd: npt.NDArray[np.float32], rms_d: Floats) -> float:
    finite = np.isfinite(x_rd)
    if not np.array_equal(finite, np.isfinite(y_rd)):
        return math.inf
    x, y = (np.where(finite, value, 0.0).astype(np.float64) for value in (x_rd, y_rd))
    return _largest(np.abs(y - x), np.abs(x) + rms_d)


def _moments_difference(lost: Moments, made: Moments, rms_d: Floats) -> float:
    if (lost.count, lost.non_finite) != (made.count, made.non_finite):
        return math.inf
    spread_d = np.sqrt(_variance(made)) - np.sqrt(_variance(lost))
    return max(_largest(np.abs(difference_d), rms_d) for difference_d in (made.mean - lost.mean, spread_d))


def _largest(difference: Floats, scale: Floats) -> float:
    """The largest ratio; where both are 0, none."""
    ratio = np.divide(difference, scale, out=np.where(difference > 0, math.inf, 0.0), where=scale > 0)
    return float(ratio.max(initial=0.0))
