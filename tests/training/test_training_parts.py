import math

import pytest
import torch
from safetensors.torch import load_file
from training_doubles import make_spec

from sae_pipeline.kernels import Losses
from sae_pipeline.store import NewerFormat, PipelineError
from sae_pipeline.training import checkpoint, learning_rate
from sae_pipeline.training.log import Log, is_logged
from sae_pipeline.training.target import SparsityWeight

CPU = torch.device("cpu")


def test_learning_rate_warms_up_holds_and_decays_to_zero():
    spec = make_spec(tokens=128 * 100, lr=1.0, warmup_steps=10, decay_last=0.2)
    rates = [learning_rate(spec, step) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3]) and rates[9] == rates[50] == rates[80] == 1.0
    assert rates[-2:] == pytest.approx([0.1, 0.05]) and rates[90] == pytest.approx(0.5)
    flat = make_spec(warmup_steps=0, decay_last=0.0, lr=0.5)
    assert {learning_rate(flat, step) for step in range(flat.steps)} == {0.5}


def test_the_penalty_warms_up():
    spec = make_spec(recipe="relu", k=None, l1=2.0, l1_warmup=0.1, tokens=128 * 100)
    weight = SparsityWeight(spec, CPU)
    weights = [weight.at(step) for step in range(100)]
    assert weights[:3] == pytest.approx([0.2, 0.4, 0.6]) and set(weights[9:]) == {2.0}
    assert SparsityWeight(make_spec(), CPU).at(5) == 0.0
    assert SparsityWeight(make_spec(recipe="relu", k=None, l1=2.0, l1_warmup=0.0), CPU).at(0) == 2.0
    weight.observe(50, torch.tensor(99.0))
    assert weight.value == 2.0  # without a target nothing moves


def test_the_penalty_follows_l0_to_its_target_after_the_warm_up():
    spec = make_spec(recipe="relu", k=None, target_l0=5.0, l1_warmup=0.1, tokens=128 * 100)
    weight = SparsityWeight(spec, CPU)
    first = weight.value
    for step in range(10):
        weight.observe(step, torch.tensor(50.0))
    assert weight.value == first > 0
    for step in range(10, 20):
        weight.observe(step, torch.tensor(6.0))
    assert weight.value == pytest.approx(first * math.exp(10 / 100 * 10 * 0.2))
    for step in range(20, 30):
        weight.observe(step, torch.tensor(5.0))
    assert weight.value == pytest.approx(first * math.exp(0.2))
    for step in range(30, 40):
        weight.observe(step, torch.tensor(500.0))
    assert weight.value == pytest.approx(first * math.exp(1.2))  # at most as if L0 were twice the target


def test_logged_steps_are_dense_at_first_then_regular():
    steps = [step for step in range(1, 2001) if is_logged(step, 2000)]
    assert steps[:6] == [1, 2, 4, 8, 16, 20] and steps[-1] == 2000 and 100 <= len(steps) <= 112


def test_log_rows_are_means_since_the_row_before_and_time_the_stretch():
    clock = iter([10.0, 14.0, 20.0])
    log = Log(torch.zeros(5, dtype=torch.float64), clock=lambda: next(clock))
    for nmse in (0.5, 0.7):
        log.tick(100, 1.0)
        log.add(Losses(*(torch.tensor(v) for v in (nmse, 1.0, 0.0, 4.0))))
    row = log.write(step=2, tokens=200, end_tokens=900, dead=0.25, lr=0.1, skipped_steps=0)
    assert row["nmse"] == pytest.approx(0.6) and row["l0"] == 4.0 and row["dead"] == 0.25
    assert row["tokens_per_s"] == pytest.approx(200 / 5) and row["data_wait"] == pytest.approx(2 / 5)
    log.tick(100, 0.0)
    row = log.write(step=3, tokens=300, end_tokens=900, dead=0.0, lr=0.1, skipped_steps=1)
    assert row["nmse"] != row["nmse"] and row["tokens_per_s"] == pytest.approx(100 / 6)


def test_checkpoint_round_trip_and_refusals(member):
    draft = member().draft
    tensors = {
        "a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2]), "sum": torch.zeros((), dtype=torch.float64),
        "half": torch.tensor([1.5], dtype=torch.bfloat16), "turned": torch.arange(6.0).view(2, 3).T,
        "none": torch.zeros(0),
    }  # fmt: skip
    checkpoint.write(draft, tensors, {"step": 3, "x": 0.1})
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    assert checkpoint.read(draft, found) == {"step": 3, "x": 0.1}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(PipelineError, match="other tensors"):
        checkpoint.read(draft, {"a": found["a"]})
    with pytest.raises(PipelineError, match="another shape or type"):
        checkpoint.read(draft, found | {"a": torch.zeros(3, 2)})
    path = draft.path / checkpoint.NAME
    assert all(torch.equal(tensors[name], tensor) for name, tensor in load_file(path).items())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PipelineError, match="delete it to start over"):
        checkpoint.read(draft, found)


def test_a_checkpoint_of_a_later_version_is_refused(member, monkeypatch):
    draft = member().draft
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    checkpoint.write(draft, {}, {})
    monkeypatch.undo()
    with pytest.raises(NewerFormat, match="upgrade"):
        checkpoint.read(draft, {})
