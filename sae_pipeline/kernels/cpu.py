"""The training step for sparse codes in stock PyTorch: one dense product a step, and no gradient ever whole in memory.

Equal to `reference.step` up to rounding. After the scores only (token, latent) pairs of the support are touched:
decoding is an `embedding_bag`, the gradient at the latents a sampled product, and the gradient of a weight row an
`embedding_bag` over the tokens that used it, once the pairs are grouped by latent. Blocks of latents go from gradient
to projection, Adam, unit rows and running average while they are in cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_pipeline.kernels import reference
from sae_pipeline.kernels.auxk import AuxGradient, auxk_gradient
from sae_pipeline.kernels.objective import Losses, Objective
from sae_pipeline.kernels.optimiser import Optimiser, clip_factor, tangent, update_rows
from sae_pipeline.kernels.pairs import Support, decode, group_by_latent, sampled_product
from sae_pipeline.kernels.state import Parameters, TrainState

BLOCK_BYTES = 1 << 19  # of one weight matrix, updated at a time


class Backward(NamedTuple):
    """What the gradient of any block of latents is made from; pairs are grouped by latent.

    tokens, z, g_pre: flat [pairs]; offsets [n+1]: where each latent's pairs begin; xc_bd = x − b_pre; gx_bd = dL/dx̂.
    """

    tokens: Tensor
    offsets: Tensor
    z: Tensor
    g_pre: Tensor
    xc_bd: Tensor
    gx_bd: Tensor
    b_enc: Tensor
    b_pre: Tensor
    aux: AuxGradient | None


def step(
    state: TrainState, x_bd: Tensor, objective: Objective, optimiser: Optimiser, *, lr: float, l1: float
) -> Losses | None:
    """One training step in place on rows x [b, d]; None, and nothing changed, if the loss is not finite."""
    if objective.activation is None:
        return reference.step(state, x_bd, objective, optimiser, lr=lr, l1=l1)
    params, b, scale = state.params, len(x_bd), objective.loss_scale
    xc_bd = x_bd - params.b_pre
    support = objective.activation.support(params, xc_bd)
    if support is None:
        return reference.step(state, x_bd, objective, optimiser, lr=lr, l1=l1)
    error_bd = decode(support, params.W_dec).sub_(xc_bd)  # x̂ − x: b_pre cancels
    reconstruction = scale * reference.energy(error_bd) / b
    if not bool(torch.isfinite(reconstruction)):
        return None
    state.fired.update(support.latents, b)
    auxk, aux = _auxk(state, xc_bd, error_bd, objective)
    magnitude = math.sqrt(scale) * support.values.sum() / b
    backward = _backward(params, support, xc_bd, error_bd.mul_(2 * scale / b), l1 * math.sqrt(scale) / b, aux)
    _apply(state, backward, optimiser, lr)
    return Losses(reconstruction, auxk, magnitude, torch.tensor(len(support.latents) / b))


def _auxk(
    state: TrainState, xc_bd: Tensor, error_bd: Tensor, objective: Objective
) -> tuple[Tensor, AuxGradient | None]:
    if objective.auxk_k:
        dead = state.fired.dead(objective.dead_after_tokens).nonzero()[:, 0]
        if len(dead):
            return auxk_gradient(state.params, xc_bd, error_bd, dead, objective.auxk_k, objective.auxk_alpha)
    return torch.zeros((), dtype=xc_bd.dtype), None


def _backward(
    params: Parameters, support: Support, xc_bd: Tensor, gx_bd: Tensor, g_l1: float, aux: AuxGradient | None
) -> Backward:
    n = len(params.W_enc)
    g_pre = sampled_product(support.indptr, support.latents, gx_bd, params.W_dec).add_(g_l1)
    order, offsets = group_by_latent(support.latents, n)
    b_enc = torch.zeros_like(params.b_enc).index_add_(0, support.latents, g_pre)
    if aux is not None:
        b_enc.index_add_(0, aux.latents, aux.b_enc)
    b_pre = gx_bd.sum(0) - b_enc @ params.W_enc  # x̂ contains b_pre; every π contains −W_enc b_pre
    tokens, z, g_pre = (of_pair.index_select(0, order) for of_pair in (support.tokens, support.values, g_pre))
    return Backward(tokens, offsets, z, g_pre, xc_bd, gx_bd, b_enc, b_pre, aux)


def _row_gradient(backward: Backward, name: str, start: int, stop: int, unit_rows: Tensor) -> Tensor:
    """dL/dW[start:stop]; for W_dec its component tangent to the unit rows."""
    source, weights = (backward.xc_bd, backward.g_pre) if name == "W_enc" else (backward.gx_bd, backward.z)
    offsets = backward.offsets[start : stop + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    gradient = F.embedding_bag(
        backward.tokens[first:last], source, offsets - first,
        mode="sum", per_sample_weights=weights[first:last], include_last_offset=True,
    )  # fmt: skip
    if backward.aux is not None:
        backward.aux.add_to(gradient, name, start, stop)
    return tangent(gradient, unit_rows) if name == "W_dec" else gradient


def _row_gradients(state: TrainState, backward: Backward) -> Iterator[tuple[str, slice, Tensor]]:
    """Blocks of the weight gradients, each made when it is asked for."""
    n, d = state.params.W_enc.shape
    rows = max(1, BLOCK_BYTES // (state.params.W_enc.element_size() * d))
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        for name in ("W_enc", "W_dec"):
            unit_rows = state.params.W_dec[start:stop]
            yield name, slice(start, stop), _row_gradient(backward, name, start, stop, unit_rows)


def _apply(state: TrainState, backward: Backward, optimiser: Optimiser, lr: float) -> None:
    factor = 1.0
    if optimiser.grad_clip is not None:  # the norm must be known before the first update: weight gradients made twice
        squares = [float(g.square().sum()) for _, _, g in _row_gradients(state, backward)]
        squares += [float(g.square().sum()) for g in (backward.b_enc, backward.b_pre)]
        factor = clip_factor(math.sqrt(sum(squares)), optimiser.grad_clip)
    state.updates += 1
    for name, rows, gradient in _row_gradients(state, backward):
        gradient = gradient if factor == 1.0 else gradient.mul_(factor)
        update_rows(state, name, rows, gradient, optimiser, lr, unit=name == "W_dec")
    for name, gradient in (("b_enc", backward.b_enc), ("b_pre", backward.b_pre)):
        update_rows(state, name, slice(None), gradient * factor, optimiser, lr)
