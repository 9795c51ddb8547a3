"""Exact statistics of the training rows, merged from the moments that were taken while each shard was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sae_pipeline.activations import Moments
from sae_pipeline.dataset.normaliser import PER_TOKEN, Normaliser

Floats = npt.NDArray[np.float64]
_VECTORS = ("mean", "geometric_median")


@dataclass(frozen=True)
class Statistics:
    """Moments of all training rows (float64).

    count             rows
    mean              (d,) mean of the normalised rows
    total_variance    E‖u - mean‖² of the normalised rows: what always predicting the mean would cost
    mean_norm         E‖x‖ of the raw rows
    mean_square_norm  E‖x‖² of the raw rows
    absmax            largest |value| of the raw rows
    non_finite        raw rows' values that are NaN or infinite
    constant_channels raw channels that never change
    geometric_median  (d,) of `sample_rows` normalised rows drawn with `sample_seed`
    """

    count: int
    mean: Floats
    total_variance: float
    mean_norm: float
    mean_square_norm: float
    absmax: float
    non_finite: int
    constant_channels: int
    geometric_median: Floats
    sample_rows: int
    sample_seed: int

    @classmethod
    def from_moments(
        cls, moments: Moments, normaliser: Normaliser, *, geometric_median: Floats, sample_rows: int, sample_seed: int
    ) -> Statistics:
        """Statistics of the rows behind `moments`, normalised by `normaliser`."""
        mean, total_variance = normalised_moments(moments, normaliser)
        return cls(
            count=moments.count,
            mean=mean,
            total_variance=total_variance,
            mean_norm=moments.norm_sum / moments.count,
            mean_square_norm=moments.sq_sum / moments.count,
            absmax=float(moments.absmax),
            non_finite=int(moments.non_finite),
            constant_channels=int(np.count_nonzero(np.asarray(moments.m2) == 0)),
            geometric_median=geometric_median,
            sample_rows=sample_rows,
            sample_seed=sample_seed,
        )

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; floats keep every bit."""
        return {name: value.tolist() if name in _VECTORS else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Statistics:
        """The statistics that `to_json` described."""
        fields: dict[str, Any] = {**value, **{name: np.array(value[name], np.float64) for name in _VECTORS}}
        return cls(**fields)


def normalised_moments(moments: Moments, normaliser: Normaliser) -> tuple[Floats, float]:
    """Mean (d,) and E‖u - mean‖² of the normalised rows, exactly, from the moments of raw and of unit rows."""
    per_token = normaliser.name in PER_TOKEN
    mean = moments.unit_mean if per_token else moments.mean
    m2 = moments.unit_m2 if per_token else moments.m2
    factor = normaliser.factor
    return np.asarray(mean, np.float64) * factor, float(np.sum(m2)) / moments.count * factor**2
