"""Weights before the first step (Gao et al. 2024 §A.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_pipeline.autoencoders.autoencoder import Autoencoder
from sae_pipeline.autoencoders.recipes import (
    AutoencoderConfig,
    Settings,
    check_k,
    check_options,
    check_prefixes,
    recipe_of,
)
from sae_pipeline.dataset import Normaliser
from sae_pipeline.kernels import Parameters
from sae_pipeline.store import PipelineError
from sae_pipeline.study import AutoencoderSpec

# Data and weights drawn from one seed would be the same numbers: a planted dictionary would be known at the start.
SEED_OFFSET = 0x5AE00000  # in the low 32 bits: PyTorch's generator ignores the others
PROBES = 256


def config_of(spec: AutoencoderSpec, d: int) -> AutoencoderConfig:
    """The part of a spec that a saved autoencoder needs; d is the width of the site."""
    fixed = recipe_of(spec.recipe).encoder == "topk"
    return AutoencoderConfig(spec.recipe, spec.n, d, spec.k if fixed else None)


def settings_of(spec: AutoencoderSpec, d: int) -> Settings:
    """The part of a spec that its recipe is trained with; PipelineError if it lacks what the recipe needs."""
    recipe = recipe_of(spec.recipe)
    for need in recipe.needs:
        if getattr(spec, need) is None and not (need == "l1" and spec.target_l0 is not None):
            raise PipelineError(f"autoencoder {spec.key}: recipe {spec.recipe!r} needs a value for {need}")
    k = check_k(spec.recipe, spec.n, spec.k) if "k" in recipe.needs else 0
    options = check_options(spec.recipe, spec.options or {})
    return Settings(spec.n, d, k, check_prefixes(spec.recipe, spec.n, spec.prefixes), options)


def initialise(
    spec: AutoencoderSpec, normaliser: Normaliser, geometric_median_d: Tensor, *, loss_scale: float = 1.0
) -> Parameters:
    """Fresh parameters in float32 on the CPU, a function of the spec's seed alone.

    b_pre is the geometric median of the normalised data; encoder rows are uniform in ±1/√d; decoder rows are unit and
    parallel to them (init "tied") or drawn by themselves ("independent"); b_enc is 0. Where the recipe asks for it the
    encoder is divided by the mean ‖x̂ − b_pre‖ over 256 random unit vectors x − b_pre, so that x̂ has the norm of x.
    `loss_scale` is one over the total variance of the data, for recipes whose constants are relative to it.
    """
    settings, recipe = settings_of(spec, normaliser.d), recipe_of(spec.recipe)
    generator = torch.Generator().manual_seed(SEED_OFFSET + spec.seed)
    W_enc = _uniform(spec.n, settings.d, generator)
    W_dec = normalize(W_enc if spec.init == "tied" else _uniform(spec.n, settings.d, generator), dim=1)
    b_pre = geometric_median_d.detach().to("cpu", torch.float32).clone()
    params = Parameters(W_enc, torch.zeros(spec.n), W_dec, b_pre)
    if recipe.rescale_encoder:
        probes = normalize(torch.randn(PROBES, settings.d, generator=generator), dim=1)
        topk = Autoencoder(AutoencoderConfig("topk", spec.n, settings.d, settings.k), params, normaliser)
        W_enc /= (topk.decode(topk.encode(probes + b_pre)) - b_pre).norm(dim=1).mean()
    return recipe.start(params, settings, loss_scale)


def _uniform(n: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.empty(n, d).uniform_(-(d**-0.5), d**-0.5, generator=generator)
