"""sae-lens: `SAETrainer.step` on a TopKTrainingSAE, the defaults of both."""

from __future__ import annotations

import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from task import Task


def scale(d: int) -> float:
    return d**0.5  # what its `expected_average_only_in` brings rows to


class Trainer:
    """Its trainer; what its `fit` does between two steps, but for logs and checkpoints."""

    def __init__(self, task: Task, rows_xd: torch.Tensor) -> None:
        torch.manual_seed(task.seed)
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=task.d, d_sae=task.n, k=task.k))
        config = SAETrainerConfig(
            total_training_samples=task.steps * task.batch,
            train_batch_size_samples=task.batch,
            lr_end=3e-5,  # a tenth of its rate, as its runner sets it; the constant schedule does not read it
        )
        self.trainer = SAETrainer(config, sae, iter(()))

    def step(self, x_bd: torch.Tensor) -> None:
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x_bd)
        self.trainer.n_training_steps += 1

    def reconstruct(self, x_bd: torch.Tensor) -> torch.Tensor:
        return self.trainer.sae(x_bd)
