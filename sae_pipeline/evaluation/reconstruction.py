"""Reconstruction: how well û stands for u on held-out rows, in the normalised space the autoencoder works in.

The formulas are those of `measures.Reconstruction`, which training reports; here their sums are kept per document, from
which intervals and paired comparisons follow (a test holds the two equal).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_pipeline.activations import EvaluationSet
from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.evaluation.codes_cache import CodesCache, block_rows_of
from sae_pipeline.evaluation.inputs import FloatArray, Metric, MetricInputs, Ratio, ratio_tables
from sae_pipeline.evaluation.rows import row_blocks
from sae_pipeline.evaluation.tables import CURVE_COLUMNS, MetricResult
from sae_pipeline.store import Progress, silent
from sae_pipeline.study import VERSIONS

VERSION = VERSIONS["eval_reconstruction"]
VARIANTS = ("all", "without_position_0")

_SUMS = (
    "error_sq", "centred_sq", "l0", "x_hat_sq", "dot", "cosine", "norm_ratio", "error_share", "explained_share", "one",
)  # fmt: skip


@dataclass(frozen=True)
class _Figure:
    """A figure as a ratio of two sums over rows."""

    num: str
    den: str
    unit: str
    better: str


FIGURES = {
    "nmse": _Figure("error_sq", "centred_sq", "1", "lower"),
    "explained_variance": _Figure("explained", "centred_sq", "1", "higher"),
    "l0": _Figure("l0", "one", "latents/token", "none"),
    "l2_ratio": _Figure("norm_ratio", "one", "1", "none"),
    "relative_bias": _Figure("x_hat_sq", "dot", "1", "none"),
    "cosine": _Figure("cosine", "one", "1", "higher"),
    # What other tools call so, to be held against what they report, not to choose by.
    "mse": _Figure("error_sq", "one", "1", "none"),
    "normalized_mean_squared_error": _Figure("error_share", "one", "1", "none"),
    "explained_variance_legacy": _Figure("explained_share", "one", "1", "none"),
}


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    return [_measure_one(one) for one in inputs]


def _measure_one(inputs: MetricInputs) -> MetricResult:
    variants = inputs.parameter("variants", VARIANTS)
    sums = ReconstructionSums.of(
        inputs.autoencoder, inputs.evaluation_set, variants, codes=inputs.codes, progress=inputs.progress
    )
    ratios = [sums.ratio(name, variant) for variant in variants for name in FIGURES]
    rows, stats = ratio_tables(inputs, VERSION, sums.documents, ratios)
    return MetricResult(
        "reconstruction", VERSION, rows, stats, _by_position(inputs, sums), facts={"space": "normalised"}
    )


METRIC = Metric("reconstruction", VERSION, needs_subject=False, measure=_measure, parameters={"variants": VARIANTS})
"""nmse, explained_variance, l0, l2_ratio, relative_bias, cosine; variants `all` and `without_position_0`.

nmse = Σ‖u−û‖² / Σ‖u−ū‖² with ū the mean of the variant's rows (Gao et al. 2024 §2.1); l2_ratio, relative_bias and
cosine as in `measures.Reconstruction`. In the conventions of others: `mse`, mean ‖u−û‖² (sae-lens);
`normalized_mean_squared_error`, mean of ‖u−û‖² / ‖u‖² (the code of Gao et al.); `explained_variance_legacy`, mean of
1 − ‖u−û‖² / ‖u−ū‖² (sae-lens). Curve `nmse_by_position`: the same ratio at each position of the context.
"""


@dataclass(frozen=True)
class ReconstructionSums:
    """Sums over rows: of each document [u] by variant, and of each position [context]."""

    documents: NDArray[np.int64]
    by_document: dict[str, dict[str, FloatArray]]
    by_position: dict[str, FloatArray]

    @classmethod
    def of(
        cls,
        autoencoder: Autoencoder,
        evaluation_set: EvaluationSet,
        variants: Sequence[str],
        *,
        codes: CodesCache | None = None,
        progress: Progress = silent,
    ) -> ReconstructionSums:
        """Two passes: the mean of each variant's rows, then everything else. Encodes where there is no cache."""
        documents, context = np.unique(evaluation_set.document), evaluation_set.context
        means = mean_rows(autoencoder, evaluation_set, ("all", *variants))
        by_document = {name: {sum_: np.zeros(len(documents)) for sum_ in _SUMS} for name in variants}
        by_position = {name: np.zeros(context) for name in ("error_sq", "centred_sq", "one")}
        for block in _blocks(autoencoder, evaluation_set, codes):
            rows = block.row_sums(means["all"])
            unit_r = np.searchsorted(documents, block.document_r)
            for name, total in by_position.items():
                total += np.bincount(block.position_r, rows[name], context)
            for variant in variants:
                chosen_r = _in_variant(variant, block.position_r)
                own = rows | _against(rows["error_sq"], block.centred_sq(means[variant]))
                for name, total in by_document[variant].items():
                    total += np.bincount(unit_r[chosen_r], own[name][chosen_r], len(documents))
            progress.update(block.stop, evaluation_set.n_rows, "rows")
        for sums in by_document.values():
            sums["explained"] = sums["centred_sq"] - sums["error_sq"]
        return cls(documents, by_document, by_position)

    def ratio(self, name: str, variant: str) -> Ratio:
        """The figure of that name over documents."""
        figure, sums = FIGURES[name], self.by_document[variant]
        n_u = sums["one"].astype(np.int64)
        return Ratio(name, variant, sums[figure.num], sums[figure.den], n_u, figure.unit, figure.better)


