"""The TopK training step on a GPU: queued from end to end, the host never waits for a number from the device.

Equal to `reference.step` up to rounding, with one difference: whether a step was finite is known on the device only.
One that was not changes nothing there, as everywhere, but instead of None it returns losses that are not finite;
`TrainState.updates` does not count it, which is how the loop learns of it when it next writes a row. All shapes follow
from b, d, n, k and AuxK's k alone, and `lr` and `l1` may be 0-d tensors: what a CUDA graph asks of a step.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sae_pipeline.kernels.activations import TopK
from sae_pipeline.kernels.cuda.interface import Kernels, Pairs, Slot, Subset
from sae_pipeline.kernels.objective import Losses, Objective
from sae_pipeline.kernels.optimiser import Optimiser
from sae_pipeline.kernels.reference import error_variation
from sae_pipeline.kernels.state import Parameters, TrainState

MAX_K = 448  # of TopK and AuxK: with the margin of screening a list of 512 places, what a program can hold


class Part(NamedTuple):
    """Pairs of one term of the loss: latents, z and dL/dπ [b, k]; gx_bd: dL by that term's reconstruction."""

    latents_bk: Tensor
    z_bk: Tensor
    g_pre_bk: Tensor
    gx_bd: Tensor


def handles(objective: Objective) -> bool:
    """Whether this step can minimise it: TopK whose lists, AuxK's too, fit in a program."""
    return isinstance(objective.activation, TopK) and max(objective.activation.k, objective.auxk_k) <= MAX_K


def step(
    state: TrainState,
    x_bd: Tensor,
    objective: Objective,
    optimiser: Optimiser,
    *,
    lr: float | Tensor,
    l1: float | Tensor,
    kernels: Kernels,
) -> Losses:
    """One training step in place on rows x [b, d]; losses that are not finite, and nothing changed, if they are not."""
    assert isinstance(objective.activation, TopK)
    params, b, scale = state.params, len(x_bd), objective.loss_scale
    xc_bd = x_bd - params.b_pre
    latents_bk, z_bk = kernels.select(xc_bd, params.W_enc, params.b_enc, objective.activation.k, None)
    decoded = kernels.decode(latents_bk, z_bk, params.W_dec, xc_bd, None)  # x̂ − x: b_pre cancels
    reconstruction = scale * decoded.squares_b.sum() / b
    finite = reconstruction.isfinite()
    state.count += finite
    state.fired.update_mask(_hit(latents_bk, len(params.W_enc)) & finite, b * finite)
    auxk, aux = _auxk(state, xc_bd, decoded.error_bd, objective, kernels)
    g_l1 = l1 * math.sqrt(scale) / b
    g_pre_bk = torch.where(z_bk > 0, decoded.products_bk * (2 * scale / b) + g_l1, 0.0)
    main = Part(latents_bk, z_bk, g_pre_bk, decoded.error_bd * (2 * scale / b))
    _apply(state, xc_bd, [main] if aux is None else [main, aux], finite, optimiser, lr, kernels)
    return Losses(reconstruction, auxk, math.sqrt(scale) * z_bk.sum() / b, (z_bk > 0).sum() / b)


def _hit(latents_bk: Tensor, n: int) -> Tensor:
    """Mask [n] of the latents in the list; empty slots (n) fall off the end."""
    return torch.zeros(n + 1, dtype=torch.bool, device=latents_bk.device).index_fill_(
        0, latents_bk.flatten().long(), True
    )[:n]


def listed(mask_n: Tensor) -> Subset:
    """The latents of a mask, ascending, then the others; how many the mask has stays on the device."""
    order = torch.sort((~mask_n).byte(), stable=True).indices
    return Subset(order.int(), mask_n.sum())


