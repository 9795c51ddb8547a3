"""The training step for sparse codes in stock PyTorch: one dense product a step, and no gradient ever whole in memory.

Equal to `reference.step` up to rounding. After the scores only (token, latent) pairs of the support are touched:
decoding is an `embedding_bag`, the gradient at the latents a sampled product, and the gradient of a weight row an
`embedding_bag` over the tokens that used it, once the pairs are grouped by latent. Blocks of latents go from gradient
to projection, Adam, unit rows and running average while they are in cache.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sae_pipeline.kernels import reference
from sae_pipeline.kernels.activations import Activation, Support
from sae_pipeline.kernels.auxk import AuxGradient, auxk_gradient
from sae_pipeline.kernels.objective import Losses, Objective
from sae_pipeline.kernels.optimiser import Optimiser, clip_factor, tangent, update_rows
from sae_pipeline.kernels.state import Parameters, TrainState

SCORE_BYTES = 8 << 20  # scores held at a time: about what stays in cache
BLOCK_BYTES = 1 << 19  # of one weight matrix, updated at a time

with warnings.catch_warnings():
    # PyTorch says once a process that its CSR tensors are in beta; say it here, where nobody has to hear it.
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor([0, 1], [0], [1.0], size=(1, 1), check_invariants=False)


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
    support = select(params, xc_bd, objective.activation)
    if support is None:
        return reference.step(state, x_bd, objective, optimiser, lr=lr, l1=l1)
    error_bd = decode(support, params.W_dec).sub_(xc_bd)  # x̂ − x: b_pre cancels
    reconstruction = scale * error_bd.flatten().dot(error_bd.flatten()) / b
    if not bool(torch.isfinite(reconstruction)):
        return None
    fired = support.latents[support.values > 0]
    state.fired.update(fired, b)
    auxk, aux = _auxk(state, xc_bd, error_bd, objective)
    magnitude = math.sqrt(scale) * support.values.sum() / b
    backward = _backward(params, support, xc_bd, error_bd.mul_(2 * scale / b), l1 * math.sqrt(scale) / b, aux)
    _apply(state, backward, optimiser, lr)
    return Losses(reconstruction, auxk, magnitude, torch.tensor(len(fired) / b))


def select(params: Parameters, xc_bd: Tensor, activation: Activation) -> Support | None:
    """The support of activation(W_enc xc + b_enc), scores made in chunks of rows; None if it is not sparse."""
    rows = max(1, SCORE_BYTES // (params.W_enc.element_size() * len(params.W_enc)))
    parts = []
    for start in range(0, len(xc_bd), rows):
        part = activation.support(F.linear(xc_bd[start : start + rows], params.W_enc, params.b_enc))
        if part is None:
            return None
        parts.append(part)
    return parts[0] if len(parts) == 1 else _concatenate(parts)


def _concatenate(parts: list[Support]) -> Support:
    rows = np.cumsum([0, *(len(part.indptr) - 1 for part in parts)]).tolist()
    pairs = np.cumsum([0, *(len(part.tokens) for part in parts)]).tolist()
    return Support(
        torch.cat([parts[0].indptr[:1], *(part.indptr[1:] + at for part, at in zip(parts, pairs, strict=False))]),
        torch.cat([part.tokens + at for part, at in zip(parts, rows, strict=False)]),
        torch.cat([part.latents for part in parts]),
        torch.cat([part.values for part in parts]),
    )


def decode(support: Support, W_dec: Tensor) -> Tensor:
    """Σ z_j W_dec[j] for each token, [b, d]."""
    return F.embedding_bag(
        support.latents, W_dec, support.indptr, mode="sum", per_sample_weights=support.values, include_last_offset=True
    )


def sampled_product(support: Support, rows_bd: Tensor, W_nd: Tensor) -> Tensor:
    """rows[token] · W[latent] for each pair of the support, flat [pairs]."""
    shape = (len(rows_bd), len(W_nd))
    pattern = torch.sparse_csr_tensor(
        support.indptr, support.latents, torch.zeros_like(support.values), size=shape, check_invariants=False
    )
    product: Tensor = torch.sparse.sampled_addmm(pattern, rows_bd, W_nd.t(), beta=0.0)
    return product.values()


def group_by_latent(latents: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The stable order that sorts the pairs by latent, and where each latent's pairs then begin, [n+1]."""
    if n <= 1 << 16:  # NumPy sorts 16-bit integers by radix, some ten times faster than a comparison sort
        order = torch.from_numpy(np.argsort(latents.numpy().astype(np.uint16), kind="stable"))
    else:
        order = torch.sort(latents, stable=True).indices
    return order, F.pad(torch.bincount(latents, minlength=n).cumsum(0), (1, 0))


def _auxk(
    state: TrainState, xc_bd: Tensor, error_bd: Tensor, objective: Objective
) -> tuple[Tensor, AuxGradient | None]:
    if objective.auxk_k:
        dead = state.fired.dead(objective.dead_after_tokens).nonzero()[:, 0]
        if len(dead):
            return auxk_gradient(state.params, xc_bd, -error_bd, dead, objective.auxk_k, objective.auxk_alpha)
    return torch.zeros((), dtype=xc_bd.dtype), None


def _backward(
    params: Parameters, support: Support, xc_bd: Tensor, gx_bd: Tensor, g_l1: float, aux: AuxGradient | None
) -> Backward:
    n = len(params.W_enc)
    g_pre = sampled_product(support, gx_bd, params.W_dec).add_(g_l1).mul_(support.values > 0)
    order, offsets = group_by_latent(support.latents, n)
    b_enc = torch.zeros_like(params.b_enc).index_add_(0, support.latents, g_pre)
    if aux is not None:
        b_enc.index_add_(0, aux.latents, aux.b_enc)
    b_pre = gx_bd.sum(0) - b_enc @ params.W_enc  # x̂ contains b_pre; every π contains −W_enc b_pre
    return Backward(
        support.tokens[order], offsets, support.values[order], g_pre[order], xc_bd, gx_bd, b_enc, b_pre, aux
    )


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
