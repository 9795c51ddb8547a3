from collections.abc import Iterator
from types import SimpleNamespace

import torch

from sae_pipeline.dataset import Batch, Normaliser, geometric_median
from sae_pipeline.dataset.planted import planted_rows
from sae_pipeline.study import AutoencoderSpec


class Rows:
    """A dataset in memory: batch t is a function of t alone."""

    def __init__(self, rows_md, batch_of_nan=()):
        self.rows_md, self.batch_of_nan = rows_md, batch_of_nan
        self.d = rows_md.shape[1]
        self.normaliser = Normaliser("none", self.d)
        x = rows_md.double()
        self.statistics = SimpleNamespace(
            total_variance=float((x - x.mean(0)).square().sum(1).mean()),
            geometric_median=geometric_median(rows_md.numpy()[:2048]),
        )

    def batches(self, batch, first_step, n_steps, *, device="cpu", prefetch=2) -> Iterator[Batch]:
        for step in range(first_step, first_step + n_steps):
            generator = torch.Generator().manual_seed(7_000_000 + step)
            x_bd = self.rows_md[torch.randint(len(self.rows_md), (batch,), generator=generator)]
            yield Batch(step, x_bd * float("nan") if step in self.batch_of_nan else x_bd)


class StopAt:
    """Asks to stop at the n-th question."""

    def __init__(self, n):
        self.left = n

    def __call__(self):
        self.left -= 1
        return self.left < 0


def planted(m=20_000, *, features=48, draw=0):
    """Rows and their dictionary; the seed is not one weights are drawn from."""
    world = planted_rows(m, 32, features=features, active=3, seed=31, draw=draw)
    return world.rows_md, world.dictionary_fd


def make_spec(**kwargs):
    settings = {
        "key": "topk-n64-k3", "recipe": "topk", "n": 64, "k": 3, "batch": 128, "tokens": 128 * 40, "lr": 3e-3,
        "warmup_steps": 5, "decay_last": 0.2, "ema": 0.9, "auxk_k": 16, "auxk_alpha": 1 / 32,
        "dead_after_tokens": 128 * 6,
    }  # fmt: skip
    return AutoencoderSpec(**(settings | kwargs))
