"""Explanations: how much of what latents do can be said in patterns of tokens (Gao et al. 2024 §4.3 and §4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sae_pipeline.evaluation.errors import EvaluationError
from sae_pipeline.evaluation.explanations.asking import Queue, subject_queue
from sae_pipeline.evaluation.explanations.corpus import Corpus, IntArray
from sae_pipeline.evaluation.explanations.matching import Matcher
from sae_pipeline.evaluation.explanations.patterns import Frame, explain
from sae_pipeline.evaluation.explanations.results import Outcome, facts_of, no_result, tables_of
from sae_pipeline.evaluation.explanations.sampling import choose_examples, choose_latents, counts_of
from sae_pipeline.evaluation.explanations.scoring import fit, score
from sae_pipeline.evaluation.inputs import Metric, MetricInputs, Number
from sae_pipeline.evaluation.tables import MetricResult
from sae_pipeline.study import VERSIONS
from sae_pipeline.subjects import Subject

VERSION = VERSIONS["eval_explanations"]
LATENTS: Final = Number(64, least=1)
EXAMPLES: Final = Number(16, least=2)


class TokenId:
    """A token of the subject; without it the metric takes the one that fills the held-out contexts."""

    def check(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; None if nothing is."""
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return None if fits else f"takes a token id, not {value!r}"


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    """The tokens are read once; everything else belongs to one autoencoder."""
    corpora: dict[int | None, Corpus] = {}
    for one in inputs:
        padding = one.parameters.get("padding_id")
        if padding not in corpora:
            corpora[padding] = Corpus.of(one.evaluation_set, padding)
        _check_padding(corpora[padding].padding, _subject(one))
    return [_measure_one(one, corpora[one.parameters.get("padding_id")]) for one in inputs]


METRIC = Metric(
    "explanations", VERSION, needs_subject=True, measure=_measure,
    numbers={"latents": LATENTS, "examples": EXAMPLES, "padding_id": TokenId()},
)  # fmt: skip
"""n2g_precision = P(active | foretold), n2g_recall = P(foretold | active) and n2g_f1 on every row of the scored
documents. Variants `latent_mean` and `density_weighted` are means over the sampled latents with intervals over latents,
`pooled` is over all their rows together with intervals over documents. n2g_explainable: share of latents with enough
examples, of which the sample is drawn.

explained_code_nmse, variants n2g, unigram, bigram = Σ‖Σ_s (a_s − ŝ_s) d_s‖² / Σ‖Σ_s (a_s − ā_s) d_s‖² over rows, s the
sampled latents: the error of simulating their part of the reconstruction from tokens, over that of their means.
`latent_stats` has the three figures of each sampled latent; `facts` has the patterns. Parameters: latents (sampled:
64), examples (of each: 16), padding_id (default: the token that fills the contexts).
"""


def _subject(inputs: MetricInputs) -> Subject:
    assert inputs.subject is not None  # Metric.run_many has checked it
    return inputs.subject


def _check_padding(padding: int, subject: Subject) -> None:
    if padding >= subject.card.vocab_size:
        raise EvaluationError(
            f"metric explanations: padding_id {padding} is beyond the subject's vocabulary of {subject.card.vocab_size}"
        )


def _measure_one(inputs: MetricInputs, corpus: Corpus) -> MetricResult:
    counts_n = counts_of(inputs.codes, corpus.cut)
    latents_s = choose_latents(counts_n, int(inputs.parameters.get("latents", LATENTS.default)), inputs.seed)
    if not len(latents_s):
        return no_result(inputs, VERSION, corpus)
    subject, site = _subject(inputs), inputs.evaluation_set.site
    queue = subject_queue(subject, site, inputs.autoencoder, latents_s, inputs.progress)
    outcome = _explain_and_score(inputs, corpus, latents_s, queue, subject.card.max_positions)
    rows, unit_stats = tables_of(inputs, VERSION, outcome, counts_n)
    facts = facts_of(corpus, outcome) | {"excerpts": queue.excerpts, "excerpt_tokens": queue.tokens}
    return MetricResult(
        "explanations", VERSION, rows, unit_stats, latent_stats=outcome.latent_stats(inputs.key), facts=facts
    )


def _explain_and_score(
    inputs: MetricInputs, corpus: Corpus, latents_s: IntArray, queue: Queue, longest: int
) -> Outcome:
    cache, wanted = inputs.codes, int(inputs.parameters.get("examples", EXAMPLES.default))
    examples = choose_examples(cache, corpus, latents_s, wanted, inputs.seed)
    patterns = explain(examples, queue, Frame(corpus.lead, corpus.padding, longest))
    matcher = Matcher.of(patterns, len(latents_s))
    fitted = fit(cache, corpus, latents_s, matcher, inputs.progress)
    W_dec_sd = inputs.autoencoder.W_dec.double().cpu().numpy()[latents_s]
    scores = score(cache, corpus, latents_s, fitted, W_dec_sd, inputs.progress)
    return Outcome(corpus, latents_s, len(examples), patterns, fitted, scores)
