"""Explanations of latents as patterns of tokens (Neuron to Graph), and how well they foretell the latents."""

from sae_pipeline.evaluation.explanations.metric import METRIC

__all__ = ["METRIC"]
