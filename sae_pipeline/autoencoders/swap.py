"""The same weights under another activation at test time (Gao et al. 2024 §5.3).

Every swap is a new autoencoder that shares the tensors it keeps. A threshold that the swapped one had is dropped.
"""

from __future__ import annotations

import operator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from sae_pipeline.autoencoders.recipes import AutoencoderConfig, check_k
from sae_pipeline.autoencoders.recipes.recipe import folded_threshold
from sae_pipeline.kernels import Parameters
from sae_pipeline.store import PipelineError

if TYPE_CHECKING:
    from sae_pipeline.autoencoders.autoencoder import Autoencoder

_ROWS_AT_ONCE: Final = 8_192


def with_topk(sae: Autoencoder, k: int) -> Autoencoder:
    """The autoencoder with TopK(k): the k largest π, if positive. PipelineError unless 1 ≤ k ≤ n."""
    k = check_k("topk", sae.config.n, operator.index(k))
    kept = Parameters(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_pre)
    return _swapped(sae, AutoencoderConfig("topk", sae.config.n, sae.config.d, k), kept, {"k": k})


def with_threshold(sae: Autoencoder, threshold: float | Tensor) -> Autoencoder:
    """The autoencoder with JumpReLU(θ): π where above θ and positive.

    Args:
        sae: the autoencoder.
        threshold: one θ, or one per latent [n], in units of π. At θ ≤ 0 every positive π is active, as with a ReLU.

    Raises:
        PipelineError: a θ is NaN or +∞, or they are not one or n.
    """
    threshold_n = torch.as_tensor(threshold, dtype=sae.b_enc.dtype, device=sae.device).detach()
    if threshold_n.ndim and tuple(threshold_n.shape) != (sae.config.n,):
        raise PipelineError(
            f"thresholds of shape {tuple(threshold_n.shape)}: give one number, or one per latent [{sae.config.n}]"
        )
    if not bool((threshold_n < torch.inf).all()):
        raise PipelineError("a threshold is NaN or infinite, so its latent could never be active; give numbers")
    record = {"threshold": "one per latent" if threshold_n.ndim else max(float(threshold_n), 0.0)}
    return _with_threshold(sae, "jumprelu", threshold_n, record)


def with_mean_l0(sae: Autoencoder, u_bd: Tensor, l0: float) -> Autoencoder:
    """The autoencoder with the one θ at which normalised rows have a mean L0 of `l0`, as BatchTopK's at inference.

    θ lies halfway between the b·l0-th and the next largest π of all rows, so that those rows have exactly
    round(b·l0) / b latents active on average (fewer only if π at θ are equal).

    Args:
        sae: the autoencoder.
        u_bd: normalised rows [b, d] that stand for those it will see.
        l0: active latents per row.

    Raises:
        PipelineError: there are no rows, `l0` is less than one active latent in all, or more than are positive.
    """
    wanted = round(l0 * len(u_bd)) if 0 < l0 <= sae.config.n else 0
    if wanted < 1:
        raise PipelineError(
            f"a mean L0 of {l0} on {len(u_bd)} rows of {sae.config.n} latents: give rows, and an L0 between "
            "1 / rows and the latents"
        )
    largest = _largest(sae, u_bd, wanted + 1)
    positive = int((largest > 0).sum())
    if positive < wanted:
        raise PipelineError(
            f"a mean L0 of {l0} cannot be had: {positive / len(u_bd):.4g} latents a row are positive; ask for no more"
        )
    following = largest[wanted:].clamp(min=0).sum()  # one, or none where all latents of all rows are wanted
    threshold = _between(following, largest[wanted - 1])
    return _with_threshold(sae, "batch-topk", threshold, {"mean_l0": float(l0), "threshold": float(threshold)})


def _largest(sae: Autoencoder, u_bd: Tensor, count: int) -> Tensor:
    """The `count` largest π over all rows, falling; all of them if there are fewer."""
    largest = u_bd.new_empty(0)
    for part_bd in torch.split(u_bd, _ROWS_AT_ONCE):
        pool = torch.cat((largest, sae.pre_activations(part_bd).flatten()))
        largest = pool.topk(min(count, len(pool))).values
    return largest


def _between(low: Tensor, high: Tensor) -> Tensor:
    """The middle, or `low` where rounding would reach `high`."""
    middle = low + (high - low) / 2
    return torch.where(middle < high, middle, low)


def _with_threshold(sae: Autoencoder, recipe: str, threshold: Tensor, record: dict[str, Any]) -> Autoencoder:
    parameters = folded_threshold(sae.parameters, threshold.expand_as(sae.b_enc).clone())
    return _swapped(sae, AutoencoderConfig(recipe, sae.config.n, sae.config.d), parameters, record)


def _swapped(
    sae: Autoencoder, config: AutoencoderConfig, parameters: Parameters, record: dict[str, Any]
) -> Autoencoder:
    """What the swapped one says of itself no longer holds of this one, and becomes what it was swapped from."""
    source = {"autoencoder": asdict(sae.config), "provenance": sae.provenance}
    provenance = {"swap": {"to": config.recipe, **record}, "swapped_from": source}
    return replace(sae, config=config, parameters=parameters, provenance=provenance)
