"""dictionary-learning: `TopKTrainer.update`, its defaults; its warm-up shortened to a twentieth of a short run."""

from __future__ import annotations

import torch
from dictionary_learning.trainers import TopKTrainer
from task import Task


def scale(d: int) -> float:
    return 1.0  # its own normalisation brings rows to a mean square norm of 1


class Trainer:
    """Its trainer, and the number of the step, which it wants to be told."""

    def __init__(self, task: Task, rows_xd: torch.Tensor) -> None:
        self.trainer = TopKTrainer(
            steps=task.steps, activation_dim=task.d, dict_size=task.n, k=task.k, layer=0, lm_name="none",
            warmup_steps=min(1000, task.steps // 20), seed=task.seed, device="cpu",
        )  # fmt: skip
        self.done = 0

    def step(self, x_bd: torch.Tensor) -> None:
        self.trainer.update(self.done, x_bd)
        self.done += 1

    def reconstruct(self, x_bd: torch.Tensor) -> torch.Tensor:
        return self.trainer.ae(x_bd)
