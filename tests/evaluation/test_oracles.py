"""What holds of every metric: limits, what a result may not depend on, and input that cannot be used."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from evaluation_doubles import (
    SITE,
    D,
    MemoryContexts,
    MemoryTokens,
    autoencoder,
    constant_autoencoder,
    make_inputs,
    make_tokens,
    open_draft,
)

from sae_pipeline.activations import EvaluationSet, build_evaluation_set
from sae_pipeline.evaluation import METRICS, CacheMismatch
from sae_pipeline.evaluation.tables import TABLES

SAMPLED = {"ablation", "explanations", "shrinkage"}
"""What looks at a sample of the rows, by their numbers."""
OF_NO_ROWS = {"probes"}
"""What looks at rows of its own."""

every_metric = pytest.mark.parametrize("name", METRICS)


@pytest.fixture(scope="module")
def inputs(subject, evaluation_set, tmp_path_factory):
    return make_inputs(autoencoder(), evaluation_set, tmp_path_factory.mktemp("inputs") / "codes", subject=subject)


def assert_close(found, expected, rtol):
    """All tables, provenance and all; numbers that cancel are compared at the scale of their table."""
    for table in TABLES:
        left, right = getattr(found, table), getattr(expected, table)
        pd.testing.assert_frame_equal(left, right, check_exact=False, rtol=rtol, atol=rtol)


@every_metric
def test_company_changes_nothing(name, inputs, evaluation_set, subject, tmp_path):
    other = make_inputs(
        autoencoder("relu", n=24, k=None, seed=5), evaluation_set, tmp_path / "codes", subject=subject,
        sae_id="b" * 64, autoencoder_key="relu",
    )  # fmt: skip
    assert_close(METRICS[name].run_many([other, inputs])[1], METRICS[name].run(inputs), rtol=0)


@every_metric
def test_the_number_of_threads_changes_rounding_only(name, inputs):
    alone = METRICS[name].run(inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_close(METRICS[name].run(inputs), alone, rtol=1e-6)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if not metric.needs_subject])
def test_what_needs_no_subject_says_the_same_without_one(name, inputs):
    assert_close(METRICS[name].run(replace(inputs, subject=None)), METRICS[name].run(inputs), rtol=0)


@pytest.fixture(scope="module")
def turned_round(subject, tmp_path_factory):
    """Two evaluation sets of the same documents, in opposite orders, and the number of the last one."""
    tokens = make_tokens()
    contexts = tokens.held_out
    last = contexts.document.max()
    order = np.argsort(last - contexts.document, kind="stable")
    turned = MemoryContexts(contexts.ids_nl[order], contexts.lengths[order], (last - contexts.document)[order])
    made = []
    for number, some in enumerate((tokens, MemoryTokens(turned))):
        with open_draft(tmp_path_factory.mktemp("sets") / str(number)) as draft:
            build_evaluation_set(subject, some, SITE, draft, n_tokens=contexts.n_rows, micro_batch=4 - number)
            made.append(EvaluationSet.open(draft.publish({})))
    return *made, last


@pytest.mark.parametrize("name", sorted(set(METRICS) - SAMPLED - OF_NO_ROWS))
def test_neither_the_order_of_documents_nor_their_batches_change_a_figure(name, turned_round, subject, tmp_path):
    *sets, last = turned_round
    results = [
        METRICS[name].run(make_inputs(autoencoder(), one, tmp_path / str(number), subject=subject))
        for number, one in enumerate(sets)
    ]
    values = [
        result.metrics[~result.metrics["variant"].str.startswith("control")].set_index(["metric", "variant"])["value"]
        for result in results
    ]
    pd.testing.assert_series_equal(*values, rtol=1e-6, atol=1e-6)
    sums = [result.unit_stats[~result.unit_stats["variant"].str.startswith("control")] for result in results]
    sums[1] = sums[1].assign(unit_id=last - sums[1]["unit_id"])
    by_document = [one.set_index(["metric", "variant", "unit_id"]).sort_index()[["num", "den", "n"]] for one in sums]
    pd.testing.assert_frame_equal(*by_document, rtol=1e-5, atol=1e-5)


@every_metric
def test_every_figure_has_one_row(name, inputs):
    found = METRICS[name].run(inputs)
    assert len(found.metrics) and not found.metrics.duplicated(["metric", "variant"]).any()
    for table, key in (
        ("unit_stats", ["metric", "variant", "unit_id"]), ("curves", ["metric", "curve", "x"]),
        ("latent_stats", ["latent"]), ("probe_results", ["task", "probe", "code", "k"]),
    ):  # fmt: skip
        rows = getattr(found, table)
        assert not rows.duplicated(key).any(), table


def assert_told(result):
    """Every figure that is missing says why; none is infinite."""
    assert len(result.metrics)
    known = result.metrics["value"].notna()
    assert np.isfinite(result.metrics.loc[known, "value"]).all()
    assert set(result.metrics.loc[~known, "status"]) <= {"na"} and set(result.metrics.loc[known, "status"]) <= {
        "ok",
        "partial",
    }
    assert result.metrics.loc[~known, "reason"].str.len().gt(0).all()


@every_metric
def test_latents_that_never_fire_leave_figures_or_reasons(name, evaluation_set, subject, tmp_path):
    silent = constant_autoencoder(torch.zeros(D))
    assert_told(METRICS[name].run(make_inputs(silent, evaluation_set, tmp_path / "codes", subject=subject)))


@pytest.fixture(scope="module")
def one_context(subject, tmp_path_factory):
    """An evaluation set of one document of two tokens."""
    contexts = make_tokens().held_out
    only = MemoryContexts(contexts.ids_nl[:1], np.array([2]), contexts.document[:1])
    only.ids_nl[:, :2] = [[3, 4]]
    with open_draft(tmp_path_factory.mktemp("sets") / "one") as draft:
        build_evaluation_set(subject, MemoryTokens(only), SITE, draft, n_tokens=2, micro_batch=4)
        return EvaluationSet.open(draft.publish({}))


@every_metric
def test_two_rows_of_one_document_leave_figures_or_reasons(name, one_context, subject, tmp_path):
    assert one_context.n_rows == 2
    result = METRICS[name].run(make_inputs(autoencoder(), one_context, tmp_path / "codes", subject=subject))
    assert_told(result)
    over_documents = result.metrics[result.metrics["unit_kind"] == "document"]
    assert over_documents["ci_lo"].isna().all()


@every_metric
def test_what_does_not_belong_together_is_refused_before_any_work(name, inputs):
    metric = METRICS[name]
    with pytest.raises(CacheMismatch, match="made for autoencoder aaaaaaaaaaaa, not bbbbbbbbbbbb"):
        metric.run(replace(inputs, sae_id="b" * 64))
    with pytest.raises(CacheMismatch, match="made for evaluation set"):
        metric.run(replace(inputs, evaluation_id="f" * 64))
    narrow = autoencoder()
    narrow.config = replace(narrow.config, d=D // 2)
    with pytest.raises(CacheMismatch, match=f"reads {D // 2} values a token; the evaluation set has {D}"):
        metric.run(replace(inputs, autoencoder=narrow))
    with pytest.raises(CacheMismatch, match="number of latents 48, not 32"):
        metric.run(replace(inputs, autoencoder=autoencoder(n=32)))
