"""Intervals for the parameters of a fitted law, and a fan for its curve.

Profile: the values of a parameter at which the best objective of the others rises by no more than a limit. Huber's
objective is no log-likelihood, and studies have few sizes, so the limit is not a χ² quantile: it is the 95 % quantile
of the same statistic (H_constrained − H)/H when normal noise of the observed size is fitted on the fit's own design.

Bootstrap: percentiles over resampled runs. Resamples that cannot determine the parameters are dropped and counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.scaling.fitting import DELTA, Law, residuals_of
from sae_pipeline.scaling.forms import FloatArray, Reported
from sae_pipeline.scaling.solver import IntArray, Residuals, minimise

LEVEL = 0.95
_REACH = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 9.0, 14.0, 22.0, 35.0, 60.0, 100.0])
_SMALLEST_NOISE = 1e-10
_REFINEMENTS = 3
_FAN_STEPS = 60
_PROFILE_STEPS = 100


@dataclass(frozen=True)
class Intervals:
    """95 % bounds by parameter name (±inf where there is none), and parameter vectors [r, p] that span the fan."""

    method: str
    bounds: dict[str, tuple[float, float]]
    theta_rp: FloatArray

    def fan(self, law: Law, n_g: FloatArray, k_g: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Pointwise 95 % band of the law at (n, k), in the units of the loss."""
        log_rg = law.log_predict(n_g, k_g, self.theta_rp)
        low, high = np.quantile(log_rg, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return np.exp(low), np.exp(high)


def intervals(law: Law, method: Literal["profile", "bootstrap"], *, resamples: int, seed: Iterable[int]) -> Intervals:
    """Intervals by the named method; `resamples` is the number of bootstrap or calibration draws."""
    rng = np.random.default_rng(list(seed))
    return profile(law, resamples, rng) if method == "profile" else bootstrap(law, resamples, rng)


def bootstrap(law: Law, resamples: int, rng: np.random.Generator) -> Intervals:
    """Percentile intervals over `resamples` draws of the runs with replacement."""
    m = len(law.points.n_m)
    counts_rm = rng.multinomial(m, np.full(m, 1 / m), size=resamples).astype(np.float64)
    jacobian_mp = _jacobian(law)
    enough = np.linalg.matrix_rank(counts_rm[:, :, None] * jacobian_mp, rtol=1e-9) == law.form.n_parameters
    counts_rm = counts_rm[enough]
    if not len(counts_rm):
        unbounded = {parameter.name: (-np.inf, np.inf) for parameter in law.reported}
        return Intervals("bootstrap over runs, 0 draws", unbounded, law.theta_p[None])
    start_rp = np.repeat(law.theta_p[None], len(counts_rm), axis=0)
    solution = minimise(residuals_of(law.form, law.points), start_rp, delta=DELTA, weights_rm=counts_rm)
    bounds = {}
    for parameter in law.reported:
        values_r = parameter.transform(solution.theta_rp @ parameter.weights_p)
        low, high = np.quantile(values_r, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        bounds[parameter.name] = (float(low), float(high))
    return Intervals(f"bootstrap over runs, {len(counts_rm)} of {resamples} draws", bounds, solution.theta_rp)


def profile(law: Law, draws: int, rng: np.random.Generator) -> Intervals:
    """Profile intervals, their limits calibrated with `draws` simulated fits; needs more points than parameters."""
    jacobian_mp = _jacobian(law)
    noise = _noise(law)
    noise_rm = noise * rng.standard_normal((draws, len(jacobian_mp)))
    linear = _linear(jacobian_mp, noise_rm)
    free = minimise(linear, np.zeros((draws, law.form.n_parameters)), delta=DELTA, max_steps=_FAN_STEPS)
    covariance_pp = np.asarray(noise**2 * np.linalg.pinv(jacobian_mp.T @ jacobian_mp, rcond=1e-14, hermitian=True))
    bounds = {}
    for parameter in law.reported:
        limit = _limit(linear, free.theta_rp, free.objective_r, parameter)
        inner = _profile_bounds(law, parameter, covariance_pp, limit)
        low, high = parameter.transform(np.array(inner))
        bounds[parameter.name] = (float(low), float(high))
    # each draw is scaled by its own noise estimate, which turns normal draws into Student's (unknown noise)
    drawn_noise_r = _noise_of(free.theta_rp @ jacobian_mp.T - noise_rm, law.form.n_parameters)
    theta_rp = law.theta_p + free.theta_rp * (noise / drawn_noise_r)[:, None]
    return Intervals(f"profile of the Huber sum, calibrated with {draws} draws", bounds, theta_rp)


def _jacobian(law: Law) -> FloatArray:
    jacobian: FloatArray = law.form.log_law(law.theta_p[None], law.points.x_m, law.points.y_m)[1][0]
    return jacobian


def _noise(law: Law) -> float:
    return float(_noise_of(law.residual_m[None], law.form.n_parameters)[0])


def _noise_of(residual_rm: FloatArray, n_parameters: int) -> FloatArray:
    """Standard deviation of the residuals, p degrees of freedom lost."""
    spare = max(1, residual_rm.shape[1] - n_parameters)
    return np.asarray(np.maximum(np.sqrt((residual_rm**2).sum(axis=1) / spare), _SMALLEST_NOISE))


def _linear(jacobian_mp: FloatArray, noise_rm: FloatArray) -> Residuals:
    """The law linearised at its optimum, observed with noise."""

    def residuals(theta_rp: FloatArray, rows: IntArray) -> tuple[FloatArray, FloatArray]:
        return theta_rp @ jacobian_mp.T - noise_rm[rows], np.repeat(jacobian_mp[None], len(rows), axis=0)

    return residuals


def _complement(weights_p: FloatArray) -> FloatArray:
    """Orthonormal directions [p, p-1] that leave `weights_p · theta` unchanged."""
    basis: FloatArray = np.linalg.svd(weights_p[None])[2][1:].T
    return basis


def _limit(linear: Residuals, free_rp: FloatArray, objective_r: FloatArray, parameter: Reported) -> float:
    """95 % quantile of (H_constrained − H)/H where the parameter's true value is imposed."""
    weights = parameter.weights_p
    start_rp = free_rp - (free_rp @ weights)[:, None] * weights / (weights @ weights)
    constrained = minimise(linear, start_rp, delta=DELTA, free_pq=_complement(weights), max_steps=_FAN_STEPS)
    statistic_r = (constrained.objective_r - objective_r) / np.maximum(objective_r, 1e-300)
    return float(np.quantile(statistic_r, LEVEL))


def _profile_bounds(law: Law, parameter: Reported, covariance_pp: FloatArray, limit: float) -> tuple[float, float]:
    """Where the profile crosses the limit on either side, in the parameter's linear (inner) value."""
    weights = parameter.weights_p
    variance = float(weights @ covariance_pp @ weights)
    direction_p = covariance_pp @ weights / variance
    centre, spread = float(law.theta_p @ weights), float(np.sqrt(variance))
    floor = 0.5 * len(law.points.n_m) * _SMALLEST_NOISE**2
    allowed = law.objective + limit * max(law.objective, floor)

    residuals, complement = residuals_of(law.form, law.points), _complement(weights)

    def inside(shift_s: FloatArray) -> NDArray[np.bool_]:
        start_sp = law.theta_p + shift_s[:, None] * direction_p
        solution = minimise(
            residuals, start_sp, delta=DELTA, free_pq=complement, enough=allowed, max_steps=_PROFILE_STEPS
        )
        within: NDArray[np.bool_] = solution.objective_r <= allowed
        return within

    ends = []
    for sign in (-1.0, 1.0):
        grid = np.concatenate([[0.0], _REACH * spread])
        for _ in range(1 + _REFINEMENTS):
            out = np.flatnonzero(~inside(sign * grid[1:]))
            if not len(out):
                break
            grid = np.linspace(grid[out[0]], grid[out[0] + 1], 10)
        ends.append(centre + sign * grid[-1] if len(out) else sign * np.inf)
    return ends[0], ends[1]
