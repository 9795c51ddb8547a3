"""What each kernel computes, in PyTorch and without a thought for memory: the Triton kernels are tested against it."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_pipeline.kernels.cuda.interface import Decoded, Kernels, Pairs, Scalars, Slot, Subset
from sae_pipeline.kernels.optimiser import Optimiser, tangent


def select(xc_bd: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, subset: Subset | None) -> tuple[Tensor, Tensor]:
    """See `interface.Select`."""
    n = len(W_enc)
    scores_bn = torch.nn.functional.linear(xc_bd, W_enc, b_enc)
    if subset is not None:
        listed = torch.arange(n, device=xc_bd.device) < subset.length
        allowed_n = torch.zeros_like(listed).scatter_(0, subset.latents.long(), listed)
        scores_bn = torch.where(allowed_n, scores_bn, 0.0)
    values, latents = scores_bn.sort(dim=1, descending=True, stable=True)
    values, latents = values[:, :k], latents[:, :k]
    latents = torch.where(values > 0, latents, n)
    broken_b = scores_bn.isnan().any(1, keepdim=True)
    return latents.int(), torch.where(broken_b, torch.nan, values.relu())


def decode(latents_bk: Tensor, values_bk: Tensor, W_dec: Tensor, target_bd: Tensor, subset: Subset | None) -> Decoded:
    """See `interface.Decoded`; an empty subset is nothing special here."""
    rows_bkd = torch.nn.functional.pad(W_dec, (0, 0, 0, 1))[latents_bk.long()]
    error_bd = (values_bk[:, :, None] * rows_bkd).sum(1) - target_bd
    return Decoded(error_bd, (rows_bkd @ error_bd[:, :, None])[:, :, 0], error_bd.square().sum(1))


def segment_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums of the values between consecutive offsets."""
    places = torch.arange(len(values), device=values.device)
    segments = torch.searchsorted(offsets, places, right=True)
    return values.new_zeros(len(offsets) + 1).index_add_(0, segments, values)[1:-1]


def row_gradients(pairs: Pairs, weights: Tensor, source: Tensor, unit_rows: Tensor | None) -> Tensor:
    """The gradient matrix [n, d] that the kernels never make."""
    n = len(pairs.offsets) - 1
    terms = weights[:, None] * source[pairs.tokens.long() % len(source)]
    gradient = source.new_zeros(n + 1, source.shape[1]).index_add_(0, pairs.latents.long(), terms)[:n]
    return gradient if unit_rows is None else tangent(gradient, unit_rows)


def squares(pairs: Pairs, weights: Tensor, source: Tensor, unit_rows: Tensor | None) -> Tensor:
    """Squared norms of the gradient rows, [n]."""
    return row_gradients(pairs, weights, source, unit_rows).square().sum(1)


def update_rows(
    slot: Slot, pairs: Pairs, weights: Tensor, source: Tensor, scalars: Tensor, constants: Optimiser, unit: bool
) -> None:
    """See `interface.UpdateRows`."""
    gradient = row_gradients(pairs, weights, source, slot.parameter if unit else None)
    _adam(slot, gradient, scalars, constants, unit)


def update_vector(slot: Slot, gradient: Tensor, scalars: Tensor, constants: Optimiser) -> None:
    """One Adam step on a vector, in place."""
    _adam(slot, gradient, scalars, constants, unit=False)


def _adam(slot: Slot, gradient: Tensor, scalars: Tensor, constants: Optimiser, unit: bool) -> None:
    at, (beta1, beta2) = Scalars(), constants.betas
    gradient = gradient * scalars[at.factor]
    first = slot.first.lerp(gradient, 1 - beta1)
    second = slot.second.lerp(gradient.square(), 1 - beta2)
    parameter = slot.parameter - scalars[at.step_size] * first / (second.sqrt() / scalars[at.root] + constants.eps)
    if unit:
        parameter = parameter / parameter.norm(dim=1, keepdim=True)
    found = [(slot.parameter, parameter), (slot.first, first), (slot.second, second)]
    if slot.average is not None and constants.ema is not None:
        found.append((slot.average, slot.average.lerp(parameter, 1 - constants.ema)))
    for tensor, value in found:
        tensor.copy_(torch.where(scalars[at.keep] > 0, value, tensor))


KERNELS = Kernels(select, decode, segment_sums, squares, update_rows, update_vector)
