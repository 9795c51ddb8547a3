import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import minimize

from sae_pipeline.evaluation.probes import columns
from sae_pipeline.evaluation.probes.columns import DenseColumns, SparseColumns
from sae_pipeline.evaluation.probes.newton import fit_columns
from sae_pipeline.evaluation.probes.search import Readings, SparseCodes, small_probes

ROWS, LATENTS = 240, 24
RIDGES = (1e-3, 1.0, 30.0)


def codes(seed=0, rows=ROWS, latents=LATENTS):
    """Sparse values; latent 0 is silent, 1 tells the labels apart, 2 is on everywhere, 3 is rare."""
    random = np.random.default_rng(seed)
    z_rn = np.where(random.random((rows, latents)) < 0.15, random.exponential(1, (rows, latents)), 0.0)
    label_r = random.random(rows) < 0.4
    z_rn[:, 0] = 0
    z_rn[:, 1] = np.where(label_r, random.uniform(1, 2, rows), 0)
    z_rn[:, 2] = random.exponential(1, rows) + 0.1 * label_r
    z_rn[:, 3] = np.where(np.arange(rows) == 7, 3.0, 0)
    return z_rn, label_r


def varying(z_rn):
    return np.flatnonzero(z_rn.std(axis=0))


def standardised(z_rn):
    return (z_rn - z_rn.mean(axis=0)) / z_rn.std(axis=0)


def dense(z_rn, label_r):
    return DenseColumns.of(torch.from_numpy(standardised(z_rn[:, varying(z_rn)]).T.copy()), label_r)


def by_scipy(x_r, label_r, ridge):
    """One fit by a general minimiser: w, b, mean cross-entropy."""

    def objective(theta):
        logit_r = theta[0] * x_r + theta[1]
        return np.logaddexp(0, np.where(label_r, -logit_r, logit_r)).sum() + ridge / 2 * theta[0] ** 2

    def gradient(theta):
        wrong_r = 1 / (1 + np.exp(-(theta[0] * x_r + theta[1]))) - label_r
        return np.array([wrong_r @ x_r + ridge * theta[0], wrong_r.sum()])

    w, b = minimize(objective, np.zeros(2), jac=gradient, method="BFGS", options={"gtol": 1e-9}).x
    return w, b, (objective((w, b)) - ridge / 2 * w**2) / len(x_r)


