"""Uncertainty of ratios of sums over documents: cluster bootstrap, delta method, paired comparison.

Tokens of one document are alike, so documents are resampled whole. A metric is Σ num / Σ den over documents; a resample
gives every document a multinomial count, and all ratios of all resamples are one matrix product.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sae_pipeline.evaluation.errors import EvaluationError

FloatArray = NDArray[np.float64]

LEVEL = 0.95
_WEIGHTS_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class Uncertainty:
    """Standard error (delta method) and 95 % percentile interval (cluster bootstrap) of one ratio of sums."""

    se: float
    ci_lo: float
    ci_hi: float


@dataclass(frozen=True)
class Comparison:
    """A minus B on the same documents: difference, standard error, 95 % interval, P(A better), documents compared."""

    difference: float
    se: float
    ci_lo: float
    ci_hi: float
    p_better: float
    n_units: int


def resampled_ratios(num_um: FloatArray, den_um: FloatArray, resamples: int, seed: int) -> FloatArray:
    """Ratios [resamples, m] of resampled sums over u units; the weights depend on u, `resamples` and `seed` alone.

    NaN or infinite where a resampled denominator is 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [(weights @ num_um) / (weights @ den_um) for weights in _weights(len(num_um), resamples, seed)]
    return np.concatenate(ratios)


def uncertainty(num_um: FloatArray, den_um: FloatArray, resamples: int, seed: int) -> list[Uncertainty]:
    """Uncertainty of each of m ratios of sums over u units; NaN with fewer than two units or no denominator."""
    if len(num_um) < 2:
        return [Uncertainty(np.nan, np.nan, np.nan)] * num_um.shape[1]
    ratios_bm = resampled_ratios(num_um, den_um, resamples, seed)
    low_m, high_m = np.quantile(ratios_bm, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    se_m = delta_se(num_um, den_um)
    return [Uncertainty(float(s), float(a), float(b)) for s, a, b in zip(se_m, low_m, high_m, strict=True)]


def delta_se(num_um: FloatArray, den_um: FloatArray) -> FloatArray:
    """Standard error [m] of Σ num / Σ den over u ≥ 2 independent units, to first order (Cochran 1977, §2.11)."""
    u = len(num_um)
    total_m = den_um.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        residual_um = num_um - (num_um.sum(axis=0) / total_m) * den_um
        return np.asarray(np.sqrt(u / (u - 1) * (residual_um**2).sum(axis=0)) / np.abs(total_m))


def compare_paired(
    unit_stats_a: pd.DataFrame, unit_stats_b: pd.DataFrame, resamples: int, seed: int, *, lower_is_better: bool = True
) -> Comparison:
    """Compare two autoencoders on one metric, document by document with the same resample weights.

    Args:
        unit_stats_a: rows of `unit_stats` of A: one (metric, variant), columns unit_id, num, den.
        unit_stats_b: those of B; the same documents.
        resamples: number of resamples.
        seed: of the resample weights.
        lower_is_better: which sign of the difference makes A the better one.

    Raises:
        EvaluationError: more than one metric or variant, different documents, or fewer than two.
    """
    for stats in (unit_stats_a, unit_stats_b):
        named = stats[["metric", "variant"]].drop_duplicates()
        if len(named) != 1:
            raise EvaluationError(f"a comparison takes one metric and variant, not {named.to_dict('records')}")
    a, b = (stats.set_index("unit_id").sort_index() for stats in (unit_stats_a, unit_stats_b))
    if not a.index.equals(b.index) or len(a) < 2:
        raise EvaluationError(
            f"a paired comparison needs the same two or more documents: {len(a)} and {len(b)}, "
            f"{len(a.index.intersection(b.index))} in common"
        )
    num_u2 = np.stack([a["num"], b["num"]], axis=1).astype(np.float64)
    den_u2 = np.stack([a["den"], b["den"]], axis=1).astype(np.float64)
    value_2 = num_u2.sum(axis=0) / den_u2.sum(axis=0)
    ratios_b2 = resampled_ratios(num_u2, den_u2, resamples, seed)
    difference_b = ratios_b2[:, 0] - ratios_b2[:, 1]
    low, high = np.quantile(difference_b, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    better_b = difference_b < 0 if lower_is_better else difference_b > 0
    return Comparison(
        difference=float(value_2[0] - value_2[1]),
        se=float(difference_b.std(ddof=1)),
        ci_lo=float(low),
        ci_hi=float(high),
        # a tie speaks for neither
        p_better=float(better_b.mean() + 0.5 * (difference_b == 0).mean()),
        n_units=len(a),
    )


def _weights(units: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """Multinomial counts [b, units], in portions that fit in memory; the portions do not change the draws."""
    rng = np.random.default_rng(seed)
    portion = max(1, _WEIGHTS_AT_ONCE // units)
    share = np.full(units, 1 / units)
    for start in range(0, resamples, portion):
        yield rng.multinomial(units, share, size=min(portion, resamples - start)).astype(np.float64)
