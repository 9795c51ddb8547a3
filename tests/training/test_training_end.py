"""When a member ends: at its budget, once it has converged, or given up; and the same after a kill."""

import json
import math

import pandas as pd
import pytest
from training_doubles import Rows, StopAt, make_spec, planted

from sae_pipeline.study import Stop, StopRule
from sae_pipeline.training import audit_frame, learning_rate, train
from sae_pipeline.training.ending import Ending
from sae_pipeline.training.log import TIMING


def rows_of(curve, *, dead=0.0, first=1, every=1):
    return [{"step": first + every * i, "nmse": nmse, "dead": dead} for i, nmse in enumerate(curve)]


def power_law(steps, exponent):
    return [(step + 1) ** -exponent for step in range(steps)]


def test_a_power_law_converges_once_and_only_if_it_is_flat_enough():
    """t^-a loses 1 - 0.75^a over any last quarter: the rule tells a = 0.01 (0.29 %) from a = 0.05 (1.4 %)."""
    spec = make_spec(tokens=128 * 1000, warmup_steps=0, decay_last=0.0, stop=Stop(converged=0.005))
    flat, steep = Ending(spec, rows=rows_of(power_law(1000, 0.01))), Ending(spec, rows=rows_of(power_law(1000, 0.05)))
    assert flat.converged_step == flat.steps == 100  # the earliest: a tenth of the budget
    assert (steep.converged_step, steep.steps) == (None, 1000)


def test_convergence_is_seen_a_window_after_the_error_has_stopped_falling():
    spec = make_spec(tokens=128 * 1000, warmup_steps=0, decay_last=0.2, stop=Stop(converged=0.005))
    curve = [max(1.0 - step / 400, 0.25) for step in range(1000)]  # flat from step 300 on
    found = Ending(spec, rows=rows_of(curve))
    assert found.converged_step is not None and 400 <= found.converged_step <= 600
    assert found.steps == math.ceil(found.converged_step / 0.8)


@pytest.mark.parametrize(
    ("settings", "not_before"),
    [
        ({"warmup_steps": 300}, 400),
        ({"resample": (0.2, 0.5)}, 666),
        ({"recipe": "relu", "k": None, "l1": 0.1, "l1_warmup": 0.4}, 533),
    ],
)
def test_convergence_waits_for_what_moves_the_error_besides_training(settings, not_before):
    spec = make_spec(tokens=128 * 1000, decay_last=0.0, stop=Stop(converged=0.005), **settings)
    found = Ending(spec, rows=rows_of([0.5] * 1000)).converged_step
    assert not_before <= found <= not_before + 2


def test_the_decay_of_the_whole_budget_is_no_convergence():
    spec = make_spec(tokens=128 * 1000, warmup_steps=0, decay_last=0.5, stop=Stop(converged=0.005))
    curve = [1.0 - step / 1000 for step in range(500)] + [0.5] * 500
    assert Ending(spec, rows=rows_of(curve)).converged_step is None
    assert Ending(make_spec(tokens=128 * 1000), rows=rows_of([0.5] * 1000)).steps == 1000  # without a rule


def test_rows_without_an_error_are_passed_over():
    spec = make_spec(tokens=128 * 1000, warmup_steps=0, decay_last=0.0, stop=Stop(converged=0.005))
    with_gaps = [float("nan") if step % 7 == 0 else 0.5 for step in range(1000)]
    assert Ending(spec, rows=rows_of(with_gaps)).converged_step == 100


def test_the_rate_decays_from_where_convergence_was_found():
    spec = make_spec(tokens=128 * 1000, lr=1.0, warmup_steps=10, decay_last=0.2)
    assert learning_rate(spec, 400, 500) == 1.0 and learning_rate(spec, 450, 500) == pytest.approx(0.5)
    assert learning_rate(spec, 499, 500) == pytest.approx(0.01)
    assert learning_rate(spec, 499) == 1.0


CONVERGING = {"tokens": 128 * 600, "lr": 2e-2, "warmup_steps": 5, "stop": Stop(converged=0.03)}