@pytest.mark.parametrize("ridge", RIDGES)
def test_every_fit_is_that_of_a_general_minimiser(ridge):
    z_rn, label_r = codes()
    found = fit_columns(dense(z_rn, label_r), ridge)
    for i, x_r in enumerate(standardised(z_rn[:, varying(z_rn)]).T):
        w, b, loss = by_scipy(x_r, label_r, ridge)
        assert found.loss_m[i] == pytest.approx(loss, abs=1e-7)
        assert (found.w_m[i], found.b_m[i]) == pytest.approx((w, b), rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("ridge", RIDGES)
def test_every_gradient_vanishes(ridge):
    z_rn, label_r = codes()
    x_rm = standardised(z_rn[:, varying(z_rn)])
    found = fit_columns(dense(z_rn, label_r), ridge)
    wrong_rm = 1 / (1 + np.exp(-(x_rm * found.w_m + found.b_m))) - label_r[:, None]
    assert np.abs((x_rm * wrong_rm).sum(axis=0) + ridge * found.w_m).max() / ROWS < 1e-8
    assert np.abs(wrong_rm.sum(axis=0)).max() / ROWS < 1e-8


# LogisticRegression(C=1 / ridge, solver="newton-cholesky", tol=1e-12) of scikit-learn 1.9.1 on the standardised columns
# of `anchor`, by column and ridge: slope, intercept, mean cross-entropy.
SKLEARN = {
    (0, 0.001): (1.1492923, -0.525810466, 0.554320193324),
    (0, 1.0): (1.02887479, -0.503436488, 0.555336768315),
    (0, 30.0): (0.309997328, -0.414993708, 0.613708945831),
    (1, 0.001): (10.0074241, -2.18661194, 0.000220523272384),
    (1, 1.0): (2.97431665, -0.81317279, 0.0585538608473),
    (1, 30.0): (0.651715888, -0.440751614, 0.411594818368),
    (2, 0.001): (0, -0.405465108, 0.673011667009),
    (2, 1.0): (0, -0.405465108, 0.673011667009),
    (2, 30.0): (0, -0.405465108, 0.673011667009),
}


def anchor():
    """A formula in place of random numbers, so that nobody's generator matters: overlapping, separable, constant."""
    t = np.arange(60)
    label_r = (t * 7) % 5 < 2
    return np.stack([np.sin(t) + 0.8 * label_r, label_r * 2.0 + 0.3 * np.cos(t), np.ones(60)], axis=1), label_r


@pytest.mark.parametrize(("column", "ridge"), SKLEARN)
def test_every_fit_is_that_of_scikit_learn(column, ridge):
    z_rn, label_r = anchor()
    x_r = standardised(z_rn[:, [column]]) if column < 2 else np.zeros((60, 1))
    found = fit_columns(DenseColumns.of(torch.from_numpy(x_r.T.copy()), label_r), ridge)
    assert (found.w_m[0], found.b_m[0]) == pytest.approx(SKLEARN[column, ridge][:2], rel=1e-6, abs=1e-8)
    assert found.loss_m[0] == pytest.approx(SKLEARN[column, ridge][2], abs=1e-9)


def test_a_binary_feature_has_the_closed_form():
    x_r = np.repeat([0.0, 0.0, 1.0, 1.0], [30, 10, 5, 55])
    label_r = np.repeat([True, False, True, False], [30, 10, 5, 55])
    best = SparseCodes(*[sparse.csr_array(x_r[:, None])] * 2).best(label_r, 1e-9)
    assert best.feature == 0
    assert best.intercept == pytest.approx(np.log(30 / 10), rel=1e-6)
    assert best.slope == pytest.approx(np.log(5 / 55) - np.log(30 / 10), rel=1e-6)


@pytest.mark.parametrize("ridge", RIDGES)
def test_sparse_is_dense(ridge):
    z_rn, label_r = codes()
    kept = varying(z_rn)
    ours = SparseColumns.of(sparse.csc_array(z_rn[:, kept]), z_rn[:, kept].std(axis=0), label_r)
    theirs = dense(z_rn, label_r)
    w, b = np.linspace(-2, 3, len(kept)), np.linspace(1, -1, len(kept))
    shift = w * z_rn[:, kept].mean(axis=0) / z_rn[:, kept].std(axis=0)
    one, other = ours.sums(w, b), theirs.sums(w, b + shift)
    for name in ("loss", "by_b", "by_bb"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-9)
    fits, others = fit_columns(ours, ridge), fit_columns(theirs, ridge)
    np.testing.assert_allclose(fits.loss_m, others.loss_m, atol=1e-9)
    np.testing.assert_allclose(fits.w_m, others.w_m, rtol=1e-4, atol=1e-6)


def test_the_sums_at_the_start_are_those_of_the_slope_zero():
    z_rn, label_r = codes()
    kept = varying(z_rn)
    log_odds = np.log(label_r.mean() / (1 - label_r.mean()))
    for made in (dense(z_rn, label_r), SparseColumns.of(sparse.csc_array(z_rn[:, kept]), np.ones(len(kept)), label_r)):
        plain = made.sums(np.zeros(len(kept)), np.full(len(kept), log_odds))
        for one, other in zip(made.start(), plain, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-9)


def test_results_depend_neither_on_blocks_nor_on_company(monkeypatch):
    z_rn, label_r = codes()
    kept = varying(z_rn)
    made = {
        "dense": dense(z_rn, label_r),
        "sparse": SparseColumns.of(sparse.csc_array(z_rn[:, kept]), z_rn[:, kept].std(axis=0), label_r),
    }
    whole = {name: fit_columns(one, 1.0) for name, one in made.items()}
    monkeypatch.setattr(columns, "_BLOCK_VALUES", 50)
    for name, one in made.items():
        parts = fit_columns(one, 1.0)
        np.testing.assert_allclose(parts.loss_m, whole[name].loss_m, rtol=1e-12)
        alone = fit_columns(one.take(np.array([4, 9])), 1.0)
        np.testing.assert_allclose(alone.w_m, whole[name].w_m[[4, 9]], rtol=1e-9)


def test_the_order_of_rows_and_latents_changes_nothing():
    z_rn, label_r = codes()
    random = np.random.default_rng(3)
    rows, latents = random.permutation(ROWS), random.permutation(LATENTS)
    straight = SparseCodes(*[sparse.csr_array(z_rn)] * 2).best(label_r, 1.0)
    turned = SparseCodes(*[sparse.csr_array(z_rn[rows][:, latents])] * 2).best(label_r[rows], 1.0)
    assert straight.feature == 1 == latents[turned.feature]
    assert turned.train_loss == pytest.approx(straight.train_loss, rel=1e-9)
    assert turned.slope == pytest.approx(straight.slope, rel=1e-6)


def test_readings_are_features_of_their_values():
    random = np.random.default_rng(0)
    x_rd, W_nd = torch.from_numpy(random.normal(3, 1, (150, 6))), torch.from_numpy(random.normal(size=(40, 6)))
    W_nd[5] = 0
    label_r = (x_rd @ W_nd[11]).numpy() + random.normal(size=150) > float((x_rd @ W_nd[11]).mean())
    made = Readings(W_nd, x_rd, x_rd[:30])
    values_rn = (x_rd @ W_nd.T).numpy()
    plain = fit_columns(dense(values_rn, label_r), 1.0)
    best = made.best(label_r, 1.0, None)
    assert best.feature == varying(values_rn)[np.argmin(plain.loss_m)]
    assert best.train_loss == pytest.approx(plain.loss_m.min(), abs=1e-10)
    index = np.array([best.feature])
    np.testing.assert_allclose(made.train(index)[:, 0], values_rn[:, best.feature])
    logit_t = best.slope * made.test(index)[:, 0] + best.intercept
    at = int(np.argmin(plain.loss_m))
    expected = plain.w_m[at] * standardised(values_rn[:, varying(values_rn)])[:, at] + plain.b_m[at]
    np.testing.assert_allclose(logit_t, expected[:30], rtol=1e-6)
    assert made.best(label_r, 1.0, 8).feature == best.feature == 11
    assert 5 not in made.ranked(label_r, 40)


def test_latents_that_never_vary_leave_the_share_of_the_labels():
    label_r = np.arange(40) < 10
    nothing = np.zeros((40, 3))
    for made in (
        SparseCodes(*[sparse.csr_array(nothing)] * 2),
        SparseCodes(*[sparse.csr_array(nothing + 2)] * 2),
        Readings(torch.zeros(3, 4, dtype=torch.float64), torch.ones(40, 4), torch.ones(2, 4)),
        Readings(torch.ones(3, 4, dtype=torch.float64), torch.full((40, 4), 1e4), torch.ones(2, 4)),
    ):
        best = made.best(label_r, 1.0, None)
        assert best.feature is None and best.slope == 0
        assert best.train_loss == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))
        assert not len(made.ranked(label_r, 5))


