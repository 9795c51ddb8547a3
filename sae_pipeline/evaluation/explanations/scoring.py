"""How well explanations foretell their latents on documents that they were not made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from sae_pipeline.evaluation.codes_cache import CodesCache
from sae_pipeline.evaluation.explanations.baselines import MeanAfter
from sae_pipeline.evaluation.explanations.corpus import Corpus, IntArray
from sae_pipeline.evaluation.explanations.matching import Matcher
from sae_pipeline.evaluation.explanations.sampling import active_pairs
from sae_pipeline.evaluation.inputs import FloatArray
from sae_pipeline.store import Progress, silent

SIMULATIONS: Final = ("n2g", "unigram", "bigram")


@dataclass
class ActivationStats:
    """Of each sampled latent [slots] over all rows: on how many it fires, the sum and the largest of its values."""

    count_s: IntArray
    sum_s: FloatArray
    max_s: FloatArray

    @classmethod
    def empty(cls, slots: int) -> ActivationStats:
        """Of no rows."""
        return cls(np.zeros(slots, np.int64), np.zeros(slots), np.zeros(slots))

    def add(self, act_rs: FloatArray) -> None:
        """Add rows."""
        self.count_s += (act_rs > 0).sum(0)
        self.sum_s += act_rs.sum(0)
        np.maximum(self.max_s, act_rs.max(0, initial=0.0), out=self.max_s)


@dataclass(frozen=True)
class Fitted:
    """What the build side says.

    Attributes:
        matcher: the explanations; their predictions s are multiplied by `scale_s`.
        scale_s: E[sa] / E[s²] of each latent, the least squares of a on s without intercept (Gao et al. 2024 §4.4); 0
            where nothing is predicted.
        unigram, bigram: the baselines.
        stats: of the latents; `score` adds the other side.
    """

    matcher: Matcher
    scale_s: FloatArray
    unigram: MeanAfter
    bigram: MeanAfter
    stats: ActivationStats

    def simulations(self, corpus: Corpus, start: int, stop: int, predicted_rs: FloatArray) -> dict[str, FloatArray]:
        """Simulated activations [rows, slots] of rows `start` to `stop`, for which the matcher gave `predicted_rs`."""
        baselines = (self.unigram.predict(corpus, start, stop), self.bigram.predict(corpus, start, stop))
        return dict(zip(SIMULATIONS, (predicted_rs * self.scale_s, *baselines), strict=True))


def fit(
    cache: CodesCache, corpus: Corpus, latents_s: IntArray, matcher: Matcher, progress: Progress = silent
) -> Fitted:
    """Scales and baselines of the sampled latents, from the rows of the build side."""
    slots = len(latents_s)
    unigram = MeanAfter.of(corpus, slots, 1, MeanAfter.of(corpus, slots, 0))
    bigram, stats = MeanAfter.of(corpus, slots, 2, unigram), ActivationStats.empty(slots)
    sa_s, ss_s = np.zeros(slots), np.zeros(slots)
    for active in active_pairs(cache, latents_s, 0, corpus.cut):
        act_rs, predicted_rs = active.dense(slots), matcher.predict(corpus, active.start, active.stop)
        stats.add(act_rs)
        sa_s += (predicted_rs * act_rs).sum(0)
        ss_s += np.square(predicted_rs).sum(0)
        bigram.add(corpus, active)
        progress.update(active.stop, corpus.n_rows, "rows")
    scale_s = np.divide(sa_s, ss_s, out=np.zeros(slots), where=ss_s > 0)
    return Fitted(matcher, scale_s, unigram, bigram, stats)


@dataclass
class Scores:
    """Sums over the scored rows by document u, those without such rows included, and by latent s.

    Attributes:
        gram_ss: inner products of the latents' decoder directions.
        rows_u: rows.
        hit_us, foretold_us, active_us: rows where a latent is both foretold and active, or either.
        error_u: by simulation, ‖Σ_s (a_s − ŝ_s) d_s‖² in the normalised space.
        act_us, square_u: Σ a_s and ‖Σ_s a_s d_s‖².
    """

    gram_ss: FloatArray
    rows_u: IntArray
    hit_us: FloatArray
    foretold_us: FloatArray
    active_us: FloatArray
    act_us: FloatArray
    square_u: FloatArray
    error_u: dict[str, FloatArray]

    @classmethod
    def empty(cls, documents: int, W_dec_sd: FloatArray) -> Scores:
        """Of no rows."""
        none_us = np.zeros((documents, len(W_dec_sd)))
        return cls(
            gram_ss=W_dec_sd @ W_dec_sd.T,
            rows_u=np.zeros(documents, np.int64),
            hit_us=none_us.copy(),
            foretold_us=none_us.copy(),
            active_us=none_us.copy(),
            act_us=none_us.copy(),
            square_u=np.zeros(documents),
            error_u={name: np.zeros(documents) for name in SIMULATIONS},
        )

    def add(
        self, unit_r: IntArray, act_rs: FloatArray, predicted_rs: FloatArray, simulated: Mapping[str, FloatArray]
    ) -> None:
        """Add rows of documents `unit_r`."""
        documents, active_rs, foretold_rs = len(self.rows_u), act_rs > 0, predicted_rs > 0
        self.rows_u += np.bincount(unit_r, minlength=documents)
        sums = ((self.hit_us, active_rs & foretold_rs), (self.foretold_us, foretold_rs), (self.active_us, active_rs))
        for total_us, term_rs in (*sums, (self.act_us, act_rs)):
            # torch shares the memory of the total
            torch.from_numpy(total_us).index_add_(
                0, torch.from_numpy(unit_r), torch.from_numpy(term_rs.astype(np.float64))
            )
        self.square_u += np.bincount(unit_r, self._squares(act_rs), documents)
        for name, simulated_rs in simulated.items():
            self.error_u[name] += np.bincount(unit_r, self._squares(act_rs - simulated_rs), documents)

    @property
    def centred_u(self) -> FloatArray:
        """‖Σ_s (a_s − ā_s) d_s‖² with ā the mean over the scored rows: the error of simulating each by its mean."""
        mean_s = self.act_us.sum(0) / max(1, int(self.rows_u.sum()))
        along_s = self.gram_ss @ mean_s
        return np.asarray(self.square_u - 2 * self.act_us @ along_s + self.rows_u * (mean_s @ along_s))

    def _squares(self, part_rs: FloatArray) -> FloatArray:
        return np.asarray(((part_rs @ self.gram_ss) * part_rs).sum(1))


def score(
    cache: CodesCache,
    corpus: Corpus,
    latents_s: IntArray,
    fitted: Fitted,
    W_dec_sd: FloatArray,
    progress: Progress = silent,
) -> Scores:
    """Judge explanations, simulations and baselines on the rows that nothing was fitted on.

    Args:
        cache: the codes of all rows.
        corpus: the tokens of all rows.
        latents_s: the sampled latents.
        fitted: what the build side says; its stats are completed.
        W_dec_sd: the latents' decoder directions [slots, d].
        progress: told the rows done.
    """
    scores = Scores.empty(len(corpus.documents), W_dec_sd)
    for active in active_pairs(cache, latents_s, corpus.cut, corpus.n_rows):
        start, stop = active.start, active.stop
        act_rs, predicted_rs = active.dense(len(latents_s)), fitted.matcher.predict(corpus, start, stop)
        fitted.stats.add(act_rs)
        simulated = fitted.simulations(corpus, start, stop, predicted_rs)
        scores.add(corpus.unit_r[start:stop], act_rs, predicted_rs, simulated)
        progress.update(stop, corpus.n_rows, "rows")
    return scores
