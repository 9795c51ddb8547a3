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
    make_evaluation_set,
    make_inputs,
    value_of,
)

from sae_pipeline.activations import scoring
from sae_pipeline.evaluation import METRICS, EvaluationError

METRIC = METRICS["downstream"]
CONTROLS = ("control_untouched", "control_round_trip")


def brute_force(subject, evaluation_set, made):
    """Mean KL and ΔCE over scored positions: whole logits in float64, one context at a time, a hook of our own."""
    kl, dce = [], []
    for c in range(evaluation_set.n_contexts):
        ids, mask = evaluation_set.ids(c, c + 1), evaluation_set.mask(c, c + 1)
        scored = evaluation_set.scored(c, c + 1)[0]

        def splice(_module, _inputs, output, mask=mask):
            x = output[mask]
            if not len(x):
                return output
            u, scale = made.normaliser.normalise(x)
            changed = output.clone()
            changed[mask] = made.normaliser.denormalise(
                made.encode(u).dense(made.config.n) @ made.W_dec + made.b_pre, scale
            )
            return changed

        with torch.no_grad():
            clean = subject._model(ids).logits[0].double().log_softmax(-1)
            handle = subject._blocks[1].register_forward_hook(splice)
            spliced = subject._model(ids).logits[0].double().log_softmax(-1)
            handle.remove()
        targets = ids[0].roll(-1)
        kl.append((clean.exp() * (clean - spliced)).sum(-1)[scored])
        dce.append((clean - spliced).gather(1, targets[:, None])[:, 0][scored])
    return float(torch.cat(kl).mean()), float(torch.cat(dce).mean())


@pytest.mark.parametrize(("recipe", "k", "normaliser"), [("topk", 4, "paper"), ("relu", None, "none")])
def test_kl_and_dce_equal_brute_force(subject, evaluation_set, tmp_path, recipe, k, normaliser):
    made = autoencoder(recipe, k=k, normaliser=normaliser)
    result = METRIC.run(make_inputs(made, evaluation_set, tmp_path / "codes", subject=subject))
    kl, dce = brute_force(subject, evaluation_set, made)
    assert value_of(result, "kl")["value"] == pytest.approx(kl, rel=1e-5)
    assert value_of(result, "dce")["value"] == pytest.approx(dce, rel=1e-4, abs=1e-6)
    assert kl > 1e-3, "a splice that changes nothing tests nothing"
    assert result.facts["norm_and_mean_bypass"] is (normaliser == "paper")
    assert result.facts["clean_ce_max_abs_difference"] == 0.0


def test_controls_change_nothing(subject, evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(autoencoder(), evaluation_set, tmp_path / "codes", subject=subject))
    for metric in ("kl", "dce"):
        assert value_of(result, metric, "control_untouched")["value"] == 0.0
        assert abs(value_of(result, metric, "control_round_trip")["value"]) < 1e-6
        row = value_of(result, metric, "control_round_trip")
        assert row["better"] == "none" and 1 < row["n_units"] < value_of(result, metric)["n_units"]


def test_identity_autoencoder_costs_nothing(subject, evaluation_set, tmp_path):
    exact = METRIC.run(make_inputs(identity_autoencoder("none"), evaluation_set, tmp_path / "none", subject=subject))
    assert value_of(exact, "kl")["value"] == 0.0 and value_of(exact, "dce")["value"] == 0.0
    assert value_of(exact, "loss_recovered", "mean")["value"] == 1.0
    rounded = METRIC.run(
        make_inputs(identity_autoencoder("paper"), evaluation_set, tmp_path / "paper", subject=subject)
    )
    assert abs(value_of(rounded, "kl")["value"]) < 1e-6