def test_small_probes_take_the_largest_differences_of_means():
    z_rn, label_r = codes()
    features = SparseCodes(*[sparse.csr_array(z_rn)] * 2)
    ranked = features.ranked(label_r, 16)
    kept = varying(z_rn)
    difference = np.abs(z_rn[label_r].mean(axis=0) - z_rn[~label_r].mean(axis=0))[kept] / z_rn[:, kept].std(axis=0)
    assert list(ranked) == list(kept[np.argsort(-difference)][:16])
    found = small_probes(features, ranked, label_r, (1, 3, 16), 1.0)
    assert [list(probe.features) for probe in found] == [list(ranked[:k]) for k in (1, 3, 16)]
    assert found[0].train_loss == pytest.approx(features.best(label_r, 1.0).train_loss, abs=1e-6)
    assert found[0].train_loss >= found[1].train_loss >= found[2].train_loss


@pytest.mark.parametrize("certain", [True, False])
def test_a_step_that_is_too_long_is_halved(certain):
    """One far outlier makes the first Newton step overshoot; perfect separation makes the slope long."""
    random = np.random.default_rng(1)
    x_r = np.concatenate([random.normal(size=99), [1e4]])
    label_r = x_r > np.median(x_r) if certain else np.append(random.random(99) < 0.5, False)
    x_r = (x_r - x_r.mean()) / x_r.std()
    found = fit_columns(DenseColumns.of(torch.from_numpy(x_r[None]), label_r), 1e-3)
    wrong_r = 1 / (1 + np.exp(-(x_r * found.w_m[0] + found.b_m[0]))) - label_r
    assert abs(x_r @ wrong_r + 1e-3 * found.w_m[0]) < 1e-6 and abs(wrong_r.sum()) < 1e-6
