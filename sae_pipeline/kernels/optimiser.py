"""Gradients into parameters: tangent projection, clipping, Adam, unit rows, running average.

Order, as in Gao et al. 2024's code but for two choices: the decoder is normalised after the step rather than before
the next projection (so the forward pass always sees unit rows), and the average takes in the weights after the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_pipeline.kernels.state import TrainState

FOLLOW = 0.01  # share of the newest value in a running mean


@dataclass(frozen=True)
class Optimiser:
    """Adam's constants; `ema` the decay of the running average (None: none); `grad_clip` a bound on the global norm."""

    betas: tuple[float, float]
    eps: float
    ema: float | None
    grad_clip: float | None


def tangent(gradient_md: Tensor, unit_md: Tensor) -> Tensor:
    """Remove, in place, the component of each gradient row along its unit row."""
    return gradient_md.addcmul_(unit_md, (gradient_md * unit_md).sum(1, keepdim=True), value=-1)


def clip_factor(norm: float, bound: float) -> float:
    """What to multiply gradients of this global norm with so that it does not exceed the bound."""
    return min(1.0, bound / (norm + 1e-6))


def update_rows(
    state: TrainState, name: str, rows: slice, gradient: Tensor, optimiser: Optimiser, lr: float, *, unit: bool = False
) -> None:
    """One Adam step on the given rows of one parameter, in place; then unit rows and the running average.

    `state.updates` must already count this step. The same arithmetic as `torch.optim.Adam(fused=True)`.
    """
    parameter, first, second = (group.named()[name][rows] for group in (state.params, state.first, state.second))
    step = torch.tensor(float(state.updates), device=parameter.device)
    torch._fused_adam_(
        [parameter], [gradient], [first], [second], [], [step],
        lr=lr, beta1=optimiser.betas[0], beta2=optimiser.betas[1], weight_decay=0.0, eps=optimiser.eps,
        amsgrad=False, maximize=False,
    )  # fmt: skip
    if unit:
        parameter.div_(parameter.norm(dim=1, keepdim=True))
    average(state, name, rows, optimiser)


def follow(state: TrainState, name: str, value: Tensor, optimiser: Optimiser) -> None:
    """Move one parameter, in place, to the mean of the values observed so far, later to their running mean."""
    state.params.named()[name].lerp_(value, max(1.0 / state.updates, FOLLOW))
    average(state, name, slice(None), optimiser)


def average(state: TrainState, name: str, rows: slice, optimiser: Optimiser) -> None:
    """Let the running average take in the given rows of one parameter, in place."""
    parameter = state.params.named()[name][rows]
    if state.average is not None and optimiser.ema is not None:
        state.average.named()[name][rows].lerp_(parameter, 1.0 - optimiser.ema)
