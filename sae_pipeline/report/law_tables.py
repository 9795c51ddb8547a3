"""The tables of laws: what was fitted, and what was refused and why."""

from collections.abc import Sequence

import pandas as pd

from sae_pipeline.report.formatting import MISSING, number, share
from sae_pipeline.report.html import Child, Markup, join, tag
from sae_pipeline.report.tables import cell, column, table

_TARGETS = {"nmse": "NMSE", "dce": "ΔCE"}
_LAWS = {
    ("L_N", False): ("α·nᵝ", "L(n) = α·n^β"),
    ("L_N", True): ("α·nᵝ + e", "L(n) = α·n^β + e"),
    ("L_NK", False): ("joint", "L(n, k) = exp(α + β_k ln k + β_n ln n + γ ln k ln n)"),
    ("L_NK", True): ("joint + e(k)", "L(n, k) = exp(α + β_k ln k + β_n ln n + γ ln k ln n) + exp(ζ + η ln k)"),
}
_PARAMETERS = {
    "alpha": "α", "beta": "β", "beta_k": "β_k", "beta_n": "β_n", "interaction_nk": "γ", "zeta": "ζ", "eta": "η",
    "irreducible": "e", "reducible_at_centre": "reducible loss at centre",
    "n_exponent_at_centre": "n exponent at centre",
}  # fmt: skip


_INLINE = 3
"""Up to this many parameters a row holds their intervals beside them, else below."""


def fits_tables(fits: pd.DataFrame) -> Markup:
    """The accepted laws, one table per form: parameters with 95 % intervals, size of residuals, hold-out error."""
    targets = list(_TARGETS)
    ordered = fits.assign(
        _target=fits["target"].map(lambda name: targets.index(name) if name in targets else len(targets))
    )
    ordered = ordered.sort_values("_target", kind="stable")
    return join(*(_form_table(str(form), group) for form, group in ordered.groupby("form", sort=True)))


def _form_table(form: str, fits: pd.DataFrame) -> Markup:
    names = list(dict.fromkeys(fits["parameter"]))
    with_k = bool(fits["k"].notna().any())
    head: list[Child] = ["target", "recipe", *([column("k")] if with_k else []), "law"]
    head += [column(_PARAMETERS.get(name, name)) for name in names]
    head += [column(label) for label in ("n", "points", "residual, rms", "held-out error")]
    rows = [_fit_row(form, fit, names, with_k=with_k) for _, fit in fits.groupby("fit_id", sort=False)]
    return table(head, rows)


def _fit_row(form: str, fit: pd.DataFrame, names: Sequence[str], *, with_k: bool) -> Markup:
    first = fit.iloc[0]
    law, formula = _LAWS[form, bool(first["irreducible"])]
    cells = [cell(_TARGETS.get(first["target"], first["target"]), class_=None), cell(str(first["recipe"]), class_=None)]
    if with_k:
        cells.append(cell(number(int(first["k"]))))
    cells.append(cell(law, class_="law", title=formula))
    stacked = "interval stacked" if len(names) > _INLINE else "interval"
    cells += [_parameter(fit[fit["parameter"] == name], stacked) for name in names]
    return tag("tr", *cells, *_quality(first), class_=None if first["preferred"] else "rival")


def _quality(first: "pd.Series[float]") -> list[Markup]:
    held_out = float(first["hold_out_log_error"])
    why = (
        first["hold_out_reason"]
        if pd.isna(held_out)
        else f"mean of ln(predicted / measured) at n = {first['hold_out_n']}"
    )
    return [
        cell(f"{number(int(first['n_min']))} – {number(int(first['n_max']))}"),
        cell(number(int(first["n_points"]))),
        cell(share(float(first["rms_log_residual"]))),
        cell(share(held_out), title=str(why) if pd.notna(why) else None),
    ]


def _parameter(rows: pd.DataFrame, class_: str) -> Markup:
    if rows.empty:
        return cell(MISSING, title="not a parameter of this law")
    row = rows.iloc[0]
    interval = tag("span", f"[{number(float(row['ci_lo']))}, {number(float(row['ci_hi']))}]", class_=class_)
    return cell(join(number(float(row["value"])), " ", interval), title=str(row["ci_method"]))


def refusals_table(refusals: pd.DataFrame) -> Markup:
    """Laws that the points do not identify, gathered by reason."""
    rows = []
    for reason, group in refusals.groupby("reason", sort=False):
        which = join(*(join(tag("code", str(name)), " ") for name in group["fit_id"]))
        rows.append(tag("tr", cell(str(reason), class_=None), cell(which, class_=None), cell(number(len(group)))))
    return table(["reason", "refused", column("laws")], rows)
