"""The one place that chooses which implementation of the training step runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sae_pipeline.kernels import cpu, cuda, reference
from sae_pipeline.kernels.objective import Losses, Objective
from sae_pipeline.kernels.optimiser import Optimiser
from sae_pipeline.kernels.state import TrainState


@torch.no_grad()
def train_step(
    state: TrainState, x_bd: Tensor, objective: Objective, optimiser: Optimiser, *, lr: float, l1: float = 0.0
) -> Losses | None:
    """One training step on normalised rows x [b, d], in place.

    Args:
        state: parameters, moments, average and counters; changed.
        x_bd: the batch, same dtype and device as the parameters.
        objective: what is minimised.
        optimiser: Adam's constants, average and clipping.
        lr: learning rate of this step.
        l1: weight of the L1 term at this step.

    Returns:
        The loss terms before the update, or None if the reconstruction was not finite; then nothing was changed. A GPU
        step with Triton returns that reconstruction instead: the host would have to wait to know.
    """
    return step_on(x_bd.device, objective)(state, x_bd, objective, optimiser, lr=lr, l1=l1)


def step_on(device: torch.device, objective: Objective) -> Callable[..., Losses | None]:
    """The fastest step for an objective on a device."""
    if device.type == "cpu":
        return cpu.step
    if device.type == "cuda" and cuda.handles(objective) and cuda.has_triton():
        return partial(cuda.step, kernels=cuda.triton_kernels())
    return reference.step
