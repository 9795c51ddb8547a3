"""The learning rate as a function of the step."""

from __future__ import annotations

from sae_pipeline.study import AutoencoderSpec


def learning_rate(spec: AutoencoderSpec, step: int, steps: int | None = None) -> float:
    """Rate of step 0 ≤ `step` < `steps`: linear warm-up, constant, linear decay towards 0 over `decay_last` of them.

    `steps` is where the run ends, by default its budget.
    """
    steps = spec.steps if steps is None else steps
    warm = (step + 1) / spec.warmup_steps if spec.warmup_steps else 1.0
    decay_steps = spec.decay_last * steps
    decay = (steps - step) / decay_steps if decay_steps else 1.0
    return spec.lr * min(1.0, warm, decay)
