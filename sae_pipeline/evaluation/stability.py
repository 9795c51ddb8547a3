"""Stability: does another seed find the same latents?

Autoencoders of one site that differ in nothing but their seed are siblings. A latent has come back in a sibling where
its direction has a counterpart there at cosine > 0.7 (Paulo and Belrose 2025, arXiv 2501.16615). Reads weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.evaluation.inputs import FloatArray, Metric, MetricInputs, Number, metric_row
from sae_pipeline.evaluation.stability_pair import Agreement, Stability, compare_latents
from sae_pipeline.evaluation.tables import CURVE_COLUMNS, UNIT_STATS_COLUMNS, MetricResult, frame
from sae_pipeline.measures.directions import random_directions
from sae_pipeline.study import STABILITY, VERSIONS

VERSION = VERSIONS["eval_stability"]
NUMBERS: Final = {
    "threshold": Number(0.7, least=0, most=1, whole=False),
    "matched_up_to": Number(8192, least=0),
}
BIN: Final = 0.05

Figures = dict[tuple[str, str], FloatArray | None]
"""By metric and variant a number of each latent [n], of which the figure is the mean; None: not computed."""


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    return [_measure_one(one) for one in inputs]


def _measure_one(inputs: MetricInputs) -> MetricResult:
    settings = {name: inputs.parameters.get(name, number.default) for name, number in NUMBERS.items()}
    threshold, matching = float(settings["threshold"]), inputs.autoencoder.config.n <= settings["matched_up_to"]
    of_seed: dict[int, Figures] = {}
    nearest_n = [np.empty(0)]
    for done, (seed, sibling) in enumerate(sorted(inputs.siblings.items())):
        found = compare_latents(inputs.autoencoder, sibling, matching=matching)
        of_seed[seed] = _figures(found, threshold) | _chance(inputs, sibling, seed, threshold, matching)
        nearest_n.append(found.decoder.nearest_cosine_n)
        inputs.progress.update(done + 1, len(inputs.siblings), "siblings")
    rows = frame("metrics", _rows(inputs, of_seed, int(settings["matched_up_to"])))
    curve = _histogram(inputs, np.concatenate(nearest_n))
    facts = {"threshold": threshold, "siblings": sorted(of_seed)}
    return MetricResult(STABILITY, VERSION, rows, _unit_stats(inputs, of_seed), curve, facts=facts)


METRIC = Metric(STABILITY, VERSION, needs_subject=False, measure=_measure, numbers=NUMBERS)
"""max_cosine: mean over latents of the largest cosine with a latent of a sibling; matched_cosine: of the cosine in the
best one-to-one matching; shared: share of latents with a counterpart at cosine > 0.7 (parameter `threshold`). Variants
`decoder` and `encoder`, of shared with `,nearest`, `,mutual` (nearest of each other) and `,matched`, and `both` (see
`Stability.shared_n`); `random` stands for as many random directions in place of the sibling. The matching is made of up
to 8192 latents (`matched_up_to`). Figures are means over siblings, which are the units.

