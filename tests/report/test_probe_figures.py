import numpy as np
import pandas as pd

from sae_pipeline.report import figures, metric_figures

LOSSES = {"a": 0.5, "b": 0.2, "c": np.nan}
SHIFTS = {
    ("best", "pre"): 0.0,
    ("best", "random"): 0.1,
    ("best", "channel"): 0.15,
    ("counts", "token"): 0.05,
    ("permuted", "pre"): 0.2,
    ("linear", "activation"): -0.1,
}


def results():
    rows = [
        {"task": task, "probe": probe, "code": code, "k": 1, "loss": loss + shift, "loss_se": 0.01}
        for task, loss in LOSSES.items()
        for (probe, code), shift in SHIFTS.items()
    ]
    return pd.DataFrame(rows)


def test_every_task_shows_its_latent_and_what_it_is_held_against():
    axes = figures.probe_losses(results()).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]  # the worst at the bottom
    shown = {line.get_label(): line.get_xdata().tolist() for line in axes.lines}
    assert shown["latent, pre-activation"] == [0.5, 0.2]
    assert np.allclose(shown["random direction"], [0.6, 0.3]) and np.allclose(shown["token"], [0.55, 0.25])
    (intervals,) = axes.collections
    assert np.allclose([segment[:, 0] for segment in intervals.get_segments()], [[0.4804, 0.5196], [0.1804, 0.2196]])


def test_codes_stand_in_where_pre_activations_were_not_probed():
    only = results().replace({"code": {"pre": "post"}})
    axes = figures.probe_losses(only).axes[0]
    assert {line.get_label() for line in axes.lines} >= {"latent, code", "token"}


def test_without_probes_the_figure_says_so():
    empty = figures.probe_losses(results().iloc[:0])
    assert not empty.axes and len(empty.texts) == 1


def test_the_metric_is_shown_with_it():
    class Result:
        probe_results = results()

    assert list(metric_figures("probes", Result())) == ["probes"]
