"""Latents compete over a whole batch: BatchTopK, and Matryoshka with its nested dictionaries."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_pipeline.autoencoders.recipes.recipe import Recipe, Settings, folded_threshold
from sae_pipeline.kernels import Forward, Parameters, Pass
from sae_pipeline.kernels.reference import pre_activations, squared_error


def batch_topk(pre_bn: Tensor, k: int) -> Tensor:
    """ReLU(π) where among the b·k largest of the batch, else 0, [b, n] (Bussmann et al. 2024, arXiv 2412.06410)."""
    flat = pre_bn.relu().flatten()
    values, at = flat.topk(min(len(pre_bn) * k, flat.numel()), sorted=False)
    return torch.zeros_like(flat).scatter(0, at, values).view_as(pre_bn)


def smallest_kept(z_bn: Tensor, otherwise: Tensor) -> Tensor:
    """The smallest positive latent of the batch, which the inference threshold follows; `otherwise` if none is."""
    kept = z_bn.detach()
    least = torch.where(kept > 0, kept, torch.inf).min()
    return torch.where(least.isfinite(), least, otherwise)  # [1], as `otherwise` is


def batch_forward(settings: Settings) -> Forward:
    """BatchTopK; it observes the smallest latent kept, whose mean is the threshold when the batch is not at hand."""

    def forward(params: Parameters, x_bd: Tensor, scale: float) -> Pass:
        pre_bn = pre_activations(params, x_bd)
        z_bn = batch_topk(pre_bn, settings.k)
        x_hat_bd = z_bn @ params.W_dec + params.b_pre
        loss = squared_error(x_hat_bd, x_bd, scale)
        observed = {"cut": smallest_kept(z_bn, params.extra["cut"])}
        return Pass(pre_bn, z_bn, x_hat_bd, loss, torch.zeros_like(loss), observed)

    return forward


def matryoshka_forward(settings: Settings) -> Forward:
    """The mean of the losses of nested dictionaries, the first m latents for each prefix m, under one BatchTopK.

    Bussmann et al. 2025 (arXiv 2503.17547). The prefixes end with n; the paper's code also averages over the empty
    prefix, which trains b_pre alone and is left out here.
    """

    def forward(params: Parameters, x_bd: Tensor, scale: float) -> Pass:
        pre_bn = pre_activations(params, x_bd)
        z_bn = batch_topk(pre_bn, settings.k)
        x_hat_bd, losses, start = params.b_pre.expand_as(x_bd), [], 0
        for stop in settings.prefixes:
            x_hat_bd = x_hat_bd + z_bn[:, start:stop] @ params.W_dec[start:stop]
            losses.append(squared_error(x_hat_bd, x_bd, scale))
            start = stop
        loss = torch.stack(losses).mean()
        observed = {"cut": smallest_kept(z_bn, params.extra["cut"])}
        return Pass(pre_bn, z_bn, x_hat_bd, loss, torch.zeros_like(loss), observed)

    return forward


def cut_start(params: Parameters, settings: Settings, loss_scale: float) -> Parameters:
    """A threshold of 0 until a batch was seen."""
    return Parameters(params.W_enc, params.b_enc, params.W_dec, params.b_pre, {"cut": params.b_enc.new_zeros(1)})


def cut_fold(params: Parameters) -> Parameters:
    """One threshold for all latents."""
    return folded_threshold(params, params.extra["cut"].expand_as(params.b_enc).clone())


RECIPES = {
    "batch-topk": Recipe("the b·k largest of a batch", ("k",), "threshold", forward=batch_forward, start=cut_start,
                         fold=cut_fold, rescale_encoder=True),
    "matryoshka": Recipe("BatchTopK in nested dictionaries", ("k", "prefixes"), "threshold",
                         forward=matryoshka_forward, start=cut_start, fold=cut_fold, rescale_encoder=True),
}  # fmt: skip
