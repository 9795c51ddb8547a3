"""Concentration: over how many of its active latents a code is really spread.

Two codes of the same L0 differ: one may say nearly everything with its largest latent, another a little with each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sae_pipeline.autoencoders import Codes
from sae_pipeline.evaluation.inputs import FloatArray, Metric, MetricInputs, Ratio, ratio_tables
from sae_pipeline.evaluation.rows import row_blocks
from sae_pipeline.evaluation.tables import MetricResult
from sae_pipeline.study import VERSIONS

VERSION = VERSIONS["eval_concentration"]
FIGURES = {"effective_l0": "latents/token", "entropy": "nats/token", "largest_share": "fraction", "hoyer": "1"}

_BLOCK_ROWS = 32_768


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    return [_measure_one(one) for one in inputs]


def _measure_one(inputs: MetricInputs) -> MetricResult:
    evaluation_set = inputs.evaluation_set
    documents = np.unique(evaluation_set.document)
    sums = {name: np.zeros(len(documents)) for name in FIGURES}
    active_u = np.zeros(len(documents))
    for block in row_blocks(evaluation_set, _BLOCK_ROWS):
        terms = row_figures(inputs.codes.codes(block.start, block.stop), inputs.codes.n)
        unit_r, active_r = np.searchsorted(documents, block.document_r), terms.pop("active")
        active_u += np.bincount(unit_r, active_r, len(documents))
        for name, term_r in terms.items():
            sums[name] += np.bincount(unit_r, term_r, len(documents))
        inputs.progress.update(block.stop, evaluation_set.n_rows, "rows")
    ratios = [
        Ratio(name, "all", sums[name], active_u, active_u.astype(np.int64), unit, "none")
        for name, unit in FIGURES.items()
    ]
    rows, stats = ratio_tables(inputs, VERSION, documents, ratios)
    return MetricResult("concentration", VERSION, rows, stats)


METRIC = Metric("concentration", VERSION, needs_subject=False, measure=_measure)
"""Means over the tokens that have an active latent, of the latents z of a token:

effective_l0 = (Σz)² / Σz² (participation ratio; equals L0 where all are of one size); entropy of z / Σz in nats;
largest_share = max z / Σz; hoyer = (√n − Σz / √Σz²) / (√n − 1), 1 for a single latent and 0 for n equal ones (Hoyer
2004).
"""


def row_figures(codes: Codes, n: int) -> dict[str, FloatArray]:
    """The figures of every row [r] and `active`, 1 where a latent is; 0 throughout where none is."""
    row_p, z_p = _pairs(codes)
    rows = len(codes.l0_b)
    sum_r, square_r = _per_row(z_p, row_p, rows), _per_row(z_p.square(), row_p, rows)
    largest_r = torch.zeros(rows, dtype=torch.float64).scatter_reduce_(0, row_p, z_p, "amax")
    active_r = sum_r > 0
    share_p = z_p / sum_r[row_p]
    ratio_r = sum_r / square_r.sqrt()
    figures = {
        "effective_l0": ratio_r.square(),
        "entropy": _per_row(-share_p * share_p.log(), row_p, rows),
        "largest_share": largest_r / sum_r,
        "hoyer": (n**0.5 - ratio_r) / (n**0.5 - 1) if n > 1 else torch.ones(rows, dtype=torch.float64),
    }
    shown = {name: torch.where(active_r, term, 0.0) for name, term in figures.items()}
    return {name: term.numpy() for name, term in (shown | {"active": active_r.double()}).items()}


def _pairs(codes: Codes) -> tuple[Tensor, Tensor]:
    """Row and value of every active latent."""
    l0_r = codes.l0_b.long().cpu()
    values = codes.values.double().cpu()
    return torch.repeat_interleave(torch.arange(len(l0_r)), l0_r), values[values > 0]


def _per_row(term_p: Tensor, row_p: Tensor, rows: int) -> Tensor:
    return torch.zeros(rows, dtype=torch.float64).index_add_(0, row_p, term_p)
