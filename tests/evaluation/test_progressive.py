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

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.dataset import Normaliser
from sae_pipeline.evaluation import METRICS, progressive
from sae_pipeline.kernels import Parameters

METRIC = METRICS["progressive"]


def nmse(made, u_td):
    """Encoded and decoded in full, float64."""
    error_td = u_td.double() - made.decode(made.encode(u_td)).double()
    return float(error_td.square().sum() / (u_td.double() - u_td.double().mean(0)).square().sum())


def curve(result, name):
    rows = result.curves[result.curves["curve"] == name]
    return dict(zip(rows["x"], rows["y"], strict=True))


def thresholded(theta=0.2):
    """Latents with thresholds of their own."""
    made = autoencoder("relu", n=48, k=None)
    parameters = Parameters(made.W_enc, made.b_enc, made.W_dec, made.b_pre)
    parameters.extra["threshold"] = torch.linspace(0, theta, 48)
    return Autoencoder(AutoencoderConfig("jumprelu", 48, D), parameters, Normaliser("paper", D))


@pytest.mark.parametrize("made", [autoencoder(n=48, k=4), autoencoder("relu", n=48, k=None)], ids=["topk", "relu"])
def test_every_length_is_that_topk(evaluation_set, tmp_path, made):
    result = METRIC.run(make_inputs(made, evaluation_set, tmp_path / "codes"))
    u_td = normalised_rows(made, evaluation_set)[0]
    found = curve(result, "progressive_k")
    assert list(found) == list(range(len(found))) and len(found) >= 17
    for k in range(1, len(found)):
        assert found[k] == pytest.approx(nmse(made.with_topk(k), u_td), rel=1e-6)
    for k in (1, 2, 4, 8, 16):
        assert value_of(result, "nmse_at_k", f"k={k}")["value"] == pytest.approx(found[k], rel=1e-12)


def test_the_trained_length_is_the_reconstruction(evaluation_set, tmp_path):
    inputs = make_inputs(autoencoder(n=48, k=4), evaluation_set, tmp_path / "codes")
    result = METRIC.run(inputs)
    usual = value_of(METRICS["reconstruction"].run(inputs), "nmse")
    here = value_of(result, "nmse_at_k", "k=4")
    for column in ("value", "se", "ci_lo", "ci_hi"):
        assert here[column] == pytest.approx(usual[column], rel=1e-6)
    assert result.facts["trained_k"] == 4
    beyond = value_of(result, "nmse_beyond_k", "4k")
    assert beyond["value"] == pytest.approx(curve(result, "progressive_k")[16] / here["value"])
    assert beyond["ci_lo"] < beyond["value"] < beyond["ci_hi"]


@pytest.mark.parametrize(
    "made", [autoencoder(n=48, k=12), autoencoder("relu", n=48, k=None), thresholded()], ids=["topk", "relu", "own"]
)
def test_every_threshold_is_that_jumprelu(evaluation_set, tmp_path, made):
    result = METRIC.run(make_inputs(made, evaluation_set, tmp_path / "codes"))
    u_td = normalised_rows(made, evaluation_set)[0]
    errors, sizes = curve(result, "threshold_nmse"), curve(result, "threshold_l0")
    assert len(errors) > 5 and list(errors) == list(sizes)
    for theta, error in errors.items():
        swapped = made.with_threshold(theta)
        assert error == pytest.approx(nmse(swapped, u_td), rel=1e-6)
        assert sizes[theta] == pytest.approx(float(swapped.encode(u_td).l0_b.double().mean()))


def test_thresholds_below_what_the_cache_holds_are_left_out(evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(autoencoder(n=48, k=2), evaluation_set, tmp_path / "codes"))
    sizes = curve(result, "threshold_l0")
    assert min(sizes) >= result.facts["smallest_threshold"] > 0
    assert max(sizes.values()) < result.facts["longest_code"] == 8
    whole = METRIC.run(make_inputs(autoencoder(n=48, k=12), evaluation_set, tmp_path / "all"))
    assert whole.facts["smallest_threshold"] == 0


def test_limits(evaluation_set, tmp_path):
    whole = METRIC.run(make_inputs(identity_autoencoder(), evaluation_set, tmp_path / "identity"))
    assert value_of(whole, "nmse_at_k", f"k={D}")["value"] == pytest.approx(0, abs=1e-12)
    assert all(np.diff(list(curve(whole, "progressive_k").values())) < 0)  # orthogonal: each latent helps
    silent = METRIC.run(make_inputs(constant_autoencoder(torch.zeros(D)), evaluation_set, tmp_path / "constant"))
    assert len(set(curve(silent, "progressive_k").values())) == 1
    assert not curve(silent, "threshold_l0")


def test_results_do_not_depend_on_the_blocks(evaluation_set, tmp_path, monkeypatch):
    inputs = make_inputs(autoencoder("relu", n=48, k=None), evaluation_set, tmp_path / "codes")
    whole = METRIC.run(inputs)
    monkeypatch.setattr(progressive, "_BLOCK_ROWS", 7)
    parts = METRIC.run(inputs)
    for name in ("metrics", "curves"):
        column = "value" if name == "metrics" else "y"
        assert getattr(parts, name)[column].to_numpy() == pytest.approx(getattr(whole, name)[column].to_numpy())
