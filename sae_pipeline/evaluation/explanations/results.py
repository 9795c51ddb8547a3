"""From sums over rows to the tables of the metric."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd

from sae_pipeline.evaluation.explanations.corpus import Corpus, IntArray
from sae_pipeline.evaluation.explanations.patterns import ANY, ANYWHERE, Pattern
from sae_pipeline.evaluation.explanations.sampling import MIN_EXAMPLES
from sae_pipeline.evaluation.explanations.scoring import SIMULATIONS, Fitted, Scores
from sae_pipeline.evaluation.inputs import FloatArray, MetricInputs, Ratio, metric_row, ratio_tables
from sae_pipeline.evaluation.tables import LATENT_STATS_COLUMNS, MetricResult, frame

FIGURES: Final = ("n2g_precision", "n2g_recall", "n2g_f1")
VARIANTS: Final = ("latent_mean", "density_weighted", "pooled")


@dataclass(frozen=True)
class Outcome:
    """Everything found on one autoencoder: sampled latents, their examples and patterns, what was fitted and scored."""

    corpus: Corpus
    latents_s: IntArray
    n_examples: int
    patterns: list[Pattern]
    fitted: Fitted
    scores: Scores

    @cached_property
    def figures(self) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Numerator and denominator [documents, slots] of each figure: precision, recall, and F1 = 2 hits / both."""
        hit_us, foretold_us, active_us = self.scores.hit_us, self.scores.foretold_us, self.scores.active_us
        fractions = ((hit_us, foretold_us), (hit_us, active_us), (2 * hit_us, foretold_us + active_us))
        return dict(zip(FIGURES, fractions, strict=True))

    def by_latent(self, figure: str) -> FloatArray:
        """A figure of each sampled latent [slots]; NaN where nothing was foretold, or it never fired."""
        num_s, den_s = (part_us.sum(0) for part_us in self.figures[figure])
        return np.asarray(np.divide(num_s, den_s, out=np.full(len(num_s), np.nan), where=den_s > 0))

    def latent_stats(self, key: dict[str, Any]) -> pd.DataFrame:
        """One row per sampled latent; counts and activations over both sides, the figures over the scored one."""
        stats = self.fitted.stats
        columns = {
            "latent": self.latents_s,
            "count": stats.count_s,
            "density": stats.count_s / self.corpus.n_rows,
            "mean_act": stats.sum_s / stats.count_s,
            "max_act": stats.max_s,
            **{figure: self.by_latent(figure) for figure in FIGURES},
        }
        filled = pd.DataFrame(columns).assign(**key)
        return filled.reindex(columns=list(LATENT_STATS_COLUMNS)).astype(LATENT_STATS_COLUMNS)


def tables_of(
    inputs: MetricInputs, version: int, outcome: Outcome, counts_n: IntArray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the metrics table, and unit_stats of the figures over documents.

    Latents are no units of comparison between autoencoders, so those of means over latents are left out.
    """
    over_documents = [*_pooled(outcome), *_simulations(outcome.scores)]
    rows, unit_stats = ratio_tables(inputs, version, outcome.corpus.documents, over_documents)
    means, _ = ratio_tables(inputs, version, outcome.latents_s, list(_means(outcome)))
    explainable = frame("metrics", [_explainable_row(inputs, version, counts_n)])
    return pd.concat([rows, means, explainable], ignore_index=True), unit_stats


def no_result(inputs: MetricInputs, version: int, corpus: Corpus) -> MetricResult:
    """Rows that say why there is nothing, where no latent has enough examples."""
    reason = f"no latent fires on {MIN_EXAMPLES} rows of the documents to build on; raise evaluation.tokens"
    if not corpus.cut:
        reason = "explanations need two held-out documents, one to build on and one to score; raise evaluation.tokens"
    names = [*((figure, variant) for figure in FIGURES for variant in VARIANTS)]
    names += [("explained_code_nmse", name) for name in SIMULATIONS]
    rows = [metric_row(inputs, version, *name, float("nan"), reason=reason) for name in names]
    none_n = np.zeros(inputs.codes.n, np.int64)
    return MetricResult("explanations", version, frame("metrics", [*rows, _explainable_row(inputs, version, none_n)]))


def facts_of(corpus: Corpus, outcome: Outcome) -> dict[str, Any]:
    """How the explanations came about, and the explanations: patterns by latent, null for any token."""
    patterns = outcome.patterns
    of_latent: dict[str, list[dict[str, Any]]] = {str(latent): [] for latent in outcome.latents_s.tolist()}
    for pattern in patterns:
        tokens = [None if token == ANY else token for token in pattern.tokens]
        shown = {"tokens": tokens, "at_start": pattern.start != ANYWHERE, "value": pattern.value}
        of_latent[str(outcome.latents_s[pattern.slot])].append(shown)
    return {
        "build_rows": corpus.cut,
        "scored_rows": corpus.n_rows - corpus.cut,
        "padding_id": corpus.padding,
        "lead": list(corpus.lead),
        "sampled_latents": len(outcome.latents_s),
        "examples": outcome.n_examples,
        "patterns": len(patterns),
        "mean_pattern_tokens": float(np.mean([len(p.tokens) for p in patterns])) if patterns else None,
        "at_start_share": float(np.mean([p.start != ANYWHERE for p in patterns])) if patterns else None,
        "explanations": of_latent,
    }


def _pooled(outcome: Outcome) -> Iterator[Ratio]:
    for figure, (num_us, den_us) in outcome.figures.items():
        yield Ratio(figure, "pooled", num_us.sum(1), den_us.sum(1), outcome.scores.rows_u, "fraction", "higher")


def _simulations(scores: Scores) -> Iterator[Ratio]:
    for name in SIMULATIONS:
        yield Ratio(
            "explained_code_nmse", name, scores.error_u[name], scores.centred_u, scores.rows_u, "1", "lower"
        )  # fmt: skip


def _means(outcome: Outcome) -> Iterator[Ratio]:
    """Means over the latents that have the figure, plain and weighted by how often each fires on the scored side."""
    weights = {"latent_mean": np.ones(len(outcome.latents_s)), "density_weighted": outcome.scores.active_us.sum(0)}
    for figure in FIGURES:
        value_s = outcome.by_latent(figure)
        known_s = np.isfinite(value_s)
        for variant, weight_s in weights.items():
            den_s = np.where(known_s, weight_s, 0.0)
            num_s = np.where(known_s, value_s, 0.0) * den_s
            yield Ratio(figure, variant, num_s, den_s, known_s.astype(np.int64), "fraction", "higher", "latent")


def _explainable_row(inputs: MetricInputs, version: int, counts_n: IntArray) -> dict[str, Any]:
    too_few = int((counts_n < MIN_EXAMPLES).sum())
    n = len(counts_n)
    reason = f"{too_few} of {n} latents fire on fewer than {MIN_EXAMPLES} rows of the documents to build on"
    columns = {
        "unit": "fraction",
        "n_units": n,
        "unit_kind": "latent",
        "reason": reason if too_few else None,
    }
    return metric_row(inputs, version, "n2g_explainable", "all", 1 - too_few / n, **columns)
