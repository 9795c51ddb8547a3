"""Progressive code: the error of every shorter and longer code of an autoencoder, from one pass over its cache.

With the latents of a row in falling order, TopK(k′) keeps a prefix of them, and so does JumpReLU(θ) with one θ for all
latents (Gao et al. 2024 §5.3). So what is left of a row after its first j latents, for every j, gives every such swap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.evaluation.codes_cache import CodesCache
from sae_pipeline.evaluation.inputs import FloatArray, Metric, MetricInputs, Ratio, ratio_tables
from sae_pipeline.evaluation.reconstruction import mean_rows
from sae_pipeline.evaluation.rows import row_blocks
from sae_pipeline.evaluation.tables import CURVE_COLUMNS, MetricResult
from sae_pipeline.study import VERSIONS

VERSION = VERSIONS["eval_progressive"]
THETAS: Final = 2.0 ** np.arange(-20, 20.01, 0.25)
"""The thresholds tried, quarter octaves; only those at which the number of active latents changes make the curve."""

_BLOCK_ROWS: Final = 1024
_TILE_ROWS: Final = 128
"""Rows whose latents are taken off together: what is left of them stays in a core's cache."""


def _measure(inputs: Sequence[MetricInputs]) -> list[MetricResult]:
    return [_measure_one(one) for one in inputs]


def _measure_one(inputs: MetricInputs) -> MetricResult:
    sums = PrefixSums.of(inputs)
    rows, stats = ratio_tables(inputs, VERSION, sums.documents, list(_ratios(inputs.codes, sums)))
    facts = {
        "trained_k": inputs.codes.k,
        "longest_code": sums.width,
        "smallest_threshold": sums.complete_above,
    }
    return MetricResult("progressive", VERSION, rows, stats, _curves(inputs, sums), facts=facts)


METRIC = Metric("progressive", VERSION, needs_subject=False, measure=_measure)
"""nmse_at_k, variants `k=1`, `k=2`, `k=4` … up to the longest code in the cache, and the trained k; for autoencoders
with a k `nmse_beyond_k`, variant `4k`: the error of four times as long a code over that of the trained one (below 1: it
goes on improving; above: latents beyond k do harm).

Curve `progressive_k`: NMSE of TopK(k′) for every k′; where latents have thresholds of their own, of the k′ largest
active ones. Curves `threshold_nmse` and `threshold_l0`: NMSE and mean L0 of JumpReLU(θ) over θ, where the cache holds
every latent above θ.
"""


@dataclass(frozen=True)
class PrefixSums:
    """Sums over rows for codes of every length j = 0 … width.

    Attributes:
        documents: [u] their numbers; `rows_u` their rows.
        error_uj: [u, width + 1] squared error after the j largest latents.
        centred_u: [u] ‖u − ū‖².
        count_b, gain_b: by interval of θ, (THETAS[b], THETAS[b + 1]]: latents in it, and what they take off the error.
        complete_above: the smallest θ above which the cache lacks no latent of any row.
    """

    documents: np.ndarray[tuple[int], np.dtype[np.int64]]
    rows_u: np.ndarray[tuple[int], np.dtype[np.int64]]
    error_uj: FloatArray
    centred_u: FloatArray
    count_b: FloatArray
    gain_b: FloatArray
    complete_above: float

    @property
    def width(self) -> int:
        """Latents of the longest code."""
        return int(self.error_uj.shape[1]) - 1

    @classmethod
    def of(cls, inputs: MetricInputs) -> PrefixSums:
        """One pass over rows and codes, after one for the mean row."""
        cache, autoencoder, evaluation_set = inputs.codes, inputs.autoencoder, inputs.evaluation_set
        documents = np.unique(evaluation_set.document)
        width = cache.width or max(1, int(cache.scalars("l0").max()))
        mean_d = mean_rows(autoencoder, evaluation_set)["all"]
        error_uj = torch.zeros(len(documents), width + 1, dtype=torch.float64)
        centred_u, rows_u = np.zeros(len(documents)), np.zeros(len(documents), np.int64)
        own_n = autoencoder.parameters.extra.get("threshold")
        complete_above = 0.0 if own_n is None else float(own_n.max())
        count_b, gain_b = np.zeros(len(THETAS)), np.zeros(len(THETAS))
        for block in row_blocks(evaluation_set, _BLOCK_ROWS):
            u_rd = autoencoder.normaliser.normalise(block.x_rd.to(autoencoder.device))[0].double()
            indices_rw, values_rw = _sorted_codes(cache, block.start, block.stop, width, autoencoder.device)
            error_rj = prefix_errors(autoencoder, u_rd, indices_rw, values_rw).cpu()
            unit_r, centred_r = np.searchsorted(documents, block.document_r), (u_rd - mean_d).square().sum(1)
            error_uj.index_add_(0, torch.from_numpy(unit_r), error_rj)
            centred_u += np.bincount(unit_r, centred_r.cpu().numpy(), len(documents))
            rows_u += np.bincount(unit_r, minlength=len(documents))
            z_rw = values_rw.double().cpu().numpy()
            bin_rw = np.searchsorted(THETAS, z_rw, side="left") - 1
            there = bin_rw >= 0
            count_b += np.bincount(bin_rw[there], minlength=len(THETAS))
            gain_b -= np.bincount(bin_rw[there], error_rj.diff().numpy()[there], minlength=len(THETAS))
            if cache.width is not None and cache.width < cache.n:
                complete_above = max(complete_above, float(z_rw[:, -1].max()))
            inputs.progress.update(block.stop, evaluation_set.n_rows, "rows")
        return cls(documents, rows_u, error_uj.numpy(), centred_u, count_b, gain_b, complete_above)


