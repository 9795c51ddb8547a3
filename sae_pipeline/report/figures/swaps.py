"""Codes shorter and longer than the trained one, and thresholds in place of a count."""

import pandas as pd
from matplotlib.figure import Figure

from sae_pipeline.report.figures.style import ACCENT, MUTED, log_axis, message, new_figure, plain_axis, sequence, styled


def swaps(curves: pd.DataFrame, trained_k: int | None) -> Figure:
    """NMSE against active latents of one autoencoder under TopK(k′) and JumpReLU(θ), with a line at the trained k.

    Args:
        curves: curve (`progressive_k`, `threshold_nmse`, `threshold_l0`), x, y.
        trained_k: active latents it was trained with, where fixed.
    """
    by_name = {name: rows.set_index("x")["y"].sort_index() for name, rows in curves.groupby("curve")}
    topk = by_name.get("progressive_k")
    if topk is None or len(topk) < 2:
        return message("No code of another length has been measured yet.")
    with styled():
        figure = new_figure(5.2, 3.4)
        axes = figure.add_subplot()
        topk = topk[topk.index > 0]
        axes.plot(topk.index, topk, color=sequence([1.0])[1.0], linewidth=1.6, label="TopK(k′)")
        if "threshold_nmse" in by_name:
            l0, nmse = by_name["threshold_l0"], by_name["threshold_nmse"]
            shown = (l0 >= 1) & (l0 <= topk.index.max())
            axes.plot(l0[shown], nmse[shown], color=ACCENT, linewidth=1.2, linestyle="--", label="JumpReLU(θ)")
        if trained_k is not None:
            axes.axvline(trained_k, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)))
            axes.annotate(
                f"trained, k = {trained_k}", (trained_k, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -2),
                textcoords="offset points", va="top", color=MUTED, fontsize=7.5,
            )  # fmt: skip
        log_axis(axes, "x")
        plain_axis(axes, "y")
        axes.set_xlabel("active latents (mean L0 of a threshold)")
        axes.set_ylabel("NMSE")
        axes.legend(loc="best", frameon=False)
    return figure
