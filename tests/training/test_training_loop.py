import json

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from training_doubles import Rows, StopAt, make_spec, planted

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.measures.recovery import mean_correlation
from sae_pipeline.store import PipelineError
from sae_pipeline.training import audit_frame, checkpoint, train
from sae_pipeline.training import run as run_module
from sae_pipeline.training.log import COLUMNS, TIMING


def weights(member):
    return (member.draft.path / "autoencoder.safetensors").read_bytes()


def log(member):
    return pd.read_parquet(member.draft.path / "training.parquet").drop(columns=list(TIMING))


def test_planted_dictionary_is_recovered(member):
    rows_md, dictionary_fd = planted()
    m = member(n=96, tokens=128 * 1200, lr=5e-3, ema=0.99, dead_after_tokens=128 * 30)
    outcome = train({"a": m}, Rows(rows_md), held_out_xd=planted(2000, draw=1)[0])["a"]
    assert outcome.status == "finished"
    assert mean_correlation(dictionary_fd, Autoencoder.load(m.draft.path).W_dec) > 0.95
    nmse = log(m)["nmse"]
    assert nmse.iloc[-1] < 0.3 * nmse.iloc[0]


def test_alone_and_in_company_give_the_same_bits(member, rows):
    alone = {key: member(f"alone-{key}", **settings) for key, settings in COMPANY.items()}
    together = {key: member(f"together-{key}", **settings) for key, settings in COMPANY.items()}
    for key, m in alone.items():
        train({key: m}, rows)
    outcomes = train(together, rows)
    assert {o.status for o in outcomes.values()} == {"finished"}
    for key in COMPANY:
        assert weights(alone[key]) == weights(together[key]), key
        pd.testing.assert_frame_equal(log(alone[key]), log(together[key]), check_exact=True)
    assert len({weights(m) for m in together.values()}) == len(COMPANY)


COMPANY = {
    "topk": {},
    "seed": {"seed": 1},
    "wide": {"n": 200, "k": 5, "auxk_k": None},
    "longer": {"tokens": 128 * 55},
    "other-batch": {"batch": 64, "tokens": 64 * 30},
    "relu": {"recipe": "relu", "k": None, "l1": 0.1, "auxk_k": None},
    "clipped": {"grad_clip": 0.01, "ema": None},
}


def test_stopping_and_resuming_with_a_new_companion_gives_the_same_bits(member, rows, tmp_path):
    whole, companion = member("whole"), {"n": 200, "k": 5}
    train({"a": whole, "b": member("whole-b", **companion)}, rows)
    first = member("pieces")
    stopped = train({"a": first}, rows, should_stop=StopAt(17))["a"]
    assert (stopped.status, stopped.step, stopped.tokens) == ("stopped", 17, 17 * 128)
    assert first.draft.exists("checkpoint.safetensors") and not first.draft.exists("config.json")
    first.draft.close()
    second = {"a": member("pieces"), "b": member("pieces-b", **companion)}  # b starts at 0, catches up and joins a
    assert {k: o.step for k, o in train(second, rows, should_stop=StopAt(25)).items()} == {"a": 25, "b": 25}
    for m in second.values():
        m.draft.close()
    third = {"a": member("pieces"), "b": member("pieces-b", **companion)}
    outcomes = train(third, rows)
    assert {o.status for o in outcomes.values()} == {"finished"}
    assert weights(third["a"]) == weights(whole)
    assert weights(third["b"]) == (tmp_path / "whole-b" / "autoencoder.safetensors").read_bytes()
    pd.testing.assert_frame_equal(log(third["a"]), log(whole), check_exact=True)
    assert not third["a"].draft.exists("checkpoint.safetensors")


def test_a_crash_resumes_from_the_last_periodic_checkpoint(member, rows, monkeypatch):
    whole = member("whole")
    train({"a": whole}, rows)
    broken = member("broken")
    advance = run_module.Run.advance

    def crash(self, x_bd, waited_s):
        if self.step == 23:
            raise RuntimeError("the machine went away")
        advance(self, x_bd, waited_s)

    monkeypatch.setattr(run_module.Run, "advance", crash)
    with pytest.raises(RuntimeError, match="went away"):
        train({"a": broken}, rows, checkpoint_every_s=0.0)
    monkeypatch.undo()
    broken.draft.close()
    again = member("broken")
    assert train({"a": again}, rows)["a"].status == "finished"
    assert weights(again) == weights(whole)


