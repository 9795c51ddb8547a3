"""Ablation: how sparse the effects of single latents on the logits are (Gao et al. 2024 §4.5).

At a sampled position t each active latent j is taken out by itself: x_t ← x_t − s z_j d_j, with s from the normaliser.
The changes of the logits at t … t + T − 1, less their median at each position, make v; its sparsity is
(‖v‖₁ / ‖v‖₂)² / (T·V): 1/(T·V) where one logit moves, 2/π where v is Gaussian noise, 1 where all move equally far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_pipeline.activations import EvaluationSet
from sae_pipeline.evaluation.ablation_effects import Position
from sae_pipeline.evaluation.inputs import Metric, MetricInputs, Number, Ratio, metric_row, ratio_tables
from sae_pipeline.evaluation.sample import stratified
from sae_pipeline.evaluation.tables import CURVE_COLUMNS, MetricResult, empty, frame
from sae_pipeline.study import VERSIONS
from sae_pipeline.subjects import Subject

VERSION = VERSIONS["eval_ablation"]
NUMBERS: Final = {"tokens": Number(64, least=1), "window": Number(16, least=1)}
BASES: Final = ("activation", "reconstruction")
THIRDS: Final = ("top", "middle", "last")
COLUMNS: Final = ("first", "window", "positions", "vocabulary")
REFERENCES: Final = ("channels", "random")
REFERENCES_PER_POSITION: Final = 8
BIN_LOG10: Final = 0.125


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    return [_measure_one(one) for one in inputs]


def _measure_one(inputs: MetricInputs) -> MetricResult:
    window, bases = _number(inputs, "window"), inputs.parameter("base", BASES[:1])
    figures, places = list(_figures(window, bases)), _Places.of(inputs.evaluation_set, window)
    facts: dict[str, Any] = {
        "window": window,
        "rows": inputs.evaluation_set.n_rows,
        "rows_with_window": len(places.rows),
    }
    reason = _why_not(inputs, places, window)
    parts = [] if reason else list(_effects(inputs, places, window, bases))
    if not parts:
        reason = reason or "no latent is active at the sampled positions"
        rows = frame("metrics", [_empty_row(inputs, figure, reason) for figure in figures])
        return MetricResult("ablation", VERSION, rows, facts=facts)
    effects = pd.concat(parts, ignore_index=True)
    documents = np.unique(effects["document"])
    rows, stats = ratio_tables(inputs, VERSION, documents, [figure.ratio(effects, documents) for figure in figures])
    facts |= {
        "positions": int(effects["row"].nunique()),
        "ablations": int((effects["of"] == "latents").sum()),
        "without_effect": int(effects["window"].isna().sum()),
    }
    return MetricResult("ablation", VERSION, rows, stats, _curves(inputs, effects, window, bases[0]), facts=facts)


METRIC = Metric("ablation", VERSION, needs_subject=True, measure=_measure, parameters={"base": BASES}, numbers=NUMBERS)
"""ablation_sparsity, variants `T=1` and `T=16`: mean over the active latents of 64 positions (parameters `tokens`,
`window`), each with T − 1 positions after it in its context. `T=16,top`, `middle` and `last` are the thirds of a
position's latents by activation; `T=16,channels` and `random` move a channel towards 0, or the activation along a
random direction, by as much as latents do.

Of the same effects ablation_share_at_t: the share of ‖v‖₂² at t; ablation_positions and ablation_vocabulary: the
sparsity of the norms of v over positions, and over tokens. With `base: [reconstruction]` the autoencoder's x̂_t takes
the place of x_t, with and without the latent; those variants end in `,base=reconstruction`.

