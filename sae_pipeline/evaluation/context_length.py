"""Context length: what becomes of an autoencoder in contexts longer than those it was trained on?

Contexts of the evaluation set are joined to longer ones, of one document each, and the subject is run on them anew, up
to its last position. Each token is then measured twice, at its late position and at its place in the short context of
the evaluation set, so that position is told from content.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sae_pipeline.activations import EvaluationSet, spliced_scores
from sae_pipeline.evaluation.context_length_runs import LongContext, drawn, long_contexts, stretches
from sae_pipeline.evaluation.errors import EvaluationError
from sae_pipeline.evaluation.inputs import FloatArray, Metric, MetricInputs, Number, Ratio, metric_row, ratio_tables
from sae_pipeline.evaluation.reconstruction import mean_rows
from sae_pipeline.evaluation.tables import CURVE_COLUMNS, MetricResult, frame
from sae_pipeline.study import VERSIONS
from sae_pipeline.subjects import Subject

VERSION = VERSIONS["eval_context_length"]
NUMBERS: Final = {"tokens": Number(32_768, least=1), "positions": Number(1024, least=2)}
WAYS: Final = ("", ",short")
"""Ends of the variants: in the long context, and the same tokens in short ones."""

_ANOTHER_SUBJECT: Final = 0.1
"""Difference of activations, over the largest, that no rounding explains."""

_SUMS: Final = ("rows", "error", "centred", "kl")


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    """All autoencoders that ask for the same contexts in one pass: the clean model is run once a context."""
    results: dict[int, MetricResult] = {}
    for numbers in dict.fromkeys(_numbers(one) for one in inputs):
        members = [i for i, one in enumerate(inputs) if _numbers(one) == numbers]
        results |= zip(members, _measure_alike([inputs[i] for i in members], *numbers), strict=True)
    return [results[i] for i in range(len(inputs))]


def _numbers(inputs: MetricInputs) -> tuple[int, int, int]:
    tokens, positions = (int(inputs.parameters.get(name, number.default)) for name, number in NUMBERS.items())
    return tokens, positions, inputs.seed


def _measure_alike(inputs: Sequence[MetricInputs], tokens: int, positions: int, seed: int) -> list[MetricResult]:
    subject, evaluation_set = inputs[0].subject, inputs[0].evaluation_set
    assert subject is not None  # Metric.run_many has checked it
    longest = max(evaluation_set.context, min(positions, subject.card.max_positions))
    contexts = drawn(list(long_contexts(evaluation_set, longest)), tokens, seed)
    runner = _Runner(subject, evaluation_set)
    totals = [_Totals(one, longest) for one in inputs]
    for done, long in enumerate(contexts):
        for way in WAYS:
            clean = runner.short(long) if way else runner.long(long)
            for total in totals:
                total.add(way, long, clean, runner)
        inputs[0].progress.update(done + 1, len(contexts), "contexts", autoencoders=len(inputs))
    facts = {
        "subject_positions": subject.card.max_positions,
        "contexts": len(contexts),
        "first_context_max_relative_difference": runner.difference,
    }
    return [total.result(facts) for total in totals]


METRIC = Metric("context_length", VERSION, needs_subject=True, measure=_measure, numbers=NUMBERS)
"""nmse_at_positions and kl_at_positions (nats/token), variants `0-63`, `64-127`, `128-255` … (of contexts of 64), up to
the subject's last position or 1024 (parameter `positions`); the same with `,short`: of the same tokens in the short
contexts of the evaluation set. What lies behind the subject's last position is `na`, as is what no document reaches.

