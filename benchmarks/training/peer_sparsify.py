"""eai-sparsify: the body of its trainer's loop, which itself wants a language model around it.

Its defaults: no AuxK, no Multi-TopK. `optimizer` is "signum", its default (schedule-free), or "adam". Its warm-up of
1,000 steps is shortened to a twentieth of a short run.
"""

from __future__ import annotations

import torch
from schedulefree import ScheduleFreeWrapper
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig
from sparsify.sign_sgd import SignSGD
from task import Task
from transformers import get_linear_schedule_with_warmup


def scale(d: int) -> float:
    return d**0.5


class Trainer:
    """A SparseCoder, its optimiser and its counters."""

    def __init__(self, task: Task, rows_xd: torch.Tensor) -> None:
        torch.set_float32_matmul_precision("high")  # as its `fit` does
        torch.manual_seed(task.seed)
        self.coder = SparseCoder(task.d, SparseCoderConfig(num_latents=task.n, k=task.k), dtype=torch.float32)
        self.config = TrainConfig(self.coder.cfg, optimizer=task.options["optimizer"])
        self.schedule = None
        size = (task.n / 2**14) ** 0.5
        if self.config.optimizer == "signum":
            self.optimizer = ScheduleFreeWrapper(SignSGD(self.coder.parameters(), lr=5e-3 / size), momentum=0.95)
            self.optimizer.train()
        else:
            self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=2e-4 / size)
            warmup = min(self.config.lr_warmup_steps, task.steps // 20)
            self.schedule = get_linear_schedule_with_warmup(self.optimizer, warmup, task.steps)
        self.tokens_since_fired = torch.zeros(task.n, dtype=torch.long)
        self.fired = torch.zeros(task.n, dtype=torch.bool)
        self.begun = False

    def step(self, x_bd: torch.Tensor) -> None:
        if not self.begun:
            self.coder.b_dec.data = x_bd.mean(0)
            self.begun = True
        self.coder.set_decoder_norm_to_unit_norm()
        out = self.coder(x=x_bd, y=x_bd, dead_mask=None, total_variance=(x_bd - x_bd.mean(0)).pow(2).sum())
        self.fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        (out.fvu + self.config.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.schedule:
            self.schedule.step()
        self.tokens_since_fired += len(x_bd)
        self.tokens_since_fired[self.fired] = 0
        self.fired.zero_()

    def reconstruct(self, x_bd: torch.Tensor) -> torch.Tensor:
        averaging = isinstance(self.optimizer, ScheduleFreeWrapper)
        if averaging:
            self.optimizer.eval()  # as before it saves
        found = self.coder(x_bd).sae_out
        if averaging:
            self.optimizer.train()
        return found