def test_a_finished_member_is_left_as_it_is(member, rows):
    m = member()
    first = train({"a": m}, rows, held_out_xd=rows.rows_md[:500])["a"]
    before = {path.name: path.read_bytes() for path in m.draft.path.iterdir() if path.is_file()}
    again = train({"a": m}, rows)["a"]
    assert again.status == "finished" and again.figures == json.loads(json.dumps(first.figures))
    assert {path.name: path.read_bytes() for path in m.draft.path.iterdir() if path.is_file()} == before


def test_a_member_killed_between_its_last_file_and_its_checkpoint_leaves_none(member, rows, monkeypatch):
    m = member("killed")
    with monkeypatch.context() as patch:
        patch.setattr(m.draft, "remove", lambda name: None)
        train({"a": m}, rows, checkpoint_every_s=0.0)
    assert m.draft.exists("checkpoint.safetensors") and m.draft.exists("training.json")
    m.draft.close()
    again = member("killed")
    assert train({"a": again}, rows)["a"].status == "finished"
    assert not again.draft.exists("checkpoint.safetensors")


def test_a_step_that_is_not_finite_is_skipped_and_counted(member, rows):
    m = member()
    outcome = train({"a": m}, Rows(rows.rows_md, batch_of_nan={3, 11}))["a"]
    assert outcome.status == "finished" and outcome.figures["skipped_steps"] == 2
    frame = log(m)
    assert frame["skipped_steps"].iloc[-1] == 2
    assert frame["step"][frame["nmse"].isna()].tolist() == [4, 12]  # rows of one step each, and that one was skipped
    assert audit_frame(m.draft, rows.rows_md[:500])["non_finite"].item() == 0


def test_one_that_diverges_stops_alone(member, rows):
    good, bad = member("good"), member("bad", lr=1e30, warmup_steps=0)
    outcomes = train({"good": good, "bad": bad}, rows)
    assert outcomes["good"].status == "finished" and outcomes["bad"].status == "diverged"
    assert "lower its lr" in outcomes["bad"].error and outcomes["bad"].step < 40
    assert not bad.draft.exists("config.json")
    alone = member("alone")
    train({"good": alone}, rows)
    assert weights(alone) == weights(good)


def exploding(monkeypatch, at):
    """From now on the weights of the member of lr 4e-3 become NaN after its step `at`."""
    advance, struck = run_module.Run.advance, []

    def spoil(self, x_bd, waited_s):
        advance(self, x_bd, waited_s)
        if self.spec.lr == 4e-3 and self.step == at:
            struck.append(self.step)
            self.state.params.W_enc[0, 0] = float("nan")

    monkeypatch.setattr(run_module.Run, "advance", spoil)
    return struck


def test_the_last_sound_checkpoint_of_one_that_diverges_stays_and_it_is_not_tried_again(member, rows, monkeypatch):
    sparse_log = {"tokens": 128 * 1200, "lr": 4e-3}  # a row every 12 steps: a checkpoint may come between
    struck = exploding(monkeypatch, 33)
    bad = member("bad", **sparse_log)
    outcome = train({"bad": bad}, rows, checkpoint_every_s=0.0)["bad"]
    assert (outcome.status, struck) == ("diverged", [33]) and outcome.step > 33
    with safe_open(bad.draft.file(checkpoint.NAME), framework="pt") as file:
        assert json.loads(file.metadata()["record"])["step"] == 32
    bad.draft.close()
    again = member("bad", **sparse_log)
    known = train({"bad": again}, rows)["bad"]
    assert (known.status, known.step, struck) == ("diverged", outcome.step, [33])  # no step was made
    assert known.error.startswith(outcome.error) and str(again.draft.path) in known.error
    calmer = member("calmer", **(sparse_log | {"tokens": 128 * 40, "lr": 3e-3}))  # another lr is another draft
    assert train({"calmer": calmer}, rows)["calmer"].status == "finished"
    assert calmer.spec.determining() != bad.spec.determining()


