"""Activations whose training gradient is not the derivative: pseudo-derivatives as their authors define them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ProLU(torch.autograd.Function):
    """m where m > 0 and m + b > 0; see `prolu`."""

    @staticmethod
    def forward(ctx: Any, m_bn: Tensor, b_n: Tensor, straight_through: bool) -> Tensor:
        gate_bn = (m_bn > 0) & (m_bn + b_n > 0)
        ctx.save_for_backward(m_bn, gate_bn)
        ctx.straight_through = straight_through
        return m_bn * gate_bn

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        m_bn, gate_bn = ctx.saved_tensors
        g_bn = upstream[0] * gate_bn
        if not ctx.straight_through:
            return g_bn, g_bn.sum(0), None
        return g_bn * (1 + m_bn), (g_bn * m_bn).sum(0), None


def prolu(m_bn: Tensor, b_n: Tensor, *, straight_through: bool) -> Tensor:
    """ProLU (Taggart 2024): m where m > 0 and m + b > 0, else 0, [b, n].

    Within the gate the gradients for m and b are (g, g), those of a ReLU of m + b, or, `straight_through`,
    (g · (1 + m), g · m); outside both are 0.
    """
    result: Tensor = _ProLU.apply(m_bn, b_n, straight_through)  # type: ignore[no-untyped-call]
    return result


def _kernel(z_bn: Tensor, threshold_n: Tensor, bandwidth: float) -> Tensor:
    """Rectangle kernel K((z − θ) / ε): 1 within half a bandwidth of the threshold."""
    return ((z_bn - threshold_n).abs() < bandwidth / 2).to(z_bn.dtype)


class _JumpReLU(torch.autograd.Function):
    """z · H(z − θ); see `jumprelu`."""

    @staticmethod
    def forward(ctx: Any, z_bn: Tensor, threshold_n: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z_bn, threshold_n)
        ctx.bandwidth = bandwidth
        return z_bn * (z_bn > threshold_n)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        z_bn, threshold_n = ctx.saved_tensors
        g_bn, kernel_bn = upstream[0], _kernel(z_bn, threshold_n, ctx.bandwidth)
        return g_bn * (z_bn > threshold_n), -(threshold_n / ctx.bandwidth) * (g_bn * kernel_bn).sum(0), None


def jumprelu(z_bn: Tensor, threshold_n: Tensor, bandwidth: float) -> Tensor:
    """JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 11): z where z > θ, else 0, [b, n].

    The derivative by z is H(z − θ), that by θ the pseudo-derivative −(θ/ε) K((z − θ)/ε).
    """
    result: Tensor = _JumpReLU.apply(z_bn, threshold_n, bandwidth)  # type: ignore[no-untyped-call]
    return result


class _Step(torch.autograd.Function):
    """H(z − θ); see `step`."""

    @staticmethod
    def forward(ctx: Any, z_bn: Tensor, threshold_n: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z_bn, threshold_n)
        ctx.bandwidth = bandwidth
        return (z_bn > threshold_n).to(z_bn.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[None, Tensor, None]:
        z_bn, threshold_n = ctx.saved_tensors
        kernel_bn = _kernel(z_bn, threshold_n, ctx.bandwidth)
        return None, -(upstream[0] * kernel_bn).sum(0) / ctx.bandwidth, None


def step(z_bn: Tensor, threshold_n: Tensor, bandwidth: float) -> Tensor:
    """The Heaviside step H(z − θ), [b, n]: no gradient by z, by θ the pseudo-derivative −(1/ε) K((z − θ)/ε).

    Rajamanoharan et al. 2024 (arXiv 2407.14435), eq. 12.
    """
    result: Tensor = _Step.apply(z_bn, threshold_n, bandwidth)  # type: ignore[no-untyped-call]
    return result
