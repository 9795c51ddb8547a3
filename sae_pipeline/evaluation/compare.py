"""Two autoencoders of one site beside each other: every figure they share, paired over documents where it can be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from sae_pipeline.evaluation.bootstrap import compare_paired
from sae_pipeline.evaluation.errors import EvaluationError

COLUMNS: Final = (
    *("metric", "variant", "unit", "better", "a", "b"),
    *("difference", "se", "ci_lo", "ci_hi", "p_better", "n_units"),
    *("se_eval", "se_seed", "n_seeds", "min_reliable_diff", "verdict"),
)


def compare(tables: Mapping[str, pd.DataFrame], a: str, b: str, *, resamples: int, seed: int) -> pd.DataFrame:
    """Every figure that two autoencoders have in the tables of their site.

    Args:
        tables: saes, metrics and unit_stats, as `read_tables` gives them.
        a: key of an autoencoder.
        b: key of another.
        resamples: of the paired bootstrap.
        seed: of the paired bootstrap.

    Returns:
        One row per metric and variant; columns `COLUMNS`. difference is a − b with its standard error and 95 % interval
        over the same documents, p_better the chance that a is the better one (NaN where neither direction is better or
        a figure has no documents). se_eval is the standard error of one of the two figures from the choice of
        documents; se_seed that from the seed of training, the spread over the n_seeds autoencoders that differ from a
        or b in nothing else (NaN where there is one each). min_reliable_diff = 1.96 √2 √(se_eval² + se_seed²): two
        autoencoders that were trained and measured afresh differ by less in 95 % of all cases if they are equal.
        verdict: "a", "b", "tie" (the interval holds 0, or the difference is below min_reliable_diff), or "" where
        neither direction is better.

    Raises:
        EvaluationError: a key is not in the tables, or both are the same.
    """
    known = tables["saes"]["autoencoder"].tolist()
    for key in (a, b):
        if key not in known:
            raise EvaluationError(f"there is no autoencoder {key!r} in this table; there are {', '.join(known)}")
    if a == b:
        raise EvaluationError(f"{a} is compared with itself; name two autoencoders")
    figures = tables["metrics"].set_index(["metric", "variant"]).sort_index()
    of_a, of_b = (figures[figures["autoencoder"] == key] for key in (a, b))
    rows = [
        _row(tables, figure, of_a.loc[figure], of_b.loc[figure], resamples, seed)
        for figure in of_a.index.intersection(of_b.index, sort=False)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(
    tables: Mapping[str, pd.DataFrame],
    figure: tuple[str, str],
    a: pd.Series[Any],
    b: pd.Series[Any],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    better = str(a["better"])
    row: dict[str, Any] = {
        "metric": figure[0], "variant": figure[1], "unit": a["unit"], "better": better,
        "a": a["value"], "b": b["value"], "difference": a["value"] - b["value"], "n_units": 0,
    }  # fmt: skip
    stats = tables["unit_stats"]
    chosen = stats[(stats["metric"] == figure[0]) & (stats["variant"] == figure[1])]
    of_a, of_b = (chosen[chosen["autoencoder"] == one["autoencoder"]] for one in (a, b))
    if len(of_a) > 1 and set(of_a["unit_id"]) == set(of_b["unit_id"]):
        row |= vars(compare_paired(of_a, of_b, resamples, seed, lower_is_better=better == "lower"))
    if better == "none":
        row["p_better"] = np.nan
    row["se_eval"] = float(np.sqrt(np.mean(np.square([a["se"], b["se"]]))))
    row["se_seed"], row["n_seeds"] = _seed_spread(tables, figure, (a["autoencoder"], b["autoencoder"]))
    noise = np.nansum(np.square([row["se_eval"], row["se_seed"]]))
    row["min_reliable_diff"] = 1.96 * float(np.sqrt(2 * noise)) if np.isfinite(row["se_eval"]) else np.nan
    return row | {"verdict": _verdict(row)}


def _seed_spread(
    tables: Mapping[str, pd.DataFrame], figure: tuple[str, str], keys: tuple[str, str]
) -> tuple[float, int]:
    """Standard deviation of a figure over seeds, pooled over the training of both, and how many there are."""
    saes = tables["saes"]
    metrics = tables["metrics"]
    values = metrics[(metrics["metric"] == figure[0]) & (metrics["variant"] == figure[1])]
    described = values.merge(saes, on=["autoencoder", "sae_id"], suffixes=("", "_sae"))
    described = described.assign(family=[_family(row) for _, row in described.iterrows()])
    families = set(described.loc[described["autoencoder"].isin(keys), "family"])
    groups = [group["value"].dropna() for name, group in described.groupby("family") if name in families]
    squares, freedom = sum(float(((g - g.mean()) ** 2).sum()) for g in groups), sum(max(0, len(g) - 1) for g in groups)
    return (float(np.sqrt(squares / freedom)) if freedom else np.nan), sum(map(len, groups))


def _family(sae: pd.Series[Any]) -> str:
    """What an autoencoder's key says beside its seed."""
    seed = f"-s{sae['seed']}"
    return str(sae["autoencoder"]).removesuffix(seed)


def _verdict(row: Mapping[str, Any]) -> str:
    if row["better"] == "none" or not np.isfinite(row.get("ci_lo", np.nan)):
        return ""
    sure = row["ci_lo"] > 0 or row["ci_hi"] < 0
    if not sure or abs(row["difference"]) < row["min_reliable_diff"]:
        return "tie"
    return "a" if (row["difference"] < 0) == (row["better"] == "lower") else "b"
