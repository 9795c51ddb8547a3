"""The plain training step: dense autograd over the formulas as printed. Every faster step is tested against it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sae_pipeline.kernels.activations import Activation
from sae_pipeline.kernels.objective import Losses, Objective, Pass
from sae_pipeline.kernels.optimiser import Optimiser, average, clip_factor, follow, tangent, update_rows
from sae_pipeline.kernels.state import Parameters, TrainState


class Gradients(NamedTuple):
    """Of the weighted loss by every parameter, and what parameters without a gradient are to follow."""

    parameters: Parameters
    observed: dict[str, Tensor]


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
    variation = energy(e_bd - e_bd.mean(0))
    return torch.where(variation > torch.finfo(e_bd.dtype).eps * energy(e_bd), variation, 0.0)


def energy(x_bd: Tensor) -> Tensor:
    """Σ‖x‖², by rows: exacter than one long sum in float32, and no second matrix as large."""
    total: Tensor = torch.linalg.vector_norm(x_bd, dim=1).square().sum()
    return total


def plain_pass(params: Parameters, x_bd: Tensor, scale: float, activation: Activation) -> Pass:
    """z = activation(π), x̂ = z W_dec + b_pre; squared error and L1 norm as `Objective` defines them."""
    pre_bn = pre_activations(params, x_bd)
    z_bn = activation(pre_bn)
    x_hat_bd = z_bn @ params.W_dec + params.b_pre
    return Pass(pre_bn, z_bn, x_hat_bd, squared_error(x_hat_bd, x_bd, scale), math.sqrt(scale) * z_bn.sum() / len(x_bd))


def squared_error(x_hat_bd: Tensor, x_bd: Tensor, scale: float) -> Tensor:
    """scale · mean over rows of ‖x̂ − x‖²."""
    return scale * (x_bd - x_hat_bd).square().sum() / len(x_bd)


def losses_and_gradients(
    state: TrainState, x_bd: Tensor, objective: Objective, l1: float
) -> tuple[Losses, Gradients] | None:
    """All loss terms and the gradient of their weighted sum; counts what fired. None if the loss is not finite.

    The AuxK term is 0 where no latent is dead. One that is not finite is dropped with its gradient: zeroing the value
    alone would leave 0 · NaN in the gradient. The gradients' `observed` holds what a forward pass observed.
    """
    params = state.params.map(lambda tensor: tensor.detach().requires_grad_())
    with torch.enable_grad():
        done = forward_pass(params, x_bd, objective)
        if not bool(torch.isfinite(done.loss)):
            return None
        state.fired.update((done.z_bn > 0).nonzero()[:, 1], len(x_bd))
        total, auxk = done.loss + l1 * done.penalty, torch.zeros_like(done.loss)
        dead_n = state.fired.dead(objective.dead_after_tokens)
        if objective.auxk_k and bool(dead_n.any()):
            error_bd = x_bd - done.x_hat_bd
            term = auxk_loss(params, done.pre_bn, error_bd, dead_n, objective.auxk_k)
            if bool(torch.isfinite(term)):
                total, auxk = total + objective.auxk_alpha * term, term
        named = params.named()
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True, materialize_grads=True)
    reconstruction = squared_error(done.x_hat_bd, x_bd, objective.loss_scale)
    losses = Losses(reconstruction, auxk, done.penalty, (done.z_bn > 0).sum() / len(x_bd))
    observed = {name: value.detach() for name, value in done.observed.items()}
    return (
        Losses(*(term.detach() for term in losses)),
        Gradients(Parameters.of(dict(zip(named, gradients, strict=True))), observed),
    )


def forward_pass(params: Parameters, x_bd: Tensor, objective: Objective) -> Pass:
    """What the objective's recipe makes of rows [b, d]."""
    if objective.forward is not None:
        return objective.forward(params, x_bd, objective.loss_scale)
    assert objective.activation is not None
    return plain_pass(params, x_bd, objective.loss_scale, objective.activation)


def apply(state: TrainState, gradients: Gradients, objective: Objective, optimiser: Optimiser, lr: float) -> None:
    """Project, clip and take one step with gradients of whole parameters."""
    if objective.unit_rows:
        tangent(gradients.parameters.W_dec, state.params.W_dec)
    named = {
        name: gradient
        for name, gradient in gradients.parameters.named().items()
        if objective.trains is None or name in objective.trains
    }
    if optimiser.grad_clip is not None:
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in named.values()))
        for gradient in named.values():
            gradient.mul_(clip_factor(norm, optimiser.grad_clip))
    state.updates += 1
    for name, gradient in named.items():
        if name in gradients.observed:
            follow(state, name, gradients.observed[name], optimiser)
        else:
            unit = objective.unit_rows and name == "W_dec"
            update_rows(state, name, slice(None), gradient, optimiser, lr, unit=unit)
    for name in state.params.named().keys() - named.keys():
        average(state, name, slice(None), optimiser)


def step(
    state: TrainState, x_bd: Tensor, objective: Objective, optimiser: Optimiser, *, lr: float, l1: float
) -> Losses | None:
    """One training step in place on rows x [b, d]; None, and nothing changed, if the loss is not finite."""
    result = losses_and_gradients(state, x_bd, objective, l1)
    if result is None:
        return None
    losses, gradients = result
    apply(state, gradients, objective, optimiser, lr)
    return losses
