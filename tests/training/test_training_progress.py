"""What is told of a training: rates, time left, rows as they come, TensorBoard."""

import sys
from types import ModuleType

import pandas as pd
import pytest
import torch
from training_doubles import StopAt, make_spec

from sae_pipeline.kernels import Losses
from sae_pipeline.planning.support import unsupported
from sae_pipeline.store import PipelineError
from sae_pipeline.study import load_study
from sae_pipeline.training import train
from sae_pipeline.training.board import Board
from sae_pipeline.training.cost import flops_per_token
from sae_pipeline.training.log import Log, shown
from tests.study.test_study import DEMO


def test_flops_are_counted_by_the_step_that_is_made():
    assert flops_per_token(make_spec(n=64, k=3), d=32) == 2 * 64 * 32 + 8 * 32 * 3
    assert flops_per_token(make_spec(recipe="relu", k=None, l1=0.1), d=32) == 12 * 64 * 32


def test_a_row_tells_rate_and_time_left():
    clock = iter([10.0, 14.0])
    log = Log(torch.zeros(5, dtype=torch.float64), flops_per_token=50.0, clock=lambda: next(clock))
    log.tick(100, 1.0)
    log.add(Losses(*(torch.tensor(v) for v in (0.5, 1.0, 0.0, 4.0))))
    row = log.write(step=1, tokens=100, end_tokens=500, dead=0.25, lr=0.1, skipped_steps=0)
    assert row["tokens_per_s"] == 20.0 and row["flops_per_s"] == 1000.0 and row["eta_s"] == 20.0
    assert shown([log]) == {"nmse": 0.5, "l0": 4.0, "dead": 0.25, "FLOP/s": 1000.0, "data wait": 0.2}
    assert shown([Log(torch.zeros(5))]) == {}


def test_every_row_is_told_once_also_after_an_interruption(member, rows):
    told, log = [], []
    first = {"a": member("a"), "b": member("b", seed=1)}
    train(first, rows, should_stop=StopAt(10), on_row=lambda key, row: told.append((key, row["step"])))
    for m in first.values():
        m.draft.close()
    again = {"a": member("a"), "b": member("b", seed=1)}
    train(again, rows, on_row=lambda key, row: told.append((key, row["step"])))
    for key, m in again.items():
        log += [(key, step) for step in pd.read_parquet(m.draft.file("training.parquet"))["step"]]
    assert sorted(told) == sorted(log) and len(told) == 2 * 40


def test_progress_shows_figures_of_the_members_in_training(member, rows):
    seen = []

    class Recorder:
        def update(self, done, total, unit, **info):
            seen.append(info)

    train({"a": member()}, rows, progress=Recorder())
    assert {"members", "step", "nmse", "l0", "dead", "FLOP/s", "data wait"} == set(seen[-1])
    assert seen[-1]["l0"] <= 3 and seen[-1]["FLOP/s"] > 0 and 0 <= seen[-1]["data wait"] <= 1


WRITTEN = {}


class Writer:
    """What is used of TensorBoard's writer."""

    def __init__(self, folder, purge_step):
        self.points = WRITTEN.setdefault(folder, [("purge", purge_step)])

    def add_scalar(self, name, value, step):
        self.points.append((name, step, value))

    def close(self):
        self.points.append("closed")


def test_rows_become_scalars_over_tokens(monkeypatch, tmp_path):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    board = Board(tmp_path)
    board.write("topk", {"step": 2, "tokens": 256, "nmse": 0.5, "eta_s": float("nan")})
    board.write("topk", {"step": 4, "tokens": 512, "nmse": 0.4})
    board.close()
    assert {str(tmp_path / "topk"): [("purge", 256), ("nmse", 256, 0.5), ("nmse", 512, 0.4), "closed"]} == WRITTEN


def test_without_tensorboard_it_is_refused_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(PipelineError, match="pip install tensorboard"):
        Board(tmp_path)
    study = load_study(DEMO, ["training.log=[tensorboard]"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [line for line in unsupported(study) if "tensorboard, which is not installed" in line]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert list(unsupported(study)) == []
