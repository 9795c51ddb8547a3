"""The result of a scaling stage: tidy tables, and how they lie in an artefact."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from sae_pipeline.store import Artefact, Draft

FIT_COLUMNS = {
    "fit_id": "str",
    "target": "str",
    "recipe": "str",
    "form": "str",
    "irreducible": "bool",
    "k": "Int64",
    "parameter": "str",
    "value": "float64",
    "ci_lo": "float64",
    "ci_hi": "float64",
    "ci_method": "str",
    "preferred": "bool",
    "n_points": "int64",
    "n_min": "int64",
    "n_max": "int64",
    "n_centre": "float64",
    "k_centre": "float64",
    "objective": "float64",
    "rms_log_residual": "float64",
    "r2_log": "float64",
    "converged": "bool",
    "starts": "int64",
    "agreeing_starts": "int64",
    "hold_out_n": "Int64",
    "hold_out_log_error": "float64",
    "hold_out_reason": "str",
}
PREDICTION_COLUMNS = {
    "fit_id": "str",
    "kind": "str",
    "autoencoder": "str",
    "n": "float64",
    "k": "float64",
    "value": "float64",
    "lo": "float64",
    "hi": "float64",
    "observed": "float64",
    "log_residual": "float64",
}
POINT_COLUMNS = {
    "autoencoder": "str",
    "recipe": "str",
    "n": "int64",
    "k": "Int64",
    "seed": "int64",
    "target": "str",
    "value": "float64",
    "se": "float64",
    "used": "bool",
    "reason": "str",
}
REFUSAL_COLUMNS = {
    "fit_id": "str",
    "target": "str",
    "recipe": "str",
    "form": "str",
    "irreducible": "bool",
    "k": "Int64",
    "n_points": "int64",
    "reason": "str",
}


@dataclass(frozen=True)
class ScalingResult:
    """Fits, predictions, points and refusals of one site.

    fits: one row per accepted fit and parameter. `k` is null for joint forms; `hold_out_log_error` is the mean of
        ln(predicted / observed) at `hold_out_n` for the same form fitted without it; `preferred` marks, of the fits
        of one form to the same points, the one with the smaller hold-out error (else the one without the irreducible
        term). β_k and β_n hold at n = k = 1, far outside the points; `n_exponent_at_centre` is the one to read.
    predictions: `kind` is "grid" (for plotting, up to four times the largest n), "point" (each fitted point) or
        "held_out" (largest n, predicted without it); `lo`, `hi` the 95 % fan; `log_residual` = ln(value / observed).
    points: the input with `used` and, where not used, a reason.
    refusals: forms the points do not identify, with the reason.
    """

    fits: pd.DataFrame
    predictions: pd.DataFrame
    points: pd.DataFrame
    refusals: pd.DataFrame


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> pd.DataFrame:
    """A table with exactly these columns and dtypes, also without rows."""
    frame = pd.DataFrame(rows, columns=list(columns))
    return frame.astype(columns)


def write_result(draft: Draft, result: ScalingResult) -> dict[str, Any]:
    """Write the four tables (parquet) and a summary (json) into a draft; returns the summary."""
    for field in fields(result):
        buffer = io.BytesIO()
        getattr(result, field.name).to_parquet(buffer, index=False)
        draft.write_bytes(f"{field.name}.parquet", buffer.getvalue())
    summary = {
        "fits": int(result.fits["fit_id"].nunique()),
        "refusals": len(result.refusals),
        "points": int(result.points["used"].sum()),
        "points_left_out": int((~result.points["used"]).sum()),
    }
    draft.write_json("scaling.json", summary)
    return summary


def read_result(source: Artefact | Draft) -> ScalingResult:
    """Read what `write_result` wrote, published or still a draft."""
    frames = {f.name: pd.read_parquet(source.file(f"{f.name}.parquet")) for f in fields(ScalingResult)}
    return ScalingResult(**frames)


def audit_draft(source: Draft | Artefact) -> pd.DataFrame:
    """Statistics for the gate of a written result; see `audit_frame`."""
    return audit_frame(read_result(source))


def audit_frame(result: ScalingResult) -> pd.DataFrame:
    """One row per fit, or a single one named "no fit": fit_id, parameters, non_finite, outside_interval, and more.

    `outside_interval` counts parameters whose value lies outside its own profile interval, which no sound fit has (a
    percentile of a bootstrap may well miss the estimate);
    `unexplained` (the same in every row) counts points left out without a reason, refusals without one, and groups of
    usable points (target, recipe) with neither fit nor refusal. Further: rms_log_residual, n_points, converged.
    """
    fits = result.fits
    if not len(fits):
        nothing = {"fit_id": "no fit", "parameters": 0, "non_finite": 0, "outside_interval": 0}
        nothing |= {"rms_log_residual": 0.0, "n_points": 0, "converged": True}
        return pd.DataFrame([nothing | {"unexplained": _unexplained(result)}])
    outside = (fits["value"] < fits["ci_lo"]) | (fits["value"] > fits["ci_hi"])
    outside &= fits["ci_method"].str.startswith("profile")
    non_finite = fits[["value", "ci_lo", "ci_hi"]].isna().any(axis=1)
    marked = fits.assign(outside_interval=outside, non_finite=non_finite)
    return marked.groupby("fit_id", sort=False, as_index=False).agg(
        parameters=("parameter", "size"),
        non_finite=("non_finite", "sum"),
        outside_interval=("outside_interval", "sum"),
        rms_log_residual=("rms_log_residual", "first"),
        n_points=("n_points", "first"),
        converged=("converged", "first"),
    ).assign(unexplained=_unexplained(result))  # fmt: skip


def _unexplained(result: ScalingResult) -> int:
    points, refusals = result.points, result.refusals
    silent = int((~points["used"] & points["reason"].isna()).sum() + refusals["reason"].isna().sum())
    group = ["target", "recipe"]
    explained = pd.concat([result.fits[group], refusals[group]]).drop_duplicates()
    usable = points.loc[points["used"], group].drop_duplicates()
    return silent + int((usable.merge(explained, how="left", indicator=True)["_merge"] == "left_only").sum())
