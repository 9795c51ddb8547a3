from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from sae_pipeline.embedded.concepts import ProbeSet, Task
from sae_pipeline.embedded.concepts.controls import L2_GRID, choose_l2, fit_controls, score
from sae_pipeline.embedded.concepts.logistic import GRADIENT_TOLERANCE, cross_entropy, fit_logistic
from sae_pipeline.embedded.concepts.residuals import activations_at_places
from sae_pipeline.study import Site

N_DOCUMENTS, PER_DOCUMENT, WIDTH, VOCABULARY = 100, 24, 8, 40
LN2 = float(np.log(2))


def planted(rule: str) -> tuple[ProbeSet, np.ndarray]:
    """Random contexts of one document each, labels by a rule, and activations that hold nothing but `linear` labels."""
    random = np.random.default_rng(0)
    ids_cl = random.integers(VOCABULARY, size=(N_DOCUMENTS, PER_DOCUMENT + 1)).astype(np.int32)
    context_r = np.repeat(np.arange(N_DOCUMENTS), PER_DOCUMENT)
    position_r = np.tile(np.arange(1, PER_DOCUMENT + 1), N_DOCUMENTS)
    token, before = ids_cl[context_r, position_r], ids_cl[context_r, position_r - 1]
    label_r = {
        "token": token % 2 == 0,
        "pair": (token + before) % 2 == 0,
        "linear": random.random(context_r.size) < 0.5,
    }[rule]
    probe_set = ProbeSet(
        ids_cl=ids_cl,
        length_c=np.full(N_DOCUMENTS, PER_DOCUMENT + 1),
        document_c=np.arange(N_DOCUMENTS),
        documents=tuple(map(str, range(N_DOCUMENTS))),
        tasks=(Task(rule, "planted"),),
        task_r=np.zeros(context_r.size, np.int64),
        context_r=context_r,
        position_r=position_r,
        label_r=label_r,
        test_r=context_r % 5 < 2,
    )
    x_rd = random.normal(size=(context_r.size, WIDTH))
    if rule == "linear":
        x_rd += np.where(label_r, 3.0, -3.0)[:, None] * np.linspace(-1, 1, WIDTH)
    x_ud = np.zeros_like(x_rd)
    x_ud[probe_set.places.place_r] = x_rd
    return probe_set, x_ud.astype(np.float32)


def test_a_task_of_the_token_is_lexical_and_nothing_else_solves_it() -> None:
    found = fit_controls(*_first(planted("token")))
    assert found.token.auc == 1.0 and found.token.accuracy == 1.0 and found.token.cross_entropy < 0.1
    assert found.token_pair.accuracy > 0.99
    for control in (found.linear, found.permuted):
        assert abs(control.auc - 0.5) < 0.06 and abs(control.accuracy - 0.5) < 0.06
    assert found.lexical and found.hard


def test_a_task_of_the_activations_is_linear_and_the_token_is_at_chance() -> None:
    found = fit_controls(*_first(planted("linear")))
    assert found.linear.auc > 0.99 and found.linear.accuracy > 0.97 and found.linear.cross_entropy < 0.1
    for control in (found.token, found.token_pair):
        assert abs(control.auc - 0.5) < 0.06 and control.cross_entropy > LN2 - 0.01
    assert not found.lexical and not found.hard


def test_a_task_of_the_token_before_needs_the_pair() -> None:
    found = fit_controls(*_first(planted("pair")))
    assert abs(found.token.auc - 0.5) < 0.06
    assert found.token_pair.auc > 0.7
    assert not found.lexical


def test_permuted_labels_are_at_chance_where_the_true_ones_are_certain() -> None:
    found = fit_controls(*_first(planted("linear")))
    assert LN2 - 0.02 < found.permuted.cross_entropy < LN2 + 0.05
    assert 0 < found.permuted.standard_error < 0.05


def test_the_test_rows_choose_nothing() -> None:
    probe_set, x_ud = planted("linear")
    test_places = np.unique(probe_set.places.place_r[probe_set.test_r])
    other = x_ud.copy()
    other[test_places] = np.random.default_rng(1).normal(size=other[test_places].shape)
    true, noise = fit_controls(probe_set, 0, x_ud), fit_controls(probe_set, 0, other)
    assert true.l2 == noise.l2 and true.token == noise.token
    assert abs(noise.linear.auc - 0.5) < 0.06


