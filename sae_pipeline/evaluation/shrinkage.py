"""Shrinkage: how much larger the active latents would be if they alone were chosen anew (Gao et al. 2024 §5.1).

Decoder and active latents of a row stay, and z* ≥ 0 is the least-squares solution over them. What Σ z* exceeds Σ z by
is what the encoder, or a penalty, has taken off. The change of ΔCE would need the subject and is not part of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_pipeline.autoencoders import Codes
from sae_pipeline.evaluation.inputs import FloatArray, Metric, MetricInputs, Number, Ratio, ratio_tables
from sae_pipeline.evaluation.reconstruction import mean_rows
from sae_pipeline.evaluation.rows import row_blocks
from sae_pipeline.evaluation.sample import stratified
from sae_pipeline.evaluation.tables import CURVE_COLUMNS, MetricResult
from sae_pipeline.study import VERSIONS

VERSION = VERSIONS["eval_shrinkage"]
NUMBERS: Final = {"tokens": Number(8192, least=1)}
BIN: Final = 0.05
BINS: Final = 61
"""Of the histogram of z*/z, with middles 0, 0.05 … 3; the last bin holds all above."""

_READ_ROWS: Final = 1024
_SOLVE_VALUES: Final = 1 << 22


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    return [_measure_one(one) for one in inputs]


def _measure_one(inputs: MetricInputs) -> MetricResult:
    totals = _Totals.of(inputs)
    rows, stats = ratio_tables(inputs, VERSION, totals.documents, list(totals.ratios()))
    facts = {"rows": inputs.codes.n_rows, "rows_refined": int(totals.sums["rows"].sum())}
    return MetricResult("shrinkage", VERSION, rows, stats, totals.curve(inputs), facts=facts)


METRIC = Metric("shrinkage", VERSION, needs_subject=False, measure=_measure, numbers=NUMBERS)
"""activation_ratio Σ z* / Σ z (1: nothing was taken off, above 1: shrinkage); activation_change, the mean of z* − z
over active latents; latents_dropped, the share of them with z* = 0; nmse_refined, variants `before` and `after`, and
refinement_gain, what refinement takes off the squared error, as a share of it.

