"""Statistics frames that the data gates judge. Figures only: no limit is known here."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd

from sae_pipeline.activations.evaluation_builder import summarise
from sae_pipeline.activations.evaluation_set import CLEAN_ARRAYS, RECORD, REFERENCE_ARRAYS, EvaluationSet
from sae_pipeline.activations.layout import ACTS
from sae_pipeline.activations.micro_batch import MicroBatch
from sae_pipeline.activations.moments import Moments
from sae_pipeline.activations.outliers import OUTLIERS, OutlierLimit
from sae_pipeline.activations.takeover import taken_over
from sae_pipeline.store import Artefact, Damaged, Draft, ShardedArray

_ENOUGH_ROWS: Final = 32
_EVALUATION_SET_COLUMNS: Final = [
    *("site", "n_contexts", "context", "d", "n_rows", "n_documents", "n_scored", "micro_batch"),
    *("resume_max_abs_difference", "clean_ce", "zero_dce", "zero_kl", "mean_dce", "mean_kl"),
    *("rows_masked", "non_finite", "non_finite_scores", "negative_kl", "documents_split", "damage"),
]


def audit_frame(draft: Draft | Artefact) -> pd.DataFrame:
    """Describe harvested activations, one row per shard that is kept.

    Returns:
        Columns: shard; committed; rows (finite and not, as counted in the moments; 0 if not committed); rows_expected;
        non_finite (rows with a NaN or infinite value); absmax; mean_norm (mean ‖x‖); std (root mean variance over
        dimensions); outliers (rows beyond the limit of `activations.outliers`; 0 where that is not set); constant_dims
        (dimensions that never change within the shard; 0 where it has fewer than 32 rows, which half precision can make
        equal by chance); duplicate_of (an earlier shard with the same bytes, or -1);
        damage (what is wrong with the shard's file compared with its commit record, or ""); remade (whether it was made
        again after damage, with other bits, see `repair`; the figures are those of the rows that were lost).
        Figures of a shard that cannot be read are NaN.
    """
    array = draft.array(ACTS)
    seen: dict[tuple[str, ...], int] = {}
    return pd.DataFrame([_shard_row(array, i, seen) for i in range(array.n_kept)])


def shard_figures(array: ShardedArray, i: int) -> dict[str, Any]:
    """The row of `audit_frame` that describes one shard, compared with no other."""
    return _shard_row(array, i, {})


def _shard_row(array: ShardedArray, i: int, seen: dict[tuple[str, ...], int]) -> dict[str, Any]:
    rows = array.rows(i)
    row: dict[str, Any] = {
        "shard": i,
        "committed": array.is_committed(i),
        "rows": 0,
        "rows_expected": rows.stop - rows.start,
        "non_finite": 0,
        **dict.fromkeys(("absmax", "mean_norm", "std"), np.nan),
        "outliers": 0,
        "constant_dims": 0,
        "duplicate_of": -1,
        "damage": "",
        "remade": False,
    }
    if not row["committed"]:
        return row
    try:
        record = array.commit(i)
        array.check_shard(i)
    except Damaged as error:
        return row | {"damage": error.cause}
    moments = Moments.from_json(record["info"]["moments"])
    first = seen.setdefault(tuple(record["chunk_crc32c"]), i)
    remade = array.repair(i) is not None
    outliers = len(record["info"].get(OUTLIERS, {}).get("rows", ()))
    found = {"outliers": outliers, "duplicate_of": first if first != i else -1, "remade": remade}
    return row | _figures(moments) | found


def _figures(moments: Moments) -> dict[str, Any]:
    known = {"rows": moments.count + moments.non_finite, "non_finite": moments.non_finite}
    if not moments.count:
        return known
    return known | {
        "absmax": moments.absmax,
        "mean_norm": moments.norm_sum / moments.count,
        "std": float(np.sqrt(moments.m2.mean() / moments.count)),
        "constant_dims": int(np.count_nonzero(moments.m2 == 0)) if moments.count >= _ENOUGH_ROWS else 0,
    }


def summarise_shards(draft: Draft | Artefact) -> dict[str, Any]:
    """Figures of harvested activations as a whole: rows, width, shards, dtype, largest value, norm, micro-batch.

    Where they apply: the micro-batch it was begun with, if memory did not suffice; outliers and the norm they exceed.
    And, if there are any, how many shards were taken over from an earlier version, and how many are left to be made
    while autoencoders train.
    """
    array, frame = draft.array(ACTS), audit_frame(draft)
    size, limit = MicroBatch.of(draft), OutlierLimit.of(draft)
    taken, left = sum(map(len, taken_over(draft).values())), array.n_shards - array.n_kept
    return {
        "rows": int(frame["rows"].sum()),
        "d": int(array.shape[1]),
        "shards": array.n_kept,
        "shard_rows": array.shard_rows,
        "dtype": array.logical_dtype,
        "absmax": float(frame["absmax"].max()),
        "mean_norm": float(np.average(frame["mean_norm"].fillna(0.0), weights=frame["rows"].clip(lower=1))),
        "micro_batch": size.size,
        **({"micro_batch_begun_with": size.begun_with} if size.begun_with != size.size else {}),
        **({"outliers": int(frame["outliers"].sum()), "outlier_norm": limit.limit} if limit else {}),
        **({"shards_taken_over": taken} if taken else {}),
        **({"shards_left_to_training": left} if left else {}),
    }


def audit_evaluation_set(draft: Draft | Artefact) -> pd.DataFrame:
    """Describe an evaluation set in one row.

    Returns:
        The columns of `build_evaluation_set`'s summary, and: rows_masked (eligible positions in the mask, to compare
        with n_rows); non_finite (eligible rows with a NaN or infinite value); non_finite_scores (clean and reference
        scores at scored positions that are NaN or infinite); negative_kl (reference KLs below -1e-5); documents_split
        (documents whose contexts do not stand together); damage ("" or what is wrong with the first bad file; then
        the other columns are missing values).
    """
    damage = _damage(draft)
    row = {"damage": damage} if damage else _evaluation_set_row(draft)
    return pd.DataFrame([row]).reindex(columns=_EVALUATION_SET_COLUMNS)


def _evaluation_set_row(draft: Draft | Artefact) -> dict[str, Any]:
    evaluation_set = EvaluationSet(draft)
    scored_cl = evaluation_set.scored(0, evaluation_set.n_contexts).numpy()
    names = ("clean_ce", "clean_logsumexp", *REFERENCE_ARRAYS)
    scores = {name: draft.array(name).read(0, evaluation_set.n_contexts)[scored_cl] for name in names}
    runs = int(np.count_nonzero(np.diff(evaluation_set.document)) + 1)
    extra = {
        "rows_masked": int(evaluation_set.mask(0, evaluation_set.n_contexts).sum()),
        "non_finite": int(draft.read_json(RECORD)["non_finite"]),
        "non_finite_scores": int(sum(np.count_nonzero(~np.isfinite(score)) for score in scores.values())),
        "negative_kl": int(sum(np.count_nonzero(scores[name] < -1e-5) for name in ("zero_kl", "mean_kl"))),
        "documents_split": runs - len(np.unique(evaluation_set.document)),
        "damage": "",
    }
    return summarise(evaluation_set) | extra


def _damage(draft: Draft | Artefact) -> str:
    for name in (*CLEAN_ARRAYS, *REFERENCE_ARRAYS):
        try:
            array = draft.array(name)
            for i in range(array.n_shards):
                array.check_shard(i)
        except Damaged as error:
            return f"{name}: {error.cause}"
    return ""
