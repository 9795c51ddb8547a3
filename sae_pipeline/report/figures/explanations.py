"""How well patterns of tokens foretell single latents."""

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sae_pipeline.report.figures.style import message, new_figure, plain_axis, sequence, styled, tip
from sae_pipeline.report.formatting import number

_STEPS = 12


def explained_latents(latent_stats: pd.DataFrame) -> Figure:
    """Precision against recall of each explained latent, its density as colour; rows without either are left out.

    Args:
        latent_stats: latent, density, n2g_precision, n2g_recall.
    """
    known = latent_stats.dropna(subset=["n2g_precision", "n2g_recall"])
    if known.empty:
        return message("No latent has an explanation with both precision and recall yet.")
    with styled():
        figure = new_figure(4.6, 3.8)
        axes = figure.add_subplot()
        colours = _colours(known["density"])
        # the many rare latents last, so that none of them lies hidden below a dense one
        known = known.sort_values("density", ascending=False)
        for (_, row), colour in zip(known.iterrows(), colours.to_rgba(known["density"].to_numpy()), strict=True):
            recall, precision = float(row["n2g_recall"]), float(row["n2g_precision"])
            (dot,) = axes.plot(recall, precision, marker="o", markersize=4.5, color=colour, clip_on=False)
            tip(dot, f"latent {row['latent']:.0f}: precision {number(precision)}, recall {number(recall)}")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="recall", ylabel="precision")
        for which in ("x", "y"):
            plain_axis(axes, which)
        _colour_bar(figure, colours, known["density"])
    return figure


def _colours(density: "pd.Series[float]") -> ScalarMappable:
    """The ordered colours of the report, so that a dark page can recolour them."""
    stops = list(sequence([float(step) for step in range(_STEPS)]).values())
    low, high = float(density.min()), float(density.max())
    return ScalarMappable(LogNorm(low, high if high > low else 2 * low), ListedColormap(stops))


def _colour_bar(figure: Figure, colours: ScalarMappable, density: "pd.Series[float]") -> None:
    bar = figure.colorbar(colours, ax=figure.axes[0], label="density (share of tokens)", aspect=30)
    ticks = np.unique(np.quantile(density, [0, 0.5, 1]))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_ticks(ticks.tolist(), labels=[number(float(tick), 2) for tick in ticks])
