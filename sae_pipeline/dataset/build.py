"""Build a dataset: fix the normaliser, the statistics and the read order of one site's activations."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from sae_pipeline.activations import Moments, covering_shards, open_activations
from sae_pipeline.dataset.copy import write_copy
from sae_pipeline.dataset.covariance import covariance_of
from sae_pipeline.dataset.gaussian import NULL, Gaussian, gaussian_checks
from sae_pipeline.dataset.geometric_median import geometric_median
from sae_pipeline.dataset.mixing import Ints, measure_mixing
from sae_pipeline.dataset.normaliser import Normaliser
from sae_pipeline.dataset.order import ReadOrder, permutation
from sae_pipeline.dataset.statistics import Statistics, normalised_moments
from sae_pipeline.store import Artefact, Draft, PipelineError, Progress, ShardedArray, silent

RESIDENT_SHARDS = 4
SAMPLE_ROWS = 32_768
_SAMPLE_STREAM = 2**31  # keeps the sample's random stream apart from every epoch's


def build_dataset(
    draft: Draft,
    activations: Artefact,
    *,
    normaliser: str,
    seed: int,
    row_offsets: Ints,
    document_of_context: Ints,
    resident_shards: int = RESIDENT_SHARDS,
    sample_rows: int = SAMPLE_ROWS,
    statistics_prefix: int | None = None,
    copy: bool = False,
    null: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write normaliser.json, statistics.json, order.json, checks.json and sample.npy into `draft`; return the summary.

    `normaliser` is one of the five names; `row_offsets` (contexts + 1,) and `document_of_context` (contexts,) are those
    of the training split the activations were made from, to measure mixing. A view: no activation row is copied but the
    `sample_rows` of the sample; with `copy` it holds all rows, normalised (see `write_copy`).

    Statistics, normaliser and sample are those of all rows; with `statistics_prefix` those of so many first rows,
    rounded up to whole shards. Only `copy` reads other shards then.

    `null: gaussian_cov` makes a null dataset: gaussian.safetensors and null.json too, and the sample is drawn.
    """
    acts = open_activations(activations)
    n_rows = prefix_rows(acts, statistics_prefix)
    moments = merge_moments(acts, n_rows)
    if moments.count == 0:
        raise PipelineError(f"{activations.path}: holds no finite row; see its data checks")
    fitted = Normaliser.fit(
        normaliser,
        acts.shape[1],
        mean_norm=moments.norm_sum / moments.count,
        mean_square_norm=moments.sq_sum / moments.count,
    )
    order = ReadOrder(acts.n_rows, acts.shard_rows, seed, resident_shards)
    if null is None:
        raw_rd = read_rows(acts, sample_of(n_rows, sample_rows, seed), progress)
        sample_rd, round_trip_error = _normalise_sample(fitted, raw_rd)
        mixing = measure_mixing(order, row_offsets, document_of_context)
        checks = {**vars(mixing), "round_trip_error": round_trip_error}
    else:
        sample_rd, checks = _write_gaussian(draft, acts, n_rows, fitted, moments, seed, sample_rows, progress)
    statistics = Statistics.from_moments(
        moments,
        fitted,
        geometric_median=geometric_median(sample_rd),
        sample_rows=len(sample_rd),
        sample_seed=seed,
    )
    if copy:
        write_copy(draft, acts, fitted, progress)
    if n_rows < acts.n_rows:
        checks["statistics_rows"] = n_rows
    draft.write_bytes("sample.npy", _npy(sample_rd))
    draft.write_json("normaliser.json", fitted.to_config())
    draft.write_json("statistics.json", statistics.to_json())
    draft.write_json("order.json", {**vars(order), "activations": activations.identity})
    draft.write_json("checks.json", checks)
    return _summary(statistics, fitted, checks)