def test_zero_and_mean_autoencoders_are_the_ablations(subject, evaluation_set, tmp_path):
    mean_d = torch.from_numpy(evaluation_set.mean_d).float()
    for name, b_pre in (("zero", torch.zeros(D)), ("mean", mean_d)):
        made = constant_autoencoder(b_pre, "none")
        result = METRIC.run(make_inputs(made, evaluation_set, tmp_path / name, subject=subject))
        assert value_of(result, "loss_recovered", name)["value"] == pytest.approx(0.0, abs=1e-9)
        for metric in ("kl", "dce"):
            reference = value_of(result, metric, f"{name}_ablation")["value"]
            assert value_of(result, metric)["value"] == pytest.approx(reference, rel=1e-6)


def test_company_does_not_change_a_result(subject, evaluation_set, tmp_path):
    inputs = [
        make_inputs(autoencoder(seed=i), evaluation_set, tmp_path / str(i), subject=subject, sae_id=str(i) * 64)
        for i in range(3)
    ]
    together = METRIC.run_many(inputs)
    for one, result in zip(inputs, together, strict=True):
        alone = METRIC.run(one)
        pd.testing.assert_frame_equal(alone.metrics, result.metrics, check_exact=True)
        pd.testing.assert_frame_equal(alone.unit_stats, result.unit_stats, check_exact=True)
        pd.testing.assert_frame_equal(alone.curves, result.curves, check_exact=True)
    assert value_of(together[0], "kl")["value"] != value_of(together[1], "kl")["value"]


def test_logits_are_scored_in_chunks_of_any_size(subject, evaluation_set, tmp_path, monkeypatch):
    inputs = make_inputs(autoencoder(), evaluation_set, tmp_path / "codes", subject=subject)
    whole = METRIC.run(inputs)
    monkeypatch.setattr(scoring, "_CHUNK_VALUES", 3 * 80)
    chunked = METRIC.run(inputs)
    shared = ~whole.metrics["variant"].isin(CONTROLS)
    found, expected = chunked.metrics[shared], whole.metrics[shared]
    assert found["value"].to_numpy() == pytest.approx(expected["value"].to_numpy(), rel=1e-5, nan_ok=True)


def test_micro_batch_changes_rounding_only(subject, tmp_path):
    values = []
    for micro_batch in (3, 8):
        made_of = make_evaluation_set(subject, tmp_path / f"set{micro_batch}", micro_batch)
        inputs = make_inputs(autoencoder(), made_of, tmp_path / f"codes{micro_batch}", subject=subject)
        result = METRIC.run(inputs)
        values.append([value_of(result, name)["value"] for name in ("kl", "dce")])
        assert value_of(result, "kl", "control_untouched")["value"] == 0.0
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_documents_sum_to_the_value_and_positions_to_the_total(subject, evaluation_set, tmp_path):
    result = METRIC.run(make_inputs(autoencoder(), evaluation_set, tmp_path / "codes", subject=subject))
    stats = result.unit_stats.query("metric == 'dce' and variant == 'all'")
    scored = evaluation_set.scored(0, evaluation_set.n_contexts).numpy()
    assert stats["n"].sum() == scored.sum()
    assert stats["num"].sum() / stats["den"].sum() == pytest.approx(value_of(result, "dce")["value"])
    curve = result.curves.query("curve == 'dce_by_position'")
    assert (curve["y"] * curve["n"]).sum() == pytest.approx(stats["num"].sum())
    assert list(curve["x"]) == list(np.flatnonzero(scored.any(axis=0)))


def test_subject_is_required_and_ablations_are_checked(subject, evaluation_set, tmp_path):
    inputs = make_inputs(autoencoder(), evaluation_set, tmp_path / "codes")
    with pytest.raises(EvaluationError, match="runs the subject model"):
        METRIC.run(inputs)
    only = METRIC.run(replace(inputs, subject=subject, parameters={"ablations": ["mean"]}))
    assert set(only.metrics.query("metric == 'loss_recovered'")["variant"]) == {"mean"}
    with pytest.raises(EvaluationError, match="'resample' is not one of zero, mean"):
        METRIC.run(replace(inputs, subject=subject, parameters={"ablations": ["resample"]}))