def _auxk(
    state: TrainState, xc_bd: Tensor, error_bd: Tensor, objective: Objective, kernels: Kernels
) -> tuple[Tensor, Part | None]:
    """`reference.auxk_loss` (unweighted) and the pairs of its weighted gradient; empty slots where none is dead."""
    if not objective.auxk_k:
        return xc_bd.new_zeros(()), None
    params = state.params
    dead = listed(state.fired.dead(objective.dead_after_tokens))
    latents_bk, z_bk = kernels.select(xc_bd, params.W_enc, params.b_enc, objective.auxk_k, dead)
    decoded = kernels.decode(latents_bk, z_bk, params.W_dec, -error_bd, dead)
    variation = error_variation(error_bd)
    loss = decoded.squares_b.sum() / variation
    there = loss.isfinite() & (dead.length > 0)
    weight = 2 * objective.auxk_alpha / variation
    g_pre_bk = torch.where(there & (z_bk > 0), decoded.products_bk * weight, 0.0)
    gx_bd = torch.where(there, decoded.error_bd * weight, 0.0)
    return torch.where(there, loss, 0.0), Part(latents_bk, z_bk, g_pre_bk, gx_bd)


def grouped(parts: list[Part], n: int) -> tuple[Pairs, Tensor, Tensor]:
    """The pairs of all parts grouped by latent, with their z and dL/dπ; tokens of part i are counted from i · b."""
    keys, order = torch.sort(torch.cat([part.latents_bk.flatten() for part in parts]), stable=True)
    tokens = torch.cat([_tokens(part.latents_bk, i) for i, part in enumerate(parts)])[order]
    z = torch.cat([part.z_bk.flatten() for part in parts])[order]
    g_pre = torch.cat([part.g_pre_bk.flatten() for part in parts])[order]
    every = torch.arange(n + 1, dtype=keys.dtype, device=keys.device)
    return Pairs(keys, tokens, torch.searchsorted(keys, every)), z, g_pre


def _tokens(latents_bk: Tensor, i: int) -> Tensor:
    b, k = latents_bk.shape
    first = i * b
    return torch.arange(first, first + b, dtype=torch.int32, device=latents_bk.device)[:, None].expand(b, k).flatten()


def _apply(
    state: TrainState,
    xc_bd: Tensor,
    parts: list[Part],
    finite: Tensor,
    optimiser: Optimiser,
    lr: float | Tensor,
    kernels: Kernels,
) -> None:
    params = state.params
    pairs, z, g_pre = grouped(parts, len(params.W_enc))
    gx = torch.cat([part.gx_bd for part in parts])
    b_enc = kernels.segment_sums(g_pre, pairs.offsets)
    b_pre = parts[0].gx_bd.sum(0) - b_enc @ params.W_enc  # x̂ contains b_pre, ê does not; every π contains −W_enc b_pre
    factor = torch.ones_like(z[0])
    if optimiser.grad_clip is not None:
        square = kernels.squares(pairs, g_pre, xc_bd, None).sum() + kernels.squares(pairs, z, gx, params.W_dec).sum()
        norm = (square + b_enc.square().sum() + b_pre.square().sum()).sqrt()
        factor = (optimiser.grad_clip / (norm + 1e-6)).clamp(max=1.0)
    scalars = _scalars(state, finite, factor, optimiser, lr)
    kernels.update_rows(_slot(state, "W_enc"), pairs, g_pre, xc_bd, scalars, optimiser, unit=False)
    kernels.update_rows(_slot(state, "W_dec"), pairs, z, gx, scalars, optimiser, unit=True)
    kernels.update_vector(_slot(state, "b_enc"), b_enc, scalars, optimiser)
    kernels.update_vector(_slot(state, "b_pre"), b_pre, scalars, optimiser)


def _scalars(state: TrainState, finite: Tensor, factor: Tensor, optimiser: Optimiser, lr: float | Tensor) -> Tensor:
    """See `interface.Scalars`; the powers are taken in double precision, as Adam's on the host are."""
    beta1, beta2 = optimiser.betas
    t = state.count.double()
    found = (finite, lr / (1 - beta1**t), (1 - beta2**t).sqrt(), factor)
    return torch.stack([value.to(factor.dtype) for value in found])


def _slot(state: TrainState, name: str) -> Slot:
    def of(group: Parameters) -> Tensor:
        return group.named()[name]

    return Slot(
        of(state.params), of(state.first), of(state.second), None if state.average is None else of(state.average)
    )
