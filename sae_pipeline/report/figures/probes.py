"""What single latents know about binary tasks, beside what they are held against."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_pipeline.report.figures.style import ACCENT, MUTED, message, new_figure, sequence, styled

_BLUE, _STRONG, _RED = sequence([0, 1, 2])[1], sequence([0, 1, 2])[2], sequence([0, 1, 2], "k")[1]
_SERIES: tuple[tuple[str, str, str, str, str], ...] = (
    ("permuted", "pre", "permuted labels", "|", MUTED),
    ("counts", "token", "token", "P", MUTED),
    ("best", "channel", "channel", "s", _BLUE),
    ("best", "random", "random direction", "^", _RED),
    ("linear", "activation", "whole activation", "D", _STRONG),
    ("best", "post", "latent, code", ".", ACCENT),
    ("best", "pre", "latent, pre-activation", "o", ACCENT),
)
_LATENTS = (("best", "pre"), ("best", "post"))
_ROW_INCHES = 0.145


def probe_losses(results: pd.DataFrame) -> Figure:
    """Cross-entropy on the test rows of each task: one autoencoder's best latent with a 95 % interval, and controls.

    Args:
        results: rows of `probe_results`: task, probe, code, k, loss, loss_se.
    """
    known = results[results["loss"].notna()]
    losses = {
        (probe, code): known[(known["probe"] == probe) & (known["code"] == code)].set_index("task")
        for probe, code, *_ in _SERIES
    }
    latent = next((losses[name] for name in _LATENTS if len(losses[name])), None)
    if latent is None:
        return message("No task has been probed yet.")
    tasks = latent["loss"].sort_values(ascending=False).index
    with styled():
        figure = new_figure(5.4, 1.3 + _ROW_INCHES * len(tasks))
        axes = figure.add_subplot()
        for probe, code, label, marker, colour in _SERIES:
            _dots(axes, losses[probe, code].reindex(tasks), label, marker, colour)
        _intervals(axes, latent.reindex(tasks))
        axes.set_yticks(range(len(tasks)), tasks, fontsize=6.5)
        axes.set_ylim(-0.8, len(tasks) - 0.2)
        axes.set_xlim(left=0)
        axes.set_xlabel("cross-entropy on test rows (nats)")
        figure.legend(loc="outside lower center", ncols=3, fontsize=7)
    return figure


def _dots(axes: Axes, rows: pd.DataFrame, label: str, marker: str, colour: str) -> None:
    if rows["loss"].notna().any():
        axes.plot(
            rows["loss"], range(len(rows)), linestyle="", marker=marker, color=colour, markersize=3.6, label=label
        )


def _intervals(axes: Axes, rows: pd.DataFrame) -> None:
    half = 1.96 * rows["loss_se"]
    axes.hlines(range(len(rows)), rows["loss"] - half, rows["loss"] + half, color=ACCENT, linewidth=1.0)
