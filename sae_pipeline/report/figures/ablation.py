"""Single latents: how sparse their effects on the logits are, and how much larger their values should be."""

import math

import pandas as pd
from matplotlib.figure import Figure

from sae_pipeline.report.figures.style import ACCENT, MUTED, message, new_figure, plain_axis, sequence, styled

_DASHED = (0, (3, 2))


def effect_sparsity(curves: pd.DataFrame) -> Figure:
    """Share of ablations by log10 sparsity of the effect: latents as bars, channels and random directions as lines.

    Args:
        curves: curve (`hist_latents`, `hist_channels`, `hist_random`), x the lower edge of a bin, y ablations, n all.
    """
    by_name = {name: rows.sort_values("x") for name, rows in curves.groupby("curve")}
    latents = by_name.get("hist_latents")
    if latents is None:
        return message("No effect of a latent has been measured.")
    with styled():
        figure = new_figure(5.2, 3.2)
        axes = figure.add_subplot()
        width = float(latents["x"].diff().median())
        share = latents["y"] / latents["n"]
        axes.bar(latents["x"], share, width=0.94 * width, align="edge", color=sequence([1.0])[1.0], label="latents")
        for name, colour, line in (("channels", ACCENT, "-"), ("random", MUTED, "--")):
            rows = by_name.get(f"hist_{name}")
            if rows is not None:
                label = {"channels": "residual channels", "random": "random directions"}[name]
                middles, shares = rows["x"] + width / 2, rows["y"] / rows["n"]
                axes.plot(middles, shares, color=colour, linestyle=line, drawstyle="steps-mid", label=label)
        axes.axvline(math.log10(2 / math.pi), color=MUTED, linewidth=0.9, linestyle=_DASHED)
        axes.annotate(
            "noise, 2/π", (math.log10(2 / math.pi), 1.0), xycoords=("data", "axes fraction"), xytext=(-3, -2),
            textcoords="offset points", ha="right", va="top", color=MUTED, fontsize=7.5,
        )  # fmt: skip
        shown = [rows.loc[rows["y"] > 0, "x"].min() for rows in by_name.values() if (rows["y"] > 0).any()]
        axes.set_xlim(min(shown) - width, width)
        plain_axis(axes, "y")
        axes.set_xlabel("log10 of the effect's sparsity (left: few logits move)")
        axes.set_ylabel("share of ablations")
        axes.legend(loc="best")
    return figure


def refined_ratios(curves: pd.DataFrame) -> Figure:
    """Share of active latents by z*/z, refined over encoded value; right of 1 the encoder's are too small.

    Args:
        curves: curve (`ratio_hist`), x the middle of a bin, y latents, n in all; the last bin holds all above.
    """
    rows = curves[(curves["curve"] == "ratio_hist") & (curves["n"] > 0)].sort_values("x")
    if rows.empty:
        return message("No latent is active, so none can be refined.")
    with styled():
        figure = new_figure(5.2, 3.0)
        axes = figure.add_subplot()
        width = float(rows["x"].diff().median())
        axes.bar(rows["x"], rows["y"] / rows["n"], width=0.94 * width, color=sequence([1.0])[1.0])
        axes.axvline(1.0, color=MUTED, linewidth=0.9, linestyle=_DASHED)
        plain_axis(axes, "x")
        plain_axis(axes, "y")
        axes.set_xlabel(f"refined over encoded value ({rows['x'].max():g}: that and above)")
        axes.set_ylabel("share of active latents")
    return figure
