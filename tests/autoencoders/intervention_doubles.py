"""Autoencoders of known tensors for the tiny subjects."""

import torch

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.dataset import Normaliser
from sae_pipeline.kernels import Parameters

N, K = 50, 4
ENCODERS = ("relu", "topk", "jumprelu")


def make(d, recipe="topk", normaliser="paper", seed=2):
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(N, d, generator=g), dim=1)
    extra = {"threshold": 0.5 * torch.rand(N, generator=g)} if recipe == "jumprelu" else {}
    drawn = torch.randn(N, d, generator=g), 0.1 * torch.randn(N, generator=g), W_dec, 0.2 * torch.randn(d, generator=g)
    config = AutoencoderConfig(recipe, N, d, K if recipe == "topk" else None)
    return Autoencoder(
        config, Parameters(*drawn, extra), Normaliser(normaliser, d, 1.3 if normaliser == "rms" else 1.0)
    )
