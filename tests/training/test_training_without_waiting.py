"""The loop over a step that never says on the spot that it was skipped, as on a GPU."""

from functools import partial

import pytest
import torch
from test_training_loop import log
from training_doubles import Rows

from sae_pipeline.kernels import cuda
from sae_pipeline.kernels.cuda import plain
from sae_pipeline.training import run as run_module
from sae_pipeline.training import train


@pytest.fixture(autouse=True)
def gpu_step(monkeypatch):
    step = torch.no_grad()(partial(cuda.step, kernels=plain.KERNELS))
    monkeypatch.setattr(run_module, "train_step", step)


def test_a_step_that_is_not_finite_is_skipped_and_counted(member, rows):
    m = member()
    outcome = train({"a": m}, Rows(rows.rows_md, batch_of_nan={3, 11}))["a"]
    assert outcome.status == "finished" and outcome.figures["skipped_steps"] == 2
    frame = log(m)
    assert frame["skipped_steps"].iloc[-1] == 2
    assert frame["step"][frame["nmse"].isna()].tolist() == [4, 12]  # rows of one step each, and that one was skipped


def test_skips_between_rows_leave_a_row_the_mean_of_the_others(member, rows):
    m = member(tokens=128 * 400)
    outcome = train({"a": m}, Rows(rows.rows_md, batch_of_nan={202, 205}))["a"]
    assert outcome.status == "finished" and outcome.figures["skipped_steps"] == 2
    assert not log(m)["nmse"].isna().any()


def test_a_member_without_a_finite_step_diverges(member, rows):
    outcome = train({"a": member()}, Rows(rows.rows_md, batch_of_nan=set(range(5, 40))))["a"]
    assert outcome.status == "diverged" and "not finite" in outcome.error
    assert outcome.step <= 5 + 2 * run_module.MAX_BAD_STEPS


def test_a_run_stopped_after_a_skipped_step_resumes_to_the_same_bits(member, rows):
    data, whole = Rows(rows.rows_md, batch_of_nan={3}), member("whole")
    train({"a": whole}, data)
    asked = iter(range(100))
    parts = member("parts")
    train({"a": parts}, data, should_stop=lambda: next(asked) == 10)
    parts.draft.close()
    resumed = member("parts")
    outcome = train({"a": resumed}, data)["a"]
    assert outcome.figures["skipped_steps"] == 1
    name = "autoencoder.safetensors"
    assert (whole.draft.path / name).read_bytes() == (resumed.draft.path / name).read_bytes()
