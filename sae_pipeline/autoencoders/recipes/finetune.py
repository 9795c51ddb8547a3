"""Suppression fixes: a trained autoencoder goes on without its penalty, with only some of its parameters free.

Wright and Sharkey 2024 put a scale on every latent and try what else to free; Rajamanoharan et al. 2024
(arXiv 2404.16014 §5.2) rescale and shift the magnitudes. An autoencoder with a ReLU is one with thresholds of 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae_pipeline.autoencoders.recipes.recipe import Recipe, Settings, folded_threshold
from sae_pipeline.kernels import Forward, Parameters, Pass
from sae_pipeline.kernels.reference import pre_activations, squared_error

DECODER = ("W_dec", "b_dec")
ENCODER = ("W_enc", "b_enc")


def finetune_start(parent: Parameters, settings: Settings, loss_scale: float) -> Parameters:
    """The parent, its offset apart for encoder (b_pre) and decoder (b_dec), with scales of 1."""
    extra = {
        "threshold": _threshold(parent),
        "log_scale": torch.zeros_like(parent.b_enc),
        "b_dec": parent.b_pre.clone(),
    }
    return Parameters(parent.W_enc, parent.b_enc, parent.W_dec, parent.b_pre, extra)


def scaled_forward(settings: Settings) -> Forward:
    """z = s ⊙ π where π exceeds the threshold, s = exp(log_scale) > 0; squared error alone."""

    def forward(params: Parameters, x_bd: Tensor, scale: float) -> Pass:
        pre_bn = pre_activations(params, x_bd)
        z_bn = pre_bn.where(pre_bn > params.extra["threshold"], 0.0) * params.extra["log_scale"].exp()
        x_hat_bd = z_bn @ params.W_dec + params.extra["b_dec"]
        loss = squared_error(x_hat_bd, x_bd, scale)
        return Pass(pre_bn, z_bn, x_hat_bd, loss, torch.zeros_like(loss))

    return forward


def scaled_fold(params: Parameters) -> Parameters:
    """Scales and decoder norms go into the encoder and its threshold, the decoder's offset before both."""
    norm_n = params.W_dec.norm(dim=1).clamp(min=torch.finfo(params.W_dec.dtype).tiny)
    grow_n, b_dec = params.extra["log_scale"].exp() * norm_n, params.extra["b_dec"]
    W_enc = params.W_enc * grow_n[:, None]
    b_enc = params.b_enc * grow_n + W_enc @ (b_dec - params.b_pre)
    folded = Parameters(W_enc, b_enc, params.W_dec / norm_n[:, None], b_dec)
    return folded_threshold(folded, params.extra["threshold"] * grow_n)


def rescale_start(parent: Parameters, settings: Settings, loss_scale: float) -> Parameters:
    """Magnitudes that start as the parent's pre-activations."""
    extra = {
        "threshold": _threshold(parent),
        "r_mag": torch.zeros_like(parent.b_enc),
        "b_mag": parent.b_enc.clone(),
    }
    return Parameters(parent.W_enc, parent.b_enc, parent.W_dec, parent.b_pre, extra)


def rescale_forward(settings: Settings) -> Forward:
    """z = ReLU(e^r ⊙ (π − b_enc) + b_mag) where π exceeds the threshold; squared error alone."""

    def forward(params: Parameters, x_bd: Tensor, scale: float) -> Pass:
        shared_bn = (x_bd - params.b_pre) @ params.W_enc.t()
        pre_bn = shared_bn + params.b_enc
        magnitude_bn = (shared_bn * params.extra["r_mag"].exp() + params.extra["b_mag"]).relu()
        z_bn = (pre_bn > params.extra["threshold"]) * magnitude_bn
        x_hat_bd = z_bn @ params.W_dec + params.b_pre
        loss = squared_error(x_hat_bd, x_bd, scale)
        return Pass(pre_bn, z_bn, x_hat_bd, loss, torch.zeros_like(loss))

    return forward


def rescale_fold(params: Parameters) -> Parameters:
    """The JumpReLU on the magnitudes that opens where the parent's gate does."""
    grow_n, b_mag = params.extra["r_mag"].exp(), params.extra["b_mag"]
    magnitude = Parameters(params.W_enc * grow_n[:, None], b_mag, params.W_dec, params.b_pre)
    return folded_threshold(magnitude, grow_n * (params.extra["threshold"] - params.b_enc) + b_mag)


def _threshold(parent: Parameters) -> Tensor:
    return parent.extra.get("threshold", torch.zeros_like(parent.b_enc)).clone()


def _scaled(summary: str, trains: tuple[str, ...]) -> Recipe:
    return Recipe(
        summary,
        ("parent",),
        "threshold",
        forward=scaled_forward,
        start=finetune_start,
        fold=scaled_fold,
        unit_rows="W_dec" not in trains,
        trains=frozenset(trains),
    )


RECIPES = {
    "finetune-scale": _scaled("a scale for every latent", ("log_scale",)),
    "finetune-decoder": _scaled("the decoder", DECODER),
    "finetune-scale-decoder": _scaled("scales and decoder", ("log_scale", *DECODER)),
    "finetune-encoder": _scaled("the encoder", ENCODER),
    "finetune-scale-encoder": _scaled("scales and encoder", ("log_scale", *ENCODER)),
    "finetune-scale-bias": _scaled("scales and encoder biases", ("log_scale", "b_enc")),
    "finetune-rescale-shift": Recipe(
        "a scale and a shift of every magnitude",
        ("parent",),
        "threshold",
        forward=rescale_forward,
        start=rescale_start,
        fold=rescale_fold,
        trains=frozenset({"r_mag", "b_mag"}),
    ),
}