Curve `nearest_decoder_hist`: latents of all comparisons by their largest cosine, x the lower edge of a bin.
"""


def _figures(found: Stability, threshold: float) -> Figures:
    figures: Figures = {("shared", "both"): found.shared_n(threshold).astype(np.float64)}
    for side, agreement in (("decoder", found.decoder), ("encoder", found.encoder)):
        figures |= _of_side(agreement, side, threshold)
    return figures


def _of_side(agreement: Agreement, side: str, threshold: float) -> Figures:
    near_n, matched_n = agreement.nearest_cosine_n, agreement.matched_cosine_n
    shared_n = near_n > threshold
    return {
        ("max_cosine", side): near_n,
        ("matched_cosine", side): matched_n,
        ("shared", f"{side},nearest"): shared_n.astype(np.float64),
        ("shared", f"{side},mutual"): (shared_n & agreement.mutual_n).astype(np.float64),
        ("shared", f"{side},matched"): None if matched_n is None else (matched_n > threshold).astype(np.float64),
    }


def _chance(inputs: MetricInputs, sibling: Autoencoder, seed: int, threshold: float, matching: bool) -> Figures:
    """The decoder's figures with random directions in place of the sibling's."""
    random_md = random_directions(sibling.config.n, sibling.config.d, seed, inputs.autoencoder.device)
    found = _of_side(Agreement.of(inputs.autoencoder.W_dec, random_md, matching=matching), "random", threshold)
    return {name: value_n for name, value_n in found.items() if name[1] in ("random", "random,mutual")}


_WITHOUT_SIBLINGS: Final = (
    "no other autoencoder of the site differs from it in its seed alone; give its grid more seeds (docs/metrics.md)"
)


def _names() -> list[tuple[str, str]]:
    """Every figure, in the order of the rows."""
    sides = [("max_cosine", side) for side in ("decoder", "encoder", "random")]
    sides += [("matched_cosine", side) for side in ("decoder", "encoder", "random")]
    ways = [f"{side},{way}" for side in ("decoder", "encoder") for way in ("nearest", "mutual", "matched")]
    return [*sides, *(("shared", variant) for variant in ("both", *ways, "random,mutual"))]


def _rows(inputs: MetricInputs, of_seed: dict[int, Figures], matched_up_to: int) -> Iterator[dict[str, Any]]:
    for metric, variant in _names():
        found = [figures[metric, variant] for figures in of_seed.values()]
        values = np.array([value_n.mean() for value_n in found if value_n is not None])
        columns: dict[str, Any] = {"n_units": len(values), "unit_kind": "sibling"}
        columns |= {"unit": "fraction", "better": "higher"} if metric == "shared" else {"unit": "1", "better": "higher"}
        if "random" in variant:
            columns["better"] = "none"
        if not len(values):
            too_many = f"n = {inputs.autoencoder.config.n} exceeds matched_up_to = {matched_up_to}"
            columns["reason"] = too_many if of_seed else _WITHOUT_SIBLINGS
            yield metric_row(inputs, VERSION, metric, variant, float("nan"), **columns)
        else:
            yield metric_row(inputs, VERSION, metric, variant, float(values.mean()), **columns | _interval(values))


def _interval(value_s: FloatArray) -> dict[str, Any]:
    """Over siblings, which are independent given the autoencoder; few as they are, resampling them says too little."""
    from scipy.stats import t

    if len(value_s) < 2:
        return {"status": "partial", "reason": "no interval: 1 sibling"}
    se, mean = float(value_s.std(ddof=1) / np.sqrt(len(value_s))), float(value_s.mean())
    reach = float(t.ppf(0.975, len(value_s) - 1)) * se
    return {"se": se, "ci_lo": mean - reach, "ci_hi": mean + reach, "ci_method": "Student's t over siblings"}


def _unit_stats(inputs: MetricInputs, of_seed: dict[int, Figures]) -> pd.DataFrame:
    """Sums over latents for each sibling; `unit_id` is its seed."""
    rows = [
        {
            **inputs.key, "metric": metric, "variant": variant, "unit_id": seed,
            "num": float(value_n.sum()), "den": float(len(value_n)), "n": len(value_n),
        }
        for metric, variant in _names()
        for seed, figures in of_seed.items()
        if (value_n := figures[metric, variant]) is not None
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(UNIT_STATS_COLUMNS)).astype(UNIT_STATS_COLUMNS)


def _histogram(inputs: MetricInputs, nearest_p: FloatArray) -> pd.DataFrame:
    edges = np.linspace(-1, 1, round(2 / BIN) + 1)
    # rounding may leave a cosine a little outside −1 … 1
    latents, _ = np.histogram(np.clip(nearest_p, -1, 1), bins=edges)
    curve = {"metric": "max_cosine", "curve": "nearest_decoder_hist", "x_unit": "cosine", "y_unit": "latents"}
    filled = pd.DataFrame({"x": edges[:-1], "y": latents, "n": len(nearest_p)}).assign(**inputs.key, **curve)
    return filled[list(CURVE_COLUMNS)].astype(CURVE_COLUMNS)
