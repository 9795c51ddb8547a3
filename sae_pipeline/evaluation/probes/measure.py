"""Probes of autoencoders and of what they are held against, task by task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.dataset import Normaliser
from sae_pipeline.embedded.concepts.sampling import generator
from sae_pipeline.evaluation.probes.newton import Ints
from sae_pipeline.evaluation.probes.probe_data import ProbeData
from sae_pipeline.evaluation.probes.search import Best, Features, Readings, SparseCodes, small_probes, sparse_codes
from sae_pipeline.evaluation.probes.settings import Settings
from sae_pipeline.evaluation.probes.task_rows import TaskRows, mean_score, normalised_rows
from sae_pipeline.evaluation.tables import frame
from sae_pipeline.store import Progress

Rows = list[dict[str, Any]]

_NOTHING_VARIES = "no {} varies on the training rows: the share of the labels alone"


@dataclass
class SiteProbes:
    """Probes at one site on rows of one normalisation; what no autoencoder has a part in is fitted once.

    Attributes:
        data: tasks and activations.
        normaliser: that of the autoencoders.
        device: where to compute.
        settings: what to fit.
        seed: of permutations and random directions.
    """

    data: ProbeData
    normaliser: Normaliser
    device: torch.device
    settings: Settings
    seed: int
    _baselines: Rows = field(default_factory=list, init=False)
    _random: dict[int, Rows] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.u_pd: Tensor = normalised_rows(self.data, self.normaliser, self.device)
        self.tasks = [TaskRows.of(self.data, task) for task in sorted(self.data.controls)]

    def measure(self, autoencoder: Autoencoder, progress: Progress) -> Rows:
        """The rows of `probe_results` of one autoencoder, without its name: its probes, then the baselines."""
        codes_pn = sparse_codes(autoencoder, self.u_pd) if "post" in self.settings.codes else None
        rows = Rows()
        for done, task in enumerate(self.tasks, start=1):
            if "pre" in self.settings.codes:
                rows += self._probes(task, "pre", self._readings(task, autoencoder.W_enc))
            if codes_pn is not None:
                rows += self._probes(task, "post", SparseCodes(codes_pn[task.place_r], codes_pn[task.place_t]))
            progress.update(done, len(self.tasks), "tasks")
        return [*rows, *self._unusable(), *self.baselines(), *self.random(autoencoder.config.n)]

    def baselines(self) -> Rows:
        """Single channels, few channels, few principal components, token counts, and everything linear."""
        if not self._baselines:
            eye_dd = torch.eye(self.u_pd.shape[1], dtype=torch.float64, device=self.device)
            for task in self.tasks:
                channels = self._readings(task, eye_dd)
                self._baselines += [self._best(task, "channel", channels), *self._small(task, "channel", channels)]
                self._baselines += self._principal(task)
                self._baselines += self._controls(task)
        return self._baselines

    def random(self, n: int) -> Rows:
        """The best of n random directions: as many tries as an autoencoder of n latents has."""
        if n not in self._random:
            generator_n = torch.Generator().manual_seed(int(generator(self.seed, "directions", n).integers(2**62)))
            W_nd = torch.randn(n, self.u_pd.shape[1], generator=generator_n, dtype=torch.float64).to(self.device)
            self._random[n] = [self._best(task, "random", self._readings(task, W_nd)) for task in self.tasks]
        return self._random[n]

    def _readings(self, task: TaskRows, W_nd: Tensor) -> Readings:
        return Readings(W_nd, self.u_pd[task.place_r], self.u_pd[task.place_t])

    def _probes(self, task: TaskRows, code: str, features: Features) -> Iterator[dict[str, Any]]:
        yield self._best(task, code, features)
        yield self._permuted(task, code, features)
        yield from self._small(task, code, features)

    def _best(self, task: TaskRows, code: str, features: Features) -> dict[str, Any]:
        best = features.best(task.label_r, self.settings.ridge, self.settings.screen)
        columns: dict[str, Any] = {"train_loss": best.train_loss, "latents": _text(_chosen(best))}
        if best.feature is None:
            columns |= {"status": "partial", "reason": _NOTHING_VARIES.format(_WHAT[code])}
        return task.row("best", code, 1, task.score(_logits(best, features, task)), **columns)

    def _permuted(self, task: TaskRows, code: str, features: Features) -> dict[str, Any]:
        """The same choice on permuted training labels, scored on the true test labels: the mean of several."""
        found = [
            features.best(label_r, self.settings.ridge, self.settings.screen)
            for label_r in task.permuted(self.settings.permutations, self.seed)
        ]
        scores = [task.score(_logits(best, features, task)) for best in found]
        train_loss = float(np.mean([best.train_loss for best in found]))
        return task.row("permuted", code, 1, mean_score(scores), train_loss=train_loss)

    def _small(self, task: TaskRows, code: str, features: Features) -> Iterator[dict[str, Any]]:
        return self._sized(task, code, features, features.ranked(task.label_r, self.settings.k[-1]))

    def _principal(self, task: TaskRows) -> Iterator[dict[str, Any]]:
        """The principal components of the training rows, largest first."""
        u_rd = self.u_pd[task.place_r].double()
        centred_rd = u_rd - u_rd.mean(0)
        _, W_dd = torch.linalg.eigh(centred_rd.T @ centred_rd)
        count = min(self.settings.k[-1], W_dd.shape[1])
        features = self._readings(task, W_dd.T.flip(0)[:count])
        return self._sized(task, "component", features, np.arange(count))

    def _sized(self, task: TaskRows, code: str, features: Features, ranked: Ints) -> Iterator[dict[str, Any]]:
        sizes = self.settings.k
        found = small_probes(features, ranked, task.label_r, sizes, self.settings.ridge)
        for k, probe in zip(sizes, found, strict=True):
            columns: dict[str, Any] = {"train_loss": probe.train_loss, "latents": _text(probe.features)}
            if len(probe.features) < k:
                reason = f"only {len(probe.features)} {_WHAT[code]}s vary on the training rows"
                columns |= {"status": "partial", "reason": reason}
            yield task.row("top_k", code, k, task.score(probe.logit_t), **columns)

    def _controls(self, task: TaskRows) -> Iterator[dict[str, Any]]:
        controls = self.data.controls[task.task]
        yield task.row("counts", "token", None, controls.token)
        yield task.row("counts", "token_pair", None, controls.token_pair)
        yield task.row("linear", "activation", None, controls.linear)
        yield task.row("permuted", "activation", None, controls.permuted)

    def _unusable(self) -> Iterator[dict[str, Any]]:
        reasons = {self.data.probe_set.tasks[task].name: reason for task, reason in self.data.reasons.items()}
        reasons |= {dropped.name: dropped.reason for dropped in self.data.probe_set.dropped}
        for name, reason in reasons.items():
            for code in self.settings.codes:
                yield {"task": name, "probe": "best", "code": code, "k": 1, "status": "na", "reason": reason}


_WHAT = {"pre": "latent", "post": "latent", "channel": "channel", "random": "direction", "component": "component"}


def as_table(rows: Rows, key: dict[str, Any]) -> pd.DataFrame:
    """Rows as the table `probe_results` of the autoencoder that `key` names."""
    counts: dict[str, Any] = {"lexical": None, "n_train": 0, "n_test": 0, "n_documents": 0}
    return frame("probe_results", [key | counts | row for row in rows])


def _logits(best: Best, features: Features, task: TaskRows) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if best.feature is None:
        return np.full(len(task.label_t), best.intercept)
    return np.asarray(best.slope * features.test(_chosen(best))[:, 0] + best.intercept)


def _chosen(best: Best) -> Ints:
    return np.array([] if best.feature is None else [best.feature], np.int64)


def _text(latents: Ints) -> str:
    return " ".join(map(str, latents))
