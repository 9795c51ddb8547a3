"""From the tidy evaluation tables to what is drawn: one row, one histogram, one curve per autoencoder."""

import pandas as pd

from sae_pipeline.report.densities import DensityHistogram
from sae_pipeline.report.quantities import QUANTITIES

_SHOWN = ("ok", "partial")


def matched_table(metrics: pd.DataFrame, autoencoders: pd.DataFrame) -> pd.DataFrame:
    """One row per autoencoder of one site: the most frequent recipe first, then by k, n and key.

    Args:
        metrics: long table with autoencoder, metric, variant, value, ci_lo, ci_hi, ci_method, n_units, unit_kind,
            status, reason.
        autoencoders: autoencoder, recipe, n, k (missing for recipes without one), seed, sae_id.

    Returns:
        The columns of `autoencoders`, and for each quantity q of `QUANTITIES` q, q_lo, q_hi (NaN where missing) and
        q_note: why it is missing, or what it rests on.
    """
    often = autoencoders.groupby("recipe")["recipe"].transform("size")
    ordered = autoencoders.assign(_often=-often).sort_values(["_often", "recipe", "k", "n", "autoencoder"])
    table = ordered.drop(columns="_often").set_index("autoencoder")
    for name, quantity in QUANTITIES.items():
        chosen = metrics[(metrics["metric"] == quantity.metric) & (metrics["variant"] == quantity.variant)]
        rows = chosen.drop_duplicates("autoencoder", keep="last").set_index("autoencoder").reindex(table.index)
        ok = rows["status"].isin(_SHOWN)
        table[name] = rows["value"].where(ok).astype(float)
        for end in ("lo", "hi"):
            table[f"{name}_{end}"] = rows[f"ci_{end}"].where(ok).astype(float)
        table[f"{name}_note"] = [_note(row) for _, row in rows.iterrows()]
    return table.reset_index()


def _note(row: "pd.Series[float]") -> str:
    """Why a value is missing, or what it and its interval rest on."""
    status, reason, units = row["status"], row["reason"], row["n_units"]
    if not isinstance(status, str):
        return "not evaluated"
    if status not in _SHOWN:
        return reason if isinstance(reason, str) and reason else status
    parts = [reason] if isinstance(reason, str) and reason else []
    if pd.notna(row["ci_lo"]):
        parts.append(f"95 % interval by {row['ci_method']}")
    if units > 0:
        parts.append(f"{int(units):,} {row['unit_kind']}s")
    return "; ".join(parts)


def latent_densities(curves: pd.DataFrame, autoencoders: pd.DataFrame) -> dict[str, DensityHistogram]:
    """Histogram of latent density by autoencoder: curve `density_hist`; `autoencoders` has autoencoder and n."""
    sizes = autoencoders.set_index("autoencoder")["n"]
    chosen = curves[(curves["curve"] == "density_hist") & curves["autoencoder"].isin(sizes.index)]
    return {
        str(key): DensityHistogram.of_curve(group, int(sizes[key]))
        for key, group in chosen.groupby("autoencoder", sort=True)
    }


def by_autoencoder(curves: pd.DataFrame, name: str) -> dict[str, pd.DataFrame]:
    """The curve `name` (x, y) of each autoencoder that has it."""
    chosen = curves[curves["curve"] == name]
    return {str(key): group[["x", "y"]] for key, group in chosen.groupby("autoencoder", sort=True)}