Curves `hist_latents`, `hist_channels`, `hist_random`: ablations per bin of log10 sparsity at the longer T, x the lower
edge; `share_by_offset`: the share of ‖v‖₂² at t + x.
"""


@dataclass(frozen=True)
class _Figure:
    """The mean of a column of the effects, over those of one base, kind and third (None: all)."""

    metric: str
    column: str
    length: int
    base: str
    of: str = "latents"
    third: str | None = None

    @property
    def variant(self) -> str:
        parts = [f"T={self.length}", self.third, None if self.of == "latents" else self.of]
        parts.append(None if self.base == BASES[0] else f"base={self.base}")
        return ",".join(part for part in parts if part)

    @property
    def better(self) -> str:
        return "lower" if self.metric == "ablation_sparsity" and self.of == "latents" else "none"

    @property
    def unit(self) -> str:
        return "fraction" if self.metric == "ablation_share_at_t" else "1"

    def ratio(self, effects: pd.DataFrame, documents: NDArray[np.int64]) -> Ratio:
        """Over documents; what has no effect has no sparsity, and is left out."""
        chosen = (effects["base"] == self.base) & (effects["of"] == self.of) & effects[self.column].notna()
        if self.third is not None:
            chosen &= effects["third"] == self.third
        unit_m = np.searchsorted(documents, effects.loc[chosen, "document"])
        sum_u = np.bincount(unit_m, effects.loc[chosen, self.column], len(documents)).astype(np.float64)
        n_u = np.bincount(unit_m, minlength=len(documents)).astype(np.int64)
        return Ratio(self.metric, self.variant, sum_u, n_u.astype(np.float64), n_u, self.unit, self.better)


def _figures(window: int, bases: Sequence[str]) -> Iterator[_Figure]:
    for base in bases:
        for column, length in {"first": 1, "window": window}.items() if window > 1 else [("first", 1)]:
            for of in ("latents", *REFERENCES):
                yield _Figure("ablation_sparsity", column, length, base, of)
            for third in THIRDS:
                yield _Figure("ablation_sparsity", column, length, base, third=third)
        for metric in ("share_at_t", "positions", "vocabulary") if window > 1 else ():
            for of in ("latents", *REFERENCES):
                yield _Figure(f"ablation_{metric}", metric, window, base, of)


def _empty_row(inputs: MetricInputs, figure: _Figure, reason: str) -> dict[str, Any]:
    columns = {"unit": figure.unit, "better": figure.better, "unit_kind": "document", "reason": reason}
    return metric_row(inputs, VERSION, figure.metric, figure.variant, float("nan"), **columns)


@dataclass(frozen=True)
class _Places:
    """Where every row lies, and the rows that a sample is drawn from: those with a whole window from them on."""

    rows: NDArray[np.int64]
    context_r: NDArray[np.int64]
    position_r: NDArray[np.int64]

    @classmethod
    def of(cls, evaluation_set: EvaluationSet, window: int) -> _Places:
        """A window cut by the end of its context would be another measure: its row is left out."""
        context_r, position_r = np.nonzero(evaluation_set.mask(0, evaluation_set.n_contexts).numpy())
        length_c = np.isfinite(evaluation_set.clean_ce).sum(1) + 1
        return cls(np.flatnonzero(position_r + window <= length_c[context_r]), context_r, position_r)


def _why_not(inputs: MetricInputs, places: _Places, window: int) -> str | None:
    dtype = _subject(inputs).card.dtype
    if dtype not in ("float32", "float64"):
        return f"differences of logits drown in the rounding of {dtype}; set subject.dtype: float32"
    if not len(places.rows):
        return f"no context has {window} positions from an eligible one on; lower the parameter window"
    return None


def _number(inputs: MetricInputs, name: str) -> int:
    return int(inputs.parameters.get(name, NUMBERS[name].default))


def _subject(inputs: MetricInputs) -> Subject:
    assert inputs.subject is not None  # Metric.run_many has checked it
    return inputs.subject


def _effects(inputs: MetricInputs, places: _Places, window: int, bases: Sequence[str]) -> Iterator[pd.DataFrame]:
    """For each position and base a row for each change: what was changed, and how its effect is spread."""
    held_out, subject = inputs.evaluation_set, _subject(inputs)
    sample = stratified(places.rows, _number(inputs, "tokens"), inputs.seed)
    for done, row in enumerate(sample.tolist(), start=1):
        c, t = int(places.context_r[row]), int(places.position_r[row])
        value_ld, ids_l = held_out.residuals(c, c + 1)[0, : t + window], held_out.ids(c, c + 1)[0, : t + window]
        position = Position(subject, held_out.site, value_ld, ids_l, t)
        changes = _Changes.of(inputs, row, value_ld[t])
        for base in bases if len(changes.change_md) else ():
            found = position.effects(changes.bases[base], changes.change_md)
            named = changes.names.assign(row=row, document=held_out.document[c], base=base)
            yield named.assign(
                **{column: getattr(found, f"{column}_m").numpy() for column in COLUMNS},
                share_at_t=found.share_mt[:, 0].numpy(),
                shares=list(found.share_mt.numpy()),
            )
        inputs.progress.update(done, len(sample), "positions")


@dataclass(frozen=True)
class _Changes:
    """What is done to one activation: each latent taken out, and references of the same norms.

    Attributes:
        bases: by name, the activation [d] that the changes are added to.
        change_md: the changes, in the raw space.
        names: of each change: `of` (latents, channels, random) and, of a latent, its `third`.
    """

    bases: dict[str, Tensor]
    change_md: Tensor
    names: pd.DataFrame

    @classmethod
    def of(cls, inputs: MetricInputs, row: int, x_d: Tensor) -> _Changes:
        """Of a row of the evaluation set; references are drawn from the seed and the row alone."""
        autoencoder = inputs.autoencoder
        _, scale = autoencoder.normaliser.normalise(x_d[None].to(autoencoder.device))
        codes = inputs.codes.codes(row, row + 1, autoencoder.device)
        z_m, order_m = codes.values[codes.values > 0].sort(descending=True, stable=True)
        latent_md = (-scale.norm * z_m[:, None] * autoencoder.W_dec[codes.fired[order_m]]).cpu()
        x_hat_d = autoencoder.normaliser.denormalise(autoencoder.decode(codes), scale)[0].cpu()
        some = np.unique(np.linspace(0, max(0, len(z_m) - 1), REFERENCES_PER_POSITION).astype(np.int64))[: len(z_m)]
        norm_m = latent_md[some].norm(dim=1)
        rng = np.random.default_rng([inputs.seed, row])
        references = [_towards_zero(x_d, norm_m, rng), _random(x_d, norm_m, rng)]
        thirds = [THIRDS[3 * i // len(z_m)] for i in range(len(z_m))]
        names = pd.DataFrame(
            {
                "of": np.repeat(["latents", *REFERENCES], [len(z_m), len(some), len(some)]),
                "third": [*thirds, *[None] * (2 * len(some))],
            }
        )
        bases = dict(zip(BASES, (x_d, x_hat_d), strict=True))
        return cls(bases, torch.cat([latent_md, *references]), names)


def _towards_zero(x_d: Tensor, norm_m: Tensor, rng: np.random.Generator) -> Tensor:
    """Each norm off another channel [m, d]."""
    channel_m = torch.from_numpy(rng.choice(len(x_d), len(norm_m), replace=len(norm_m) > len(x_d)))
    change_md = torch.zeros(len(norm_m), len(x_d))
    change_md[torch.arange(len(norm_m)), channel_m] = -norm_m * x_d[channel_m].sign()
    return change_md


def _random(x_d: Tensor, norm_m: Tensor, rng: np.random.Generator) -> Tensor:
    """Each norm along another random direction [m, d]."""
    direction_md = torch.from_numpy(rng.standard_normal((len(norm_m), len(x_d)))).float()
    return norm_m[:, None] * torch.nn.functional.normalize(direction_md, dim=1)


def _curves(inputs: MetricInputs, effects: pd.DataFrame, window: int, base: str) -> pd.DataFrame:
    shown = effects[(effects["base"] == base) & effects["window"].notna()]
    vocabulary = _subject(inputs).card.vocab_size
    edges = np.arange(np.floor(-np.log10(window * vocabulary) / BIN_LOG10), 1) * BIN_LOG10
    parts = [empty("curves")]
    for of, rows in shown.groupby("of"):
        n_b, _ = np.histogram(np.log10(rows["window"]).clip(upper=0), bins=edges)
        parts.append(_curve(inputs, f"hist_{of}", edges[:-1], n_b, len(rows), "log10(sparsity)", "ablations"))
        if of == "latents":
            share_t = np.stack(list(rows["shares"])).mean(0)
            offset_t = np.arange(window)
            parts.append(_curve(inputs, "share_by_offset", offset_t, share_t, len(rows), "positions", "fraction"))
    return pd.concat(parts, ignore_index=True).astype(CURVE_COLUMNS)


def _curve(inputs: MetricInputs, name: str, x: Any, y: Any, n: int, x_unit: str, y_unit: str) -> pd.DataFrame:
    described = {"metric": "ablation_sparsity", "curve": name, "x_unit": x_unit, "y_unit": y_unit}
    return pd.DataFrame({"x": x, "y": y, "n": n}).assign(**inputs.key, **described)[list(CURVE_COLUMNS)]
