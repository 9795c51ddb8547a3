"""Loss against training compute, ℓ(C): what a loss of nats is worth in compute (Gao et al. 2024 §4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sae_pipeline.store import read_json
from sae_pipeline.subjects.source import Source, check_weights, fingerprint, read_config

_MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class LossCurve:
    """Finished training runs of one family, cheapest first, the last of them the model in question.

    flops: training FLOPs, rising; nats: held-out loss per token, falling.
    """

    flops: tuple[float, ...]
    nats: tuple[float, ...]

    def __post_init__(self) -> None:
        rises = np.all(np.diff(self.flops) > 0) and np.all(np.diff(self.nats) < 0)
        if len(self.flops) < 2 or len(self.flops) != len(self.nats) or min(self.flops) <= 0 or not rises:
            raise ValueError("a curve of loss against compute needs two runs or more, each dearer and better")

    @property
    def least_share(self) -> float:
        """Compute of the cheapest run over that of the model."""
        return self.flops[0] / self.flops[-1]

    def share(self, more_nats: float) -> float:
        """Compute at which a model is as much worse as `more_nats` says, over the model's own; 1 if it is none worse.

        Interpolates log C over the loss between neighbouring runs; NaN beyond the cheapest.
        """
        nats = self.nats[-1] + more_nats
        if not nats <= self.nats[0]:
            return float("nan")
        log_c = np.interp(nats, self.nats[::-1], np.log(self.flops)[::-1])
        return float(np.exp(log_c - np.log(self.flops[-1])))


def curve_from(runs: Sequence[tuple[float, float]]) -> LossCurve:
    """The curve of (FLOPs, nats) pairs, of which the last is the model; runs no better than a cheaper one are left out.

    Raises:
        ValueError: fewer than two are left, or a cheaper run is as good as the model.
    """
    flops_of_model = runs[-1][0]
    best: list[tuple[float, float]] = []
    for flops, nats in sorted(run for run in runs if run[0] <= flops_of_model):
        if not best or nats < best[-1][1]:
            best.append((flops, nats))
    if best[-1] != tuple(runs[-1]):
        raise ValueError("a cheaper run is as good as the model, so its loss says nothing of its compute")
    return LossCurve(tuple(flops for flops, _ in best), tuple(nats for _, nats in best))


def shipped_curve(subject_fingerprint: str, models: Path = _MODELS) -> LossCurve | None:
    """ℓ(C) up to a shipped model, known by its weights; None for any other subject, or the only one of its kind."""
    for name in (path.parent.name for path in models.glob("*/config.json")):
        source = Source(name, models / name, None)
        if fingerprint(source, read_config(source), check_weights(source)) == subject_fingerprint:
            runs = read_json(models / "family.json")["runs"]
            own = next(run for run in runs if run["model"] == name and run["shipped"])
            alike = [run for run in runs if run["architecture"] == own["architecture"] and run is not own]
            pairs = [(run["training_flops"], run["nats_per_token"]) for run in [*alike, own]]
            return curve_from(pairs) if len(pairs) > 1 else None
    return None
