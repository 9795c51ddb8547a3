import json

import numpy as np
import pandas as pd
import pytest

from sae_pipeline.evaluation import EvaluationError, bootstrap, compare_paired
from sae_pipeline.evaluation.bootstrap import effective_units, interval, resampled_ratios, uncertainty
from tests.evaluation import coverage


def sums(values_ut):
    return values_ut.sum(axis=1, keepdims=True), np.full((len(values_ut), 1), values_ut.shape[1], dtype=float)


def test_iid_normal_means_match_the_closed_form():
    values = np.random.default_rng(0).standard_normal((400, 1)) * 3 + 7
    num, den = sums(values)
    found = uncertainty(num, den, 4000, seed=1)[0]
    se = values.std(ddof=1) / np.sqrt(400)
    assert found.se == pytest.approx(se, rel=1e-12)
    assert found.ci_lo == pytest.approx(values.mean() - 1.96 * se, abs=0.12 * se)
    assert found.ci_hi == pytest.approx(values.mean() + 1.96 * se, abs=0.12 * se)


def test_se_agrees_with_the_delta_method_and_the_bootstrap_for_a_ratio_of_many():
    rng = np.random.default_rng(2)
    den = rng.gamma(4.0, size=(300, 2))
    num = den * (0.3 + 0.05 * rng.standard_normal((300, 2))) + 0.02 * rng.standard_normal((300, 2))
    found = [one.se for one in uncertainty(num, den, 10, seed=0)]
    residual = num - num.sum(axis=0) / den.sum(axis=0) * den
    delta = np.sqrt(300 / 299 * (residual**2).sum(axis=0)) / den.sum(axis=0)  # Cochran 1977, §2.11
    assert found == pytest.approx(delta, rel=0.02)
    assert found == pytest.approx(resampled_ratios(num, den, 4000, seed=0).std(axis=0), rel=0.06)


def test_documents_cover_where_tokens_do_not():
    """Tokens of a document are alike: resampling tokens claims a precision that is not there."""
    cell, data_sets = coverage.WITH_TOKENS, 300
    found = coverage.measure(cell, data_sets, 200, 0, ["documents", "paired"])
    found |= coverage.measure(cell, 60, 100, 0, ["tokens"])
    assert coverage.misses(cell, found, data_sets) == []
    assert found["tokens"] < 0.7


def test_the_whole_count_was_measured_and_held():
    record = json.loads(coverage.RESULT.read_text(encoding="utf-8"))["coverage"]
    assert (record["data_sets"], record["failures"]) == (coverage.DATA_SETS, [])
    cells = {coverage.Cell(cell["documents"], cell["skewed"]): cell["held"] for cell in record["cells"]}
    assert set(cells) == {*coverage.EXACT, *coverage.ENOUGH, *coverage.SHOWN}
    assert all(coverage.misses(cell, cells[cell], coverage.DATA_SETS) == [] for cell in coverage.EXACT)
    assert cells[coverage.WITH_TOKENS]["tokens"] < 0.5


def test_a_few_documents_have_intervals_that_are_wide_enough():
    (cell, *_), data_sets = coverage.ENOUGH, 200
    found = coverage.measure(cell, data_sets, 200, 1, ["documents", "percentiles"])
    assert coverage.misses(cell, found, data_sets) == []
    assert found["percentiles"] < coverage.bound(data_sets)[0]


def test_a_long_document_counts_for_more_than_one_and_less_than_its_length():
    den = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 100.0]])
    assert effective_units(den) == pytest.approx([3, 102**2 / 10002])
    even, ruled = uncertainty(np.array([[1.0], [2.0], [3.0]]) * den, den, 500, seed=0)
    assert even.ci_hi - even.ci_lo == pytest.approx(2 * 4.302653 * even.se)  # Student's t of 2 degrees of freedom
    assert ruled.ci_hi - ruled.ci_lo == pytest.approx(2 * 12.706205 * ruled.se)  # never fewer than 1
    assert ruled.ci_lo <= 3 - 3 / 102 <= ruled.ci_hi