def _against(error_sq_r: FloatArray, centred_sq_r: FloatArray) -> dict[str, FloatArray]:
    """The terms that need the mean of a variant's rows; a row that is the mean explains nothing."""
    share_r = np.divide(error_sq_r, centred_sq_r, out=np.ones_like(error_sq_r), where=centred_sq_r > 0)
    return {"centred_sq": centred_sq_r, "explained_share": 1 - share_r}


def _by_position(inputs: MetricInputs, sums: ReconstructionSums) -> pd.DataFrame:
    """NMSE at each position that has rows."""
    n = sums.by_position["one"].astype(np.int64)
    x = np.flatnonzero(sums.by_position["centred_sq"] > 0)
    y = sums.by_position["error_sq"][x] / sums.by_position["centred_sq"][x]
    curve = {"metric": "nmse", "curve": "nmse_by_position", "x_unit": "position", "y_unit": "1"}
    filled = pd.DataFrame({"x": x, "y": y, "n": n[x]}).assign(**inputs.key, **curve)
    return filled[list(CURVE_COLUMNS)].astype(CURVE_COLUMNS)


@dataclass(frozen=True)
class _RowBlock:
    """Rows in the normalised space and their reconstructions, float64 [r, d]."""

    stop: int
    u_rd: Tensor
    u_hat_rd: Tensor
    l0_r: FloatArray
    document_r: NDArray[np.int64]
    position_r: NDArray[np.int64]

    def row_sums(self, mean_d: Tensor) -> dict[str, FloatArray]:
        """The terms of every sum, [r]; the same formulas as `measures.Reconstruction`."""
        norm, norm_hat = self.u_rd.norm(dim=1), self.u_hat_rd.norm(dim=1)
        dot, tiny = (self.u_rd * self.u_hat_rd).sum(1), torch.finfo(torch.float64).tiny
        terms = {
            "error_sq": (self.u_rd - self.u_hat_rd).square().sum(1),
            "x_hat_sq": norm_hat.square(),
            "dot": dot,
            "cosine": dot / (norm * norm_hat).clamp_min(tiny),
            "norm_ratio": torch.where(norm > 0, norm_hat / norm.clamp_min(tiny), 0.0),
            "one": torch.ones_like(norm),
        }
        terms["error_share"] = torch.where(norm > 0, terms["error_sq"] / norm.square().clamp_min(tiny), 0.0)
        centred = {"centred_sq": self.centred_sq(mean_d), "l0": self.l0_r}
        return {name: term.cpu().numpy() for name, term in terms.items()} | centred

    def centred_sq(self, mean_d: Tensor) -> FloatArray:
        """‖u − mean‖² of every row."""
        return np.asarray((self.u_rd - mean_d).square().sum(1).cpu().numpy())


def _blocks(autoencoder: Autoencoder, evaluation_set: EvaluationSet, cache: CodesCache | None) -> Iterator[_RowBlock]:
    for block in row_blocks(evaluation_set, block_rows_of(autoencoder.config.n)):
        u_rd, _ = autoencoder.normaliser.normalise(block.x_rd.to(autoencoder.device))
        cached = None if cache is None else cache.codes(block.start, block.stop, autoencoder.device)
        codes = autoencoder.encode(u_rd) if cached is None else cached
        u_hat_rd, l0_r = autoencoder.decode(codes), codes.l0_b.double().cpu().numpy()
        yield _RowBlock(block.stop, u_rd.double(), u_hat_rd.double(), l0_r, block.document_r, block.position_r)


def mean_rows(
    autoencoder: Autoencoder, evaluation_set: EvaluationSet, variants: Sequence[str] = ("all",)
) -> dict[str, Tensor]:
    """Mean normalised row [d] of each variant, float64."""
    device = autoencoder.device
    totals = {name: torch.zeros(evaluation_set.d, dtype=torch.float64, device=device) for name in variants}
    counts = dict.fromkeys(variants, 0)
    for block in row_blocks(evaluation_set, block_rows_of(autoencoder.config.n)):
        u_rd = autoencoder.normaliser.normalise(block.x_rd.to(device))[0].double()
        for name in totals:
            chosen_r = torch.from_numpy(_in_variant(name, block.position_r)).to(device)
            totals[name] += u_rd[chosen_r].sum(0)
            counts[name] += int(chosen_r.sum())
    return {name: total / max(1, counts[name]) for name, total in totals.items()}


def _in_variant(variant: str, position_r: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray(position_r > 0 if variant == "without_position_0" else position_r >= 0)
