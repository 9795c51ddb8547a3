"""The learning rate as a function of the step."""

from __future__ import annotations

from sae_pipeline.study import AutoencoderSpec


def learning_rate(spec: AutoencoderSpec, step: int) -> float:
    """Rate of step 0 ≤ `step` < spec.steps: linear warm-up, constant, linear decay towards 0 over `decay_last`."""
    warm = (step + 1) / spec.warmup_steps if spec.warmup_steps else 1.0
    decay_steps = spec.decay_last * spec.steps
    decay = (spec.steps - step) / decay_steps if decay_steps else 1.0
    return spec.lr * min(1.0, warm, decay)
