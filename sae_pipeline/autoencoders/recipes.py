"""The recipes: what sets the members of the family apart. A new one is an entry in `RECIPES`.

A recipe is an activation, how it lays out its codes, which settings it needs, and whether its encoder starts rescaled;
parameters, decoder, losses, optimiser and file format are shared by all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sae_pipeline.autoencoders.codes import Codes
from sae_pipeline.kernels import Activation, ReLU, TopK
from sae_pipeline.store import PipelineError


@dataclass(frozen=True)
class AutoencoderConfig:
    """What a saved autoencoder needs to compute: recipe name, latents n, width d, active latents k (where fixed)."""

    recipe: str
    n: int
    d: int
    k: int | None = None


@dataclass(frozen=True)
class Recipe:
    """One kind of autoencoder.

    needs: the sparsity setting of a spec it takes ("k" or "l1").
    activation: from a config to z = activation(π), for training.
    encode: from pre-activations [b, n] and the config to codes, for use.
    rescale_encoder: start with the encoder scaled so that reconstructions have the norm of their inputs.
    """

    needs: str
    activation: Callable[[AutoencoderConfig], Activation]
    encode: Callable[[Tensor, AutoencoderConfig], Codes]
    rescale_encoder: bool


def _k(config: AutoencoderConfig) -> int:
    if config.k is None or not 1 <= config.k <= config.n:
        raise PipelineError(f"recipe {config.recipe!r}: k = {config.k} must lie between 1 and n = {config.n}")
    return config.k


def _encode_topk(pre_bn: Tensor, config: AutoencoderConfig) -> Codes:
    values, indices = pre_bn.topk(_k(config), dim=1)
    return Codes(indices, values.relu())


RECIPES: dict[str, Recipe] = {
    "topk": Recipe("k", lambda config: TopK(_k(config)), _encode_topk, rescale_encoder=True),
    "relu": Recipe(
        "l1", lambda config: ReLU(), lambda pre_bn, config: Codes.ragged(pre_bn.relu()), rescale_encoder=False
    ),
}


def recipe_of(name: str) -> Recipe:
    """The recipe of that name; PipelineError naming those there are."""
    if name not in RECIPES:
        raise PipelineError(f"recipe {name!r} is unknown; use one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
