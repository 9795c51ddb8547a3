"""The weight of the sparsity penalty: given by the spec, or found while training so that L0 meets a target."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sae_pipeline.autoencoders import recipe_of
from sae_pipeline.study import AutoencoderSpec

EVERY = 10  # steps between two corrections: each reads one number from the device
GAIN = 10.0  # e-folds that log λ moves over a whole run in which L0 stays at twice its target


class SparsityWeight:
    """λ of each step: 0 without a penalty, linear from 0 over the first `l1_warmup` of the steps, then constant.

    With `target_l0`, log λ moves every few steps after the warm-up in proportion to how far L0 is from the target
    (an integral controller: at rest L0 is the target, whatever the recipe and the scale of its penalty). A search on
    the first steps of a run would not do: L0 goes on falling long after them.
    """

    def __init__(self, spec: AutoencoderSpec, device: torch.device) -> None:
        self.target_l0, self.steps = spec.target_l0, spec.steps
        self.warmup_steps = spec.l1_warmup * spec.steps
        self.value = spec.l1 or 0.0
        if spec.target_l0 is not None:
            self.value = recipe_of(spec.recipe).first_l1
        self.l0_sum = torch.zeros((), dtype=torch.float64, device=device)

    def at(self, step: int) -> float:
        """λ of step 0 ≤ `step`."""
        return self.value * (min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0)

    def observe(self, step: int, l0: Tensor) -> None:
        """Take in the mean L0 of `step`, and correct λ where a correction is due."""
        if self.target_l0 is None or step < self.warmup_steps:
            return
        self.l0_sum += l0
        if (step + 1) % EVERY == 0:
            excess = float(self.l0_sum) / EVERY / self.target_l0 - 1
            # A first correction after the warm-up covers fewer steps; bounded, so that no single one runs away.
            self.value *= math.exp(GAIN / self.steps * EVERY * min(excess, 1.0))
            self.l0_sum.zero_()
