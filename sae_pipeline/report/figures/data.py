"""Pictures of the data: lengths of documents and contexts, shards, the clean loss, the spread of a site's channels."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from sae_pipeline.report.figures.style import (
    ACCENT,
    INK,
    MUTED,
    log_axis,
    message,
    new_figure,
    plain_axis,
    sequence,
    styled,
)

FloatArray = NDArray[np.float64]

_BINS = 40
_WIDTH, _HEIGHT = 5.2, 2.9
_DASHED = (0, (3, 2))


def document_lengths(documents: pd.DataFrame) -> Figure:
    """Histogram of document lengths by split; `documents` has split and n_tokens, one row per document."""
    groups = {str(split): group["n_tokens"].to_numpy() for split, group in documents.groupby("split", sort=True)}
    ordered = dict(sorted(groups.items(), key=lambda item: -len(item[1])))
    return histograms(ordered, x_label="document length (tokens)", y_label="documents", log=True)


def context_lengths(lengths: Mapping[str, ArrayLike]) -> Figure:
    """How full the contexts are: histogram of rows per context, as shares of each split's contexts."""
    return histograms(lengths, x_label="context length (tokens)", y_label="share of contexts", shares=True)


def shard_norms(audit: pd.DataFrame) -> Figure:
    """Mean norm ‖x‖ of the rows of each shard; `audit` has shard and mean_norm."""
    return _by_shard(audit, "mean_norm", "mean norm ‖x‖ of a row")


def shard_spread(audit: pd.DataFrame) -> Figure:
    """Standard deviation of the values of each shard; `audit` has shard and std."""
    return _by_shard(audit, "std", "standard deviation of the values")


def _by_shard(audit: pd.DataFrame, column: str, label: str) -> Figure:
    if audit.empty:
        return message("No shard has been written yet.")
    with styled():
        figure, axes = _frame("shard", label)
        axes.plot(audit["shard"], audit[column], marker="o", linestyle="none", color=_main(), markersize=4)
        middle = float(audit[column].median())
        axes.axhline(middle, color=MUTED, linewidth=0.9, linestyle=_DASHED, label="median")
        reach = max(0.02 * abs(middle), 1.2 * float((audit[column] - middle).abs().max()))
        axes.set_ylim(middle - reach, middle + reach)
        axes.legend()
        _plain(axes)
    return figure


def loss_by_position(clean_ce: ArrayLike) -> Figure:
    """Clean next-token loss by position, mean over contexts with a 95 % interval.

    `clean_ce` [contexts, positions] is NaN where there is no target.
    """
    losses = np.asarray(clean_ce, dtype=np.float64)
    counts = np.isfinite(losses).sum(axis=0)
    measured = counts > 1
    if not measured.any():
        return message("No clean loss has been measured yet.")
    kept, n = losses[:, measured], counts[measured]
    mean = np.nanmean(kept, axis=0)
    margin = 1.96 * np.nanstd(kept, axis=0, ddof=1) / np.sqrt(n)
    with styled():
        figure, axes = _frame("position in context", "clean loss (nats/token)")
        positions = np.flatnonzero(measured)
        axes.fill_between(positions, mean - margin, mean + margin, color=_main(), alpha=0.2, linewidth=0)
        axes.plot(positions, mean, color=_main())
        axes.set_ylim(bottom=0)
        _plain(axes)
    return figure


def ablation_references(references: pd.DataFrame) -> Figure:
    """Loss per document when the site is ablated, to zero and to the mean: the yardsticks of recovered loss.

    `references` has document, ablation ("zero" | "mean"), ce_sum (nats) and n (scored positions).
    """
    counted = references[references["n"] > 0]
    groups = {
        f"{ablation} ablation": (group["ce_sum"] / group["n"]).to_numpy()
        for ablation, group in counted.groupby("ablation", sort=True)
    }
    return histograms(groups, x_label="loss under ablation (nats/token)", y_label="documents")


