"""Weights before the first step (Gao et al. 2024 §A.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_pipeline.autoencoders.autoencoder import Autoencoder
from sae_pipeline.autoencoders.recipes import AutoencoderConfig, recipe_of
from sae_pipeline.dataset import Normaliser
from sae_pipeline.kernels import Parameters
from sae_pipeline.study import AutoencoderSpec

# Data and weights drawn from one seed would be the same numbers: a planted dictionary would be known at the start.
SEED_OFFSET = 0x5AE00000  # in the low 32 bits: PyTorch's generator ignores the others
PROBES = 256


def config_of(spec: AutoencoderSpec, d: int) -> AutoencoderConfig:
    """The part of a spec that a saved autoencoder needs; d is the width of the site."""
    return AutoencoderConfig(spec.recipe, spec.n, d, spec.k)


def initialise(spec: AutoencoderSpec, normaliser: Normaliser, geometric_median_d: Tensor) -> Autoencoder:
    """A fresh autoencoder in float32 on the CPU, a function of the spec's seed alone.

    b_pre is the geometric median of the normalised data; encoder rows are uniform in ±1/√d; decoder rows are unit and
    parallel to them (init "tied") or drawn by themselves ("independent"); b_enc is 0. Where the recipe asks for it the
    encoder is divided by the mean ‖x̂ − b_pre‖ over 256 random unit vectors x − b_pre, so that x̂ has the norm of x.
    """
    config, recipe = config_of(spec, normaliser.d), recipe_of(spec.recipe)
    generator = torch.Generator().manual_seed(SEED_OFFSET + spec.seed)
    W_enc = _uniform(spec.n, config.d, generator)
    W_dec = normalize(W_enc if spec.init == "tied" else _uniform(spec.n, config.d, generator), dim=1)
    b_pre = geometric_median_d.detach().to("cpu", torch.float32).clone()
    autoencoder = Autoencoder(config, Parameters(W_enc, torch.zeros(spec.n), W_dec, b_pre), normaliser)
    if recipe.rescale_encoder:
        probes = normalize(torch.randn(PROBES, config.d, generator=generator), dim=1)
        x_hat = autoencoder.decode(autoencoder.encode(probes + b_pre))
        W_enc /= (x_hat - b_pre).norm(dim=1).mean()
    return autoencoder


def _uniform(n: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.empty(n, d).uniform_(-(d**-0.5), d**-0.5, generator=generator)
