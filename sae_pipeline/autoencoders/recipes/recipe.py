"""What sets the members of the family apart: a recipe. `docs/autoencoders.md` lists them and shows how to add one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from sae_pipeline.kernels import Activation, Forward, Parameters
from sae_pipeline.store import PipelineError

Encoder = Literal["relu", "topk", "threshold"]
"""How a saved autoencoder encodes: the positive π; the k largest, if positive; those above a threshold of each latent.

Whatever a recipe trains, it folds into one of these three, all with unit decoder rows.
"""


@dataclass(frozen=True)
class AutoencoderConfig:
    """What a saved autoencoder needs to compute: recipe name, latents n, width d, active latents k (where fixed)."""

    recipe: str
    n: int
    d: int
    k: int | None = None


@dataclass(frozen=True)
class Settings:
    """What a recipe is trained with: sizes, its k, its nested prefixes, and its own options by name."""

    n: int
    d: int
    k: int = 0
    prefixes: tuple[int, ...] = ()
    options: Mapping[str, float] = field(default_factory=dict)


def unchanged(params: Parameters, settings: Settings, loss_scale: float) -> Parameters:
    """Start from the shared initialisation."""
    return params


def as_trained(params: Parameters) -> Parameters:
    """Save what was trained."""
    return params


@dataclass(frozen=True)
class Recipe:
    """One kind of autoencoder.

    summary: what it is, in a line. needs: the settings of a spec it takes, of "k", "l1", "prefixes" and "parent".
    encoder: how it encodes once it is saved. activation: for a plain recipe (squared error, L1, one activation), which
    the sparse step knows how to train; forward: the training pass of any other.
    start: its parameters from the shared ones, or from its parent's; fold: what is saved from what was trained.
    trains: the parameters that change; None: all of them.
    options: its own settings with their defaults. unit_rows: decoder rows are held at unit norm.
    rescale_encoder: start with the encoder scaled so that reconstructions have the norm of their inputs.
    first_l1: weight of the penalty from which a search for a target L0 sets out.
    """

    summary: str
    needs: tuple[str, ...]
    encoder: Encoder
    activation: Callable[[Settings], Activation] | None = None
    forward: Callable[[Settings], Forward] | None = None
    start: Callable[[Parameters, Settings, float], Parameters] = unchanged
    fold: Callable[[Parameters], Parameters] = as_trained
    options: Mapping[str, float] = field(default_factory=dict)
    trains: frozenset[str] | None = None
    unit_rows: bool = True
    rescale_encoder: bool = False
    first_l1: float = 0.1

    def __post_init__(self) -> None:
        assert (self.activation is None) != (self.forward is None), "a recipe has an activation or a forward pass"


def folded_threshold(params: Parameters, threshold_n: Tensor) -> Parameters:
    """The four shared tensors and the threshold that a "threshold" encoder needs; below 0 a ReLU decides."""
    return Parameters(params.W_enc, params.b_enc, params.W_dec, params.b_pre, {"threshold": threshold_n.clamp(min=0)})


def check_k(recipe: str, n: int, k: int | None) -> int:
    """k where it lies between 1 and n; PipelineError otherwise."""
    if k is None or not 1 <= k <= n:
        raise PipelineError(f"recipe {recipe!r}: k = {k} must lie between 1 and n = {n}")
    return k


def check_prefixes(recipe: str, n: int, prefixes: tuple[int, ...] | None) -> tuple[int, ...]:
    """Rising prefixes that end with n; PipelineError otherwise. None is none."""
    found = prefixes or ()
    if found and (found[-1] != n or any(low >= high for low, high in zip((0, *found), found, strict=False))):
        raise PipelineError(f"recipe {recipe!r}: prefixes {list(found)} must rise and end with n = {n}")
    return found