def test_auxk_brings_dead_latents_back(member):
    """Started untied and fast, almost half of the latents die; with AuxK they come back, without it they stay dead."""
    settings = {"n": 256, "k": 4, "init": "independent", "lr": 1e-2, "tokens": 128 * 400, "decay_last": 0.5}
    with_auxk, without = member("with", **settings), member("without", **(settings | {"auxk_k": None}))
    train({"with": with_auxk, "without": without}, Rows(planted(features=600)[0]))
    dead, stay_dead = log(with_auxk)["dead"], log(without)["dead"]
    assert dead.max() > 0.3 and dead.iloc[-1] < 0.1
    assert stay_dead.iloc[-1] > 0.3
    assert log(with_auxk)["auxk_loss"].max() > 0 and log(without)["auxk_loss"].max() == 0
    assert log(with_auxk)["nmse"].iloc[-1] < log(without)["nmse"].iloc[-1]


def test_log_figures_and_audit(member, rows):
    m = member()
    held_out = rows.rows_md[-700:]
    outcome = train({"a": m}, rows, held_out_xd=held_out)["a"]
    frame = pd.read_parquet(m.draft.path / "training.parquet")
    assert list(frame.columns) == list(COLUMNS)
    assert frame["step"].tolist()[:4] == [1, 2, 3, 4] and frame["step"].iloc[-1] == 40
    assert (frame["tokens"] == frame["step"] * 128).all() and (frame["l0"] <= 3).all()
    assert frame["lr"].iloc[0] == pytest.approx(3e-3 / 5) and frame["lr"].max() == pytest.approx(3e-3)
    audit = audit_frame(m.draft, held_out).iloc[0]
    assert audit["nmse"] == outcome.figures["nmse"] and outcome.figures["nmse_last"] != audit["nmse"]
    assert audit["max_l0"] <= audit["k"] == 3 and audit["n_rows"] == 700
    assert audit["decoder_norm_error"] < 1e-6 and audit["normaliser"] == "none"
    u = held_out.double()
    autoencoder = Autoencoder.load(m.draft.path)
    error = u - autoencoder.decode(autoencoder.encode(held_out)).double()
    assert audit["nmse"] == pytest.approx(float(error.square().sum() / (u - u.mean(0)).square().sum()), rel=1e-6)


def test_progress_reaches_its_total(member, rows):
    seen = []

    class Recorder:
        def update(self, done, total, unit, **info):
            seen.append((done, total, unit))

    train({"a": member("a"), "b": member("b", batch=64, tokens=64 * 9)}, rows, progress=Recorder())
    assert seen[-1] == (40 * 128 + 9 * 64, 40 * 128 + 9 * 64, "tokens")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "ghost"}, "'ghost' is unknown; use one of batch-topk, finetune-decoder"),
        ({"k": None}, "needs a value for k"),
        ({"recipe": "relu"}, "needs a value for l1"),
        ({"k": 65}, "between 1 and n = 64"),
        ({"tokens": 100}, "do not fill one batch"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_work_starts(member, rows, change, message):
    fine, refused = member("fine"), member("refused", **change)
    with pytest.raises(PipelineError, match=message):
        train({"fine": fine, "refused": refused}, rows)
    assert not fine.draft.exists("checkpoint.safetensors") and not fine.draft.exists("config.json")


def test_a_dataset_that_does_not_vary_is_refused(member):
    with pytest.raises(PipelineError, match="total variance is 0"):
        train({"a": member()}, Rows(torch.ones(500, 32)))


def test_large_members_step_with_all_threads_and_the_count_is_put_back(member, rows, monkeypatch):
    from sae_pipeline.training import workers

    threads = []
    advance = run_module.Run.advance
    monkeypatch.setattr(workers, "SMALL", make_spec().n * 32 * 128 + 1)
    monkeypatch.setattr(
        run_module.Run,
        "advance",
        lambda self, *a: (threads.append((self.spec.n, torch.get_num_threads())), advance(self, *a)),
    )
    train({"small": member("small", tokens=128 * 7), "large": member("large", n=80, tokens=128 * 7)}, rows)
    assert set(threads) == {(64, 1), (80, 2)} and torch.get_num_threads() == 2
