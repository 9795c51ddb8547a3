"""What a loss in nats is worth: perplexity, and the training compute of a model that is as good (paper §5.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sae_pipeline.embedded.loss_curve import LossCurve, curve_from, shipped_curve
from sae_pipeline.evaluation.inputs import MetricInputs, metric_row
from sae_pipeline.evaluation.tables import frame

_CURVE = "loss_curve"


class LossRuns:
    """A parameter that lists [training FLOPs, nats per token] of finished runs, the last of them the subject's."""

    def check(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; None if nothing is."""
        wanted = "takes a list of [training FLOPs, nats per token], the subject's own last"
        try:
            curve_from([(float(flops), float(nats)) for flops, nats in value])
        except (TypeError, ValueError, IndexError) as error:
            return f"{wanted}; not {value!r}: {error}"
        return None


def equivalent_rows(inputs: MetricInputs, version: int, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of `perplexity` and `compute_share`, made from those of `ce` and `dce`; intervals go through the same map.

    Both maps are monotone: an interval that holds one holds the other.
    """
    records: list[dict[str, Any]] = [dict(zip(rows.columns, row, strict=True)) for row in rows.itertuples(index=False)]
    found = {(row["metric"], row["variant"]): row for row in records}
    made = [
        _mapped(inputs, version, found["ce", variant], "perplexity", np.exp, better)
        for variant, better in (("spliced", "lower"), ("clean", "none"))
    ]
    return frame("metrics", [*made, _compute_row(inputs, version, found["dce", "all"])])


def _compute_row(inputs: MetricInputs, version: int, dce: dict[str, Any]) -> dict[str, Any]:
    if dce["status"] == "na":
        return _unknown(inputs, version, dce, dce["reason"])
    curve, why_none = _curve(inputs)
    if curve is None:
        return _unknown(inputs, version, dce, why_none)
    share = curve.share(max(0.0, dce["value"]))
    if np.isnan(share):
        least = f"ΔCE is more than the cheapest known run lacks: less than {curve.least_share:.2g} of the compute"
        return _unknown(inputs, version, dce, least)
    row = _mapped(inputs, version, dce, "compute_share", lambda nats: curve.share(max(0.0, nats)), "higher")
    low, high = row["ci_hi"], row["ci_lo"]  # the map falls
    # Beyond the cheapest run all that is known is that it is less.
    return row | {"ci_lo": 0.0 if np.isnan(low) and np.isfinite(high) else low, "ci_hi": high}


def _curve(inputs: MetricInputs) -> tuple[LossCurve | None, str]:
    """ℓ(C) of the subject, from the study or the shipped family; or why there is none."""
    assert inputs.subject is not None
    runs: Sequence[Sequence[float]] | None = inputs.parameters.get(_CURVE)
    if runs is not None:
        return curve_from([(float(flops), float(nats)) for flops, nats in runs]), ""
    curve = shipped_curve(inputs.subject.card.fingerprint)
    return curve, f"no training runs of this subject's family are known; list them as downstream's {_CURVE}"


def _mapped(
    inputs: MetricInputs, version: int, row: dict[str, Any], metric: str, f: Callable[[float], float], better: str
) -> dict[str, Any]:
    """A row with value and both ends of the interval sent through f."""
    kept = {name: row[name] for name in ("n_units", "unit_kind", "status", "reason", "ci_method")}
    kept |= {name: float(f(row[name])) if np.isfinite(row[name]) else np.nan for name in ("ci_lo", "ci_hi")}
    return metric_row(inputs, version, metric, row["variant"], float(f(row["value"])), **kept, better=better)


def _unknown(inputs: MetricInputs, version: int, dce: dict[str, Any], reason: str) -> dict[str, Any]:
    columns = {key: dce[key] for key in ("n_units", "unit_kind")}
    return metric_row(
        inputs, version, "compute_share", "all", float("nan"), **columns, better="higher", status="na", reason=reason
    )