def test_controls_follow_the_seed_alone() -> None:
    probe_set, x_ud = planted("linear")
    assert fit_controls(probe_set, 0, x_ud) == fit_controls(probe_set, 0, x_ud)
    assert fit_controls(probe_set, 0, x_ud).permuted != fit_controls(probe_set, 0, x_ud, seed=1).permuted


def _first(made: tuple[ProbeSet, np.ndarray]) -> tuple[ProbeSet, int, np.ndarray]:
    return made[0], 0, made[1]


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_logistic_regression_reaches_the_minimum(l2: float) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 5)) * [1, 10, 0.1, 1, 1] + [0, 5, 0, 0, 0]
    label = x[:, 0] + 0.2 * x[:, 1] + random.normal(size=300) > 1

    def loss(theta: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-(x @ theta[:-1] + theta[-1])))
        return float(-np.log(np.where(label, p, 1 - p)).mean() + l2 / 2 * (theta[:-1] ** 2).sum())

    reference = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-9, "maxiter": 2000})
    found = fit_logistic(x, label, l2)
    theta = np.append(found.w_d, found.b)
    assert loss(theta) <= reference.fun + 1e-12
    np.testing.assert_allclose(theta, reference.x, atol=1e-4)
    residual = 1 / (1 + np.exp(-found.logit(x))) - label
    assert np.abs(x.T @ residual / 300 + l2 * found.w_d).max() < GRADIENT_TOLERANCE
    assert abs(residual.mean()) < GRADIENT_TOLERANCE


def test_logistic_regression_on_one_binary_feature_has_the_closed_form() -> None:
    x = np.repeat([0.0, 0.0, 1.0, 1.0], [30, 10, 5, 55])[:, None]
    label = np.repeat([True, False, True, False], [30, 10, 5, 55])
    found = fit_logistic(x, label, 1e-9)
    assert found.b == pytest.approx(np.log(30 / 10), rel=1e-4)
    assert found.w_d[0] == pytest.approx(np.log(5 / 55) - np.log(30 / 10), rel=1e-4)


def test_separable_labels_and_a_far_start_converge() -> None:
    x = np.linspace(-1, 1, 40)[:, None]
    cold = fit_logistic(x, x[:, 0] > 0, 1e-6)
    warm = fit_logistic(x, x[:, 0] > 0, 1e-6, start=fit_logistic(x, x[:, 0] < 0, 1.0))
    assert warm.w_d[0] == pytest.approx(cold.w_d[0], rel=1e-3) and cold.w_d[0] > 10


@pytest.mark.parametrize(("label", "l2"), [([True, True], 1.0), ([False, False], 1.0), ([True, False], 0.0)])
def test_what_has_no_minimum_is_refused(label: list[bool], l2: float) -> None:
    with pytest.raises(ValueError, match="needs both labels and l2 > 0"):
        fit_logistic(np.ones((2, 1)), np.array(label), l2)


def test_the_penalty_suits_the_rows() -> None:
    random = np.random.default_rng(0)
    document = np.repeat(np.arange(50), 10)
    label = random.random(500) < 0.5
    noise = random.normal(size=(500, 60))
    clean = np.where(label, 1.0, -1.0)[:, None] * np.ones((1, 3))
    assert choose_l2(noise, label, document, np.random.default_rng(0)) == L2_GRID[0]
    assert choose_l2(clean, label, document, np.random.default_rng(0)) == L2_GRID[-1]
    assert choose_l2(clean[:2], label[:2], document[:2], np.random.default_rng(0)) == L2_GRID[0]


def test_the_penalty_is_chosen_on_documents_that_were_not_fitted() -> None:
    """Features that tell documents apart, whose rows are of one label, help on rows but not on documents."""
    document = np.repeat(np.arange(60), 10)
    label = (document % 2).astype(bool)
    told_apart = np.eye(60)[document]
    assert choose_l2(told_apart, label, document, np.random.default_rng(0)) == L2_GRID[0]
    assert choose_l2(told_apart, label, np.arange(600), np.random.default_rng(0)) == L2_GRID[-1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 4.0]), st.booleans()), min_size=2))
