"""Antipodal and duplicate latents: directions that the autoencoder has twice, with one sign or the other.

Of two latents that point opposite ways, one is the other's negative half: together they say what one signed number
would (Gao et al. 2024, appendix E.5, found such pairs among dense latents). Reads weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sae_pipeline.evaluation.inputs import FloatArray, Metric, MetricInputs, Number, metric_row
from sae_pipeline.evaluation.tables import CURVE_COLUMNS, MetricResult, frame
from sae_pipeline.measures.directions import cosine_blocks, random_directions
from sae_pipeline.study import VERSIONS

VERSION = VERSIONS["eval_antipodal"]
NUMBERS: Final = {"threshold": Number(0.9, least=0, most=1, whole=False)}
SIDES: Final = ("decoder", "encoder", "both")
BIN: Final = 0.05


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    return [_measure_one(one) for one in inputs]


def _measure_one(inputs: MetricInputs) -> MetricResult:
    threshold = float(inputs.parameters.get("threshold", NUMBERS["threshold"].default))
    found = extremes(inputs.autoencoder.W_dec, inputs.autoencoder.W_enc)
    rows = frame("metrics", _rows(inputs, found, threshold))
    curves = pd.concat(list(_histograms(inputs, found)), ignore_index=True).astype(CURVE_COLUMNS)
    return MetricResult("antipodal", VERSION, rows, curves=curves, facts={"threshold": threshold})


METRIC = Metric("antipodal", VERSION, needs_subject=False, measure=_measure, numbers=NUMBERS)
"""antipodal and duplicate: share of latents with another at cosine < −0.9 and > 0.9 (parameter `threshold`); variants
`decoder`, `encoder`, and `both`: the same other latent by both. nearest_cosine: mean over latents of the largest cosine
with another, variants `decoder`, `encoder`, and `random`, that of as many random directions.

Curves `decoder_nearest`, `decoder_opposite`, `encoder_nearest`, `encoder_opposite`: latents per bin of their largest
and smallest cosine with another, x the lower edge.
"""


def extremes(W_dec: Tensor, W_enc: Tensor) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Largest and smallest cosine of every latent with another, [n] each: by decoder rows, encoder rows, and `both`.

    Of `both` a pair's cosine is the lesser one for the largest, max_{j≠i} min(decoder, encoder), and the greater one
    for the smallest. Of a single latent: −inf and inf. Memory: two blocks of rows × n.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {side: [] for side in SIDES}
    for (start, decoder_rn), (_, encoder_rn) in zip(
        cosine_blocks(W_dec, W_dec), cosine_blocks(W_enc, W_enc), strict=True
    ):
        pairs = {"decoder": (decoder_rn,) * 2, "encoder": (encoder_rn,) * 2}
        pairs["both"] = torch.minimum(decoder_rn, encoder_rn), torch.maximum(decoder_rn, encoder_rn)
        for side, (least_rn, most_rn) in pairs.items():
            nearest_r = _without_itself(least_rn, start, -torch.inf).amax(1)
            found[side].append((nearest_r, _without_itself(most_rn, start, torch.inf).amin(1)))
    return {side: _joined(parts) for side, parts in found.items()}


def _without_itself(cosine_rn: Tensor, start: int, fill: float) -> Tensor:
    """Writes `fill` where a latent meets itself."""
    cosine_rn.diagonal(start).fill_(fill)
    return cosine_rn


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[FloatArray, FloatArray]:
    nearest_n, opposite_n = (torch.cat(column).double().cpu().numpy() for column in zip(*parts, strict=True))
    return nearest_n, opposite_n


def _rows(
    inputs: MetricInputs, found: dict[str, tuple[FloatArray, FloatArray]], threshold: float
) -> Iterator[dict[str, Any]]:
    n, d = inputs.autoencoder.config.n, inputs.autoencoder.config.d
    alone = "the autoencoder has a single latent" if n < 2 else None
    random_nd = random_directions(n, d, inputs.seed)
    chance_n = extremes(random_nd, random_nd)["decoder"][0]
    figures = {("nearest_cosine", "random"): ("1", "none", chance_n)}
    for side, (nearest_n, opposite_n) in found.items():
        figures[("antipodal", side)] = ("fraction", "lower", (opposite_n < -threshold).astype(np.float64))
        figures[("duplicate", side)] = ("fraction", "lower", (nearest_n > threshold).astype(np.float64))
        if side != "both":
            figures[("nearest_cosine", side)] = ("1", "none", nearest_n)
    for (metric, variant), (unit, better, value_n) in figures.items():
        value = float("nan") if alone else float(value_n.mean())
        columns = {"unit": unit, "better": better, "n_units": n, "unit_kind": "latent", "reason": alone}
        yield metric_row(inputs, VERSION, metric, variant, value, **columns)


def _histograms(inputs: MetricInputs, found: dict[str, tuple[FloatArray, FloatArray]]) -> Iterator[pd.DataFrame]:
    edges = np.linspace(-1, 1, round(2 / BIN) + 1)
    for side in ("decoder", "encoder"):
        for name, cosine_n in zip(("nearest", "opposite"), found[side], strict=True):
            # rounding may leave a cosine a little outside −1 … 1
            latents, _ = np.histogram(np.clip(cosine_n[np.isfinite(cosine_n)], -1, 1), bins=edges)
            filled = pd.DataFrame({"x": edges[:-1], "y": latents, "n": len(cosine_n)})
            curve = {"metric": "nearest_cosine", "curve": f"{side}_{name}", "x_unit": "cosine", "y_unit": "latents"}
            yield filled.assign(**inputs.key, **curve)[list(CURVE_COLUMNS)]
