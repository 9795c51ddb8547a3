"""What one training run is: sizes, budget, and the batch that every step sees."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Plan:
    """Everything that determines the weights, besides the corpus and the machine.

    `steps` with one schedule, their last `long_share` at full context. That end hardly moves what is learned of late
    positions, so `polish_steps` follow, from `polish_lr_share * lr` down to 0: short contexts that begin at random
    positions, then `polish_long_share` at full context. With `polish_starts` "edges" the short ones reach
    the first and last positions at least as often as those between; "inside" draws their starts evenly, and the edges
    get little.
    """

    steps: int
    architecture: Literal["gpt2", "llama"] = "gpt2"
    seed: int = 0
    vocab_size: int = 4096
    n_layers: int = 5
    d_model: int = 128
    n_heads: int = 4
    n_positions: int = 512
    short_context: int = 128
    long_share: float = 0.2
    polish_steps: int = 0
    polish_lr_share: float = 0.5
    polish_long_share: float = 0.4
    polish_starts: Literal["edges", "inside"] = "edges"
    batch_tokens: int = 1024
    lr: float = 4e-3
    warmup_steps: int = 100
    final_lr_share: float = 0.05
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        if self.batch_tokens % self.n_positions or self.n_positions < self.short_context:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} must be a multiple of n_positions {self.n_positions}, "
                f"which must not be below short_context {self.short_context}"
            )

    @property
    def tokens(self) -> int:
        """Training tokens of the whole run."""
        return self.all_steps * self.batch_tokens

    @property
    def all_steps(self) -> int:
        """Steps of both schedules."""
        return self.steps + self.polish_steps

    @property
    def parts(self) -> tuple[tuple[range, int], ...]:
        """Steps and their tokens per context: short and long, and the polish's short and long."""
        first, last = (round(self.long_share * self.steps), round(self.polish_long_share * self.polish_steps))
        ends = (0, self.steps - first, self.steps, self.all_steps - last, self.all_steps)
        contexts = (self.short_context, self.n_positions) * 2
        return tuple((range(*stretch), context) for stretch, context in zip(pairwise(ends), contexts, strict=True))

    @property
    def mean_context(self) -> float:
        """Tokens per context, averaged over the steps."""
        return sum(len(steps) * context for steps, context in self.parts) / self.all_steps

    def context(self, step: int) -> int:
        """Tokens per context at this step."""
        return next(context for steps, context in self.parts if step in steps)

    def like_it_before(self, step: int) -> int:
        """How many steps before this one have contexts of the same length."""
        before = [steps[: max(0, step - steps.start)] for steps, context in self.parts if context == self.context(step)]
        return sum(map(len, before))

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then a cosine from `lr` down to `final_lr_share * lr`; then the polish, linear to 0."""
        if step >= self.steps:
            return self.lr * self.polish_lr_share * (self.all_steps - step) / self.polish_steps
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        floor = self.final_lr_share
        return self.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "betas": list(self.betas)}


def batch_at(stream: NDArray[np.integer], plan: Plan, step: int) -> NDArray[np.int64]:
    """The batch of one step, `[contexts, context + 1]`: a function of the arguments alone, so a resume needs no state.

    The stream of all training documents is cut into windows at a phase drawn per pass; a pass takes them in random
    order. Raises ValueError if the stream is shorter than a batch.
    """
    context, done = plan.context(step), plan.like_it_before(step)
    per_step, usable = plan.batch_tokens // context, stream.size - 1 - context
    per_pass = usable // context // per_step
    if per_pass < 1:
        raise ValueError(
            f"the training text has {stream.size} tokens; one batch needs {plan.batch_tokens + 2 * context}"
        )
    generator = np.random.default_rng([plan.seed, context, done // per_pass])
    phase = int(generator.integers(context))
    order = generator.permutation(usable // context)
    at = done % per_pass * per_step
    starts = phase + context * order[at : at + per_step]
    return np.asarray(stream[starts[:, None] + np.arange(context + 1)], np.int64)


def first_positions(plan: Plan, step: int) -> NDArray[np.int64]:
    """The position at which each context of a batch begins, `[contexts]`: 0, but for short ones of the polish."""
    context = plan.context(step)
    n = plan.batch_tokens // context
    if step < plan.steps:
        return np.zeros(n, np.int64)
    generator = np.random.default_rng([plan.seed, plan.n_positions, step])
    latest = plan.n_positions - context
    if plan.polish_starts == "inside":
        return generator.integers(latest + 1, size=n)
    # A context that would begin before 0 or end beyond the last position is moved to that edge.
    return generator.integers(1 - context, plan.n_positions, size=n).clip(0, latest)
