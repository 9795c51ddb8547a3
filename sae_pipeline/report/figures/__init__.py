"""Figures: each takes tables and returns a matplotlib `Figure`; none loads a model or an array of activations."""

from sae_pipeline.report.figures.ablation import effect_sparsity, refined_ratios
from sae_pipeline.report.figures.data import (
    ablation_references,
    channel_spread,
    context_lengths,
    document_lengths,
    histograms,
    loss_by_position,
    position_curve,
    shard_norms,
    shard_spread,
    spectrum,
)
from sae_pipeline.report.figures.explanations import explained_latents
from sae_pipeline.report.figures.latents import by_position, density_histogram, density_panels
from sae_pipeline.report.figures.laws import laws
from sae_pipeline.report.figures.planes import plane
from sae_pipeline.report.figures.probes import probe_losses
from sae_pipeline.report.figures.style import message, png_data_uri, svg
from sae_pipeline.report.figures.swaps import swaps
from sae_pipeline.report.figures.training import dead_curves, error_curves, training_curve

__all__ = [
    "ablation_references",
    "by_position",
    "channel_spread",
    "context_lengths",
    "dead_curves",
    "density_histogram",
    "density_panels",
    "document_lengths",
    "effect_sparsity",
    "error_curves",
    "explained_latents",
    "histograms",
    "laws",
    "loss_by_position",
    "message",
    "plane",
    "png_data_uri",
    "position_curve",
    "probe_losses",
    "refined_ratios",
    "shard_norms",
    "shard_spread",
    "spectrum",
    "svg",
    "swaps",
    "training_curve",
]
