"""Learning rate and L1 weight as functions of the step."""

from __future__ import annotations

from sae_pipeline.study import AutoencoderSpec


def learning_rate(spec: AutoencoderSpec, step: int) -> float:
    """Rate of step 0 ≤ `step` < spec.steps: linear warm-up, constant, linear decay towards 0 over `decay_last`."""
    warm = (step + 1) / spec.warmup_steps if spec.warmup_steps else 1.0
    decay_steps = spec.decay_last * spec.steps
    decay = (spec.steps - step) / decay_steps if decay_steps else 1.0
    return spec.lr * min(1.0, warm, decay)


def l1_weight(spec: AutoencoderSpec, step: int) -> float:
    """Weight of the L1 term at `step`: 0 without one, else linear from 0 over the first `l1_warmup` of the steps."""
    if spec.l1 is None:
        return 0.0
    warmup_steps = spec.l1_warmup * spec.steps
    return spec.l1 * (min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)
