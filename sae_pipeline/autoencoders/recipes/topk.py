"""TopK and what is built on it: Multi-TopK and the two regularisers of what k cuts off."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sae_pipeline.autoencoders.recipes.recipe import Recipe, Settings
from sae_pipeline.kernels import Forward, Parameters, Pass, TopK
from sae_pipeline.kernels.reference import pre_activations, squared_error

Regulariser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From a = ReLU(π) [b, n], the latents z [b, n] and the mask of latents that count [n] to one value a row, [b]."""


def multi_forward(settings: Settings) -> Forward:
    """L(k) + L(4k)/8: the same weights decode both (Gao et al. 2024 §5.3.1)."""
    widest = min(settings.n, round(settings.options["factor"] * settings.k))

    def forward(params: Parameters, x_bd: Tensor, scale: float) -> Pass:
        pre_bn = pre_activations(params, x_bd)
        z_bn = TopK(settings.k)(pre_bn)
        x_hat_bd = z_bn @ params.W_dec + params.b_pre
        wide_bd = TopK(widest)(pre_bn) @ params.W_dec + params.b_pre
        weight = settings.options["weight"]
        loss = squared_error(x_hat_bd, x_bd, scale) + weight * squared_error(wide_bd, x_bd, scale)
        return Pass(pre_bn, z_bn, x_hat_bd, loss, torch.zeros_like(loss))

    return forward


def regularised(regulariser: Regulariser) -> Callable[[Settings], Forward]:
    """TopK with a penalty on a = ReLU(π) of the latents that are selected anywhere in the batch.

    Jacquier et al. 2026 (arXiv 2606.27321) §3: that mask has no gradient. The penalty is the mean over rows, where
    the paper sums: its λ is ours divided by the batch size. With the option `masked` at 0 every latent counts.
    """

    def forward_of(settings: Settings) -> Forward:
        def forward(params: Parameters, x_bd: Tensor, scale: float) -> Pass:
            pre_bn = pre_activations(params, x_bd)
            z_bn = TopK(settings.k)(pre_bn)
            x_hat_bd = z_bn @ params.W_dec + params.b_pre
            counted_n = (z_bn > 0).any(0) if settings.options["masked"] else torch.ones_like(z_bn[0], dtype=torch.bool)
            penalty = regulariser(math.sqrt(scale) * pre_bn.relu(), math.sqrt(scale) * z_bn, counted_n).mean()
            return Pass(pre_bn, z_bn, x_hat_bd, squared_error(x_hat_bd, x_bd, scale), penalty)

        return forward

    return forward_of


def off_support_l1(a_bn: Tensor, z_bn: Tensor, counted_n: Tensor) -> Tensor:
    """‖μ ⊙ (a − z)‖₁: what the k selected leave behind (eq. 7 there)."""
    return ((a_bn - z_bn) * counted_n).sum(1)


def l1_over_l2(a_bn: Tensor, z_bn: Tensor, counted_n: Tensor) -> Tensor:
    """‖μ ⊙ a‖₁ / ‖μ ⊙ a‖₂, at least 1 and blind to scale; 0 without gradient where all are 0 (eq. 8 there)."""
    counted_bn = a_bn * counted_n
    square_b = counted_bn.square().sum(1)
    some_b = square_b > 0
    norm_b = torch.where(some_b, square_b, 1.0).sqrt()
    return torch.where(some_b, counted_bn.sum(1) / norm_b, 0.0)


RECIPES = {
    "topk": Recipe("the k largest", ("k",), "topk", activation=lambda settings: TopK(settings.k), rescale_encoder=True),
    "multi-topk": Recipe("TopK that also decodes from 4k", ("k",), "topk", forward=multi_forward,
                         options={"factor": 4.0, "weight": 0.125}, rescale_encoder=True),
    "topk-off-support-l1": Recipe("TopK, L1 on what it leaves out", ("k", "l1"), "topk",
                                  forward=regularised(off_support_l1), options={"masked": 1.0}, rescale_encoder=True),
    "topk-l1-over-l2": Recipe("TopK, l1/l2 of the pre-activations", ("k", "l1"), "topk",
                              forward=regularised(l1_over_l2), options={"masked": 1.0}, rescale_encoder=True),
}  # fmt: skip