def _write_gaussian(
    draft: Draft,
    acts: ShardedArray,
    n_rows: int,
    normaliser: Normaliser,
    moments: Moments,
    seed: int,
    sample_rows: int,
    progress: Progress,
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """The Gaussian of the first `n_rows` rows, normalised, into the draft; a sample drawn from it, and its checks."""
    covariance = covariance_of(acts, normaliser, n_rows, progress)
    gaussian = Gaussian.of(covariance, seed)
    gaussian.write(draft, covariance)
    sample_rd = gaussian.rows("sample", 0, min(sample_rows, n_rows)).numpy()
    _, total_variance = normalised_moments(moments, normaliser)
    return sample_rd, {"null": NULL, **gaussian_checks(gaussian, covariance, sample_rd, total_variance)}


def prefix_rows(acts: ShardedArray, wanted: int | None) -> int:
    """Rows of the shards that hold the first `wanted` rows; None: all rows."""
    if wanted is None:
        return acts.n_rows
    return min(covering_shards(wanted, acts.n_rows, acts.shard_rows) * acts.shard_rows, acts.n_rows)


def merge_moments(acts: ShardedArray, n_rows: int | None = None) -> Moments:
    """The exact moments of the shards that make up the first `n_rows` rows (None: all), from their commit records."""
    shards = range(-(-(acts.n_rows if n_rows is None else n_rows) // acts.shard_rows))
    parts = (Moments.from_json(acts.commit(i)["info"]["moments"]) for i in shards)
    return Moments.total(parts, d=acts.shape[1])


def sample_of(n_rows: int, n: int, seed: int) -> npt.NDArray[np.int64]:
    """`min(n, n_rows)` distinct rows drawn at random, a function of the arguments alone."""
    if n * 4 >= n_rows:
        return permutation(n_rows, seed, _SAMPLE_STREAM)[:n]
    drawn = np.random.Philox(np.random.SeedSequence((seed, _SAMPLE_STREAM))).random_raw(2 * n) % np.uint64(n_rows)
    _, first = np.unique(drawn, return_index=True)
    return np.asarray(drawn[np.sort(first)[:n]], np.int64)


def read_rows(acts: ShardedArray, rows: npt.NDArray[np.int64], progress: Progress = silent) -> npt.NDArray[np.float32]:
    """Scattered rows as float32 (len(rows), d) in the order asked for, reading each inner chunk they touch once."""
    out = np.empty((len(rows), *acts.shape[1:]), np.float32)
    order = np.argsort(rows, kind="stable")
    chunks, starts = np.unique(rows[order] // acts.chunk_rows, return_index=True)
    for chunk, places in zip(chunks.tolist(), np.split(order, starts[1:]), strict=True):
        start = chunk * acts.chunk_rows
        block = acts.read_float32(start, min(start + acts.chunk_rows, acts.n_rows))
        out[places] = block[rows[places] - start]
        progress.update(start + len(block), acts.n_rows, "rows")
    return out


def audit_frame(draft: Draft | Artefact) -> pd.DataFrame:
    """One row of what the data checks judge.

    rows (counted in the moments), rows_expected (of the array, or of a prefix's shards), non_finite, constant_channels,
    total_variance, mean_norm, absmax, normaliser, factor, sample_rows, sample_non_finite, round_trip_error (largest,
    relative to the row's norm), same_context_ratio and same_document_ratio (1 is perfect mixing), same_context_excess
    (the first over the number of groups, which is what whole contexts in one shard allow: about 1 whatever the sizes),
    resident_shards, n_shards. Of a null dataset, in place of what begins with round_trip_error: null, and what
    `gaussian_checks` names.
    """
    order = ReadOrder.from_json(draft.read_json("order.json"))
    statistics, fitted = draft.read_json("statistics.json"), draft.read_json("normaliser.json")
    checks = draft.read_json("checks.json")
    sample_rd = np.load(draft.file("sample.npy"), allow_pickle=False)
    row = {
        "rows": statistics["count"],
        "rows_expected": checks.pop("statistics_rows", order.n_rows),
        **{name: statistics[name] for name in ("non_finite", "constant_channels")},
        **{name: _number(statistics[name]) for name in ("total_variance", "mean_norm", "absmax")},
        "normaliser": fitted["name"],
        "factor": fitted["factor"],
        "sample_rows": len(sample_rd),
        "sample_non_finite": int(np.count_nonzero(~np.isfinite(sample_rd))),
    }
    return pd.DataFrame([row | (checks if "null" in checks else _order_figures(order, checks))])


def _order_figures(order: ReadOrder, checks: dict[str, Any]) -> dict[str, Any]:
    return {
        "round_trip_error": _number(checks["round_trip_error"]),
        "same_context_ratio": checks["same_context_ratio"],
        "same_document_ratio": checks["same_document_ratio"],
        "same_context_excess": checks["same_context_ratio"] / order.n_groups,
        "resident_shards": order.resident_shards,
        "n_shards": order.n_shards,
    }


def _normalise_sample(normaliser: Normaliser, raw_rd: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], float]:
    """The sample normalised, and the largest ‖x - x'‖ / ‖x‖ after a round trip."""
    x_rd = torch.from_numpy(raw_rd)
    u_rd, scale = normaliser.normalise(x_rd)
    error_r = (normaliser.denormalise(u_rd, scale) - x_rd).norm(dim=-1) / x_rd.norm(dim=-1).clamp_min(1e-30)
    return u_rd.numpy(), float(error_r.max())


def _summary(statistics: Statistics, normaliser: Normaliser, checks: dict[str, Any]) -> dict[str, Any]:
    return {
        "rows": statistics.count,
        "d": normaliser.d,
        "normaliser": normaliser.name,
        "factor": normaliser.factor,
        "total_variance": statistics.total_variance,
        "mean_norm": statistics.mean_norm,
        "constant_channels": statistics.constant_channels,
        "non_finite": statistics.non_finite,
        **checks,
    }


def _npy(x: npt.NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    np.save(file, x, allow_pickle=False)
    return file.getvalue()


def _number(value: float | None) -> float:
    # JSON has no NaN; it is stored as null.
    return float("nan") if value is None else float(value)
