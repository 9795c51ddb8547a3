"""Loss against the number of latents, with the fitted laws, their fans and their residuals."""

from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_pipeline.report.figures.style import (
    INK,
    MUTED,
    PAPER,
    label_ends,
    log_axis,
    message,
    new_figure,
    plain_axis,
    sequence,
    styled,
    tip,
)
from sae_pipeline.scaling import ScalingResult

_TARGETS = {"nmse": "NMSE", "dce": "ΔCE (nats/token)"}
_MOST_TICKS = 8


def laws(
    result: ScalingResult, target: str = "nmse", *, form: Literal["L_N", "L_NK"] = "L_N", recipe: str | None = None
) -> Figure:
    """Loss(n) for each k with the preferred fits of one form, their 95 % fans, and the residuals below.

    Filled markers are measured, with their 95 % interval; a hollow one is what the same form, fitted without the
    largest n, predicts there. A line is dashed beyond the largest n measured. A k whose fit was refused keeps its
    points and has no line.

    Args:
        result: fits, predictions and points of one site.
        target: "nmse" or "dce".
        form: each k for itself, or one law for all.
        recipe: the recipe shown; by default the one with most points.
    """
    points, fits = result.points, result.fits
    measured = points[(points["target"] == target) & points["used"] & points["k"].notna()]
    if measured.empty:
        return message(f"No autoencoder with a fixed k has a usable {_TARGETS.get(target, target)} yet.")
    recipe = recipe if recipe is not None else str(measured["recipe"].value_counts().sort_index().idxmax())
    measured = measured[measured["recipe"] == recipe]
    asked = (fits["target"] == target) & (fits["form"] == form) & (fits["recipe"] == recipe)
    chosen = fits[asked & fits["preferred"]].drop_duplicates("fit_id")
    curves = result.predictions.merge(chosen[["fit_id", "n_max"]], on="fit_id")
    with styled():
        figure, upper, lower = _axes(residuals=not curves.empty)
        colours = sequence(measured["k"].astype(float).tolist(), "k")
        ends = []
        for k in colours:
            group = measured[measured["k"] == k]
            rows = curves[curves["k"] == k]
            _measured(upper, group, k, colours[k])
            if lower is not None:
                _fit(upper, lower, rows, colours[k])
            ends.append(_end(group, rows, k, colours[k]))
        _finish(upper, lower, sorted(set(measured["n"].astype(float))), target)
        _legend(upper, curves)
        kind = "one law in n for each k" if form == "L_N" else "one law in n and k"
        upper.set_title(f"{recipe}: {_TARGETS.get(target, target)} against n, {kind}", pad=8)
        figure.draw_without_rendering()
        label_ends(upper, ends)
    return figure


def _axes(*, residuals: bool) -> tuple[Figure, Axes, Axes | None]:
    if not residuals:
        figure = new_figure(5.4, 3.7)
        return figure, figure.add_subplot(), None
    figure = new_figure(5.4, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    return figure, upper, lower


def _measured(axes: Axes, group: pd.DataFrame, k: float, colour: str) -> None:
    axes.errorbar(
        group["n"].astype(float),
        group["value"],
        yerr=1.96 * group["se"].fillna(0.0),
        fmt="none",
        color=colour,
        capsize=2,
    )
    for _, row in group.iterrows():
        (point,) = axes.plot(
            float(row["n"]), row["value"], marker="o", linestyle="none", color=colour, markersize=4.5, zorder=4
        )
        tip(point, f"{row['autoencoder']}: {row['value']:.4g}")


def _fit(upper: Axes, lower: Axes, rows: pd.DataFrame, colour: str) -> None:
    """Line, fan, hollow hold-outs and residuals of one k; nothing where the fit was refused."""
    grid = rows[rows["kind"] == "grid"].sort_values("n")
    if not grid.empty:
        inside = grid["n"] <= grid["n_max"] * (1 + 1e-9)
        beyond = grid[~inside | ~inside.shift(-1, fill_value=False)]
        upper.fill_between(grid["n"], grid["lo"], grid["hi"], color=colour, alpha=0.16, linewidth=0)
        upper.plot(grid["n"][inside], grid["value"][inside], color=colour)
        upper.plot(beyond["n"], beyond["value"], color=colour, linestyle=(0, (3, 2)))
    held = rows[rows["kind"] == "held_out"]
    hollow: dict[str, Any] = {"marker": "o", "markerfacecolor": PAPER, "linestyle": "none", "markersize": 6.5}
    upper.plot(held["n"], held["value"], color=colour, zorder=3, **hollow)
    lower.plot(held["n"], 100 * held["log_residual"], color=colour, **hollow)
    fitted = rows[rows["kind"] == "point"]
    lower.plot(fitted["n"], 100 * fitted["log_residual"], marker="o", color=colour, markersize=4.5, linestyle="none")


def _end(group: pd.DataFrame, rows: pd.DataFrame, k: float, colour: str) -> tuple[float, float, str, str]:
    """The label of one k, at the end of its curve, else at its last point."""
    grid = rows[rows["kind"] == "grid"]
    shown = grid if not grid.empty else group
    last = shown.sort_values("n").iloc[-1]
    return float(last["n"]), float(last["value"]), f"k = {k:g}", colour


def _finish(upper: Axes, lower: Axes | None, sizes: list[float], target: str) -> None:
    upper.set_ylabel(_TARGETS.get(target, target))
    log_axis(upper, "y")
    lowest = upper
    if lower is not None:
        lower.set_ylabel("fit − measured\n(log, %)")
        lower.axhline(0, color=MUTED, linewidth=0.9)
        lower.margins(y=0.2)
        reach = max(0.1, *np.abs(lower.get_ylim()))
        lower.set_ylim(-reach, reach)
        plain_axis(lower, "y")
        lowest = lower
    lowest.set_xlabel("number of latents n")
    log_axis(lowest, "x", ticks=sizes if len(sizes) <= _MOST_TICKS else None)


def _legend(axes: Axes, curves: pd.DataFrame) -> None:
    handles = [Line2D([], [], marker="o", color=INK, linestyle="none", markersize=4.5, label="measured")]
    kinds = set(curves["kind"])
    if "grid" in kinds:
        handles.append(Line2D([], [], color=INK, label="fit, dashed where extrapolated"))
    if "held_out" in kinds:
        hollow = Line2D([], [], marker="o", color=INK, markerfacecolor=PAPER, linestyle="none", markersize=6.5)
        hollow.set_label("predicted without the largest n")
        handles.append(hollow)
    axes.legend(handles=handles, loc="lower left")
