"""The one place that chooses which implementation of the training step runs."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_pipeline.kernels import cpu, reference
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
        The loss terms before the update, or None if the reconstruction was not finite; then nothing was changed.
    """
    step = cpu.step if x_bd.device.type == "cpu" else reference.step
    return step(state, x_bd, objective, optimiser, lr=lr, l1=l1)