def test_the_sides_of_an_interval_are_the_bootstraps():
    value, left_out = np.zeros(3), np.linspace(-1, 1, 8)[:, None].repeat(3, axis=1)
    skewed = np.stack([np.linspace(-1, 3, 201), np.linspace(1, 2, 201), np.zeros(201)], axis=1)
    low, high, se = interval(value, skewed, left_out, np.full(3, 8.0))
    assert -low / (high - low) == pytest.approx([0.9 / 3.8, 0, 0.5])  # the value itself is never left outside
    assert high - low == pytest.approx(2 * 2.364624 * se) and len(set(se)) == 1


def test_portions_of_weights_do_not_change_the_draws(monkeypatch):
    num, den = sums(np.random.default_rng(1).standard_normal((30, 4)))
    whole = resampled_ratios(num, den, 100, seed=5)
    monkeypatch.setattr(bootstrap, "_WEIGHTS_AT_ONCE", 70)
    assert resampled_ratios(num, den, 100, seed=5) == pytest.approx(whole, rel=1e-12)
    assert not np.allclose(resampled_ratios(num, den, 100, seed=6), whole)


def test_one_document_has_no_interval():
    found = uncertainty(np.ones((1, 2)), np.ones((1, 2)), 100, seed=0)
    assert all(np.isnan([one.se, one.ci_lo, one.ci_hi]).all() for one in found) and len(found) == 2


def unit_stats(num, den, metric="nmse", variant="all"):
    return pd.DataFrame({"metric": metric, "variant": variant, "unit_id": range(len(num)), "num": num, "den": den})


@pytest.fixture
def pair():
    rng = np.random.default_rng(4)
    den = rng.gamma(5.0, size=80)
    difficulty = rng.gamma(4.0, size=80) / 4
    return (
        unit_stats(den * difficulty * (0.20 + 0.002 * rng.standard_normal(80)), den),
        unit_stats(den * difficulty * (0.21 + 0.002 * rng.standard_normal(80)), den),
    )


def test_pairing_sees_what_separate_intervals_hide(pair):
    a, b = pair
    found = compare_paired(a, b, 2000, seed=0)
    assert found.ci_hi < 0 and found.p_better == 1.0 and found.n_units == 80
    intervals = [uncertainty(stats[["num"]].to_numpy(), stats[["den"]].to_numpy(), 2000, 0)[0] for stats in (a, b)]
    assert intervals[0].ci_hi > intervals[1].ci_lo, "the separate intervals do not overlap: pairing shows nothing"
    assert found.difference == pytest.approx(a["num"].sum() / a["den"].sum() - b["num"].sum() / b["den"].sum())
    turned = compare_paired(b, a, 2000, seed=0)
    assert turned.p_better == 0.0 and turned.difference == pytest.approx(-found.difference)
    assert compare_paired(a, b, 2000, seed=0, lower_is_better=False).p_better == 0.0


def test_equal_autoencoders_tie(pair):
    found = compare_paired(pair[0], pair[0], 500, seed=0)
    assert (found.difference, found.ci_lo, found.ci_hi, found.p_better) == (0.0, 0.0, 0.0, 0.5)


def test_row_order_does_not_matter_but_documents_do(pair):
    a, b = pair
    shuffled = a.sample(frac=1, random_state=0)
    assert compare_paired(shuffled, b, 300, seed=0) == compare_paired(a, b, 300, seed=0)
    with pytest.raises(EvaluationError, match="same two or more documents: 79 and 80, 79 in common"):
        compare_paired(a.iloc[1:], b, 300, seed=0)
    with pytest.raises(EvaluationError, match="one metric and variant"):
        compare_paired(pd.concat([a, unit_stats([1.0], [1.0], "kl")]), b, 300, seed=0)
