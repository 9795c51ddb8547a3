from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_doubles import (
    D,
    autoencoder,
    constant_autoencoder,
    identity_autoencoder,
    make_inputs,
    normalised_rows,
    value_of,
)

from sae_pipeline.evaluation import METRICS, EvaluationError, reconstruction
from sae_pipeline.measures import Reconstruction

METRIC = METRICS["reconstruction"]


def brute_force(made, evaluation_set, keep=lambda position: position >= 0):
    """NMSE from the definition, densely in float64."""
    u, _, position = normalised_rows(made, evaluation_set)
    u_hat = (made.encode(u).dense(made.config.n) @ made.W_dec + made.b_pre).double()
    chosen = keep(torch.from_numpy(position))
    u, u_hat = u.double()[chosen], u_hat[chosen]
    return float((u - u_hat).square().sum() / (u - u.mean(0)).square().sum())


@pytest.mark.parametrize(
    ("recipe", "k", "normaliser"), [("topk", 4, "paper"), ("relu", None, "rms"), ("topk", 2, "none")]
)
def test_nmse_equals_the_definition(evaluation_set, tmp_path, recipe, k, normaliser):
    made = autoencoder(recipe, k=k, normaliser=normaliser)
    result = METRIC.run(make_inputs(made, evaluation_set, tmp_path / "codes"))
    expected = brute_force(made, evaluation_set)
    assert value_of(result, "nmse")["value"] == pytest.approx(expected, rel=1e-6)
    assert value_of(result, "explained_variance")["value"] == pytest.approx(1 - expected, rel=1e-6)
    without = brute_force(made, evaluation_set, lambda position: position > 0)
    assert value_of(result, "nmse", "without_position_0")["value"] == pytest.approx(without, rel=1e-6)
    assert without != pytest.approx(expected, rel=1e-4), "the variants do not differ here: the test shows nothing"


def test_figures_are_those_of_measures(evaluation_set, tmp_path):
    """One definition: what training reports and what evaluation reports are the same numbers."""
    made = autoencoder()
    result = METRIC.run(make_inputs(made, evaluation_set, tmp_path / "codes"))
    u, _, _ = normalised_rows(made, evaluation_set)
    codes = made.encode(u)
    measure = Reconstruction(D)
    measure.update(u, made.decode(codes))
    for name in ("nmse", "explained_variance", "l2_ratio", "relative_bias", "cosine"):
        assert value_of(result, name)["value"] == pytest.approx(getattr(measure, name), rel=1e-9), name
    assert value_of(result, "l0")["value"] == pytest.approx(float(codes.l0_b.double().mean()), rel=1e-12)


@pytest.mark.parametrize("variant", ["all", "without_position_0"])
def test_conventions_of_others_are_what_they_compute(evaluation_set, tmp_path, variant):
    made = autoencoder()
    result = METRIC.run(make_inputs(made, evaluation_set, tmp_path / "codes"))
    u, _, position = normalised_rows(made, evaluation_set)
    chosen = torch.from_numpy(position) > (-1 if variant == "all" else 0)
    u_hat = made.decode(made.encode(u)).double()[chosen]
    u = u.double()[chosen]
    error_r = (u - u_hat).square()
    expected = {
        "mse": error_r.sum(1).mean(),
        "normalized_mean_squared_error": (error_r.mean(1) / u.square().mean(1)).mean(),
        "explained_variance_legacy": (1 - error_r.sum(1) / (u - u.mean(0)).square().sum(1)).mean(),
    }
    for name, value in expected.items():
        row = value_of(result, name, variant)
        assert row["value"] == pytest.approx(float(value), rel=1e-9) and row["better"] == "none", name


def test_identity_zero_and_mean_predictor(evaluation_set, tmp_path):
    identity = METRIC.run(make_inputs(identity_autoencoder("paper"), evaluation_set, tmp_path / "one"))
    assert value_of(identity, "nmse")["value"] == 0.0
    for name in ("explained_variance", "l2_ratio", "relative_bias", "cosine"):
        assert value_of(identity, name)["value"] == pytest.approx(1.0, abs=1e-12)
    mean_d = normalised_rows(identity_autoencoder("paper"), evaluation_set)[0].double().mean(0).float()
    mean = METRIC.run(make_inputs(constant_autoencoder(mean_d), evaluation_set, tmp_path / "two"))
    assert value_of(mean, "nmse")["value"] == pytest.approx(1.0, abs=1e-9)
    zero = METRIC.run(make_inputs(constant_autoencoder(torch.zeros(D)), evaluation_set, tmp_path / "three"))
    assert value_of(zero, "l2_ratio")["value"] == 0.0
    assert value_of(zero, "l0")["value"] == 0.0
    bias = value_of(zero, "relative_bias")
    assert bias["status"] == "na" and "denominator is 0" in bias["reason"] and np.isnan(bias["value"])


@pytest.mark.parametrize("block_rows", [7, 64])
def test_block_size_does_not_change_a_figure(evaluation_set, tmp_path, monkeypatch, block_rows):
    inputs = make_inputs(autoencoder(), evaluation_set, tmp_path / "codes")
    once = METRIC.run(inputs)
    monkeypatch.setattr(reconstruction, "block_rows_of", lambda n: block_rows)
    again = METRIC.run(inputs)
    pd.testing.assert_frame_equal(again.metrics, once.metrics, check_exact=False, rtol=1e-9)
    pd.testing.assert_frame_equal(again.unit_stats, once.unit_stats, check_exact=False, rtol=1e-9)


def test_sums_per_document_give_the_value_and_count_every_row(evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(autoencoder(), evaluation_set, tmp_path / "codes"))
    for (metric, variant), stats in result.unit_stats.groupby(["metric", "variant"]):
        row = value_of(result, metric, variant)
        assert stats["num"].sum() / stats["den"].sum() == pytest.approx(row["value"], rel=1e-12)
        assert (row["n_units"] == len(stats) and row["ci_lo"] < row["value"] < row["ci_hi"]) or metric == "l0"
    every = result.unit_stats.query("metric == 'nmse' and variant == 'all'")
    assert every["n"].sum() == evaluation_set.n_rows
    assert set(every["unit_id"]) == set(np.unique(normalised_rows(autoencoder(), evaluation_set)[1]))


def test_curve_by_position_is_the_same_ratio_at_each_position(evaluation_set, tmp_path):
    made = autoencoder()
    curve = METRIC.run(make_inputs(made, evaluation_set, tmp_path / "codes")).curves
    u, _, position = normalised_rows(made, evaluation_set)
    error = (u - made.decode(made.encode(u))).double().square().sum(1).numpy()
    centred = (u.double() - u.double().mean(0)).square().sum(1).numpy()
    at_3 = curve[curve["x"] == 3].iloc[0]
    assert at_3["y"] == pytest.approx(error[position == 3].sum() / centred[position == 3].sum(), rel=1e-6)
    assert at_3["n"] == (position == 3).sum()
    assert set(curve["curve"]) == {"nmse_by_position"}


def test_parameters_are_checked(evaluation_set, tmp_path):
    inputs = make_inputs(autoencoder(), evaluation_set, tmp_path / "codes")
    only = METRIC.run(replace(inputs, parameters={"variants": ["all"]}))
    assert set(only.metrics["variant"]) == {"all"}
    with pytest.raises(EvaluationError, match="'without_bos' is not one of all, without_position_0"):
        METRIC.run(replace(inputs, parameters={"variants": ["without_bos"]}))
    with pytest.raises(EvaluationError, match="'variant' is unknown"):
        METRIC.run(replace(inputs, parameters={"variant": ["all"]}))