def test_scores_are_those_of_plain_loops(rows: list[tuple[float, bool]]) -> None:
    logit, label = (np.array(column) for column in zip(*rows, strict=True))
    if label.all() or not label.any():
        return
    found = score(logit, label, np.arange(len(rows)))
    pairs = [(a > b) + 0.5 * (a == b) for a in logit[label] for b in logit[~label]]
    loss = [-np.log(p if y else 1 - p) for p, y in zip(1 / (1 + np.exp(-logit)), label, strict=True)]
    assert found.auc == pytest.approx(np.mean(pairs))
    assert found.accuracy == pytest.approx(np.mean([0.5 if z == 0 else (z > 0) == y for z, y in rows]))
    assert found.cross_entropy == pytest.approx(np.mean(loss))
    assert found.standard_error == pytest.approx(np.std(loss) / np.sqrt(len(rows)))


def test_rows_of_one_document_are_one_unit_of_the_standard_error() -> None:
    random = np.random.default_rng(0)
    logit, label = random.normal(size=50), random.random(50) < 0.5
    single = score(logit, label, np.arange(50)).standard_error
    copied = score(np.tile(logit, 4), np.tile(label, 4), np.tile(np.arange(50), 4)).standard_error
    assert copied == pytest.approx(single)


def test_cross_entropy_does_not_overflow() -> None:
    found = cross_entropy(np.array([1000.0, -1000.0, 0.0]), np.array([False, False, True]))
    np.testing.assert_allclose(found, [1000.0, 0.0, LN2])


class RunningSum:
    """A causal stand-in for a subject: the token id, and the sum of the ids so far."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def width(self, site: Site) -> int:
        return 2

    def run(self, ids_cl: torch.Tensor, sites: list[Site]) -> dict[Site, torch.Tensor]:
        self.shapes.append(tuple(ids_cl.shape))
        return {sites[0]: torch.stack([ids_cl, ids_cl.cumsum(1)], dim=2).to(torch.bfloat16)}


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_activations_are_those_at_each_row(batch: int) -> None:
    probe_set, _ = planted("token")
    random = np.random.default_rng(2)
    length_c = random.integers(2, PER_DOCUMENT + 2, size=N_DOCUMENTS)
    inside = probe_set.position_r < length_c[probe_set.context_r]
    cut = {name: getattr(probe_set, name)[inside] for name in vars(probe_set) if name.endswith("_r")}
    asked = replace(probe_set, **cut, length_c=length_c)
    subject = RunningSum()
    x_ud = activations_at_places(subject, Site("x", 0, "resid_post"), asked, batch=batch)  # type: ignore[arg-type]
    x_rd = x_ud[asked.places.place_r]
    np.testing.assert_array_equal(x_rd[:, 0], asked.token_r)
    sums = np.array([asked.ids_cl[c, : p + 1].sum() for c, p in zip(asked.context_r, asked.position_r, strict=True)])
    np.testing.assert_allclose(x_rd[:, 1], sums, rtol=2**-8)
    assert x_ud.dtype == np.float32 and max(shape[0] for shape in subject.shapes) <= batch
    assert batch > 1 or sorted(shape[1] for shape in subject.shapes) == sorted(length_c)


def test_places_are_the_positions_without_repetition() -> None:
    probe_set, _ = planted("token")
    rows = {name: getattr(probe_set, name) for name in vars(probe_set) if name.endswith("_r")}
    twice = replace(probe_set, **{name: np.concatenate([values, values[::-1]]) for name, values in rows.items()})
    context_u, position_u, place_r = twice.places
    assert context_u.size == probe_set.context_r.size
    np.testing.assert_array_equal(context_u[place_r], twice.context_r)
    np.testing.assert_array_equal(position_u[place_r], twice.position_r)
    assert twice.fingerprint() != probe_set.fingerprint() == planted("token")[0].fingerprint()
