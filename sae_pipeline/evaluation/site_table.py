"""The table of a site: every published metric of every autoencoder, beside what the autoencoders are."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from sae_pipeline.evaluation.tables import TABLES, build_table, read_parquet
from sae_pipeline.store import Artefact, Draft

RECORD: Final = "table.json"


def write_table(draft: Draft, artefacts: Sequence[Artefact], saes: pd.DataFrame, *, expected: int) -> dict[str, Any]:
    """Write saes, metrics, unit_stats, curves, latent_stats, probe_results and examples as parquet.

    Args:
        draft: the open draft.
        artefacts: results of metrics, in any order.
        saes: one row per autoencoder: autoencoder, sae_id, recipe, n, k, seed and whatever else describes it.
        expected: how many results there should be.

    Returns:
        Summary: autoencoders, results, results_expected, rows.

    Raises:
        EvaluationError: two artefacts hold the same figure.
    """
    tables = {"saes": saes.sort_values(["autoencoder", "sae_id"], ignore_index=True), **build_table(artefacts)}
    for name, frame in tables.items():
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        draft.write_bytes(f"{name}.parquet", buffer.getvalue())
    summary = {
        "autoencoders": len(saes),
        "results": len(artefacts),
        "results_expected": expected,
        "rows": len(tables["metrics"]),
    }
    draft.write_json(RECORD, summary)
    return summary


def read_tables(source: Draft | Artefact) -> dict[str, pd.DataFrame]:
    """The six tables by name."""
    return {name: read_parquet(source, name) for name in ("saes", *TABLES)}


def audit_table(source: Draft | Artefact) -> pd.DataFrame:
    """One row on a site's table, read back from disk.

    Columns: rows, duplicates (figures that are there twice), results, results_expected, disorder_beyond_2se
    (neighbours in n at equal k, or in k at equal n, whose NMSE rises by more than two standard errors).
    """
    tables, record = read_tables(source), source.read_json(RECORD)
    metrics = tables["metrics"]
    key = ["autoencoder", "sae_id", "evaluation_id", "metric", "variant"]
    figures = {
        "rows": len(metrics),
        "duplicates": int(metrics.duplicated(key).sum()),
        "results": record["results"],
        "results_expected": record["results_expected"],
        "disorder_beyond_2se": _disorder(metrics, tables["saes"]),
    }
    return pd.DataFrame([figures])


def _disorder(metrics: pd.DataFrame, saes: pd.DataFrame) -> int:
    nmse = metrics[(metrics["metric"] == "nmse") & (metrics["variant"] == "all")]
    points = saes.dropna(subset=["k"]).merge(nmse[["sae_id", "value", "se"]], on="sae_id")
    count = 0
    for along, same in (("n", ["recipe", "k", "seed"]), ("k", ["recipe", "n", "seed"])):
        for _, group in points.groupby(same, sort=True):
            in_order = group.sort_values(along)
            se = in_order["se"].fillna(0.0).to_numpy()
            rise = np.diff(in_order["value"].to_numpy())
            count += int((rise > 2 * np.sqrt(se[1:] ** 2 + se[:-1] ** 2)).sum())
    return count
