"""Tidy tables of evaluation, one set of files per metric run, and the tables derived from many of them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd

from sae_pipeline.evaluation.errors import EvaluationError
from sae_pipeline.store import Artefact, Draft

RECORD: Final = "metric.json"

METRIC_COLUMNS: Final = {
    "autoencoder": "str",
    "sae_id": "str",
    "site": "str",
    "evaluation_id": "str",
    "metric": "str",
    "variant": "str",
    "value": "float64",
    "unit": "str",
    "better": "str",
    "se": "float64",
    "ci_lo": "float64",
    "ci_hi": "float64",
    "ci_method": "str",
    "n_units": "int64",
    "unit_kind": "str",
    "status": "str",
    "reason": "str",
    "metric_version": "int64",
}
UNIT_STATS_COLUMNS: Final = {
    "autoencoder": "str",
    "sae_id": "str",
    "metric": "str",
    "variant": "str",
    "unit_id": "int64",
    "num": "float64",
    "den": "float64",
    "n": "int64",
}
CURVE_COLUMNS: Final = {
    "autoencoder": "str",
    "sae_id": "str",
    "metric": "str",
    "curve": "str",
    "x": "float64",
    "x_unit": "str",
    "y": "float64",
    "y_unit": "str",
    "n": "int64",
}
LATENT_STATS_COLUMNS: Final = {
    "autoencoder": "str",
    "sae_id": "str",
    "latent": "int64",
    "count": "int64",
    "density": "float64",
    "mean_act": "float64",
    "max_act": "float64",
    "n2g_precision": "float64",
    "n2g_recall": "float64",
    "n2g_f1": "float64",
}
PROBE_RESULTS_COLUMNS: Final = {
    "autoencoder": "str",
    "sae_id": "str",
    "task": "str",
    "lexical": "boolean",
    "probe": "str",
    "code": "str",
    "k": "Int64",
    "latents": "str",
    "train_loss": "float64",
    "loss": "float64",
    "loss_se": "float64",
    "accuracy": "float64",
    "auc": "float64",
    "n_train": "int64",
    "n_test": "int64",
    "n_documents": "int64",
    "status": "str",
    "reason": "str",
}
EXAMPLES_COLUMNS: Final = {
    "autoencoder": "str",
    "sae_id": "str",
    "latent": "int64",
    "kind": "str",
    "rank": "int64",
    "value": "float64",
    "row": "int64",
    "document": "int64",
    "position": "int64",
    "tokens": "str",
    "at": "int64",
}
TABLES: Final = {
    "metrics": METRIC_COLUMNS,
    "unit_stats": UNIT_STATS_COLUMNS,
    "curves": CURVE_COLUMNS,
    "latent_stats": LATENT_STATS_COLUMNS,
    "probe_results": PROBE_RESULTS_COLUMNS,
    "examples": EXAMPLES_COLUMNS,
}
_ORDER: Final = {
    "metrics": ["autoencoder", "sae_id", "metric", "variant"],
    "unit_stats": ["autoencoder", "sae_id", "metric", "variant", "unit_id"],
    "curves": ["autoencoder", "sae_id", "metric", "curve", "x"],
    "latent_stats": ["autoencoder", "sae_id", "latent"],
    "probe_results": ["autoencoder", "sae_id", "task", "probe", "code", "k"],
    "examples": ["autoencoder", "sae_id", "latent", "kind", "rank"],
}
_LATER: Final = ("probe_results", "examples")  # results published before there were these tables do not hold them


def empty(table: str) -> pd.DataFrame:
    """The named table without rows."""
    return frame(table, [])


def frame(table: str, rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows as the named table: exactly its columns and dtypes."""
    return pd.DataFrame(list(rows), columns=list(TABLES[table])).astype(TABLES[table])


@dataclass(frozen=True)
class MetricResult:
    """What one metric says of one autoencoder.

    metrics: one row per (metric, variant): value with unit, direction (`better`: lower, higher, none), standard error,
        95 % interval and its method, units it rests on, `status` (ok, partial: no interval, na: no value) and reason.
        A missing number is null and has a reason.
    unit_stats: sums num and den per document (`unit_id`) with value = Σ num / Σ den, and n positions.
    curves: y over x.
    latent_stats: one row per latent.
    probe_results: one row per task and probe: losses in nats, accuracy and AUC on the test rows, with what was chosen.
    examples: rows of the evaluation set on which a latent fires, with the tokens around.
    facts: what else a reader of the numbers should know, e.g. whether norm and mean bypass the autoencoder.
    """

    metric: str
    version: int
    metrics: pd.DataFrame
    unit_stats: pd.DataFrame = field(default_factory=lambda: empty("unit_stats"))
    curves: pd.DataFrame = field(default_factory=lambda: empty("curves"))
    latent_stats: pd.DataFrame = field(default_factory=lambda: empty("latent_stats"))
    probe_results: pd.DataFrame = field(default_factory=lambda: empty("probe_results"))
    examples: pd.DataFrame = field(default_factory=lambda: empty("examples"))
    facts: dict[str, Any] = field(default_factory=dict)


def write_metric(draft: Draft, result: MetricResult) -> dict[str, Any]:
    """Write a result's tables (parquet) and record (json) into a draft; returns values by "metric/variant"."""
    for name in TABLES:
        buffer = io.BytesIO()
        getattr(result, name).to_parquet(buffer, index=False)
        draft.write_bytes(f"{name}.parquet", buffer.getvalue())
    draft.write_json(RECORD, {"metric": result.metric, "version": result.version, "facts": result.facts})
    rows = result.metrics
    named = rows["metric"] + "/" + rows["variant"]
    return {name: value for name, value in zip(named, rows["value"], strict=True) if pd.notna(value)}


def read_metric(source: Artefact | Draft) -> MetricResult:
    """Read what `write_metric` wrote, published or still a draft."""
    record = source.read_json(RECORD)
    tables = {name: read_parquet(source, name) for name in TABLES}
    return MetricResult(metric=record["metric"], version=record["version"], facts=record["facts"], **tables)


def read_parquet(source: Artefact | Draft, name: str) -> pd.DataFrame:
    """One table by name, empty where it was published before there was such a table."""
    if name in _LATER and not source.exists(f"{name}.parquet"):
        return empty(name)
    return pd.read_parquet(source.file(f"{name}.parquet"))


def build_table(artefacts: Iterable[Artefact]) -> dict[str, pd.DataFrame]:
    """All results as the tables of `TABLES`, in an order of their content alone.

    Raises:
        EvaluationError: two artefacts hold the same metric and variant of one autoencoder.
    """
    results = [read_metric(artefact) for artefact in artefacts]
    tables = {name: _stack(name, [getattr(result, name) for result in results]) for name in TABLES}
    metrics = tables["metrics"]
    key = ["autoencoder", "sae_id", "evaluation_id", "metric", "variant"]
    twice = metrics[metrics.duplicated(key, keep=False)]
    if len(twice):
        raise EvaluationError(f"two results hold the same figure: {twice[key].iloc[0].to_dict()}")
    return tables


def _stack(name: str, frames: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [part for part in frames if len(part)]
    if not filled:
        return empty(name)
    # results published before a column was added lack it
    stacked = pd.concat(filled, ignore_index=True).reindex(columns=list(TABLES[name])).astype(TABLES[name])
    if name == "latent_stats":
        # a latent that several metrics tell of gets one row; what two of them give is equal but for rounding
        stacked = stacked.groupby(_ORDER[name], as_index=False, sort=False).max()
    return stacked.sort_values(_ORDER[name], kind="stable", ignore_index=True)
