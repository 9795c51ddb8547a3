"""Downstream: what the subject loses when reconstructions take the place of its activations (paper §5.2).

The model resumes at the site with x̂ at every eligible position, in the micro-batches the evaluation set was made in, so
that nothing but the splice differs. Figures are sums over the scored positions (eligible, with a next token).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from sae_pipeline.activations import EvaluationSet, clean_scores, spliced_scores
from sae_pipeline.dataset import Normaliser
from sae_pipeline.evaluation.equivalents import LossRuns, equivalent_rows
from sae_pipeline.evaluation.errors import EvaluationError
from sae_pipeline.evaluation.inputs import FloatArray, Metric, MetricInputs, Ratio, ratio_tables
from sae_pipeline.evaluation.tables import CURVE_COLUMNS, MetricResult
from sae_pipeline.store import Progress
from sae_pipeline.study import VERSIONS
from sae_pipeline.subjects import Subject

VERSION = VERSIONS["eval_downstream"]
ABLATIONS = ("zero", "mean")
CONTROL_MICRO_BATCHES = 4
"""The controls run on the first few micro-batches: they test the path, which is the same in all."""

_BYPASS = ("paper", "layer_norm")


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    """All autoencoders in one pass: the clean model is run once per micro-batch."""
    ablations = [one.parameter("ablations", ABLATIONS) for one in inputs]
    first = inputs[0]
    assert first.subject is not None  # Metric.run_many has checked it
    runner = _Runner(first.subject, first.evaluation_set)
    controls = {one.autoencoder.normaliser: runner.controls(one.autoencoder.normaliser) for one in inputs}
    totals = [_Totals.empty(first.evaluation_set) for _ in inputs]
    for clean in runner.micro_batches(first.progress, len(inputs)):
        for one, total in zip(inputs, totals, strict=True):
            total.add(clean, *runner.splice(clean, _reconstruction(one, clean)))
    return [
        _result(one, total, controls[one.autoencoder.normaliser], chosen, runner.clean_difference)
        for one, total, chosen in zip(inputs, totals, ablations, strict=True)
    ]


METRIC = Metric(
    "downstream",
    VERSION,
    needs_subject=True,
    measure=_measure,
    parameters={"ablations": ABLATIONS},
    numbers={"loss_curve": LossRuns()},
)
"""kl (clean ‖ spliced) and dce (spliced − clean cross-entropy) in nats per token, and loss_recovered [zero, mean] =
(CE_ablated − CE_spliced) / (CE_ablated − CE_clean). `zero_ablation` and `mean_ablation`, variants of kl and dce, are
what these replacements cost by themselves. `ce` and `perplexity`, variants clean and spliced; `compute_share`: training
compute of a model that is as good as the spliced subject, over the subject's.

Controls, variants of kl and dce: `control_untouched` splices the activations themselves (0 exactly),
`control_round_trip` sends them through the normaliser and back (0 but for rounding). Curves `kl_by_position`,
`dce_by_position`. Norm and mean of a token bypass the autoencoder with a per-token normaliser: `facts` says so.
"""


@dataclass(frozen=True)
class _Clean:
    """One micro-batch of contexts a to b, rows `rows` of the set, with the clean model's logits and losses."""

    contexts: slice
    rows: slice
    ids_cl: Tensor
    value_cld: Tensor
    mask_cl: Tensor
    scored_cl: NDArray[np.bool_]
    logits_clv: Tensor
    ce_cl: Tensor


