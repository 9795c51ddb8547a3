"""Training curves: how the error and the dead share moved with the tokens seen."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_pipeline.report.figures.panels import small_multiples
from sae_pipeline.report.figures.style import (
    INK,
    log_axis,
    message,
    new_figure,
    plain_axis,
    styled,
    tip,
)


def error_curves(training: Mapping[str, pd.DataFrame], autoencoders: pd.DataFrame) -> Figure:
    """NMSE on the training stream against tokens, log-log, one line per autoencoder, n as colour.

    Args:
        training: by autoencoder key, a frame with tokens and nmse (rows without a value are skipped).
        autoencoders: autoencoder, n; k where the recipe has one. Keys absent from `training` are left out.
    """
    return _overlay(training, autoencoders, "nmse", log=True)


def dead_curves(training: Mapping[str, pd.DataFrame], autoencoders: pd.DataFrame) -> Figure:
    """Share of dead latents against tokens, one line per autoencoder, n as colour; frames as in `error_curves`.

    The column `dead` holds shares in [0, 1].
    """
    return _overlay(training, autoencoders, "dead", log=False)


def training_curve(frame: pd.DataFrame, quantity: str) -> Figure:
    """One autoencoder's `quantity` ("nmse", "dead", "l0" or "lr") against tokens."""
    label = _LABELS[quantity]
    known = frame.dropna(subset=[quantity])
    if known.empty:
        return message(f"No training record of {label} yet.")
    with styled():
        figure = new_figure(5.0, 3.0)
        axes = figure.add_subplot()
        axes.plot(known["tokens"], known[quantity], color=INK)
        axes.set_xlabel("training tokens")
        axes.set_ylabel(label)
        _scale(axes, log=quantity == "nmse" and bool((known[quantity] > 0).all()))
    return figure


_LABELS = {
    "nmse": "NMSE (training stream)",
    "dead": "dead latents (share)",
    "l0": "L0 (latents per token)",
    "lr": "learning rate",
}


def _scale(axes: Axes, *, log: bool) -> None:
    log_axis(axes, "x")
    if log:
        log_axis(axes, "y")
    else:
        axes.set_ylim(bottom=0)
        plain_axis(axes, "y")


def _overlay(training: Mapping[str, pd.DataFrame], autoencoders: pd.DataFrame, column: str, *, log: bool) -> Figure:
    label = _LABELS[column]
    curves = {key: frame.dropna(subset=[column]) for key, frame in training.items() if column in frame}
    curves = {key: frame for key, frame in curves.items() if not frame.empty}
    described = autoencoders[autoencoders["autoencoder"].isin(list(curves))]
    if described.empty:
        return message(f"No training record of {label} yet.")

    def draw(axes: Axes, row: "pd.Series[float]", colour: str) -> None:
        frame = curves[str(row["autoencoder"])]
        (line,) = axes.plot(frame["tokens"], frame[column], color=colour, linewidth=1.1)
        tip(line, f"{row['autoencoder']}: {frame[column].iloc[-1]:.4g} at the end")

    with styled():
        figure = small_multiples(described, draw, x_label="training tokens", y_label=label)
        positive = min(float(frame[column].min()) for frame in curves.values()) > 0
        for axes in figure.axes:
            _scale(axes, log=log and positive)
    return figure
