"""The training step for sparse codes in stock PyTorch: one dense product a step, and no gradient ever whole in memory.

Equal to `reference.step` up to rounding. After the scores only (token, latent) pairs of the support are touched:
decoding is an `embedding_bag`, the gradient at the latents a sampled product, and the gradient of a weight row an
`embedding_bag` over the tokens that used it, once the pairs are grouped by latent. Blocks of latents go from gradient
to projection, Adam, unit rows and running average while they are in cache.

On several threads the rows of the batch, and later the latents, are divided among a crew, a part for each thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial, reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae_pipeline.kernels import reference
from sae_pipeline.kernels.activations import Activation
from sae_pipeline.kernels.auxk import AuxGradient, auxk_gradient
from sae_pipeline.kernels.crew import Crew, crew_of
from sae_pipeline.kernels.objective import Losses, Objective
from sae_pipeline.kernels.optimiser import Optimiser, clip_factor, tangent, update_rows
from sae_pipeline.kernels.pairs import Grouped, Support, decode, grouped, sampled_product
from sae_pipeline.kernels.state import Parameters, TrainState

BLOCK_BYTES = 1 << 19  # of one weight matrix, updated at a time


class RowPart(NamedTuple):
    """Some rows of the batch: their pairs, with tokens counted from the first of them, and Σ‖x̂ − x‖²."""

    rows: slice
    support: Support
    energy: Tensor


class Batch(NamedTuple):
    """The forward pass: xc_bd = x − b_pre and error_bd = x̂ − x of all rows, the rest by parts of the rows."""

    xc_bd: Tensor
    error_bd: Tensor
    parts: list[RowPart]


class Pairs(NamedTuple):
    """All pairs of a batch, flat [pairs], ordered by token."""

    tokens: Tensor
    latents: Tensor
    values: Tensor


class Backward(NamedTuple):
    """What the gradient of any block within some latents is made from: their pairs, xc_bd = x − b_pre, gx_bd = dL/dx̂.

    b_enc [latents]: its gradient; b_pre [d]: what these latents take from the gradient of b_pre.
    """

    latents: slice
    pairs: Grouped
    xc_bd: Tensor
    gx_bd: Tensor
    b_enc: Tensor
    b_pre: Tensor
    aux: AuxGradient | None


def step(
    state: TrainState, x_bd: Tensor, objective: Objective, optimiser: Optimiser, *, lr: float, l1: float
) -> Losses | None:
    """One training step in place on rows x [b, d]; None, and nothing changed, if the loss is not finite.

    It runs on as many threads as PyTorch may use where it is called.
    """
    activation, crew = objective.activation, crew_of(torch.get_num_threads())
    batch = None if activation is None else crew.lead(lambda: _forward(crew, state.params, x_bd, activation))
    if batch is None:
        return reference.step(state, x_bd, objective, optimiser, lr=lr, l1=l1)
    return crew.lead(lambda: _learn(crew, state, batch, objective, optimiser, lr, l1))


def _forward(crew: Crew, params: Parameters, x_bd: Tensor, activation: Activation) -> Batch | None:
    """None where the support is no good for a sparse step."""
    xc_bd, error_bd, prepared = torch.empty_like(x_bd), torch.empty_like(x_bd), activation.prepare(params, crew)

    def forward(rows: slice) -> RowPart | None:
        xc_rd = torch.sub(x_bd[rows], params.b_pre, out=xc_bd[rows])
        support = activation.support(params, xc_rd, prepared)
        if support is None:
            return None
        error_rd = torch.sub(decode(support, params.W_dec), xc_rd, out=error_bd[rows])  # x̂ − x: b_pre cancels
        return RowPart(rows, support, reference.energy(error_rd))

    parts = crew.each(forward, crew.parts(len(x_bd)))
    found = [part for part in parts if part is not None]
    return Batch(xc_bd, error_bd, found) if len(found) == len(parts) else None


def _learn(
    crew: Crew, state: TrainState, batch: Batch, objective: Objective, optimiser: Optimiser, lr: float, l1: float
) -> Losses | None:
    """What follows the forward pass of a step."""
    b, scale = len(batch.xc_bd), objective.loss_scale
    reconstruction = scale * _total(part.energy for part in batch.parts) / b
    if not bool(torch.isfinite(reconstruction)):
        return None
    pairs = _all_pairs(batch.parts)
    state.fired.update(pairs.latents, b)
    auxk, aux = _auxk(crew, state, batch, objective)
    magnitude = math.sqrt(scale) * pairs.values.sum() / b
    g_pre, gx_d = _at_pairs(crew, state.params, batch, 2 * scale / b, l1 * math.sqrt(scale) / b)

    def backward(latents: slice) -> Backward:
        return _backward(state.params, latents, pairs, g_pre, batch.xc_bd, batch.error_bd, aux)

    backwards = crew.each(backward, crew.parts(len(state.params.W_enc)))
    b_pre = gx_d - _total(part.b_pre for part in backwards)  # x̂ contains b_pre; every π contains −W_enc b_pre
    _apply(crew, state, backwards, b_pre, optimiser, lr)
    return Losses(reconstruction, auxk, magnitude, torch.tensor(len(pairs.latents) / b))


def _auxk(crew: Crew, state: TrainState, batch: Batch, objective: Objective) -> tuple[Tensor, AuxGradient | None]:
    if objective.auxk_k:
        dead = state.fired.dead(objective.dead_after_tokens).nonzero()[:, 0]
        if len(dead):
            k, alpha = objective.auxk_k, objective.auxk_alpha
            return auxk_gradient(state.params, batch.xc_bd, batch.error_bd, dead, k, alpha, crew)
    return torch.zeros((), dtype=batch.xc_bd.dtype), None


def _all_pairs(parts: list[RowPart]) -> Pairs:
    if len(parts) == 1:
        return Pairs(*parts[0].support[1:])
    tokens = [part.support.tokens + part.rows.start for part in parts]
    return Pairs(*(torch.cat(flat) for flat in (tokens, *zip(*(part.support[2:] for part in parts), strict=True))))


def _at_pairs(crew: Crew, params: Parameters, batch: Batch, g_error: float, g_l1: float) -> tuple[Tensor, Tensor]:
    """dL/dπ of all pairs and dL/dx̂ summed over the rows [d]; the error becomes dL/dx̂ in its place."""

    def at_pairs(part: RowPart) -> tuple[Tensor, Tensor]:
        gx_rd = batch.error_bd[part.rows].mul_(g_error)
        g_pre = sampled_product(part.support.indptr, part.support.latents, gx_rd, params.W_dec).add_(g_l1)
        return g_pre, gx_rd.sum(0)

    g_pre, gx_d = zip(*crew.each(at_pairs, batch.parts), strict=True)
    return g_pre[0] if len(g_pre) == 1 else torch.cat(g_pre), _total(gx_d)


def _backward(
    params: Parameters, part: slice, pairs: Pairs, g_pre: Tensor, xc_bd: Tensor, gx_bd: Tensor, aux: AuxGradient | None
) -> Backward:
    own = grouped(*pairs, g_pre, len(params.W_enc), part)
    b_enc = own.g_sums
    if aux is not None:
        aux.add_to(b_enc, "b_enc", part.start, part.stop)
    return Backward(part, own, xc_bd, gx_bd, b_enc, b_enc @ params.W_enc[part], aux)


def _row_gradient(backward: Backward, name: str, rows: slice, unit_rows: Tensor) -> Tensor:
    """dL/dW[rows]; for W_dec its component tangent to the unit rows."""
    pairs, before = backward.pairs, backward.latents.start
    source, weights = (backward.xc_bd, pairs.g_pre) if name == "W_enc" else (backward.gx_bd, pairs.z)
    offsets = pairs.offsets[rows.start - before : rows.stop - before + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    gradient = F.embedding_bag(
        pairs.tokens[first:last], source, offsets - first,
        mode="sum", per_sample_weights=weights[first:last], include_last_offset=True,
    )  # fmt: skip
    if backward.aux is not None:
        backward.aux.add_to(gradient, name, rows.start, rows.stop)
    return tangent(gradient, unit_rows) if name == "W_dec" else gradient


def _row_gradients(state: TrainState, backward: Backward) -> Iterator[tuple[str, slice, Tensor]]:
    """Blocks of the weight gradients, each made when it is asked for."""
    d, W_dec = state.params.W_enc.shape[1], state.params.W_dec
    height = max(1, BLOCK_BYTES // (W_dec.element_size() * d))
    for start in range(backward.latents.start, backward.latents.stop, height):
        rows = slice(start, min(start + height, backward.latents.stop))
        for name in ("W_enc", "W_dec"):
            yield name, rows, _row_gradient(backward, name, rows, W_dec[rows])


def _apply(
    crew: Crew, state: TrainState, backwards: list[Backward], b_pre: Tensor, optimiser: Optimiser, lr: float
) -> None:
    factor = 1.0
    if optimiser.grad_clip is not None:  # the norm must be known before the first update: weight gradients made twice
        squares = crew.each(partial(_square, state), backwards)
        factor = clip_factor(math.sqrt(sum(squares) + float(b_pre.square().sum())), optimiser.grad_clip)
    state.updates += 1

    def update(backward: Backward) -> None:
        for name, rows, gradient in _row_gradients(state, backward):
            gradient = gradient if factor == 1.0 else gradient.mul_(factor)
            update_rows(state, name, rows, gradient, optimiser, lr, unit=name == "W_dec")
        update_rows(state, "b_enc", backward.latents, backward.b_enc * factor, optimiser, lr)

    crew.each(update, backwards)
    update_rows(state, "b_pre", slice(None), b_pre * factor, optimiser, lr)


def _square(state: TrainState, backward: Backward) -> float:
    """Squared norm of the gradients of these latents' weights and biases."""
    squares = [float(gradient.square().sum()) for _, _, gradient in _row_gradients(state, backward)]
    return sum(squares) + float(backward.b_enc.square().sum())


def _total(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)
