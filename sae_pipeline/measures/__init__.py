"""Streaming measures of autoencoders: the one definition of NMSE, density and dead, for training and evaluation."""

from sae_pipeline.measures.activity import Density, Fired
from sae_pipeline.measures.reconstruction import Reconstruction

__all__ = ["Density", "Fired", "Reconstruction"]
