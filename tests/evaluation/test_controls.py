import numpy as np
import pandas as pd
import pytest

from sae_pipeline.evaluation import beside
from sae_pipeline.evaluation.controls import COLUMNS
from sae_pipeline.evaluation.tables import frame

SMALL, LARGE = "topk-n64-k4", "topk-n128-k4"


def figure(site, key, metric, value, se=np.nan, variant="all", reason=None):
    return {
        "autoencoder": key, "sae_id": f"{site}{key}", "site": site, "evaluation_id": "e", "metric": metric,
        "variant": variant, "value": value, "unit": "1", "better": "lower", "se": se, "n_units": 9,
        "status": "na" if np.isnan(value) else "ok", "reason": reason, "metric_version": 1,
    }  # fmt: skip


@pytest.fixture
def real():
    return frame(
        "metrics",
        [
            figure("code.2.resid_post", SMALL, "nmse", 0.3, 0.03),
            figure("code.2.resid_post", LARGE, "nmse", 0.2, 0.03),
            figure("code.2.mlp_out", SMALL, "nmse", 0.5, 0.03),
            figure("code.2.resid_post", SMALL, "silent", 0.1),
            figure("code.2.resid_post", SMALL, "dead", np.nan, reason="training did not tell"),
            figure("code.2.resid_post", SMALL, "dce", 0.7, 0.1),
        ],
    )


@pytest.fixture
def twin():
    """In another order, with another alias, a wider grid and less measured."""
    return frame(
        "metrics",
        [
            figure("a.twin.2.resid_post", "relu-n64-l0.1", "nmse", 0.9, 0.04),
            figure("a.twin.2.resid_post", SMALL, "silent", 0.4),
            figure("a.twin.2.resid_post", SMALL, "dead", 0.5),
            figure("a.twin.2.resid_post", SMALL, "nmse", 0.6, 0.04),
        ],
    )


def test_figures_meet_by_place_autoencoder_metric_and_variant(real, twin):
    found = beside(real, {"twin": twin})
    assert list(found.columns) == list(COLUMNS) and set(found["control"]) == {"twin"}
    pd.testing.assert_frame_equal(
        found[["site", "autoencoder", "metric", "value"]], real[["site", "autoencoder", "metric", "value"]]
    )
    first = found.iloc[0]
    assert (first["control_site"], first["control_value"], first["control_se"]) == ("a.twin.2.resid_post", 0.6, 0.04)
    assert first["difference"] == pytest.approx(-0.3) and first["difference_se"] == pytest.approx(0.05)
    assert pd.isna(first["reason"])
    counts = found.set_index("metric").loc["silent"]
    assert counts["difference"] == pytest.approx(-0.3) and np.isnan(counts["difference_se"])


def test_what_is_missing_says_where_and_why(real, twin):
    twin.loc[twin["metric"] == "silent", ["value", "reason"]] = [np.nan, "no row"]
    found = beside(real, {"twin": twin})
    assert found["reason"].fillna("").tolist() == [
        "",
        "in the control: no such autoencoder at this place",
        "in the control: no such autoencoder at this place",
        "in the control: no row",
        "training did not tell",
        "in the control: no such figure",
    ]
    assert found["difference"].notna().tolist() == [True, False, False, False, False, False]


def test_several_controls_stand_next_to_one_another(real, twin):
    drawn = real.assign(value=real["value"] + 0.1)
    found = beside(real.iloc[::-1], {"twin": twin, "drawn": drawn})
    assert found["control"].tolist() == ["twin", "drawn"] * len(real)
    assert found["metric"].tolist()[::2] == real["metric"].tolist()
    assert found.query("control == 'drawn'")["difference"].dropna().to_numpy() == pytest.approx(-0.1)
    assert beside(real, {}).empty and list(beside(real, {}).columns) == list(COLUMNS)


def test_a_figure_that_is_there_twice_is_not_joined(real, twin):
    with pytest.raises(pd.errors.MergeError):
        beside(real, {"twin": pd.concat([twin, twin])})
