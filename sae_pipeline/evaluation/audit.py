"""Statistics frames that the gates of evaluation read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sae_pipeline.evaluation.codes_cache import CodesCache
from sae_pipeline.evaluation.tables import MetricResult, read_metric
from sae_pipeline.store import Artefact, Damaged, Draft

_ROWS_AT_ONCE = 32_768

_FIGURES = {
    "nmse": ("nmse", "all"),
    "kl": ("kl", "all"),
    "dce": ("dce", "all"),
    "mean_ablation_dce": ("dce", "mean_ablation"),
    "control_kl": ("kl", "control_untouched"),
    "control_dce": ("dce", "control_untouched"),
    "round_trip_kl": ("kl", "control_round_trip"),
    "round_trip_dce": ("dce", "control_round_trip"),
    "silent": ("silent", "all"),
}


def audit_codes(source: Draft | Artefact) -> pd.DataFrame:
    """One row on a code cache, read back from disk.

    Columns: damage ("" or what is wrong with the first bad file; the rest is missing then), rows, rows_expected, n, k
    (missing where not fixed), max_l0, mean_l0, non_finite (values, x2, err2), out_of_range (indices), unsorted (rows
    that rise), l0_mismatch (rows whose stored l0 is not that of their codes), worse_than_nothing (share of rows with
    err2 > x2).
    """
    try:
        figures = {"damage": "", **_code_figures(CodesCache(source))}
    except Damaged as error:
        figures = {"damage": error.cause}
    columns = [
        "damage", "rows", "rows_expected", "n", "k", "max_l0", "mean_l0", "non_finite", "out_of_range", "unsorted",
        "l0_mismatch", "worse_than_nothing",
    ]  # fmt: skip
    return pd.DataFrame([figures], columns=columns)


def _code_figures(cache: CodesCache) -> dict[str, Any]:
    x2_r, err2_r, l0_r = (cache.scalars(name) for name in ("x2", "err2", "l0"))
    counts = {"rows": 0, "non_finite": int((~np.isfinite(x2_r) | ~np.isfinite(err2_r)).sum())}
    counts |= dict.fromkeys(("out_of_range", "unsorted", "l0_mismatch"), 0)
    for start in range(0, cache.n_rows, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, cache.n_rows)
        codes = cache.codes(start, stop)
        kept = codes if cache.ragged else cache.candidates(start, stop)
        counts["rows"] += len(codes)
        counts["non_finite"] += int((~kept.values.isfinite()).sum())
        counts["out_of_range"] += int(((kept.indices < 0) | (kept.indices >= cache.n)).sum())
        counts["l0_mismatch"] += int((codes.l0_b.numpy() != l0_r[start:stop]).sum())
        if not cache.ragged:
            counts["unsorted"] += int((kept.values.diff(dim=1) > 0).any(dim=1).sum())
    l0 = {"max_l0": int(l0_r.max()), "mean_l0": float(l0_r.mean())}
    worse = float((err2_r > x2_r).mean())
    return {"rows_expected": cache.n_rows, "n": cache.n, "k": cache.k, "worse_than_nothing": worse, **l0, **counts}


def audit_metric(source: Draft | Artefact) -> pd.DataFrame:
    """One row on a metric's result, read back from disk.

    Columns: metric, rows, missing_without_reason, infinite, outside_interval (values outside their intervals), and,
    missing where the metric does not have them: nmse, kl, dce, mean_ablation_dce, control_kl, control_dce (splicing the
    untouched activations: |value|), round_trip_kl, round_trip_dce (through the normaliser and back: |value|), silent.
    """
    result = read_metric(source)
    rows = result.metrics
    outside = (rows["value"] < rows["ci_lo"]) | (rows["value"] > rows["ci_hi"])
    counts = {
        "metric": result.metric,
        "rows": len(rows),
        "missing_without_reason": int((rows["value"].isna() & rows["reason"].isna()).sum()),
        "infinite": int(np.isinf(rows["value"]).sum()),
        "outside_interval": int(outside.sum()),
    }
    return pd.DataFrame([counts | {name: _figure(result, name) for name in _FIGURES}])


def _figure(result: MetricResult, name: str) -> float:
    """The figure of that name; a control's by its size, since it may lie on either side of 0."""
    metric, variant = _FIGURES[name]
    rows = result.metrics[(result.metrics["metric"] == metric) & (result.metrics["variant"] == variant)]
    if not len(rows):
        return float("nan")
    value = float(rows["value"].iloc[0])
    return abs(value) if variant.startswith("control") else value
