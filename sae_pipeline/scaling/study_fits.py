"""All laws of a study at one site: every target, recipe, form and k, fitted or refused."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sae_pipeline.scaling.fitting import Law, Points, fit_law
from sae_pipeline.scaling.forms import FORMS, FloatArray, LawForm
from sae_pipeline.scaling.identification import reason_after_fit, reason_after_intervals, reason_before
from sae_pipeline.scaling.intervals import Intervals, intervals
from sae_pipeline.scaling.result import (
    FIT_COLUMNS,
    POINT_COLUMNS,
    PREDICTION_COLUMNS,
    REFUSAL_COLUMNS,
    ScalingResult,
    table,
)
from sae_pipeline.store.progress import Progress, silent
from sae_pipeline.study import ScalingConfig

Row = dict[str, Any]

_GRID_SIZE = 40
_GRID_REACH = 4.0
_INPUT_COLUMNS = ("autoencoder", "recipe", "n", "k", "seed", "target", "value", "se")


@dataclass(frozen=True)
class _Group:
    """The points one form is fitted to."""

    target: str
    recipe: str
    form: LawForm
    k: int | None
    frame: pd.DataFrame

    @property
    def fit_id(self) -> str:
        """Readable and unique within a result, e.g. "nmse/topk/L_N+e/k8"."""
        return "/".join([self.target, self.recipe, self.form.label] + ([] if self.k is None else [f"k{self.k}"]))

    @property
    def key(self) -> Row:
        return {
            "fit_id": self.fit_id,
            "target": self.target,
            "recipe": self.recipe,
            "form": self.form.name,
            "irreducible": self.form.irreducible,
            "k": self.k,
        }

    @property
    def points(self) -> Points:
        return Points.of(*(self.frame[name].to_numpy(dtype=np.float64) for name in ("n", "k", "value")))


@dataclass(frozen=True)
class _HoldOut:
    """Prediction of the largest size by a fit without it, or the reason there is none."""

    n: int | None = None
    log_error: float = float("nan")
    reason: str | None = None
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class _Fitted:
    group: _Group
    law: Law
    intervals: Intervals
    hold_out: _HoldOut
    preferred: bool = True


def fit_study(points: pd.DataFrame, config: ScalingConfig, seed: int, *, progress: Progress = silent) -> ScalingResult:
    """Fit every configured law to the points of one site.

    Args:
        points: one row per autoencoder and target: autoencoder, recipe, n, k (null where the recipe has none), seed,
            target, value (the loss, in the target's unit), se. Other columns are ignored.
        config: targets, forms, irreducible terms, interval method, hold-out, draws.
        seed: of the interval draws; each fit draws from (seed, its name), so no fit depends on its neighbours.
        progress: told after every fit.

    Returns:
        Fits with intervals, predictions, points, and refusals with their reasons: a form that the points do not
        identify is a row, not an error.

    Raises:
        ValueError: a column is missing.
    """
    missing = [name for name in _INPUT_COLUMNS if name not in points.columns]
    if missing:
        raise ValueError(f"scaling points lack the columns {', '.join(missing)}")
    marked = _mark(points, config)
    groups = list(_groups(marked[marked["used"]], config))
    fitted: list[_Fitted] = []
    refusals: list[Row] = []
    for done, group in enumerate(groups, start=1):
        outcome = _fit_group(group, config, seed)
        if isinstance(outcome, str):
            refusals.append({**group.key, "n_points": len(group.frame), "reason": outcome})
        else:
            fitted.append(outcome)
        progress.update(done, len(groups), "fits", fit=group.fit_id)
    fitted = _mark_preferred(fitted)
    return ScalingResult(
        fits=table([row for fit in fitted for row in _fit_rows(fit)], FIT_COLUMNS),
        predictions=table([row for fit in fitted for row in _prediction_rows(fit)], PREDICTION_COLUMNS),
        points=marked,
        refusals=table(refusals, REFUSAL_COLUMNS),
    )


def scaling_points(metrics: pd.DataFrame, saes: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    """The points that `fit_study` takes, from the tables of a site.

    Args:
        metrics: long table with autoencoder, sae_id, metric, variant, value, se; the variant `all` is used.
        saes: autoencoder, sae_id, recipe, n, k, seed.
        targets: names of metrics.
    """
    chosen = metrics[metrics["metric"].isin(list(targets)) & (metrics["variant"] == "all")]
    found = chosen.rename(columns={"metric": "target"})[["autoencoder", "sae_id", "target", "value", "se"]]
    described = found.merge(saes[["autoencoder", "sae_id", "recipe", "n", "k", "seed"]], on=["autoencoder", "sae_id"])
    return described[list(_INPUT_COLUMNS)]


def _mark(points: pd.DataFrame, config: ScalingConfig) -> pd.DataFrame:
    """The points of the configured targets in a fixed order, unusable ones with a reason."""
    kept = points.loc[points["target"].isin(config.targets), list(_INPUT_COLUMNS)]
    kept = kept.sort_values(["target", "recipe", "k", "n", "seed", "autoencoder"], ignore_index=True)
    value = kept["value"].astype("float64")
    reason = pd.Series([None] * len(kept), dtype="object")
    reason[value <= 0.0] = "the loss is not positive: it has no logarithm"
    reason[~np.isfinite(value)] = "the loss is missing or not finite"
    if not config.forms:
        reason[reason.isna()] = "the study asks for no form"
    marked = kept.assign(used=reason.isna(), reason=reason)
    return marked.astype(POINT_COLUMNS)


def _groups(points: pd.DataFrame, config: ScalingConfig) -> Iterator[_Group]:
    """In a fixed order: target, recipe, form, k."""
    terms = {"auto": (False, True), "with": (True,), "without": (False,)}[config.irreducible]
    for (target, recipe), frame in points.groupby(["target", "recipe"], sort=True):
        for name in config.forms:
            for form in (FORMS[LawForm(name, term).label] for term in terms):
                if form.joint or frame["k"].isna().any():
                    yield _Group(str(target), str(recipe), form, None, frame)
                    continue
                for k, at_k in frame.groupby("k", sort=True):
                    yield _Group(str(target), str(recipe), form, int(str(k)), at_k)


def _fit_group(group: _Group, config: ScalingConfig, seed: int) -> _Fitted | str:
    """The fit, or the reason to refuse it."""
    if group.frame["k"].isna().any():
        return f"recipe {group.recipe} has no fixed k: its runs differ in L0, and a law in n compares equal sparsity"
    points = group.points
    reason = reason_before(group.form, points)
    if reason is not None:
        return reason
    law = fit_law(group.form, points)
    reason = reason_after_fit(law)
    if reason is not None:
        return reason
    seeds = (seed, zlib.crc32(group.fit_id.encode()))
    found = intervals(law, config.intervals, resamples=config.resamples, seed=seeds)
    reason = reason_after_intervals(law, found)
    if reason is not None:
        return reason
    return _Fitted(group, law, found, _hold_out(group, config))


def _hold_out(group: _Group, config: ScalingConfig) -> _HoldOut:
    if config.hold_out == "none":
        return _HoldOut(reason="no hold-out configured")
    points = group.points
    largest = float(points.n_m.max())
    held_m = points.n_m == largest
    rest = points.where(~held_m)
    reason = reason_before(group.form, rest)
    if reason is not None:
        return _HoldOut(n=int(largest), reason=f"without n = {int(largest)}: {reason}")
    held = points.where(held_m)
    predicted = fit_law(group.form, rest).predict(held.n_m, held.k_m)
    names = group.frame["autoencoder"].to_numpy()[held_m]
    rows = tuple(
        _prediction(group.fit_id, "held_out", name, n, k, value, observed=observed)
        for name, n, k, value, observed in zip(names, held.n_m, held.k_m, predicted, held.value_m, strict=True)
    )
    return _HoldOut(n=int(largest), log_error=float(np.log(predicted / held.value_m).mean()), rows=rows)


def _mark_preferred(fitted: list[_Fitted]) -> list[_Fitted]:
    """Of the fits that differ only in the irreducible term, prefer the better extrapolation, else the smaller form."""

    def rank(fit: _Fitted) -> tuple[float, int]:
        error = abs(fit.hold_out.log_error)
        return (error if np.isfinite(error) else np.inf, fit.law.form.n_parameters)

    best: dict[tuple[object, ...], _Fitted] = {}
    for fit in fitted:
        rivals = (fit.group.target, fit.group.recipe, fit.group.form.name, fit.group.k)
        if rivals not in best or rank(fit) < rank(best[rivals]):
            best[rivals] = fit
    chosen = {fit.group.fit_id for fit in best.values()}
    return [replace(fit, preferred=fit.group.fit_id in chosen) for fit in fitted]


def _fit_rows(fit: _Fitted) -> Iterator[Row]:
    law, points = fit.law, fit.law.points
    log_value_m = points.log_value_m
    spread = float(((log_value_m - log_value_m.mean()) ** 2).sum())
    shared = {
        **fit.group.key,
        "ci_method": fit.intervals.method,
        "preferred": fit.preferred,
        "n_points": len(points.n_m),
        "n_min": int(points.n_m.min()),
        "n_max": int(points.n_m.max()),
        "n_centre": float(np.exp(points.x_mean)),
        "k_centre": float(np.exp(points.y_mean)),
        "objective": law.objective,
        "rms_log_residual": float(np.sqrt((law.residual_m**2).mean())),
        "r2_log": 1.0 - float((law.residual_m**2).sum()) / spread if spread > 0 else float("nan"),
        "converged": law.converged,
        "starts": law.starts,
        "agreeing_starts": law.agreeing,
        "hold_out_n": fit.hold_out.n,
        "hold_out_log_error": fit.hold_out.log_error,
        "hold_out_reason": fit.hold_out.reason,
    }
    for parameter in law.reported:
        low, high = fit.intervals.bounds[parameter.name]
        value = parameter.value(law.theta_p)
        yield {**shared, "parameter": parameter.name, "value": value, "ci_lo": low, "ci_hi": high}


def _prediction_rows(fit: _Fitted) -> Iterator[Row]:
    points, fit_id = fit.law.points, fit.group.fit_id
    sizes = np.geomspace(points.n_m.min(), _GRID_REACH * points.n_m.max(), _GRID_SIZE)
    ks = np.unique(points.k_m)
    grid_n, grid_k = np.tile(sizes, len(ks)), np.repeat(ks, len(sizes))
    for n, k, value, low, high in _curve(fit, grid_n, grid_k):
        yield _prediction(fit_id, "grid", None, n, k, value, low, high)
    curve = _curve(fit, points.n_m, points.k_m)
    for name, observed, row in zip(fit.group.frame["autoencoder"], points.value_m, curve, strict=True):
        yield _prediction(fit_id, "point", name, *row, observed=observed)
    yield from fit.hold_out.rows


def _curve(fit: _Fitted, n_g: FloatArray, k_g: FloatArray) -> Iterator[tuple[float, ...]]:
    low, high = fit.intervals.fan(fit.law, n_g, k_g)
    yield from zip(n_g, k_g, fit.law.predict(n_g, k_g), low, high, strict=True)


def _prediction(
    fit_id: str,
    kind: str,
    autoencoder: str | None,
    n: float,
    k: float,
    value: float,
    low: float = float("nan"),
    high: float = float("nan"),
    *,
    observed: float = float("nan"),
) -> Row:
    named = {"fit_id": fit_id, "kind": kind, "autoencoder": autoencoder, "n": n, "k": k, "value": value}
    return {**named, "lo": low, "hi": high, "observed": observed, "log_residual": float(np.log(value / observed))}
