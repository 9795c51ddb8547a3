"""The encoder's dense product and nothing else, in bfloat16 or float32: what no trainer that has one can pass."""

from __future__ import annotations

import torch
from task import Task, hold

from sae_pipeline.kernels import fast_float32_matmul

SCORE_BYTES = 8 << 20  # of a result that stays in cache


def scale(d: int) -> float:
    return 1.0


class Trainer:
    """x W_encᵀ in chunks of rows, each over the one before."""

    def __init__(self, task: Task, rows_xd: torch.Tensor) -> None:
        self.dtype = getattr(torch, task.options["dtype"])
        hold(fast_float32_matmul())
        torch.manual_seed(task.seed)
        self.W_nd = torch.randn(task.n, task.d).to(self.dtype)
        self.scores = torch.empty(SCORE_BYTES // self.dtype.itemsize // task.n, task.n, dtype=self.dtype)

    def step(self, x_bd: torch.Tensor) -> None:
        for x in x_bd.to(self.dtype).split(len(self.scores)):
            torch.mm(x, self.W_nd.t(), out=self.scores[: len(x)])
