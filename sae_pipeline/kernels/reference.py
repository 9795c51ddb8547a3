"""The plain training step: dense autograd over the formulas as printed. Every faster step is tested against it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sae_pipeline.kernels.objective import Losses, Objective
from sae_pipeline.kernels.optimiser import Optimiser, clip_factor, tangent, update_rows
from sae_pipeline.kernels.state import Parameters, TrainState


def pre_activations(params: Parameters, x_bd: Tensor) -> Tensor:
    """π = W_enc (x − b_pre) + b_enc, [b, n]."""
    return torch.nn.functional.linear(x_bd - params.b_pre, params.W_enc, params.b_enc)


def auxk_loss(params: Parameters, pre_bn: Tensor, error_bd: Tensor, dead_n: Tensor, k: int) -> Tensor:
    """‖ê − e‖² / ‖e − mean_b e‖² summed over the batch: the dead latents' attempt ê at the error e = x − x̂.

    Gao et al. 2024 §A.2: ê = W_dec ReLU(top_k(π ⊙ dead)). e is detached. ê leaves b_pre out, so the term reaches
    b_pre only through π (the paper's code also lets it through the decoder's offset).
    """
    values, indices = (pre_bn * dead_n).topk(k, dim=1)
    z_bn = torch.zeros_like(pre_bn).scatter(1, indices, values.relu())
    e = error_bd.detach()
    return (z_bn @ params.W_dec - e).square().sum() / error_variation(e)


def error_variation(e_bd: Tensor) -> Tensor:
    """Σ‖e − mean_b e‖², or 0 where that is no more than the rounding of equal rows (AuxK divides by it)."""
    variation, energy = (e_bd - e_bd.mean(0)).square().sum(), e_bd.square().sum()
    return torch.where(variation > torch.finfo(e_bd.dtype).eps * energy, variation, 0.0)


def losses_and_gradients(
    state: TrainState, x_bd: Tensor, objective: Objective, l1: float
) -> tuple[Losses, Parameters] | None:
    """All loss terms and the gradient of their weighted sum; counts what fired. None if x̂ is not finite.

    The AuxK term is 0 where no latent is dead. One that is not finite is dropped with its gradient: zeroing the value
    alone would leave 0 · NaN in the gradient.
    """
    params = state.params.map(lambda tensor: tensor.detach().requires_grad_())
    b, scale = len(x_bd), objective.loss_scale
    with torch.enable_grad():
        pre_bn = pre_activations(params, x_bd)
        z_bn = objective.activation(pre_bn)
        error_bd = x_bd - (z_bn @ params.W_dec + params.b_pre)
        reconstruction = scale * error_bd.square().sum() / b
        if not bool(torch.isfinite(reconstruction)):
            return None
        state.fired.update((z_bn > 0).nonzero()[:, 1], b)
        magnitude = math.sqrt(scale) * z_bn.sum() / b
        total, auxk = reconstruction + l1 * magnitude, torch.zeros_like(reconstruction)
        dead_n = state.fired.dead(objective.dead_after_tokens)
        if objective.auxk_k and bool(dead_n.any()):
            term = auxk_loss(params, pre_bn, error_bd, dead_n, objective.auxk_k)
            if bool(torch.isfinite(term)):
                total, auxk = total + objective.auxk_alpha * term, term
        gradients = torch.autograd.grad(total, list(params.named().values()))
    losses = Losses(reconstruction, auxk, magnitude, (z_bn > 0).sum() / b)
    return Losses(*(term.detach() for term in losses)), Parameters(*gradients)


def apply(state: TrainState, gradients: Parameters, optimiser: Optimiser, lr: float) -> None:
    """Project, clip and take one step with gradients of whole parameters."""
    tangent(gradients.W_dec, state.params.W_dec)
    named = gradients.named()
    if optimiser.grad_clip is not None:
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in named.values()))
        for gradient in named.values():
            gradient.mul_(clip_factor(norm, optimiser.grad_clip))
    state.updates += 1
    for name, gradient in named.items():
        update_rows(state, name, slice(None), gradient, optimiser, lr)


def step(
    state: TrainState, x_bd: Tensor, objective: Objective, optimiser: Optimiser, *, lr: float, l1: float
) -> Losses | None:
    """One training step in place on rows x [b, d]; None, and nothing changed, if the loss is not finite."""
    result = losses_and_gradients(state, x_bd, objective, l1)
    if result is None:
        return None
    losses, gradients = result
    apply(state, gradients, optimiser, lr)
    return losses
