"""Perplexity, and compute of an equally good model, beside ΔCE."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluation_doubles import autoencoder, make_inputs, value_of

from sae_pipeline.evaluation import METRICS, EvaluationError
from sae_pipeline.evaluation.equivalents import equivalent_rows
from sae_pipeline.evaluation.inputs import metric_row
from sae_pipeline.evaluation.tables import frame

METRIC = METRICS["downstream"]


@pytest.fixture(scope="module")
def inputs(subject, evaluation_set, tmp_path_factory):
    return make_inputs(autoencoder(), evaluation_set, tmp_path_factory.mktemp("codes") / "c", subject=subject)


@pytest.fixture(scope="module")
def plain(inputs):
    return METRIC.run(inputs)


def share(inputs, runs, dce=0.3, ci=(0.2, 0.45)):
    """The row of compute_share beside a ΔCE with its interval."""
    rows = [
        metric_row(inputs, 1, metric, variant, value, ci_lo=low, ci_hi=high, n_units=9, unit_kind="document")
        for metric, variant, value, low, high in (
            ("dce", "all", dce, *ci), ("ce", "spliced", 4.0, 3.9, 4.1), ("ce", "clean", 3.7, 3.6, 3.8)
        )
    ]  # fmt: skip
    made = equivalent_rows(replace(inputs, parameters={"loss_curve": runs}), 1, frame("metrics", rows))
    return made.set_index("metric").loc["compute_share"]


def test_perplexity_is_that_of_the_losses(plain, evaluation_set):
    clean, spliced = (value_of(plain, "ce", variant)["value"] for variant in ("clean", "spliced"))
    assert spliced - clean == pytest.approx(value_of(plain, "dce")["value"], abs=1e-12)
    scored = evaluation_set.scored(0, evaluation_set.n_contexts).numpy()
    assert clean == pytest.approx(np.asarray(evaluation_set.clean_ce, np.float64)[scored].mean(), rel=1e-6)
    row, ce = value_of(plain, "perplexity", "spliced"), value_of(plain, "ce", "spliced")
    assert [row[name] for name in ("value", "ci_lo", "ci_hi")] == pytest.approx(
        list(np.exp([ce["value"], ce["ci_lo"], ce["ci_hi"]]))
    )


def test_a_subject_without_known_runs_says_so(plain):
    row = value_of(plain, "compute_share")
    assert row["status"] == "na" and pd.isna(row["value"]) and "loss_curve" in row["reason"]


def test_share_of_compute_and_its_interval_follow_the_curve(inputs):
    # one nat for every factor of e: the share is exp(-ΔCE)
    row = share(inputs, [[np.exp(-2.0) * 1e15, 5.0], [1e15, 3.0]])
    assert [row[name] for name in ("value", "ci_lo", "ci_hi")] == pytest.approx(list(np.exp([-0.3, -0.45, -0.2])))
    assert row["better"] == "higher" and row["n_units"] == 9


def test_what_lies_beyond_the_cheapest_run_is_not_made_up(inputs):
    short = share(inputs, [[1e13, 3.1], [1e15, 3.0]])
    assert short["status"] == "na" and "less than 0.01 of the compute" in short["reason"]
    half = share(inputs, [[1e13, 3.4], [1e15, 3.0]])
    assert half["ci_lo"] == 0.0 < half["value"] < half["ci_hi"]


@pytest.mark.parametrize(("dce", "ci"), [(0.0, (0.0, 0.0)), (-0.1, (-0.2, -0.05))])
def test_who_loses_nothing_is_worth_all_of_it(inputs, dce, ci):
    row = share(inputs, [[1e13, 4.0], [1e15, 3.0]], dce, ci)
    assert (row["value"], row["ci_lo"], row["ci_hi"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("runs", [3.0, [], [[1e15, 3.0]], [[1e15]], [[1e13, 2.0], [1e15, 3.0]], [["many", 3.0]]])
def test_a_curve_that_is_none_is_refused(inputs, runs):
    with pytest.raises(EvaluationError, match="subject's own last"):
        METRIC.run(replace(inputs, parameters={"loss_curve": runs}))
