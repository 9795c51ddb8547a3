"""How often latents fire, and where in the context the error lies."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_pipeline.report.densities import DensityHistogram
from sae_pipeline.report.figures.panels import small_multiples
from sae_pipeline.report.figures.style import (
    ACCENT,
    MUTED,
    log_axis,
    message,
    new_figure,
    plain_axis,
    sequence,
    styled,
    tip,
)
from sae_pipeline.report.formatting import power_of_ten, readable


def density_histogram(histogram: DensityHistogram) -> Figure:
    """log10 density of one autoencoder: bars, the silent latents at the left, and the 3/T line."""
    with styled():
        figure = new_figure(5.2, 3.0)
        axes = figure.add_subplot()
        edges = np.asarray(histogram.edges_log10)
        width = edges[1] - edges[0]
        silent_at = _silent_place(histogram)
        colour = sequence([1.0])[1.0]
        axes.bar(edges[:-1], histogram.latents, width=width * 0.94, align="edge", color=colour)
        axes.bar(silent_at, histogram.silent, width=width * 1.6, color=ACCENT)
        axes.annotate(
            f"{histogram.silent:,.0f} silent", (silent_at, histogram.silent), xytext=(0, 3),
            textcoords="offset points", ha="center", color=ACCENT, fontsize=8,
        )  # fmt: skip
        axes.margins(y=0.14)
        _bound(axes, histogram.bound_log10, f"3/T, T = {readable(histogram.n_tokens)}")
        _density_axis(axes, silent_at, 1)
        axes.set_ylabel("latents")
        axes.set_xlabel("density (share of tokens on which a latent fires)")
        plain_axis(axes, "y")
    return figure


def density_panels(histograms: Mapping[str, DensityHistogram], autoencoders: pd.DataFrame) -> Figure:
    """log10 density of all autoencoders, in shares of latents, one panel per recipe and k; silent ones at the left.

    Args:
        histograms: by autoencoder key.
        autoencoders: autoencoder, recipe, n, k.
    """
    described = autoencoders[autoencoders["autoencoder"].isin(list(histograms))]
    if described.empty:
        return message("No latent density has been measured yet.")
    silent_at = min(_silent_place(histogram) for histogram in histograms.values())

    def draw(axes: Axes, row: "pd.Series[float]", colour: str) -> None:
        histogram, n = histograms[str(row["autoencoder"])], float(row["n"])
        share = np.asarray(histogram.latents) / n
        axes.stairs(share, histogram.edges_log10, color=colour, linewidth=1.2)
        (dot,) = axes.plot(silent_at, histogram.silent / n, color=colour, marker="o", linestyle="none")
        tip(dot, f"{row['autoencoder']}: {histogram.silent:,.0f} of {n:,.0f} latents silent")

    with styled():
        figure = small_multiples(described, draw, x_label="density (log scale)", y_label="share of latents")
        bound = max(histogram.bound_log10 for histogram in histograms.values())
        for axes in figure.axes:
            axes.set_ylim(bottom=0)
            _bound(axes, bound, "3/T")
            _density_axis(axes, silent_at, 2)
            plain_axis(axes, "y")
    return figure


def _silent_place(histogram: DensityHistogram) -> float:
    return min(histogram.edges_log10[0], histogram.bound_log10) - 0.6


def _bound(axes: Axes, at: float, text: str) -> None:
    axes.axvline(at, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)))
    axes.annotate(
        text, (at, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
        va="top", color=MUTED, fontsize=7.5,
    )  # fmt: skip


def _density_axis(axes: Axes, silent_at: float, step: int) -> None:
    """Every `step`-th decade, and the word for the bar that has no density."""
    axes.set_xlim(silent_at - 0.5, 0.15)
    decades = np.arange(0, silent_at + 1.0, -step)
    axes.set_xticks(
        [silent_at, *decades], ["silent", *("1" if not decade else power_of_ten(10.0**decade) for decade in decades)]
    )
    axes.grid(visible=False, axis="x")


def by_position(curves: Mapping[str, pd.DataFrame], autoencoders: pd.DataFrame, label: str = "NMSE") -> Figure:
    """A quantity by position in the context, one panel per recipe and k.

    Position 0 sees no context and is often far off: it is a dot, or an arrowhead at the edge of the others' range.

    Args:
        curves: by autoencoder key, a frame with x (position, 0 is the first token) and y.
        autoencoders: autoencoder, recipe, n, k.
        label: name of the quantity with its unit.
    """
    described = autoencoders[autoencoders["autoencoder"].isin(list(curves))]
    if described.empty:
        return message(f"{label} by position has not been measured yet.")

    later = pd.concat([frame[frame["x"] > 0] for frame in curves.values()])["y"]
    low, high = float(later.min()), float(later.max())

    def draw(axes: Axes, row: "pd.Series[float]", colour: str) -> None:
        frame = curves[str(row["autoencoder"])].sort_values("x")
        (line,) = axes.plot(frame["x"][frame["x"] > 0], frame["y"][frame["x"] > 0], color=colour, linewidth=1.1)
        tip(line, str(row["autoencoder"]))
        for first in frame["y"][frame["x"] == 0]:
            marker = "o" if low <= first <= high else "v" if first < low else "^"
            (dot,) = axes.plot(0, min(max(first, low), high), color=colour, marker=marker, markersize=4, clip_on=False)
            tip(dot, f"{row['autoencoder']}: {first:.4g} at position 0")

    with styled():
        figure = small_multiples(described, draw, x_label="position in context", y_label=label)
        for axes in figure.axes:
            if low > 0:
                log_axis(axes, "y")
            plain_axis(axes, "x")
    return figure
