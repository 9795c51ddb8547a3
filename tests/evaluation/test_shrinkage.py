from dataclasses import replace

import numpy as np
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
from scipy.optimize import nnls

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.dataset import Normaliser
from sae_pipeline.evaluation import METRICS, EvaluationError, shrinkage
from sae_pipeline.kernels import Parameters

METRIC = METRICS["shrinkage"]
ALL = {"tokens": 10_000}


def shrunk(factor):
    """Orthogonal latents that stand for `factor` of each coordinate; at 1 no code of four latents is better."""
    eye = torch.cat([torch.eye(D), -torch.eye(D)])
    parameters = Parameters(factor * eye, torch.zeros(2 * D), eye.clone(), torch.zeros(D))
    return Autoencoder(AutoencoderConfig("topk", 2 * D, D, 4), parameters, Normaliser("none", D))


@pytest.mark.parametrize(("recipe", "k"), [("topk", 4), ("relu", None)])
def test_equals_non_negative_least_squares(evaluation_set, tmp_path, recipe, k):
    made = autoencoder(recipe, n=24, k=k)
    made.b_enc.sub_(0.2)  # few enough latents that their best values are unique
    result = METRIC.run(make_inputs(made, evaluation_set, tmp_path / "codes", parameters=ALL))
    u_td, document_t, _ = normalised_rows(made, evaluation_set)
    z_tn = made.encode(u_td).dense(24).double().numpy()
    solved = np.zeros_like(z_tn)
    for row, z_n in enumerate(z_tn):
        on = np.flatnonzero(z_n)
        if len(on):
            solved[row, on], _ = nnls(made.W_dec.numpy()[on].T.astype(float), (u_td[row] - made.b_pre).double().numpy())
    W_dec, b_pre, u = (t.double().numpy() for t in (made.W_dec, made.b_pre, u_td))
    before, after = (((u - z @ W_dec - b_pre) ** 2).sum() for z in (z_tn, solved))
    centred = ((u - u.mean(0)) ** 2).sum()
    expected = {
        ("activation_ratio", "all"): solved.sum() / z_tn.sum(),
        ("activation_change", "all"): (solved.sum() - z_tn.sum()) / (z_tn > 0).sum(),
        ("nmse_refined", "before"): before / centred,
        ("nmse_refined", "after"): after / centred,
        ("refinement_gain", "all"): (before - after) / before,
    }
    for (metric, variant), value in expected.items():
        row = value_of(result, metric, variant)
        assert row["value"] == pytest.approx(value, rel=1e-4)
        assert row["ci_lo"] < row["value"] < row["ci_hi"] and row["n_units"] == len(np.unique(document_t))
    dropped = ((z_tn > 0) & (solved < 1e-6)).sum() / (z_tn > 0).sum()
    assert value_of(result, "latents_dropped")["value"] == pytest.approx(dropped, abs=0.01)
    assert after < 0.9 * before, "an autoencoder that is best already tests nothing"


def test_an_optimal_topk_on_orthogonal_latents_is_not_shrunk(evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(shrunk(1.0), evaluation_set, tmp_path / "codes", parameters=ALL))
    assert value_of(result, "activation_ratio")["value"] == pytest.approx(1, abs=1e-6)
    assert value_of(result, "refinement_gain")["value"] == pytest.approx(0, abs=1e-6)
    assert value_of(result, "activation_change")["value"] == pytest.approx(0, abs=1e-6)
    assert list(result.curves["x"][result.curves["y"] > 0]) == [1.0]


def test_what_was_taken_off_is_measured(evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(shrunk(0.8), evaluation_set, tmp_path / "codes", parameters=ALL))
    assert value_of(result, "activation_ratio")["value"] == pytest.approx(1 / 0.8, rel=1e-5)
    curve = result.curves[result.curves["y"] > 0]
    assert list(curve["x"]) == pytest.approx([1.25])
    assert curve["y"].sum() == evaluation_set.n_rows * 4


def test_before_is_the_reconstruction(evaluation_set, tmp_path):
    inputs = make_inputs(autoencoder(), evaluation_set, tmp_path / "codes", parameters=ALL)
    here = value_of(METRIC.run(inputs), "nmse_refined", "before")
    usual = value_of(METRICS["reconstruction"].run(replace(inputs, parameters={})), "nmse")
    for column in ("value", "se", "ci_lo", "ci_hi"):
        assert here[column] == pytest.approx(usual[column], rel=1e-6)


@pytest.mark.parametrize(("recipe", "k"), [("topk", 4), ("relu", None)])
def test_results_do_not_depend_on_the_blocks(evaluation_set, tmp_path, monkeypatch, recipe, k):
    inputs = make_inputs(autoencoder(recipe, k=k), evaluation_set, tmp_path / "codes", parameters={"tokens": 100})
    whole = METRIC.run(inputs)
    monkeypatch.setattr(shrinkage, "_READ_ROWS", 17)
    monkeypatch.setattr(shrinkage, "_SOLVE_VALUES", 5 * 16 * 16)
    parts = METRIC.run(inputs)
    assert parts.facts == whole.facts and whole.facts["rows_refined"] == 100
    for metric, variant in (("activation_ratio", "all"), ("nmse_refined", "after"), ("nmse_refined", "before")):
        found, expected = (value_of(result, metric, variant)["value"] for result in (parts, whole))
        assert found == pytest.approx(expected, rel=1e-5)


def test_limits(evaluation_set, tmp_path):
    exact = METRIC.run(make_inputs(identity_autoencoder(), evaluation_set, tmp_path / "identity", parameters=ALL))
    assert value_of(exact, "activation_ratio")["value"] == pytest.approx(1, rel=1e-6)
    silent = constant_autoencoder(torch.zeros(D))
    none = METRIC.run(make_inputs(silent, evaluation_set, tmp_path / "constant", parameters=ALL))
    assert value_of(none, "activation_ratio")["status"] == "na"
    assert value_of(none, "refinement_gain")["value"] == 0.0
    assert none.curves["y"].sum() == 0


def test_a_bad_number_of_tokens_is_refused(evaluation_set, tmp_path):
    with pytest.raises(EvaluationError, match="metric shrinkage: tokens takes a whole number"):
        METRIC.run(make_inputs(autoencoder(), evaluation_set, tmp_path / "codes", parameters={"tokens": 0}))