def channel_spread(sample_xd: ArrayLike) -> Figure:
    """Histogram of the standard deviation of each of d channels over the rows of `sample_xd` [rows, d]."""
    sample = np.asarray(sample_xd, dtype=np.float64)
    return histograms({"": sample.std(axis=0)}, x_label="standard deviation of a channel", y_label="channels", log=True)


def spectrum(sample_xd: ArrayLike) -> Figure:
    """Variance along the principal directions of `sample_xd` [rows, d], as shares of the total, in decreasing order."""
    sample = np.asarray(sample_xd, dtype=np.float64)
    variances = np.linalg.eigvalsh(np.cov(sample, rowvar=False))[::-1].clip(0)
    share = variances / max(float(variances.sum()), np.finfo(np.float64).tiny)
    shown = share[share > 1e-12]
    if not len(shown):
        return message("The sample does not vary.")
    half = int(np.searchsorted(np.cumsum(share), 0.5)) + 1
    with styled():
        figure, axes = _frame("principal direction, by rank", "share of the variance")
        axes.plot(np.arange(1, len(shown) + 1), shown, color=_main())
        axes.axvline(half, color=MUTED, linewidth=0.9, linestyle=_DASHED, label=f"half of the variance lies in {half}")
        log_axis(axes, "x")
        log_axis(axes, "y")
        axes.legend(loc="lower left")
    return figure


def histograms(
    groups: Mapping[str, ArrayLike], *, x_label: str, y_label: str = "count", log: bool = False, shares: bool = False
) -> Figure:
    """Histograms with common bins, one outline per group, the first one filled.

    Args:
        groups: values by name; values that are not finite are left out.
        x_label: the quantity with its unit.
        y_label: what is counted.
        log: bin in the logarithm and leave out values ≤ 0.
        shares: show shares of each group instead of counts.
    """
    cleaned = {name: _finite(values, positive=log) for name, values in groups.items()}
    cleaned = {name: values for name, values in cleaned.items() if len(values)}
    if not cleaned:
        return message(f"No values of {x_label}.")
    with styled():
        figure, axes = _frame(x_label, y_label)
        edges = _edges(np.concatenate(list(cleaned.values())), log=log)
        for place, (name, values) in enumerate(cleaned.items()):
            counts, _ = np.histogram(values, bins=edges)
            heights = counts / len(values) if shares else counts
            colour = (_main(), ACCENT, INK, MUTED)[place % 4]
            named = f"{name.replace('_', ' ')} ({len(values):,})"
            axes.stairs(heights, edges, fill=place == 0, color=colour, alpha=0.85, label=named)
        _plain(axes)
        if log:
            log_axis(axes, "x")
        if len(cleaned) > 1:
            axes.legend()
    return figure


def position_curve(curve: pd.DataFrame, label: str) -> Figure:
    """One autoencoder's quantity (y) by position in the context (x); `label` names it with its unit."""
    if curve.empty:
        return message(f"No {label} by position yet.")
    with styled():
        figure, axes = _frame("position in context", label)
        ordered = curve.sort_values("x")
        axes.plot(ordered["x"], ordered["y"], color=_main(), marker="o", markersize=2.5, linewidth=1.0)
        axes.set_ylim(bottom=min(0.0, float(ordered["y"].min())))
        _plain(axes)
    return figure


def _finite(values: ArrayLike, *, positive: bool) -> FloatArray:
    flat: FloatArray = np.asarray(values, dtype=np.float64).ravel()
    return flat[np.isfinite(flat) & ((flat > 0) | (not positive))]


def _edges(values: FloatArray, *, log: bool) -> FloatArray:
    """Common bin edges; few whole numbers get a bin each."""
    low, high = float(values.min()), float(values.max())
    if log:
        return np.geomspace(low / 1.02, high * 1.02, _BINS + 1)
    if np.array_equal(values, np.round(values)) and high - low < 4 * _BINS:
        return np.arange(low, high + 2) - 0.5
    return np.linspace(low, high + (low == high), _BINS + 1)


def _frame(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _plain(axes: Axes) -> None:
    plain_axis(axes, "x")
    plain_axis(axes, "y")


def _main() -> str:
    return sequence([1.0])[1.0]
