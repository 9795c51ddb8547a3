"""Recipes that learn which latents are on apart from how large they are: Gated, ProLU and JumpReLU."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sae_pipeline.autoencoders.recipes.recipe import Recipe, Settings, folded_threshold
from sae_pipeline.kernels import Forward, Parameters, Pass
from sae_pipeline.kernels.estimators import jumprelu, prolu, step
from sae_pipeline.kernels.reference import pre_activations, squared_error


def gated_forward(settings: Settings) -> Forward:
    """Gate and magnitude share directions; the gate learns from L1 and from decoding with the decoder held fixed.

    Rajamanoharan et al. 2024 (arXiv 2404.16014) §3.2, eqs. 5-8: W_enc and b_enc are the gate's.
    """

    def forward(params: Parameters, x_bd: Tensor, scale: float) -> Pass:
        shared_bn = (x_bd - params.b_pre) @ params.W_enc.t()
        gate_bn = shared_bn + params.b_enc
        magnitude_bn = (shared_bn * params.extra["r_mag"].exp() + params.extra["b_mag"]).relu()
        z_bn = (gate_bn > 0) * magnitude_bn
        x_hat_bd = z_bn @ params.W_dec + params.b_pre
        opened_bn = gate_bn.relu()
        auxiliary_bd = opened_bn @ params.W_dec.detach() + params.b_pre.detach()
        loss = squared_error(x_hat_bd, x_bd, scale) + squared_error(auxiliary_bd, x_bd, scale)
        return Pass(gate_bn, z_bn, x_hat_bd, loss, math.sqrt(scale) * opened_bn.sum() / len(x_bd))

    return forward


def gated_start(params: Parameters, settings: Settings, loss_scale: float) -> Parameters:
    """Magnitudes start equal to the gate's pre-activations."""
    extra = {"r_mag": torch.zeros_like(params.b_enc), "b_mag": torch.zeros_like(params.b_enc)}
    return Parameters(params.W_enc, params.b_enc, params.W_dec, params.b_pre, extra)


def gated_fold(params: Parameters) -> Parameters:
    """The equivalent JumpReLU: θ = b_mag − exp(r_mag) ⊙ b_gate (§3.2 there)."""
    r_mag, b_mag = params.extra["r_mag"].exp(), params.extra["b_mag"]
    magnitude = Parameters(params.W_enc * r_mag[:, None], b_mag, params.W_dec, params.b_pre)
    return folded_threshold(magnitude, b_mag - r_mag * params.b_enc)


def prolu_forward(*, straight_through: bool) -> Callable[[Settings], Forward]:
    """z = ProLU(W_enc (x − b_pre), b_enc) and L1 (Taggart 2024)."""

    def forward(params: Parameters, x_bd: Tensor, scale: float) -> Pass:
        m_bn = (x_bd - params.b_pre) @ params.W_enc.t()
        z_bn = prolu(m_bn, params.b_enc, straight_through=straight_through)
        x_hat_bd = z_bn @ params.W_dec + params.b_pre
        penalty = math.sqrt(scale) * z_bn.sum() / len(x_bd)
        return Pass(m_bn, z_bn, x_hat_bd, squared_error(x_hat_bd, x_bd, scale), penalty)

    return lambda settings: forward


def prolu_fold(params: Parameters) -> Parameters:
    """m > 0 and m + b > 0 is m > max(0, −b), with no bias inside."""
    plain = Parameters(params.W_enc, torch.zeros_like(params.b_enc), params.W_dec, params.b_pre)
    return folded_threshold(plain, -params.b_enc)


def jumprelu_forward(settings: Settings) -> Forward:
    """z = ReLU(π) where above θ; the penalty is L0, or with `target_l0` how far L0 is from it, (L0/target − 1)².

    Rajamanoharan et al. 2024 (arXiv 2407.14435). Bandwidth and first threshold are in units of the data's standard
    deviation.
    """
    target_l0 = settings.options["target_l0"]

    def forward(params: Parameters, x_bd: Tensor, scale: float) -> Pass:
        bandwidth = settings.options["bandwidth"] / math.sqrt(scale)
        pre_bn, threshold_n = pre_activations(params, x_bd), params.extra["log_threshold"].exp()
        z_bn = jumprelu(pre_bn.relu(), threshold_n, bandwidth)
        x_hat_bd = z_bn @ params.W_dec + params.b_pre
        l0 = step(pre_bn.relu(), threshold_n, bandwidth).sum() / len(x_bd)
        penalty = (l0 / target_l0 - 1).square() if target_l0 else l0
        return Pass(pre_bn, z_bn, x_hat_bd, squared_error(x_hat_bd, x_bd, scale), penalty)

    return forward


def jumprelu_start(params: Parameters, settings: Settings, loss_scale: float) -> Parameters:
    """Every threshold at the same small value."""
    first = math.log(settings.options["threshold"] / math.sqrt(loss_scale))
    extra = {"log_threshold": torch.full_like(params.b_enc, first)}
    return Parameters(params.W_enc, params.b_enc, params.W_dec, params.b_pre, extra)


def jumprelu_fold(params: Parameters) -> Parameters:
    """Thresholds themselves in place of their logarithms."""
    return folded_threshold(params, params.extra["log_threshold"].exp())


RECIPES = {
    "gated": Recipe("gate and magnitude apart, L1 on the gate", ("l1",), "threshold", forward=gated_forward,
                    start=gated_start, fold=gated_fold),
    "prolu-relu": Recipe("ProLU with the gradient of a ReLU, L1", ("l1",), "threshold",
                         forward=prolu_forward(straight_through=False), fold=prolu_fold),
    "prolu-ste": Recipe("ProLU with its straight-through gradient, L1", ("l1",), "threshold",
                        forward=prolu_forward(straight_through=True), fold=prolu_fold),
    "jumprelu": Recipe("learned thresholds, L0", ("l1",), "threshold", forward=jumprelu_forward, start=jumprelu_start,
                       fold=jumprelu_fold, options={"bandwidth": 0.001, "threshold": 0.001, "target_l0": 0.0},
                       first_l1=0.001),
}  # fmt: skip