class _Runner:
    """The subject over the micro-batches of an evaluation set."""

    def __init__(self, subject: Subject, evaluation_set: EvaluationSet) -> None:
        self._subject, self._set = subject, evaluation_set
        self.clean_difference = 0.0

    def micro_batches(self, progress: Progress, members: int) -> Iterator[_Clean]:
        """Every micro-batch, clean."""
        row = 0
        for a, b in self._set.micro_batches():
            clean = self._clean(a, b, row)
            row = clean.rows.stop
            yield clean
            progress.update(b, self._set.n_contexts, "contexts", autoencoders=members)

    def splice(self, clean: _Clean, x_hat_rd: Tensor) -> tuple[FloatArray, FloatArray]:
        """KL and ΔCE [c, l] with x̂ [rows, d] at the eligible positions, float64."""
        value_cld = clean.value_cld.clone()
        value_cld[clean.mask_cl] = x_hat_rd.to(value_cld)
        logits_clv = self._subject.resume(self._set.site, value_cld, clean.ids_cl)
        ce_cl, kl_cl = spliced_scores(clean.logits_clv, logits_clv, clean.ids_cl)
        dce_cl = ce_cl.double() - clean.ce_cl.double()
        return kl_cl.double().cpu().numpy(), dce_cl.cpu().numpy()

    def controls(self, normaliser: Normaliser) -> dict[str, _Totals]:
        """Splices that must change nothing: the activations themselves, and through the normaliser and back."""
        totals = {name: _Totals.empty(self._set) for name in ("control_untouched", "control_round_trip")}
        row = 0
        for (a, b), _ in zip(self._set.micro_batches(), range(CONTROL_MICRO_BATCHES), strict=False):
            clean = self._clean(a, b, row)
            row = clean.rows.stop
            x_rd = clean.value_cld[clean.mask_cl]
            round_trip_rd = normaliser.denormalise(*normaliser.normalise(x_rd))
            for total, spliced_rd in zip(totals.values(), (x_rd, round_trip_rd), strict=True):
                total.add(clean, *self.splice(clean, spliced_rd))
        return totals

    def _clean(self, a: int, b: int, row: int) -> _Clean:
        ids_cl, value_cld, mask_cl = self._set.ids(a, b), self._set.residuals(a, b), self._set.mask(a, b)
        scored_cl = self._set.scored(a, b).numpy()
        logits_clv = self._subject.resume(self._set.site, value_cld, ids_cl)
        ce_cl, _ = clean_scores(logits_clv, ids_cl)
        stored = np.abs(self._set.clean_ce[a:b] - ce_cl.cpu().numpy())[scored_cl]
        self.clean_difference = max(self.clean_difference, float(stored.max(initial=0.0)))
        rows = slice(row, row + int(mask_cl.sum()))
        return _Clean(slice(a, b), rows, ids_cl, value_cld, mask_cl, scored_cl, logits_clv, ce_cl)


@dataclass(frozen=True)
class _Totals:
    """Sums of KL, ΔCE, clean CE and positions, by document [u] and by position [context]."""

    documents: NDArray[np.int64]
    document_of_c: NDArray[np.int64]
    by_document: dict[str, FloatArray]
    position_sums: dict[str, FloatArray]

    @classmethod
    def empty(cls, evaluation_set: EvaluationSet) -> _Totals:
        documents = np.unique(evaluation_set.document)
        names = ("kl", "dce", "clean_ce", "n")
        return cls(
            documents,
            evaluation_set.document,
            {name: np.zeros(len(documents)) for name in names},
            {name: np.zeros(evaluation_set.context) for name in names},
        )

    def add(self, clean: _Clean, kl_cl: FloatArray, dce_cl: FloatArray) -> None:
        context_r, position_r = np.nonzero(clean.scored_cl)
        unit_r = np.searchsorted(self.documents, self.document_of_c[clean.contexts][context_r])
        ce_cl = clean.ce_cl.double().cpu().numpy()
        for name, values_cl in (("kl", kl_cl), ("dce", dce_cl), ("clean_ce", ce_cl), ("n", np.ones_like(kl_cl))):
            values_r = values_cl[context_r, position_r]
            self.by_document[name] += np.bincount(unit_r, values_r, len(self.documents))
            self.position_sums[name] += np.bincount(position_r, values_r, len(self.position_sums[name]))