Of long contexts that hold 32768 tokens (parameter `tokens`), drawn by seed. Curves `nmse_by_long_position` and
`kl_by_long_position`.
"""


@dataclass(frozen=True)
class _Clean:
    """The tokens of a long context in one of the two ways.

    Attributes:
        ids_cl: of the contexts that were run; `value_cld` and `logits_clv` of the clean subject.
        spliced_cl: eligible positions.
        at: context and position [rows] of each eligible token of the long context.
        rows: first and last row of the contexts in the evaluation set, where the cache has their codes.
    """

    ids_cl: Tensor
    value_cld: Tensor
    logits_clv: Tensor
    spliced_cl: Tensor
    at: tuple[Tensor, Tensor]
    rows: tuple[int, int] | None


class _Runner:
    """The subject over the contexts."""

    def __init__(self, subject: Subject, evaluation_set: EvaluationSet) -> None:
        self._subject, self._set = subject, evaluation_set
        per_context = evaluation_set.mask(0, evaluation_set.n_contexts).sum(1).numpy()
        self._row_of_c = np.concatenate([[0], np.cumsum(per_context, dtype=np.int64)])
        self.difference = 0.0

    def long(self, long: LongContext) -> _Clean:
        """In one context."""
        ids_cl, mask_l = torch.from_numpy(long.ids_l)[None], torch.from_numpy(long.mask_l)
        value_cld = self._subject.run(ids_cl, [self._set.site])[self._set.site].float().cpu()
        at_r = mask_l.nonzero()[:, 0]
        first_ld = self._set.residuals(long.a, long.a + 1)[0, : len(long)]
        change = (value_cld[0, : len(first_ld)] - first_ld)[: int(self._set.length[long.a])].abs().max()
        self.difference = max(self.difference, float(change / first_ld.abs().max()))
        if self.difference > _ANOTHER_SUBJECT:
            raise EvaluationError(
                "the subject's activations are not those of the evaluation set; make the set again with this subject"
            )
        return self._clean(ids_cl, value_cld, mask_l[None], (torch.zeros_like(at_r), at_r), None)

    def short(self, long: LongContext) -> _Clean:
        """In the contexts of the evaluation set."""
        a, b = long.a, long.b
        at = torch.from_numpy(long.context_l[long.mask_l]), torch.from_numpy(long.position_l[long.mask_l])
        rows = int(self._row_of_c[a]), int(self._row_of_c[b])
        return self._clean(self._set.ids(a, b), self._set.residuals(a, b), self._set.mask(a, b), at, rows)

    def _clean(
        self,
        ids_cl: Tensor,
        value_cld: Tensor,
        mask_cl: Tensor,
        at: tuple[Tensor, Tensor],
        rows: tuple[int, int] | None,
    ) -> _Clean:
        logits_clv = self._subject.resume(self._set.site, value_cld, ids_cl)
        return _Clean(ids_cl, value_cld, logits_clv, mask_cl, at, rows)

    def sums(self, clean: _Clean, inputs: MetricInputs, mean_d: Tensor) -> dict[str, FloatArray]:
        """What each eligible token adds to every sum [rows]; x̂ takes the place of x at all eligible positions."""
        autoencoder, mask_cl = inputs.autoencoder, clean.spliced_cl
        u_rd, scale = autoencoder.normaliser.normalise(clean.value_cld[mask_cl].to(autoencoder.device))
        cached = None if clean.rows is None else inputs.codes.codes(*clean.rows, autoencoder.device)
        u_hat_rd = autoencoder.decode(autoencoder.encode(u_rd) if cached is None else cached)
        value_cld = clean.value_cld.clone()
        value_cld[mask_cl] = autoencoder.normaliser.denormalise(u_hat_rd.to(u_rd), scale).to(value_cld)
        logits_clv = self._subject.resume(self._set.site, value_cld, clean.ids_cl)
        kl_cl = spliced_scores(clean.logits_clv, logits_clv, clean.ids_cl)[1].cpu()
        of_row = {
            "error": (u_rd.double() - u_hat_rd.double()).square().sum(1),
            "centred": (u_rd.double() - mean_d).square().sum(1),
        }
        chosen_r = torch.zeros(mask_cl.shape, dtype=torch.bool)
        chosen_r[clean.at] = True
        kept_r = chosen_r[mask_cl]
        found = {name: value_r.cpu()[kept_r] for name, value_r in of_row.items()} | {"kl": kl_cl[clean.at].double()}
        return {name: value_r.numpy() for name, value_r in found.items()} | {"rows": np.ones(int(kept_r.sum()))}


class _Totals:
    """Sums over tokens of one autoencoder in both ways: of each document and stretch [u, s], of each position [l]."""

    def __init__(self, inputs: MetricInputs, longest: int) -> None:
        evaluation_set = inputs.evaluation_set
        self._inputs, self._longest = inputs, longest
        self._stretches = stretches(evaluation_set.context, longest)
        self._documents = np.unique(evaluation_set.document)
        self._mean_d = mean_rows(inputs.autoencoder, evaluation_set)["all"]
        shape = (len(self._documents), len(self._stretches))
        self._sums_us = {way: {name: np.zeros(shape) for name in _SUMS} for way in WAYS}
        self._sums_l = {name: np.zeros(longest) for name in _SUMS}

    def add(self, way: str, long: LongContext, clean: _Clean, runner: _Runner) -> None:
        """One long context in one of the ways."""
        at_r = np.flatnonzero(long.mask_l)
        stretch_r = np.searchsorted([end for _, end in self._stretches], at_r, side="right")
        unit = int(np.searchsorted(self._documents, long.document))
        for name, value_r in runner.sums(clean, self._inputs, self._mean_d).items():
            self._sums_us[way][name][unit] += np.bincount(stretch_r, value_r, len(self._stretches))
            if not way:
                self._sums_l[name] += np.bincount(at_r, value_r, self._longest)

    def result(self, facts: dict[str, float]) -> MetricResult:
        """The figures; `subject_positions` of the facts are all that the subject has."""
        last = int(facts["subject_positions"])
        rows, stats = ratio_tables(self._inputs, VERSION, self._documents, self._ratios())
        if self._longest == last:
            rows = pd.concat([rows, self._beyond(last)], ignore_index=True)
        tokens = {"tokens": int(self._sums_l["rows"].sum())}
        return MetricResult("context_length", VERSION, rows, stats, self._curves(), facts=facts | tokens)

    def _ratios(self) -> list[Ratio]:
        return [
            Ratio(f"{metric}_at_positions", f"{start}-{end - 1}{way}", sums[num][:, s], sums[den][:, s],
                  sums["rows"][:, s].astype(np.int64), unit, "lower")
            for metric, num, den, unit in (("nmse", "error", "centred", "1"), ("kl", "kl", "rows", "nats/token"))
            for way, sums in self._sums_us.items()
            for s, (start, end) in enumerate(self._stretches)
        ]  # fmt: skip

    def _beyond(self, last: int) -> pd.DataFrame:
        reason, nan = f"the subject has {last} positions", float("nan")
        units = {"nmse": "1", "kl": "nats/token"}
        return frame("metrics", [
            metric_row(self._inputs, VERSION, f"{metric}_at_positions", f"{last}-", nan, unit=unit, better="lower",
                       unit_kind="document", reason=reason)
            for metric, unit in units.items()
        ])  # fmt: skip

    def _curves(self) -> pd.DataFrame:
        n_l, x = self._sums_l["rows"].astype(np.int64), np.flatnonzero(self._sums_l["centred"] > 0)
        parts = [
            pd.DataFrame({"x": x, "y": self._sums_l[num][x] / self._sums_l[den][x], "n": n_l[x]}).assign(
                **self._inputs.key, metric=f"{metric}_at_positions", curve=f"{metric}_by_long_position",
                x_unit="position", y_unit=unit,
            )
            for metric, num, den, unit in (("nmse", "error", "centred", "1"), ("kl", "kl", "rows", "nats/token"))
        ]  # fmt: skip
        return pd.concat(parts, ignore_index=True)[list(CURVE_COLUMNS)].astype(CURVE_COLUMNS)
