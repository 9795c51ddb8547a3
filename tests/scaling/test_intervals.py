import numpy as np
import pytest
from scipy import stats

from sae_pipeline.scaling import FORMS, Points, fit_law, intervals

SIZES = 2.0 ** np.arange(8, 13)


def simulate(label, sizes, truth, noise, seed, method, resamples=200):
    rng = np.random.default_rng([7, seed])
    value = (3 * sizes**-0.26 + truth.get("irreducible", 0.0)) * np.exp(noise * rng.standard_normal(len(sizes)))
    law = fit_law(FORMS[label], Points.of(sizes, np.full_like(sizes, 8.0), value))
    return law, intervals(law, method, resamples=resamples, seed=[seed])


@pytest.mark.parametrize(("noise", "n_sizes"), [(1e-2, 5), (1e-4, 5), (5e-3, 12)])
def test_profile_interval_covers_the_truth(noise, n_sizes):
    """Nominal 95 %; over 60 trials chance alone leaves 0.88 to 1. Five sizes are what a study has."""
    truth = {"beta": -0.26, "alpha": 3.0}
    hits = {name: 0 for name in truth}
    for seed in range(40):
        found = simulate("L_N", np.geomspace(256, 4096, n_sizes), truth, noise, seed, "profile")[1]
        for name, value in truth.items():
            low, high = found.bounds[name]
            hits[name] += low <= value <= high
    assert min(hits.values()) >= 35, hits


def test_bootstrap_interval_covers_with_a_dozen_runs():
    found = [
        simulate("L_N", np.geomspace(256, 8192, 14), {}, 5e-3, seed, "bootstrap")[1].bounds["beta"]
        for seed in range(40)
    ]
    assert sum(low <= -0.26 <= high for low, high in found) >= 35


def test_profile_equals_students_interval_where_the_loss_is_quadratic():
    """With noise far below the Huber threshold the fit is linear regression, whose intervals are known."""
    law, found = simulate("L_N", SIZES, {}, 5e-5, 3, "profile", resamples=8000)
    line = stats.linregress(np.log(SIZES), law.points.log_value_m)
    half = stats.t.ppf(0.975, 3) * line.stderr
    assert found.bounds["beta"] == pytest.approx((line.slope - half, line.slope + half), abs=0.12 * half)


def test_intervals_hold_the_estimate_and_scale_with_the_noise():
    sizes, truth = np.geomspace(256, 8192, 10), {"irreducible": 0.2}
    narrow, wide = (simulate("L_N+e", sizes, truth, noise, 1, "profile") for noise in (1e-4, 1e-3))
    for law, found in (narrow, wide):
        for name, value in law.parameters.items():
            assert found.bounds[name][0] <= value <= found.bounds[name][1], name
    widths = [found.bounds["beta"][1] - found.bounds["beta"][0] for _, found in (narrow, wide)]
    assert 3 < widths[1] / widths[0] < 30


def test_fan_holds_the_curve_and_widens_beyond_the_points():
    law, found = simulate("L_N", SIZES, {}, 5e-3, 0, "profile")
    inside, beyond = np.array([1024.0, 65536.0]), np.array([8.0, 8.0])
    low, high = found.fan(law, inside, beyond)
    predicted = law.predict(inside, beyond)
    assert ((low < predicted) & (predicted < high)).all()
    assert np.log(high[1] / low[1]) > 2 * np.log(high[0] / low[0])


def test_draws_depend_on_the_seed_alone():
    law, first = simulate("L_N", SIZES, {}, 5e-3, 0, "bootstrap")
    assert intervals(law, "bootstrap", resamples=200, seed=[0]).bounds == first.bounds
    assert intervals(law, "bootstrap", resamples=200, seed=[99]).bounds != first.bounds


def test_resamples_that_determine_nothing_are_dropped_and_counted():
    law, found = simulate("L_N+e", SIZES, {"irreducible": 0.1}, 1e-3, 0, "bootstrap")
    kept = int(found.method.split(", ")[1].split(" of ")[0])
    assert 150 < kept < 200
    assert len(found.theta_rp) == kept
    assert law.form.n_parameters == 3