def prefix_errors(autoencoder: Autoencoder, u_rd: Tensor, indices_rw: Tensor, values_rw: Tensor) -> Tensor:
    """‖u − b_pre − Σ_{i ≤ j} z_i d_i‖² for j = 0 … w: [r, w + 1], float64, by taking off one latent after another."""
    tiles = zip(*(torch.split(rows, _TILE_ROWS) for rows in (u_rd, indices_rw, values_rw)), strict=True)
    return torch.cat([_tile_errors(autoencoder, *tile) for tile in tiles])


def _tile_errors(autoencoder: Autoencoder, u_rd: Tensor, indices_rw: Tensor, values_rw: Tensor) -> Tensor:
    left_rd = u_rd.double() - autoencoder.b_pre.double()
    direction_rd, norms = torch.empty_like(left_rd), [torch.linalg.vector_norm(left_rd, dim=1)]
    for indices_r, values_r in zip(indices_rw.T, values_rw.double().T, strict=True):
        direction_rd.copy_(autoencoder.W_dec[indices_r])
        left_rd.addcmul_(direction_rd, values_r[:, None], value=-1)
        norms.append(torch.linalg.vector_norm(left_rd, dim=1))
    return torch.stack(norms, dim=1).square()


def _sorted_codes(cache: CodesCache, start: int, stop: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Latents and values [r, width] in falling order, shorter codes filled up with zeros."""
    if not cache.ragged:
        codes = cache.candidates(start, stop)
        return codes.indices.to(device), codes.values.to(device)
    codes = cache.codes(start, stop, device)
    l0_r = codes.l0_b.long()
    row_p = torch.repeat_interleave(torch.arange(stop - start, device=device), l0_r)
    place_p = torch.arange(len(row_p), device=device) - (l0_r.cumsum(0) - l0_r)[row_p]
    indices_rw = torch.zeros(stop - start, width, dtype=torch.int64, device=device)
    values_rw = torch.zeros(stop - start, width, device=device)
    indices_rw[row_p, place_p], values_rw[row_p, place_p] = codes.indices, codes.values
    values_rw, order_rw = values_rw.sort(dim=1, descending=True, stable=True)
    return indices_rw.gather(1, order_rw), values_rw


def _ratios(cache: CodesCache, sums: PrefixSums) -> Iterator[Ratio]:
    """The figures that have intervals over documents."""
    lengths = {2**i for i in range(sums.width.bit_length()) if 2**i <= sums.width} | {sums.width, cache.k or sums.width}
    for k in sorted(lengths - {0}):
        yield Ratio("nmse_at_k", f"k={k}", sums.error_uj[:, k], sums.centred_u, sums.rows_u, "1", "lower")
    if cache.k is not None and sums.width == 4 * cache.k:
        trained_u = sums.error_uj[:, cache.k]
        yield Ratio("nmse_beyond_k", "4k", sums.error_uj[:, -1], trained_u, sums.rows_u, "1", "lower")


def _curves(inputs: MetricInputs, sums: PrefixSums) -> pd.DataFrame:
    n_rows, centred = int(sums.rows_u.sum()), float(sums.centred_u.sum())
    total_j = sums.error_uj.sum(0)
    # From the largest θ down, each adds the latents of one more interval.
    l0_b = np.cumsum(sums.count_b[::-1])[::-1] / n_rows
    error_b = total_j[0] - np.cumsum(sums.gain_b[::-1])[::-1]
    shown = np.flatnonzero((sums.count_b > 0) & (sums.complete_above <= THETAS))
    curves = {
        ("progressive_k", "latents/token", "1"): (np.arange(len(total_j)), total_j / centred),
        ("threshold_nmse", "latent value", "1"): (THETAS[shown], error_b[shown] / centred),
        ("threshold_l0", "latent value", "latents/token"): (THETAS[shown], l0_b[shown]),
    }
    parts = [
        pd.DataFrame({"x": x, "y": y, "n": n_rows}).assign(
            **inputs.key, metric="nmse", curve=name, x_unit=x_unit, y_unit=y_unit
        )
        for (name, x_unit, y_unit), (x, y) in curves.items()
    ]
    return pd.concat(parts, ignore_index=True)[list(CURVE_COLUMNS)].astype(CURVE_COLUMNS)
