from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_doubles import D, autoencoder, constant_autoencoder, make_inputs, normalised_rows, value_of

from sae_pipeline.evaluation import METRICS, EvaluationError, density

METRIC = METRICS["density"]


@pytest.mark.parametrize(("recipe", "k"), [("topk", 4), ("relu", None)])
def test_latent_stats_equal_dense_counting(evaluation_set, tmp_path, recipe, k):
    made = autoencoder(recipe, n=96, k=k)
    result = METRIC.run(make_inputs(made, evaluation_set, tmp_path / "codes"))
    z_tn = made.encode(normalised_rows(made, evaluation_set)[0]).dense(96).double()
    stats, fired = result.latent_stats, (z_tn > 0).sum(0).numpy()
    assert (stats["count"] == fired).all()
    assert stats["density"].to_numpy() == pytest.approx(fired / len(z_tn))
    alive = fired > 0
    assert stats["mean_act"][alive].to_numpy() == pytest.approx(
        (z_tn.sum(0).numpy() / np.maximum(fired, 1))[alive], rel=1e-5
    )
    assert stats["max_act"][alive].to_numpy() == pytest.approx(z_tn.max(0).values.numpy()[alive], rel=1e-5)
    assert stats.loc[~alive, ["mean_act", "max_act"]].isna().all(axis=None)


def test_shares_and_bound(evaluation_set, tmp_path):
    made = autoencoder(n=96, k=2)
    inputs = make_inputs(made, evaluation_set, tmp_path / "codes", dead=(0.25, 100_000))
    result = METRIC.run(inputs)
    stats, rows = result.latent_stats, evaluation_set.n_rows
    silent = value_of(result, "silent")
    assert silent["value"] == (stats["count"] == 0).mean() > 0
    assert (silent["n_units"], silent["unit_kind"], silent["unit"]) == (rows, "token", "fraction")
    assert value_of(result, "silent_bound")["value"] == 3 / rows
    dense = stats["density"] > 0.1
    assert value_of(result, "dense", "above_0.1")["value"] == dense.mean() > 0
    share = stats.loc[dense, "count"].sum() / stats["count"].sum()
    assert value_of(result, "dense_l0_share", "above_0.1")["value"] == pytest.approx(share)
    assert value_of(result, "dead")["value"] == 0.25
    assert value_of(result, "dead")["n_units"] == 100_000
    unknown = value_of(METRIC.run(replace(inputs, dead=None)), "dead")
    assert unknown["status"] == "na" and np.isnan(unknown["value"]) and "not passed in" in unknown["reason"]


def test_histogram_holds_every_latent_that_fired(evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(autoencoder(n=96, k=2), evaluation_set, tmp_path / "codes"))
    assert result.curves["y"].sum() == (result.latent_stats["count"] > 0).sum()
    assert result.curves["x"].max() == 0.0 and set(result.curves["curve"]) == {"density_hist"}
    log_density = np.log10(result.latent_stats["density"].replace(0, np.nan).dropna())
    for row in result.curves.itertuples():
        assert row.y == ((log_density >= row.x) & (log_density < row.x + 0.25)).sum()


def test_autoencoder_that_never_fires_is_all_silent(evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(constant_autoencoder(torch.zeros(D)), evaluation_set, tmp_path / "codes"))
    assert value_of(result, "silent")["value"] == 1.0
    share = value_of(result, "dense_l0_share", "above_0.1")
    assert share["status"] == "na" and share["reason"] == "no latent fired"


def test_portions_do_not_change_counts(evaluation_set, tmp_path, monkeypatch):
    inputs = make_inputs(autoencoder("relu", k=None), evaluation_set, tmp_path / "codes")
    once = METRIC.run(inputs).latent_stats
    monkeypatch.setattr(density, "_ROWS_AT_ONCE", 17)
    again = METRIC.run(inputs).latent_stats
    assert (once["count"] == again["count"]).all()
    assert once["mean_act"].to_numpy() == pytest.approx(again["mean_act"].to_numpy(), rel=1e-12, nan_ok=True)


def test_unknown_parameter_is_refused(evaluation_set, tmp_path):
    inputs = make_inputs(autoencoder(), evaluation_set, tmp_path / "codes", parameters={"tokens": 5})
    with pytest.raises(EvaluationError, match="'tokens' is unknown"):
        METRIC.run(inputs)
