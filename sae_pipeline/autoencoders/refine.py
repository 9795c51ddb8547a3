"""Refinement: the best activations for the latents that are on (Gao et al. 2024 §5.1). What they gain was shrinkage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae_pipeline.autoencoders.codes import Codes

if TYPE_CHECKING:
    from sae_pipeline.autoencoders.autoencoder import Autoencoder

STEPS = 1000
TOLERANCE = 1e-7  # largest change of a step, relative to the largest activation
ROWS = 1024


@torch.no_grad()
def refine(sae: Autoencoder, u_bd: Tensor, codes: Codes) -> Codes:
    """Solve min ‖u − b_pre − Σ a_i d_i‖² over a ≥ 0 for each row, over the latents that are on in its codes.

    By accelerated projected gradient (Beck and Teboulle 2009), from the encoder's own activations. Latents may leave
    the code and none enters.

    Args:
        sae: the autoencoder.
        u_bd: normalised rows [b, d].
        codes: theirs.

    Returns:
        Codes in the layout of those given: same latents, refined values (0 where one left; ragged codes keep them).
    """
    indices_bk, values_bk, on_bk = _rectangle(codes)
    if not values_bk.numel():
        return codes
    target_bd = u_bd - sae.b_pre
    refined = [
        _solve(sae.W_dec, target_bd[at], indices_bk[at], values_bk[at], on_bk[at])
        for at in (slice(start, start + ROWS) for start in range(0, len(target_bd), ROWS))
    ]
    refined_bk = torch.cat(refined)
    if codes.indptr is not None:
        return Codes(codes.indices, refined_bk[on_bk], codes.indptr)
    return Codes(indices_bk, refined_bk)


def _rectangle(codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """Indices, values and which of them are on, [b, K]; ragged codes are filled up to the widest row."""
    if codes.indptr is None:
        return codes.indices, codes.values, codes.values > 0
    counts_b = codes.indptr.diff()
    width = int(counts_b.max()) if len(counts_b) else 0
    on_bk = torch.arange(width, device=counts_b.device) < counts_b[:, None]
    indices_bk = codes.indices.new_zeros(on_bk.shape).masked_scatter(on_bk, codes.indices)
    values_bk = codes.values.new_zeros(on_bk.shape).masked_scatter(on_bk, codes.values)
    return indices_bk, values_bk, on_bk


def _solve(W_dec: Tensor, target_bd: Tensor, indices_bk: Tensor, start_bk: Tensor, on_bk: Tensor) -> Tensor:
    rows_bkd = W_dec[indices_bk] * on_bk[:, :, None]
    gram_bkk, goal_bk = rows_bkd @ rows_bkd.mT, (rows_bkd @ target_bd[:, :, None])[:, :, 0]
    step_b1 = 1 / gram_bkk.abs().sum(2).amax(1, keepdim=True).clamp(min=torch.finfo(W_dec.dtype).tiny)
    a_bk = ahead_bk = start_bk
    momentum = 1.0
    for _ in range(STEPS):
        gradient_bk = (gram_bkk @ ahead_bk[:, :, None])[:, :, 0] - goal_bk
        next_bk = (ahead_bk - step_b1 * gradient_bk).clamp(min=0)
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        change_bk = next_bk - a_bk
        # Where momentum points uphill it starts again (O'Donoghue and Candès 2015).
        uphill_b1 = (gradient_bk * change_bk).sum(1, keepdim=True) > 0
        ahead_bk = torch.where(uphill_b1, next_bk, next_bk + (momentum - 1) / following * change_bk)
        a_bk, momentum = next_bk, following
        if float(change_bk.abs().max()) <= TOLERANCE * max(float(a_bk.max()), 1e-30):
            break
    return a_bk