Over 8192 rows (parameter `tokens`) spread over the set. Curve `ratio_hist`: active latents per bin of z*/z, x its
middle.
"""

_SUMS: Final = ("rows", "active", "z", "refined", "dropped", "before", "after", "centred")


@dataclass(frozen=True)
class _Totals:
    """Sums over rows, of each document [u] by name, and the histogram of z*/z."""

    documents: NDArray[np.int64]
    sums: dict[str, FloatArray]
    histogram: NDArray[np.int64]

    @classmethod
    def of(cls, inputs: MetricInputs) -> _Totals:
        """One pass over the sampled rows, after one over all for their mean."""
        documents = np.unique(inputs.evaluation_set.document)
        sums = {name: np.zeros(len(documents)) for name in _SUMS}
        histogram = np.zeros(BINS, np.int64)
        mean_d = mean_rows(inputs.autoencoder, inputs.evaluation_set)["all"]
        for part in _parts(inputs):
            unit_r = np.searchsorted(documents, part.document_r)
            for name, values_r in part.row_sums(inputs, mean_d).items():
                sums[name] += np.bincount(unit_r, values_r, len(documents))
            histogram += part.histogram()
        return cls(documents, sums, histogram)

    def ratios(self) -> Iterator[Ratio]:
        """The figures, with intervals over documents."""
        total, n_u = self.sums, self.sums["rows"].astype(np.int64)
        yield Ratio("activation_ratio", "all", total["refined"], total["z"], n_u, "1", "none")
        yield Ratio(
            "activation_change", "all", total["refined"] - total["z"], total["active"], n_u, "latent value", "none"
        )
        yield Ratio("latents_dropped", "all", total["dropped"], total["active"], n_u, "fraction", "none")
        for variant in ("before", "after"):
            yield Ratio("nmse_refined", variant, total[variant], total["centred"], n_u, "1", "lower")
        gained = total["before"] - total["after"]
        yield Ratio("refinement_gain", "all", gained, total["before"], n_u, "fraction", "lower")

    def curve(self, inputs: MetricInputs) -> pd.DataFrame:
        """Active latents by z*/z."""
        described = {"metric": "activation_ratio", "curve": "ratio_hist", "x_unit": "z*/z", "y_unit": "latents"}
        filled = pd.DataFrame({"x": BIN * np.arange(BINS), "y": self.histogram, "n": self.histogram.sum()})
        return filled.assign(**inputs.key, **described)[list(CURVE_COLUMNS)].astype(CURVE_COLUMNS)


@dataclass(frozen=True)
class _Part:
    """Some rows, normalised, with their codes as encoded and refined."""

    u_rd: Tensor
    document_r: NDArray[np.int64]
    codes: Codes
    refined: Codes

    def row_sums(self, inputs: MetricInputs, mean_d: Tensor) -> dict[str, FloatArray]:
        """What each row adds to every sum [r]."""
        u_rd = self.u_rd.double()
        z_p, refined_p = (codes.values.double() for codes in (self.codes, self.refined))
        before_rd, after_rd = (inputs.autoencoder.decode(codes).double() for codes in (self.codes, self.refined))
        sums = {
            "rows": torch.ones(len(u_rd), dtype=torch.float64),
            "active": self.codes.l0_b,
            "z": _by_row(self.codes, z_p),
            "refined": _by_row(self.codes, refined_p),
            "dropped": _by_row(self.codes, ((z_p > 0) & (refined_p == 0)).double()),
            "before": (u_rd - before_rd).square().sum(1),
            "after": (u_rd - after_rd).square().sum(1),
            "centred": (u_rd - mean_d).square().sum(1),
        }
        return {name: values_r.double().cpu().numpy() for name, values_r in sums.items()}

    def histogram(self) -> NDArray[np.int64]:
        """Active latents by z*/z."""
        on = self.codes.values > 0
        ratio_p = self.refined.values[on].double() / self.codes.values[on].double()
        bin_p = (ratio_p / BIN).clamp(max=BINS - 1).round().long()
        return torch.bincount(bin_p, minlength=BINS).cpu().numpy()


def _by_row(codes: Codes, values: Tensor) -> Tensor:
    """Sums of values that lie as a code's [r]."""
    if codes.indptr is None:
        return values.sum(1)
    row_p = torch.arange(len(codes), device=values.device).repeat_interleave(codes.l0_b)
    return values.new_zeros(len(codes)).index_add_(0, row_p, values)


def _parts(inputs: MetricInputs) -> Iterator[_Part]:
    """The sampled rows, as many at a time as their systems of equations fit in memory."""
    autoencoder, cache = inputs.autoencoder, inputs.codes
    tokens = int(inputs.parameters.get("tokens", NUMBERS["tokens"].default))
    sample = stratified(np.arange(cache.n_rows), tokens, inputs.seed)
    widest = int(cache.scalars("l0").max())
    step = int(np.clip(_SOLVE_VALUES // max(1, widest * max(widest, autoencoder.config.d)), 1, _READ_ROWS))
    for block in row_blocks(inputs.evaluation_set, _READ_ROWS):
        chosen_r = sample[(sample >= block.start) & (sample < block.stop)] - block.start
        codes = cache.codes(block.start, block.stop, autoencoder.device)
        for a in range(0, len(chosen_r), step):
            row_r = torch.from_numpy(chosen_r[a : a + step])
            u_rd, _ = autoencoder.normaliser.normalise(block.x_rd[row_r].to(autoencoder.device))
            own = _rows_of(codes, row_r.to(autoencoder.device))
            yield _Part(u_rd, block.document_r[chosen_r[a : a + step]], own, autoencoder.refine(u_rd, own))
        inputs.progress.update(block.stop, cache.n_rows, "rows")


def _rows_of(codes: Codes, row_r: Tensor) -> Codes:
    """The codes of some rows, in the same layout."""
    if codes.indptr is None:
        return Codes(codes.indices[row_r], codes.values[row_r])
    l0_r = codes.l0_b[row_r]
    indptr = torch.nn.functional.pad(l0_r.cumsum(0), (1, 0))
    place_p = torch.arange(int(indptr[-1]), device=row_r.device)
    place_p += torch.repeat_interleave(codes.indptr[row_r] - indptr[:-1], l0_r)
    return Codes(codes.indices[place_p], codes.values[place_p], indptr)
