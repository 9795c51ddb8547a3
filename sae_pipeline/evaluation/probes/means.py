"""Means over tasks of what probes found, each with an interval over tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from sae_pipeline.evaluation.inputs import FloatArray, MetricInputs, Ratio
from sae_pipeline.evaluation.probes.columns import Flags
from sae_pipeline.evaluation.probes.settings import Settings
from sae_pipeline.evaluation.tables import CURVE_COLUMNS

_CONTROLS = {
    "channel": ("best", "channel"),
    "random": ("best", "random"),
    "token": ("counts", "token"),
    "token_pair": ("counts", "token_pair"),
    "linear": ("linear", "activation"),
}


class TaskMeans:
    """What one autoencoder's `probe_results` say over all tasks.

    Args:
        results: its rows of `probe_results`.
        tasks: the names of all tasks, whose places are the units' numbers.
        settings: what was fitted.
    """

    def __init__(self, results: pd.DataFrame, tasks: Sequence[str], settings: Settings) -> None:
        self._settings, self._names = settings, list(tasks)
        known = results[results["loss"].notna()]
        self._rows = known.set_index(["probe", "code"]).sort_index()
        lexical = known.groupby("task")["lexical"].first().reindex(self._names)
        self._subsets: dict[str, Flags] = {
            "": np.ones(len(self._names), np.bool_),
            "_lexical": lexical.fillna(False).to_numpy(np.bool_),
            "_other": (~lexical.fillna(True)).to_numpy(np.bool_),
        }

    def ratios(self) -> Iterator[Ratio]:
        """Every figure of the metrics table."""
        losses = {code: self._column("best", code, "loss") for code in self._settings.codes}
        controls = {name: self._column(*of, "loss") for name, of in _CONTROLS.items()}
        permuted = {f"{code}_permuted": self._column("permuted", code, "loss") for code in self._settings.codes}
        for name, loss_u in (losses | permuted | controls).items():
            yield from self._means("probe_loss", name, loss_u, "nats", "lower")
        for code, loss_u in losses.items():
            against = {"permuted": permuted[f"{code}_permuted"], **controls}
            for name, control_u in against.items():
                gain_u = control_u - loss_u
                yield from self._means("probe_gain", f"{code}_over_{name}", gain_u, "nats", "higher")
                won_u = np.where(np.isnan(gain_u), np.nan, gain_u > 0)
                yield from self._means("probe_wins", f"{code}_over_{name}", won_u, "fraction", "higher")
        for code in (*self._settings.codes, "channel", "component"):
            accuracy_ku = self._accuracies(code)
            for k, accuracy_u in zip(self._settings.k, accuracy_ku, strict=True):
                yield from self._means("probe_accuracy", f"{code}_k={k}", accuracy_u, "fraction", "higher")
            area_u = self._area(accuracy_ku)
            yield from self._means("probe_budget", code, area_u, "fraction", "higher")

    def curves(self, inputs: MetricInputs) -> pd.DataFrame:
        """Curve `<code>_accuracy`: mean accuracy over tasks against the latents of a probe."""
        parts = []
        for code in (*self._settings.codes, "channel", "component"):
            accuracy_ku = self._accuracies(code)
            tasks = ~np.isnan(accuracy_ku).any(axis=0)
            if tasks.any():
                points = {"x": self._settings.k, "y": accuracy_ku[:, tasks].mean(axis=1), "n": int(tasks.sum())}
                names = {"curve": f"{code}_accuracy", "x_unit": "latents", "y_unit": "fraction"}
                parts.append(pd.DataFrame(points).assign(**inputs.key, metric="probe_accuracy", **names))
        found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(CURVE_COLUMNS))
        return found[list(CURVE_COLUMNS)].astype(CURVE_COLUMNS)

    def _column(self, probe: str, code: str, column: str, k: int | None = None) -> FloatArray:
        """A column by task, [u]; NaN where there is no such probe."""
        if (probe, code) not in self._rows.index:
            return np.full(len(self._names), np.nan)
        rows = self._rows.loc[[(probe, code)]]
        rows = rows if k is None else rows[rows["k"] == k]
        return np.asarray(rows.set_index("task")[column].reindex(self._names), np.float64)

    def _accuracies(self, code: str) -> FloatArray:
        return np.stack([self._column("top_k", code, "accuracy", k) for k in self._settings.k])

    def _area(self, accuracy_ku: FloatArray) -> FloatArray:
        """Area under accuracy over k by trapezia, over the range of k; NaN with a single size."""
        k = np.array(self._settings.k, np.float64)
        if len(k) < 2:
            return np.full(accuracy_ku.shape[1], np.nan)
        return np.asarray(np.trapezoid(accuracy_ku, k, axis=0) / (k[-1] - k[0]))

    def _means(self, metric: str, variant: str, value_u: FloatArray, unit: str, better: str) -> Iterator[Ratio]:
        """The mean over all tasks, over lexical ones and over the others."""
        for suffix, subset_u in self._subsets.items():
            here_u = subset_u & ~np.isnan(value_u)
            num_u = np.where(here_u, value_u, 0.0)
            yield Ratio(
                metric,
                variant + suffix,
                num_u,
                here_u.astype(np.float64),
                here_u.astype(np.int64),
                unit,
                better,
                "task",
            )
