"""The two pictures that one metric of one autoencoder is shown with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from sae_pipeline.report import figures
from sae_pipeline.report.densities import DensityHistogram

if TYPE_CHECKING:
    import pandas as pd

    from sae_pipeline.evaluation import MetricResult

_HEADLINES = {"reconstruction": ("nmse", "NMSE"), "downstream": ("dce", "ΔCE (nats/token)")}


def metric_figures(name: str, result: MetricResult) -> dict[str, Callable[[], Figure]]:
    """At most two figures by title, drawn when called; none for a metric that has no picture of its own."""
    if name == "density":
        curve = result.curves[result.curves["curve"] == "density_hist"]
        histogram = DensityHistogram.of_curve(curve, len(result.latent_stats))
        return {"density": lambda: figures.density_histogram(histogram)}
    if name == "progressive":
        return {"swaps": lambda: figures.swaps(result.curves, result.facts["trained_k"])}
    if name == "ablation":
        return {"sparsity": lambda: figures.effect_sparsity(result.curves)}
    if name == "shrinkage":
        return {"ratios": lambda: figures.refined_ratios(result.curves)}
    if name == "probes":
        return {"probes": lambda: figures.probe_losses(result.probe_results)}
    if name == "explanations":
        return {"latents": lambda: figures.explained_latents(result.latent_stats)}
    if name not in _HEADLINES:
        return {}
    metric, label = _HEADLINES[name]
    curve = result.curves[result.curves["curve"] == f"{metric}_by_position"]
    return {
        f"{metric}_by_position": lambda: figures.position_curve(curve, label),
        f"{metric}_by_document": lambda: _by_document(result.unit_stats, metric, label),
    }


def _by_document(unit_stats: pd.DataFrame, metric: str, label: str) -> Figure:
    rows = unit_stats[(unit_stats["metric"] == metric) & (unit_stats["variant"] == "all") & (unit_stats["den"] > 0)]
    return figures.histograms({"": (rows["num"] / rows["den"]).to_numpy()}, x_label=label, y_label="documents")
