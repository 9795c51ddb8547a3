"""sae_pipeline: `Run.advance`, one member as the training loop steps it, without a running average of the weights."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from task import Task, hold

from sae_pipeline.activations import Moments
from sae_pipeline.autoencoders import Autoencoder, config_of
from sae_pipeline.dataset import Normaliser, Statistics, geometric_median
from sae_pipeline.kernels import fast_float32_matmul
from sae_pipeline.store import Draft, reuse_freed_memory
from sae_pipeline.study import AutoencoderSpec
from sae_pipeline.study.models import LearningRate
from sae_pipeline.training.run import Member, Run
from sae_pipeline.training.workers import threads_for

SAMPLE_ROWS = 2048
DEAD_AFTER_TOKENS = 10_000_000


class Data(NamedTuple):
    """What training reads of a dataset."""

    normaliser: Normaliser
    statistics: Statistics


def scale(d: int) -> float:
    return 1.0  # rows come as the paper's normaliser leaves them


class Trainer:
    """A run of one member.

    Options: `compiled`, the top-k in C or in PyTorch (by default in C where it was built); `spec`, fields of the
    AutoencoderSpec that are not the paper's; `dead`, the share of latents that are dead from the first step on, and
    stay so: none of them can fire.
    """

    def __init__(self, task: Task, rows_xd: torch.Tensor) -> None:
        choose_topk(task.options.get("compiled"))
        reuse_freed_memory(map_large=True)  # as the asset does
        hold(fast_float32_matmul())  # as the training loop does
        spec = spec_of(task)
        self.folder = tempfile.TemporaryDirectory()
        draft = Draft.open(
            Path(self.folder.name) / "a", stage="autoencoders", key=spec.key, identity="0" * 64, lineage={}
        )
        threads = threads_for(spec, task.d)
        self.run = Run(Member(spec, draft), data_of(rows_xd), torch.device("cpu"), threads)
        torch.set_num_threads(threads)
        self.dead = slice(round(task.options.get("dead", 0.0) * task.n))
        self.run.state.params.b_enc[self.dead] = -10.0
        self.run.state.fired.tokens_since_fired[self.dead] = DEAD_AFTER_TOKENS

    def step(self, x_bd: torch.Tensor) -> None:
        self.run.advance(x_bd, 0.0)

    def reconstruct(self, x_bd: torch.Tensor) -> torch.Tensor:
        run = self.run
        autoencoder = Autoencoder(config_of(run.spec, run.normaliser.d), run.state.params, run.normaliser)
        return autoencoder.decode(autoencoder.encode(x_bd))


def choose_topk(compiled: bool | None) -> None:
    """Keep the compiled part from being used, or end the process if it is wanted and not there; None: as it comes."""
    there = importlib.util.find_spec("sae_pipeline.kernels.compiled")
    part = importlib.import_module("sae_pipeline.kernels.compiled") if there else None
    if compiled and (part is None or part.library() is None):
        sys.exit("no compiled top-k was built here")
    if compiled is False and part is not None:
        part.library = lambda: None


def spec_of(task: Task) -> AutoencoderSpec:
    """The paper's recipe, but for the fields that the task gives."""
    fields = {
        "lr": LearningRate().at(task.n),
        "auxk_k": task.d // 2,
        "auxk_alpha": 1 / 32,
        "dead_after_tokens": DEAD_AFTER_TOKENS,
        "ema": None,
        **task.options.get("spec", {}),
    }
    sizes = {"n": task.n, "k": task.k, "batch": task.batch, "tokens": task.steps * task.batch}
    return AutoencoderSpec(key="benchmark", recipe="topk", seed=task.seed, **sizes, **fields)


def data_of(rows_xd: torch.Tensor) -> Data:
    """The statistics of the rows, which are normalised already."""
    normaliser = Normaliser("none", rows_xd.shape[1])
    sample_xd = rows_xd[:SAMPLE_ROWS].numpy()
    statistics = Statistics.from_moments(
        Moments.of(rows_xd),
        normaliser,
        geometric_median=geometric_median(sample_xd),
        sample_rows=len(sample_xd),
        sample_seed=0,
    )
    return Data(normaliser, statistics)
