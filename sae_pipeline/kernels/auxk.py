"""AuxK by hand: its cost is that of the dead latents, and nothing where none is dead."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
    params: Parameters, xc_bd: Tensor, error_bd: Tensor, dead: Tensor, k: int, alpha: float
) -> tuple[Tensor, AuxGradient | None]:
    """The AuxK term of `reference.auxk_loss` (unweighted) and the gradient of alpha times it; error = x̂ − x = −e.

    Selecting k of π ⊙ dead over all n latents and applying ReLU leaves the positive ones among the k largest of the
    dead, so only their rows are gathered; nothing is selected where at most k are dead. A term that is not finite is
    0 without gradient.
    """
    W_enc, W_dec = params.W_enc[dead], params.W_dec[dead]
    z_bm = torch.nn.functional.linear(xc_bd, W_enc, params.b_enc[dead]).relu_()
    if len(dead) > k:
        values, indices = z_bm.topk(k, dim=1, sorted=False)
        z_bm = torch.zeros_like(z_bm).scatter_(1, indices, values)
    residual_bd = torch.addmm(error_bd, z_bm, W_dec)  # ê − e
    variation = error_variation(error_bd)
    loss = energy(residual_bd) / variation
    if not bool(torch.isfinite(loss)):
        return torch.zeros_like(loss), None
    g_hat_bd = residual_bd.mul_(2 * alpha / variation)
    g_pre_bm = (g_hat_bd @ W_dec.t()).mul_(z_bm > 0)
    return loss, AuxGradient(dead, g_pre_bm.t() @ xc_bd, g_pre_bm.sum(0), z_bm.t() @ g_hat_bd)
