"""The plane of sparsity against quality: one point per autoencoder."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_pipeline.report.figures.style import (
    ACCENT,
    INK,
    MARKERS,
    MUTED,
    label_ends,
    log_axis,
    message,
    new_figure,
    plain_axis,
    sequence,
    styled,
    tip,
)
from sae_pipeline.report.quantities import QUANTITIES

_MOST_TICKS = 8
_MOST_INSIDE = 6  # recipes whose legend finds room within the axes
_COLUMNS = 3
_KINDS = ("#2a62a0", "#e0703f", "#3f9f6b", "#b0305c", "#7a5cc0", "#8a6d3b", "#d05aa8", "#5b6470", "#a8a235", "#3fa3b5")
_DASHES: tuple[tuple[float, tuple[float, ...]], ...] = ((0, ()), (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


def plane(matched: pd.DataFrame, quantity: str = "nmse", *, ring: str | None = None) -> Figure:
    """L0 against a quantity, log-log, with 95 % intervals; n as colour, recipe as marker, lines join equal n.

    Where there are more recipes than markers and one n, the colour tells recipes apart, too.

    Args:
        matched: the frame of `matched_table`.
        quantity: "nmse" or "dce", or any other column of `QUANTITIES`.
        ring: key of an autoencoder to ring.
    """
    known = matched.dropna(subset=["l0", quantity])
    label = QUANTITIES[quantity].label
    if known.empty:
        return message(f"No autoencoder has both L0 and {label} yet.")
    with styled():
        recipes = _by_frequency(known["recipe"].tolist())
        many = len(recipes) > _MOST_INSIDE
        figure = new_figure(5.4, 3.7 + (0.2 * -(-len(recipes) // _COLUMNS) if many else 0.0))
        axes = figure.add_subplot()
        colours = sequence(known["n"].tolist())
        kinds = _KINDS if len(colours) == 1 and len(recipes) > len(MARKERS) else ()
        ends = []
        for _, group in known.groupby(["recipe", "n"], sort=True):
            line = group.sort_values("l0")
            last, n = line.iloc[-1], float(line["n"].iloc[0])
            style = recipes.index(str(last["recipe"]))
            _series(axes, line, quantity, kinds[style % len(kinds)] if kinds else colours[n], style)
            if style == 0 and not kinds:
                ends.append((float(last["l0"]), float(last[quantity]), f"{n:,.0f}", colours[n]))
        if ring is not None:
            _ring(axes, known, quantity, ring)
        _finish(axes, known, quantity)
        handles = _handles(recipes, kinds, ring if ring in set(known["autoencoder"]) else None)
        if many:
            figure.legend(handles=handles, loc="outside lower center", ncols=_COLUMNS, labelcolor=INK, fontsize=7)
        elif handles:
            axes.legend(handles=handles, loc="best", labelcolor=INK)
        figure.draw_without_rendering()
        label_ends(axes, ends)
        axes.set_title(f"{label} against L0, by number of latents n", pad=8)
    return figure


def _by_frequency(recipes: Sequence[str]) -> list[str]:
    return sorted(set(recipes), key=lambda recipe: (-recipes.count(recipe), recipe))


def _series(axes: Axes, line: pd.DataFrame, quantity: str, colour: str, style: int) -> None:
    axes.plot(line["l0"], line[quantity], color=colour, linestyle=_DASHES[style % len(_DASHES)], linewidth=1.0)
    for _, row in line.iterrows():
        x, y = float(row["l0"]), float(row[quantity])
        low, high = _bar(row, "l0"), _bar(row, quantity)
        axes.errorbar(x, y, xerr=low, yerr=high, color=colour, elinewidth=1.0, capsize=2, fmt="none", alpha=0.8)
        (point,) = axes.plot(x, y, color=colour, marker=MARKERS[style % len(MARKERS)], markersize=4.5, linestyle="none")
        tip(point, f"{row['autoencoder']}: L0 {x:.4g}, {QUANTITIES[quantity].label} {y:.4g}")


def _bar(row: "pd.Series[float]", name: str) -> list[list[float]] | None:
    """Distances to the ends of the interval, or None where there is none."""
    value, low, high = (float(row[column]) for column in (name, f"{name}_lo", f"{name}_hi"))
    if low != low or high != high:
        return None
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _ring(axes: Axes, known: pd.DataFrame, quantity: str, key: str) -> None:
    row = known[known["autoencoder"] == key]
    if not row.empty:
        axes.plot(
            row["l0"], row[quantity], marker="o", markersize=13, fillstyle="none", color=ACCENT, markeredgewidth=1.6
        )


def _finish(axes: Axes, known: pd.DataFrame, quantity: str) -> None:
    shown = QUANTITIES[quantity]
    axes.set_xlabel("L0 (active latents per token)")
    axes.set_ylabel(f"{shown.label} ({shown.unit})" if shown.unit else shown.label)
    axes.margins(x=0.06, y=0.08)
    if (known["l0"] > 0).all():
        log_axis(axes, "x", ticks=_k_ticks(known))
    (log_axis if (known[quantity] > 0).all() else plain_axis)(axes, "y")


def _k_ticks(known: pd.DataFrame) -> list[float] | None:
    """The distinct k, doubled and halved on to the ends of L0; None where they are too few or too many to label."""
    ticks = sorted(set(known["k"].dropna().astype(float)))
    if len(ticks) < 2:
        return None
    while ticks[-1] * 2 <= known["l0"].max():
        ticks.append(ticks[-1] * 2)
    while ticks[0] / 2 >= known["l0"].min():
        ticks.insert(0, ticks[0] / 2)
    return ticks if len(ticks) <= _MOST_TICKS else None


def _handles(recipes: Sequence[str], kinds: Sequence[str], ring: str | None) -> list[Line2D]:
    handles = [
        Line2D(
            [],
            [],
            color=kinds[i % len(kinds)] if kinds else MUTED,
            marker=MARKERS[i % len(MARKERS)],
            markersize=4.5,
            linestyle="none" if kinds else _DASHES[i % len(_DASHES)],
            label=recipe,
        )
        for i, recipe in enumerate(recipes)
    ]
    if len(recipes) == 1:
        handles = []
    if ring is not None:
        handles.append(
            Line2D([], [], color=ACCENT, marker="o", markersize=9, fillstyle="none", linestyle="none", label=ring)
        )
    return handles
