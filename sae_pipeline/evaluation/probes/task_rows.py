"""The rows of a task, normalised as autoencoders read them, and what is known of a probe on its test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_pipeline.dataset import Normaliser
from sae_pipeline.embedded.concepts import TEST, TRAIN
from sae_pipeline.embedded.concepts.controls import Score, score
from sae_pipeline.embedded.concepts.sampling import generator
from sae_pipeline.evaluation.probes.columns import Flags
from sae_pipeline.evaluation.probes.newton import Floats, Ints
from sae_pipeline.evaluation.probes.probe_data import ProbeData


@dataclass(frozen=True)
class TaskRows:
    """One task: its number and name, whether the token alone solves it, its training rows r and test rows t."""

    task: int
    name: str
    lexical: bool
    place_r: Ints
    place_t: Ints
    label_r: Flags
    label_t: Flags
    document_t: Ints

    @classmethod
    def of(cls, data: ProbeData, task: int) -> TaskRows:
        """A task of a probe set that has enough rows."""
        probe_set = data.probe_set
        train, test = (probe_set.rows(task, split) for split in (TRAIN, TEST))
        return cls(
            task,
            probe_set.tasks[task].name,
            data.controls[task].lexical,
            probe_set.places.place_r[train],
            probe_set.places.place_r[test],
            probe_set.label_r[train],
            probe_set.label_r[test],
            probe_set.document_r[test],
        )

    def permuted(self, count: int, seed: int) -> list[Flags]:
        """Permutations of the training labels: the same for every autoencoder."""
        random = generator(seed, self.name, "permuted")
        return [random.permutation(self.label_r) for _ in range(count)]

    def score(self, logit_t: Floats) -> Score:
        """Logits of the test rows against their labels; documents are the units of the standard error."""
        return score(logit_t, self.label_t, self.document_t)

    def row(self, probe: str, code: str, k: int | None, found: Score, **columns: Any) -> dict[str, Any]:
        """A row of `probe_results`."""
        return {
            "task": self.name,
            "lexical": self.lexical,
            "probe": probe,
            "code": code,
            "k": k,
            "loss": found.cross_entropy,
            "loss_se": found.standard_error,
            "accuracy": found.accuracy,
            "auc": found.auc,
            "n_train": len(self.label_r),
            "n_test": len(self.label_t),
            "n_documents": len(np.unique(self.document_t)),
            "status": "ok",
            **columns,
        }


def normalised_rows(data: ProbeData, normaliser: Normaliser, device: torch.device) -> Tensor:
    """The activations at all places as an autoencoder reads them, [places, d] float32."""
    return normaliser.normalise(torch.from_numpy(data.x_ud).to(device))[0]


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of several probes, with the standard error of their spread (unknown for one)."""
    values = np.array([(one.cross_entropy, one.accuracy, one.auc) for one in scores])
    nats, accuracy, auc = values.mean(axis=0).tolist()
    spread = float(values[:, 0].std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else float("nan")
    return Score(nats, spread, accuracy, auc)
