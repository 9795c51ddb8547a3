"""Small multiples: one panel for each recipe and k, n as colour, axes shared."""

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sae_pipeline.report.figures.style import MUTED, new_figure, sequence

DrawOne = Callable[[Axes, "pd.Series[float]", str], None]
"""Draws one autoencoder (a row of the autoencoders frame) in a colour."""

_COLUMNS = 4


def small_multiples(autoencoders: pd.DataFrame, draw: DrawOne, *, x_label: str, y_label: str) -> Figure:
    """Draw every autoencoder into the panel of its recipe and k; call inside `styled()`.

    Args:
        autoencoders: autoencoder, recipe, n, k (missing for recipes without one); at least one row.
        draw: called once per row.
        x_label: written under the lowest panel of each column.
        y_label: written beside the first panel of each row.
    """
    colours = sequence(autoencoders["n"].tolist())
    groups = [group for _, group in autoencoders.groupby(["recipe", "k"], sort=True, dropna=False)]
    groups.sort(key=lambda group: (-len(group), str(group["recipe"].iloc[0]), _k(group)))
    columns = min(_COLUMNS, len(groups))
    rows = -(-len(groups) // columns)
    figure = new_figure(1.0 + 2.3 * columns, 0.5 + 2.2 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(groups):
            axes.set_axis_off()
            continue
        for _, row in groups[place].sort_values(["n", "autoencoder"]).iterrows():
            draw(axes, row, colours[float(row["n"])])
        axes.set_title(_title(groups[place]))
        if place + columns >= len(groups):
            axes.set_xlabel(x_label)
            axes.tick_params(labelbottom=True)
        if place % columns == 0:
            axes.set_ylabel(y_label)
    _legend(figure, colours)
    return figure


def _k(group: pd.DataFrame) -> float:
    k = group["k"].iloc[0]
    return float(k) if pd.notna(k) else float("inf")


def _title(group: pd.DataFrame) -> str:
    k = _k(group)
    recipe = str(group["recipe"].iloc[0])
    return recipe if k == float("inf") else f"{recipe}, k = {k:g}"


def _legend(figure: Figure, colours: dict[float, str]) -> None:
    handles = [
        Line2D([], [], color=colour, linewidth=2, label=f"{int(n):,}") for n, colour in reversed(colours.items())
    ]
    legend = figure.legend(handles=handles, loc="outside right upper", title="n", handlelength=1.0, labelspacing=0.35)
    legend.get_title().set_color(MUTED)
