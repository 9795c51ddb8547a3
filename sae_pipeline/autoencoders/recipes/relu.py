"""ReLU with a penalty on the size of the latents, in four forms. Penalties mean the same whatever the data's scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sae_pipeline.autoencoders.recipes.recipe import Recipe, Settings
from sae_pipeline.kernels import Forward, Parameters, Pass, ReLU
from sae_pipeline.kernels.reference import pre_activations, squared_error

Size = Callable[[Tensor, Settings], Tensor]
"""From latents scaled to data of unit variance to what each costs, [b, n]."""


def penalised(size: Size) -> Callable[[Settings], Forward]:
    """A ReLU whose penalty is the mean over rows of Σ_i size(√s · z_i)."""

    def forward_of(settings: Settings) -> Forward:
        def forward(params: Parameters, x_bd: Tensor, scale: float) -> Pass:
            pre_bn = pre_activations(params, x_bd)
            z_bn = pre_bn.relu()
            x_hat_bd = z_bn @ params.W_dec + params.b_pre
            penalty = size(math.sqrt(scale) * z_bn, settings).sum() / len(x_bd)
            return Pass(pre_bn, z_bn, x_hat_bd, squared_error(x_hat_bd, x_bd, scale), penalty)

        return forward

    return forward_of


def smooth(z_bn: Tensor, settings: Settings) -> Tensor:
    """√(z² + ε) − √ε: L1 with a rounded corner, without a constant."""
    epsilon = settings.options["epsilon"]
    return (z_bn.square() + epsilon).sqrt() - math.sqrt(epsilon)


def tanh(z_bn: Tensor, settings: Settings) -> Tensor:
    """tanh(B z) / B: slope 1 at 0 like L1, none for large z (Circuits Updates, February 2024)."""
    return torch.tanh(settings.options["b"] * z_bn) / settings.options["b"]


def decoder_norm_forward(settings: Settings) -> Forward:
    """ReLU(W_enc x + b_enc), no offset before the encoder; L1 weighted by free decoder norms."""

    def forward(params: Parameters, x_bd: Tensor, scale: float) -> Pass:
        pre_bn = torch.nn.functional.linear(x_bd, params.W_enc, params.b_enc)
        z_bn = pre_bn.relu()
        x_hat_bd = z_bn @ params.W_dec + params.b_pre
        penalty = math.sqrt(scale) * (z_bn @ params.W_dec.norm(dim=1)).sum() / len(x_bd)
        return Pass(pre_bn, z_bn, x_hat_bd, squared_error(x_hat_bd, x_bd, scale), penalty)

    return forward


def small_decoder(params: Parameters, settings: Settings, loss_scale: float) -> Parameters:
    """Decoder rows of a small norm, the encoder equal to them, biases 0 (Circuits Updates, April 2024)."""
    W_dec = settings.options["decoder_norm"] * params.W_dec
    return Parameters(W_dec.clone(), torch.zeros_like(params.b_enc), W_dec, torch.zeros_like(params.b_pre))


def unit_decoder(params: Parameters) -> Parameters:
    """The same function with unit decoder rows and b_pre subtracted before the encoder."""
    norm_n = params.W_dec.norm(dim=1).clamp(min=torch.finfo(params.W_dec.dtype).tiny)
    W_enc = params.W_enc * norm_n[:, None]
    return Parameters(W_enc, params.b_enc * norm_n + W_enc @ params.b_pre, params.W_dec / norm_n[:, None], params.b_pre)


RECIPES = {
    "relu": Recipe("ReLU, L1", ("l1",), "relu", activation=lambda settings: ReLU()),
    "relu-smooth": Recipe(
        "ReLU, L1 with a rounded corner", ("l1",), "relu", forward=penalised(smooth), options={"epsilon": 1e-6}
    ),
    "relu-decoder-norm": Recipe(
        "ReLU, L1 weighted by free decoder norms",
        ("l1",),
        "relu",
        forward=decoder_norm_forward,
        start=small_decoder,
        fold=unit_decoder,
        options={"decoder_norm": 0.1},
        unit_rows=False,
    ),
    "tanh": Recipe("ReLU, tanh penalty", ("l1",), "relu", forward=penalised(tanh), options={"b": 4.0}),
}
