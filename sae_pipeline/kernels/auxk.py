"""AuxK by hand: its cost is that of the dead latents, and nothing where none is dead."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from sae_pipeline.kernels.crew import ALONE, Crew
from sae_pipeline.kernels.reference import energy, error_variation
from sae_pipeline.kernels.state import Parameters


class AuxGradient(NamedTuple):
    """Gradients of the weighted AuxK term at the dead latents (ascending); no other latent has one."""

    latents: Tensor
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor

    def add_to(self, gradient_md: Tensor, name: str, start: int, stop: int) -> None:
        """Add the rows of W_enc or W_dec that lie in start:stop to that block of the gradient, in place."""
        first, last = torch.searchsorted(self.latents, torch.tensor([start, stop])).tolist()
        if last > first:
            gradient_md.index_add_(0, self.latents[first:last] - start, getattr(self, name)[first:last])


def auxk_gradient(
    params: Parameters, xc_bd: Tensor, error_bd: Tensor, dead: Tensor, k: int, alpha: float, crew: Crew = ALONE
) -> tuple[Tensor, AuxGradient | None]:
    """The AuxK term of `reference.auxk_loss` (unweighted) and the gradient of alpha times it; error = x̂ − x = −e.

    Selecting k of π ⊙ dead over all n latents and applying ReLU leaves the positive ones among the k largest of the
    dead, so only their rows are gathered; nothing is selected where at most k are dead. A term that is not finite is
    0 without gradient.
    """
    W_enc, b_enc, W_dec = params.W_enc[dead], params.b_enc[dead], params.W_dec[dead]
    z_bm, residual_bd = xc_bd.new_empty(len(xc_bd), len(dead)), torch.empty_like(error_bd)
    rows, variation = crew.parts(len(xc_bd)), error_variation(error_bd)

    def reconstruct(rows: slice) -> Tensor:
        z_rm = torch.addmm(b_enc, xc_bd[rows], W_enc.t(), out=z_bm[rows]).relu_()
        if len(dead) > k:
            values, indices = z_rm.topk(k, dim=1, sorted=False)
            z_rm.zero_().scatter_(1, indices, values)
        return energy(torch.addmm(error_bd[rows], z_rm, W_dec, out=residual_bd[rows]))  # ê − e

    loss = reduce(torch.add, crew.each(reconstruct, rows)) / variation
    if not bool(torch.isfinite(loss)):
        return torch.zeros_like(loss), None
    g_pre_bm = torch.empty_like(z_bm)

    def at_codes(rows: slice) -> None:
        g_hat_rd = residual_bd[rows].mul_(2 * alpha / variation)
        torch.mm(g_hat_rd, W_dec.t(), out=g_pre_bm[rows]).mul_(z_bm[rows] > 0)

    crew.each(at_codes, rows)
    gradient = AuxGradient(dead, torch.empty_like(W_enc), torch.empty_like(b_enc), torch.empty_like(W_dec))

    def at_weights(part: slice) -> None:
        torch.mm(g_pre_bm[:, part].t(), xc_bd, out=gradient.W_enc[part])
        torch.sum(g_pre_bm[:, part], 0, out=gradient.b_enc[part])
        torch.mm(z_bm[:, part].t(), residual_bd, out=gradient.W_dec[part])

    crew.each(at_weights, crew.parts(len(dead)))
    return loss, gradient
