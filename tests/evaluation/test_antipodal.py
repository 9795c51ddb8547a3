import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_doubles import D, autoencoder, make_inputs, value_of

from sae_pipeline.autoencoders import Autoencoder, AutoencoderConfig
from sae_pipeline.dataset import Normaliser
from sae_pipeline.evaluation import METRICS, EvaluationError, antipodal
from sae_pipeline.kernels import Parameters
from sae_pipeline.measures import directions

METRIC = METRICS["antipodal"]


def made_of(W_enc, W_dec):
    n = len(W_dec)
    parameters = Parameters(W_enc.clone(), torch.zeros(n), W_dec.clone(), torch.zeros(D))
    return Autoencoder(AutoencoderConfig("topk", n, D, min(4, n)), parameters, Normaliser("paper", D))


def with_pairs():
    """48 latents: 0 opposes 1 by decoder and encoder, 2 opposes 3 by decoder alone, 4 is 5 by both, 6 is 7 by encoder;
    8 has no direction at all."""
    random = autoencoder(seed=5)
    W_dec, W_enc = random.W_dec.clone(), 3 * torch.randn(48, D, generator=torch.Generator().manual_seed(6))
    W_dec[1], W_enc[1] = -W_dec[0], -2 * W_enc[0]
    W_dec[3] = -W_dec[2]
    W_dec[5], W_enc[5] = W_dec[4], W_enc[4]
    W_enc[7] = 0.1 * W_enc[6]
    W_dec[8], W_enc[8] = 0.0, 0.0
    return made_of(W_enc, W_dec)


def cosines(W):
    unit = W.double() / W.double().norm(dim=1, keepdim=True).clamp_min(1e-300)
    return (unit @ unit.T).numpy()


def test_planted_pairs_are_found(evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(with_pairs(), evaluation_set, tmp_path / "codes"))
    found = {(row.metric, row.variant): row.value for row in result.metrics.itertuples()}
    assert found["antipodal", "decoder"] == 4 / 48 and found["antipodal", "encoder"] == 2 / 48
    assert found["duplicate", "decoder"] == 2 / 48 and found["duplicate", "encoder"] == 4 / 48
    assert found["antipodal", "both"] == 2 / 48 and found["duplicate", "both"] == 2 / 48
    row = value_of(result, "antipodal", "both")
    assert (row["unit"], row["n_units"], row["unit_kind"], row["status"]) == ("fraction", 48, "latent", "ok")


def test_both_asks_for_one_and_the_same_other_latent():
    W = torch.eye(D)[:6].clone()
    W_dec, W_enc = W.clone(), W.clone()
    W_dec[1], W_enc[2] = -W_dec[0], -W_enc[0]
    found = antipodal.extremes(W_dec, W_enc)
    assert found["decoder"][1][0] == found["encoder"][1][0] == -1.0
    assert found["both"][1][0] == 0.0


@pytest.mark.parametrize("block_values", [1, 48 * 7, 1 << 22])
def test_blocks_give_what_the_whole_matrix_gives(monkeypatch, block_values):
    made = with_pairs()
    monkeypatch.setattr(directions, "_BLOCK_VALUES", block_values)
    found = antipodal.extremes(made.W_dec, made.W_enc)
    whole = {"decoder": (cosines(made.W_dec),) * 2, "encoder": (cosines(made.W_enc),) * 2}
    whole["both"] = tuple(pick(whole["decoder"][0], whole["encoder"][0]) for pick in (np.minimum, np.maximum))
    itself = np.eye(48, dtype=bool)
    for side, (least, most) in whole.items():
        assert found[side][0] == pytest.approx(np.where(itself, -9, least).max(1), abs=1e-6)
        assert found[side][1] == pytest.approx(np.where(itself, 9, most).min(1), abs=1e-6)


def test_threshold_moves_the_shares_and_is_recorded(evaluation_set, tmp_path):
    made = with_pairs()
    nearest_n, opposite_n = antipodal.extremes(made.W_dec, made.W_enc)["decoder"]
    inputs = make_inputs(made, evaluation_set, tmp_path / "codes", parameters={"threshold": 0.4})
    result = METRIC.run(inputs)
    assert result.facts == {"threshold": 0.4}
    assert value_of(result, "duplicate", "decoder")["value"] == (nearest_n > 0.4).mean() > 2 / 48
    assert value_of(result, "antipodal", "decoder")["value"] == (opposite_n < -0.4).mean() > 4 / 48
    with pytest.raises(EvaluationError, match="threshold takes a number from 0 to 1"):
        METRIC.check_parameters({"threshold": 1.5})


def test_random_latents_are_as_near_as_chance_says(evaluation_set, tmp_path):
    n = 400
    generator = torch.Generator().manual_seed(9)
    W = torch.randn(n, D, generator=generator)
    result = METRIC.run(make_inputs(made_of(W, W), evaluation_set, tmp_path / "codes"))
    chance = value_of(result, "nearest_cosine", "random")["value"]
    assert value_of(result, "nearest_cosine", "decoder")["value"] == pytest.approx(chance, rel=0.03)


def test_curves_hold_every_latent(evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(with_pairs(), evaluation_set, tmp_path / "codes"))
    assert (result.curves.groupby("curve")["y"].sum() == 48).all()
    opposite = result.curves.query("curve == 'decoder_opposite' and x < -0.9")
    assert opposite["y"].sum() == 4 and pd.notna(result.curves["y"]).all()


def test_a_single_latent_has_no_neighbour(evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(autoencoder("relu", n=1, k=None), evaluation_set, tmp_path / "codes"))
    assert set(result.metrics["status"]) == {"na"} and set(result.metrics["reason"]) == {
        "the autoencoder has a single latent"
    }
    assert result.curves["y"].sum() == 0
