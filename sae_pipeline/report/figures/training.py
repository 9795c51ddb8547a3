"""Training curves: how the error and the dead share moved with the tokens seen."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_pipeline.report.figures.panels import small_multiples
from sae_pipeline.report.figures.style import (
    ACCENT,
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
    return _overlay(training, autoencoders, "nmse", "NMSE (training stream)", log=True)


def dead_curves(training: Mapping[str, pd.DataFrame], autoencoders: pd.DataFrame) -> Figure:
    """Share of dead latents against tokens, one line per autoencoder, n as colour; frames as in `error_curves`.

    The column `dead` holds shares in [0, 1].
    """
    return _overlay(training, autoencoders, "dead", "dead latents (share)", log=False)


def training_curve(frame: pd.DataFrame, quantity: str, *, held_out: str | None = None) -> Figure:
    """One autoencoder's `quantity` ("nmse", "dead", "l0", "lr") against tokens; `held_out` names a second column."""
    labels = {"nmse": "NMSE", "dead": "dead latents (share)", "l0": "L0 (latents per token)", "lr": "learning rate"}
    known = frame.dropna(subset=[quantity])
    if known.empty:
        return message(f"No training record of {labels.get(quantity, quantity)} yet.")
    with styled():
        figure = new_figure(5.0, 3.0)
        axes = figure.add_subplot()
        axes.plot(known["tokens"], known[quantity], color=INK, label="training stream")
        if held_out is not None and held_out in frame and frame[held_out].notna().any():
            rows = frame.dropna(subset=[held_out])
            axes.plot(rows["tokens"], rows[held_out], color=ACCENT, marker="o", markersize=3, label="held out")
            axes.legend()
        axes.set_xlabel("training tokens")
        axes.set_ylabel(labels.get(quantity, quantity))
        log_axis(axes, "x")
        if quantity == "nmse" and (known[quantity] > 0).all():
            log_axis(axes, "y")
        else:
            axes.set_ylim(bottom=0)
            plain_axis(axes, "y")
    return figure


def _overlay(
    training: Mapping[str, pd.DataFrame], autoencoders: pd.DataFrame, column: str, label: str, *, log: bool
) -> Figure:
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
            log_axis(axes, "x")
            if log and positive:
                log_axis(axes, "y")
            else:
                axes.set_ylim(bottom=0)
                plain_axis(axes, "y")
    return figure