def test_a_member_that_converged_ends_early_and_says_so(member, rows):
    ends, whole = member("ends", **CONVERGING), member("whole", **(CONVERGING | {"stop": None}))
    outcomes = train({"ends": ends, "whole": whole}, rows)
    figures, log = outcomes["ends"].figures, pd.read_parquet(ends.draft.file("training.parquet"))
    assert outcomes["whole"].step == 600 and "converged_at_tokens" not in outcomes["whole"].figures
    assert outcomes["ends"].step == math.ceil(figures["converged_at_tokens"] / 128 / 0.8) < 600
    assert (figures["tokens"], figures["budget_tokens"]) == (outcomes["ends"].step * 128, 600 * 128)
    assert figures == json.loads(json.dumps(figures)) == ends.draft.read_json("training.json")
    assert log["step"].iloc[-1] == outcomes["ends"].step and log["lr"].iloc[-1] < 0.1 * ends.spec.lr
    before = log["tokens"] < figures["converged_at_tokens"]
    assert set(log["end_tokens"][before]) == {600 * 128} and set(log["end_tokens"][~before]) == {figures["tokens"]}
    audit = audit_frame(ends.draft, rows.rows_md[:500]).iloc[0]
    assert audit["tokens"] == audit["tokens_expected"] == figures["tokens"]


def test_the_audit_sees_an_end_that_the_log_does_not_call_for(member, rows):
    m = member(**CONVERGING)
    train({"a": m}, rows)
    m.draft.write_json("training.json", m.draft.read_json("training.json") | {"tokens": 128 * 300})
    audit = audit_frame(m.draft, rows.rows_md[:500]).iloc[0]
    assert audit["tokens"] != audit["tokens_expected"]


@pytest.mark.parametrize("stops", [(70, 330), (402, 60)])
def test_one_that_converges_is_the_same_after_interruptions(member, rows, stops):
    whole = member("whole", **CONVERGING)
    train({"a": whole}, rows)
    for stop in stops:
        pieces = member("pieces", **CONVERGING)
        assert train({"a": pieces}, rows, should_stop=StopAt(stop))["a"].status == "stopped"
        pieces.draft.close()
    pieces = member("pieces", **CONVERGING)
    assert train({"a": pieces}, rows)["a"].status == "finished"
    for name in ("autoencoder.safetensors", "training.json", "training.parquet"):
        one, other = whole.draft.file(name), pieces.draft.file(name)
        if name.endswith("parquet"):
            kept = [pd.read_parquet(path).drop(columns=list(TIMING)) for path in (one, other)]
            pd.testing.assert_frame_equal(*kept, check_exact=True)
        elif name.endswith("json"):
            kept = [json.loads(path.read_text()) | {"train_s": 0} for path in (one, other)]
            assert kept[0] == kept[1]
        else:
            assert one.read_bytes() == other.read_bytes()


DYING = {"n": 256, "k": 4, "init": "independent", "lr": 1e-2, "tokens": 128 * 200, "auxk_k": None}


def test_a_hopeless_member_is_given_up_and_goes_on_once_the_rule_is_relaxed(member):
    rows = Rows(planted(features=600)[0])
    whole, given_up, good = member("whole", **DYING), member("given-up", **DYING), member("good")
    train({"a": whole}, rows)
    rule = StopRule(dead=0.3, after=0.25)
    outcomes = train({"bad": given_up, "good": good}, rows, stop_if=rule)
    assert (outcomes["bad"].status, outcomes["good"].status) == ("hopeless", "finished")
    assert "of its latents are dead after 25 % of its budget" in outcomes["bad"].error
    assert outcomes["bad"].step == 50 and not given_up.draft.exists("config.json")
    given_up.draft.close()
    again = member("given-up", **DYING)
    known = train({"bad": again}, Rows(rows.rows_md, batch_of_nan=range(50, 60)), stop_if=rule)["bad"]
    assert (known.status, known.step, known.error) == ("hopeless", 50, outcomes["bad"].error)
    outcome = train({"bad": again}, rows, stop_if=StopRule(nmse=1.0, after=0.1))["bad"]
    assert outcome.status == "finished"
    assert (
        again.draft.file("autoencoder.safetensors").read_bytes()
        == whole.draft.file("autoencoder.safetensors").read_bytes()
    )


def test_a_member_worse_than_the_mean_is_given_up(member, rows):
    m = member(tokens=128 * 200)
    outcome = train({"a": m}, rows, stop_if=StopRule(nmse=0.3, after=0.1))["a"]
    assert outcome.status == "hopeless" and outcome.step == 20 and "its training NMSE is" in outcome.error


def test_a_rule_without_a_limit_is_refused():
    with pytest.raises(ValueError, match="give dead, nmse or both"):
        StopRule(after=0.5)
