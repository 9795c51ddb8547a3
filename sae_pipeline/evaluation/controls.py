"""The figures of a study beside those of others, its null controls above all: what would come out without structure?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import pandas as pd

from sae_pipeline.study.keys import split_site

COLUMNS: Final = (
    *("site", "autoencoder", "metric", "variant", "unit", "better", "value", "se"),
    *("control", "control_site", "control_value", "control_se", "difference", "difference_se", "reason"),
)
_KEY: Final = ["place", "autoencoder", "metric", "variant"]


def beside(metrics: pd.DataFrame, controls: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every figure of a study with the same figure of the same autoencoder in each control.

    Figures belong together that agree in layer and place of the site, key of the autoencoder, metric and variant. The
    alias at the head of the site may be another, as an untrained twin's is.

    Args:
        metrics: rows of the table `metrics` of the study, of one or more sites.
        controls: by the name of a study, rows of its table `metrics`.

    Returns:
        One row per figure and control, in the order of `metrics`; columns `COLUMNS`. difference = value −
        control_value, with its standard error difference_se = √(se² + control_se²): the two are taken as independent,
        so that it is too large where both rest on the same documents. NaN where a figure or its error is missing;
        `reason` says which, and why.
    """
    if not controls:
        return pd.DataFrame(columns=list(COLUMNS))
    ours = _placed(metrics)
    parts = [_against(ours, _placed(theirs)).assign(control=name) for name, theirs in controls.items()]
    found = pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)
    found["difference"] = found["value"] - found["control_value"]
    found["difference_se"] = np.hypot(found["se"], found["control_se"])
    return found[list(COLUMNS)]


def _placed(metrics: pd.DataFrame) -> pd.DataFrame:
    """With the site but for its alias."""
    return metrics.assign(place=[".".join(split_site(str(site))[1:]) for site in metrics["site"]])


def _against(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Our rows, in their order and by their number, with what stands against each."""
    columns = {"site": "control_site", "value": "control_value", "se": "control_se", "reason": "control_reason"}
    renamed = theirs[[*_KEY, *columns]].rename(columns=columns)
    found = ours.merge(renamed, on=_KEY, how="left", validate="one_to_one").set_axis(ours.index)
    known = set(zip(theirs["place"], theirs["autoencoder"], strict=True))
    here = [pair in known for pair in zip(found["place"], found["autoencoder"], strict=True)]
    lacking = pd.Series(np.where(here, "no such figure", "no such autoencoder at this place"), found.index)
    told = "in the control: " + found["control_reason"].where(found["control_site"].notna(), lacking)
    ours_lacks, control_lacks = found["value"].isna(), found["control_value"].isna()
    return found.assign(reason=found["reason"].where(ours_lacks, told.where(control_lacks)))
