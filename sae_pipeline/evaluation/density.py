"""Density: how often each latent fires on the held-out rows, and which never do.

Two things are called dead elsewhere; here they have two names. `dead` is training's: no firing in the last window of
training tokens. `silent` is the evaluation's: no firing on these T rows, which says only that the latent's density is
below 3/T (95 %, rule of three).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sae_pipeline.evaluation.inputs import FloatArray, Metric, MetricInputs, metric_row
from sae_pipeline.evaluation.tables import CURVE_COLUMNS, LATENT_STATS_COLUMNS, MetricResult, frame
from sae_pipeline.measures import Density
from sae_pipeline.study import VERSIONS

VERSION = VERSIONS["eval_density"]
DENSE = 0.1
"""A latent that fires on more than this share of the rows is dense."""

BIN_LOG10 = 0.25
_ROWS_AT_ONCE = 32_768


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    return [_measure_one(one) for one in inputs]


def _measure_one(inputs: MetricInputs) -> MetricResult:
    counts = _Counts.of(inputs)
    return MetricResult(
        "density",
        VERSION,
        metrics=frame("metrics", _rows(inputs, counts)),
        curves=_histogram(inputs, counts),
        latent_stats=_latent_stats(inputs, counts),
        facts={"tokens": counts.tokens, "dense_above": DENSE},
    )


METRIC = Metric("density", VERSION, needs_subject=False, measure=_measure)
"""silent, silent_bound (3/T), dead, dense (share of latents), dense_l0_share (share of L0 that dense latents carry).

Curve `density_hist`: latents per bin of log10 density, x the lower edge, silent latents left out. `latent_stats`:
count, density, mean and largest value where active.
"""


@dataclass(frozen=True)
class _Counts:
    """Over T rows, for each latent [n]: on how many it fired, the sum and the largest of its values there."""

    tokens: int
    counts_n: NDArray[np.int64]
    sum_n: FloatArray
    max_n: FloatArray

    @classmethod
    def of(cls, inputs: MetricInputs) -> _Counts:
        cache = inputs.codes
        density = Density(cache.n)
        sum_n, max_n = torch.zeros(cache.n, dtype=torch.float64), torch.zeros(cache.n)
        for start in range(0, cache.n_rows, _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, cache.n_rows)
            codes = cache.codes(start, stop)
            active = codes.values > 0
            values = codes.values[active]
            density.update(codes.fired, stop - start)
            sum_n.index_add_(0, codes.fired, values.double())
            max_n.scatter_reduce_(0, codes.fired, values, "amax")
            inputs.progress.update(stop, cache.n_rows, "rows")
        return cls(density.tokens, density.counts_n.numpy(), sum_n.numpy(), max_n.double().numpy())

    @property
    def density_n(self) -> FloatArray:
        return np.asarray(self.counts_n / self.tokens)


def _rows(inputs: MetricInputs, counts: _Counts) -> list[dict[str, object]]:
    dense_n = counts.density_n > DENSE
    fired = int(counts.counts_n.sum())
    over_rows = {"n_units": counts.tokens, "unit_kind": "token"}
    shares = {
        ("silent", "all"): float((counts.counts_n == 0).mean()),
        ("silent_bound", "all"): 3.0 / counts.tokens,
        ("dense", "above_0.1"): float(dense_n.mean()),
        ("dense_l0_share", "above_0.1"): float(counts.counts_n[dense_n].sum()) / fired if fired else float("nan"),
    }
    rows = [
        metric_row(
            inputs, VERSION, metric, variant, value, unit="fraction", better="lower" if metric == "silent" else "none",
            reason=None if np.isfinite(value) else "no latent fired", **over_rows,
        )
        for (metric, variant), value in shares.items()
    ]  # fmt: skip
    return [*rows, _dead_row(inputs)]


def _dead_row(inputs: MetricInputs) -> dict[str, object]:
    columns = {"unit": "fraction", "better": "lower", "unit_kind": "training token"}
    if inputs.dead is None:
        reason = "the share dead at the end of training was not passed in"
        return metric_row(inputs, VERSION, "dead", "all", float("nan"), reason=reason, **columns)
    share, window_tokens = inputs.dead
    return metric_row(inputs, VERSION, "dead", "all", share, n_units=window_tokens, **columns)


def _histogram(inputs: MetricInputs, counts: _Counts) -> pd.DataFrame:
    lowest = np.floor(-np.log10(max(2, counts.tokens)) / BIN_LOG10) * BIN_LOG10
    edges = np.arange(lowest, BIN_LOG10 + 1e-9, BIN_LOG10)
    density_n = counts.density_n
    latents, _ = np.histogram(np.log10(density_n[density_n > 0]), bins=edges)
    curve = {"metric": "density", "curve": "density_hist", "x_unit": "log10(density)", "y_unit": "latents"}
    filled = pd.DataFrame({"x": edges[:-1], "y": latents, "n": counts.tokens}).assign(**inputs.key, **curve)
    return filled[list(CURVE_COLUMNS)].astype(CURVE_COLUMNS)


def _latent_stats(inputs: MetricInputs, counts: _Counts) -> pd.DataFrame:
    fired_n = counts.counts_n > 0
    mean_n = np.where(fired_n, counts.sum_n / np.maximum(1, counts.counts_n), np.nan)
    columns = {
        "latent": np.arange(len(fired_n)),
        "count": counts.counts_n,
        "density": counts.density_n,
        "mean_act": mean_n,
        "max_act": np.where(fired_n, counts.max_n, np.nan),
    }
    filled = pd.DataFrame(columns).assign(**inputs.key)
    return filled.reindex(columns=list(LATENT_STATS_COLUMNS)).astype(LATENT_STATS_COLUMNS)