def _reconstruction(inputs: MetricInputs, clean: _Clean) -> Tensor:
    """x̂ [rows, d] of a micro-batch from the cached codes, in the raw space."""
    autoencoder = inputs.autoencoder
    x_rd = clean.value_cld[clean.mask_cl].to(autoencoder.device)
    u_rd, scale = autoencoder.normaliser.normalise(x_rd)
    codes = inputs.codes.codes(clean.rows.start, clean.rows.stop, autoencoder.device)
    return autoencoder.normaliser.denormalise(autoencoder.decode(codes).to(u_rd), scale)


def _result(
    inputs: MetricInputs, totals: _Totals, controls: dict[str, _Totals], ablations: Sequence[str], difference: float
) -> MetricResult:
    ratios = _loss_ratios(totals, "all")
    for variant, control in controls.items():
        ratios += _loss_ratios(control, variant)
    for ablation in ablations:
        ratios += _ablated(inputs.evaluation_set, totals, ablation)
    rows, stats = ratio_tables(inputs, VERSION, totals.documents, [*ratios, *_cross_entropies(totals)])
    rows = pd.concat([rows, equivalent_rows(inputs, VERSION, rows)], ignore_index=True)
    facts = {
        "norm_and_mean_bypass": inputs.autoencoder.normaliser.name in _BYPASS,
        "control_micro_batches": CONTROL_MICRO_BATCHES,
        "clean_ce_max_abs_difference": difference,
    }
    return MetricResult("downstream", VERSION, rows, stats, _by_position(inputs, totals), facts=facts)


def _loss_ratios(totals: _Totals, variant: str) -> list[Ratio]:
    sums = totals.by_document
    n_u, better = sums["n"].astype(np.int64), "lower" if variant == "all" else "none"
    return [Ratio(metric, variant, sums[metric], sums["n"], n_u, "nats/token", better) for metric in ("kl", "dce")]


def _cross_entropies(totals: _Totals) -> list[Ratio]:
    sums = totals.by_document
    n_u, clean_u = sums["n"].astype(np.int64), sums["clean_ce"]
    return [
        Ratio("ce", variant, ce_u, sums["n"], n_u, "nats/token", better)
        for variant, ce_u, better in (("spliced", clean_u + sums["dce"], "lower"), ("clean", clean_u, "none"))
    ]


def _ablated(evaluation_set: EvaluationSet, totals: _Totals, ablation: str) -> list[Ratio]:
    """What the ablation itself costs, and the share of it that the reconstruction recovers."""
    references = evaluation_set.references
    of_ablation = references[references["ablation"] == ablation].set_index("document").reindex(totals.documents)
    sums, n_u = totals.by_document, of_ablation["n"].fillna(0).to_numpy(dtype=np.int64)
    if not np.array_equal(n_u, sums["n"].astype(np.int64)):
        raise EvaluationError("the evaluation set's references cover other positions than its mask; make it again")
    dce_u = of_ablation["ce_sum"].fillna(0.0).to_numpy() - sums["clean_ce"]
    kl_u, variant = of_ablation["kl_sum"].fillna(0.0).to_numpy(), f"{ablation}_ablation"
    return [
        Ratio("kl", variant, kl_u, sums["n"], n_u, "nats/token", "none"),
        Ratio("dce", variant, dce_u, sums["n"], n_u, "nats/token", "none"),
        Ratio("loss_recovered", ablation, dce_u - sums["dce"], dce_u, n_u, "fraction", "higher"),
    ]


def _by_position(inputs: MetricInputs, totals: _Totals) -> pd.DataFrame:
    n = totals.position_sums["n"].astype(np.int64)
    x = np.flatnonzero(n)
    parts = [
        pd.DataFrame({"x": x, "y": totals.position_sums[metric][x] / n[x], "n": n[x]}).assign(
            **inputs.key, metric=metric, curve=f"{metric}_by_position", x_unit="position", y_unit="nats/token"
        )
        for metric in ("kl", "dce")
    ]
    return pd.concat(parts, ignore_index=True)[list(CURVE_COLUMNS)].astype(CURVE_COLUMNS)
