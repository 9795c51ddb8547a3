"""Fitting one law to the points of one group: starts, robust polish, predictions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.scaling.forms import FloatArray, LawForm, Reported
from sae_pipeline.scaling.solver import IntArray, Residuals, minimise

DELTA = 1e-3
"""Huber threshold on log residuals (Hoffmann et al. 2022); below it least squares, above it absolute error."""

_STAGES = (1.0, 1e-2, DELTA)
_SHARES = (0.02, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.96, 0.985)
_ETAS = (-0.6, -0.2, 0.0, 0.2)
_SAME_OPTIMUM = 1e-6


@dataclass(frozen=True)
class Points:
    """What one law is fitted to: m runs with n latents, k active ones and loss `value`; logs centred at the means."""

    n_m: FloatArray
    k_m: FloatArray
    value_m: FloatArray
    x_mean: float
    y_mean: float

    @classmethod
    def of(cls, n_m: FloatArray, k_m: FloatArray, value_m: FloatArray) -> "Points":
        """Points centred at their own mean logs, each distinct n (and k) counted once."""
        arrays = [np.asarray(a, dtype=np.float64) for a in (n_m, k_m, value_m)]
        means = [float(np.log(np.unique(a)).mean()) for a in arrays[:2]]
        return cls(arrays[0], arrays[1], arrays[2], means[0], means[1])

    @property
    def x_m(self) -> FloatArray:
        """Centred ln n."""
        return np.log(self.n_m) - self.x_mean

    @property
    def y_m(self) -> FloatArray:
        """Centred ln k."""
        return np.log(self.k_m) - self.y_mean

    @property
    def log_value_m(self) -> FloatArray:
        """ln of the loss."""
        return np.log(self.value_m)

    def where(self, keep_m: NDArray[np.bool_]) -> "Points":
        """The kept points, with the same centre."""
        return Points(self.n_m[keep_m], self.k_m[keep_m], self.value_m[keep_m], self.x_mean, self.y_mean)


@dataclass(frozen=True)
class Law:
    """One fitted law. `objective` is the Huber sum; `agreeing` of `starts` starts reached the same optimum."""

    form: LawForm
    points: Points
    theta_p: FloatArray
    objective: float
    converged: bool
    starts: int
    agreeing: int

    @property
    def reported(self) -> list[Reported]:
        """The quoted parameters."""
        return self.form.reported(self.points.x_mean, self.points.y_mean)

    @property
    def parameters(self) -> dict[str, float]:
        """Quoted parameters by name."""
        return {parameter.name: parameter.value(self.theta_p) for parameter in self.reported}

    @property
    def residual_m(self) -> FloatArray:
        """ln(fitted / observed) of each point."""
        return self.log_predict(self.points.n_m, self.points.k_m) - self.points.log_value_m

    def log_predict(self, n_g: FloatArray, k_g: FloatArray, theta_rp: FloatArray | None = None) -> FloatArray:
        """ln of the law at (n, k): [g], or [r, g] at the given parameters."""
        theta = self.theta_p[None] if theta_rp is None else theta_rp
        log_l, _ = self.form.log_law(theta, np.log(n_g) - self.points.x_mean, np.log(k_g) - self.points.y_mean)
        return log_l[0] if theta_rp is None else log_l

    def predict(self, n_g: FloatArray, k_g: FloatArray) -> FloatArray:
        """The law at (n, k), in the units of the loss."""
        return np.exp(self.log_predict(n_g, k_g))


def residuals_of(form: LawForm, points: Points) -> Residuals:
    """Log residuals ln(fitted/observed) and their derivative, as the solver wants them."""
    x_m, y_m, log_value_m = points.x_m, points.y_m, points.log_value_m

    def residuals(theta_rp: FloatArray, _: IntArray) -> tuple[FloatArray, FloatArray]:
        log_l, jacobian = form.log_law(theta_rp, x_m, y_m)
        return log_l - log_value_m, jacobian

    return residuals


def fit_law(form: LawForm, points: Points) -> Law:
    """Minimise the sum of Huber(1e-3) over log residuals, from many starts, tightening the threshold in stages.

    The starts put the irreducible term at several shares of the lowest losses; given it, the rest is linear in the
    logs and is solved outright (variable projection), so starts differ only where the problem is not convex.
    """
    residuals = residuals_of(form, points)
    theta = start_points(form, points)
    for delta in _STAGES:
        solution = minimise(residuals, theta, delta=delta)
        theta = solution.theta_rp
    best = solution.best
    same = np.abs(theta - theta[best]).max(axis=1) <= _SAME_OPTIMUM * (1 + np.abs(theta[best]).max())
    return Law(
        form=form,
        points=points,
        theta_p=theta[best],
        objective=float(solution.objective_r[best]),
        converged=bool(solution.converged_r[best]),
        starts=len(theta),
        agreeing=int(same.sum()),
    )


def start_points(form: LawForm, points: Points) -> FloatArray:
    """Starting parameters [r, p]."""
    reducible, _ = form.designs(points.x_m, points.y_m)
    log_value_m = points.log_value_m
    if not form.irreducible:
        return np.asarray(np.linalg.lstsq(reducible, log_value_m, rcond=None)[0][None], dtype=np.float64)
    starts = []
    for irreducible_p in _irreducible_starts(form, points):
        log_e_m = form.designs(points.x_m, points.y_m)[1] @ irreducible_p
        rest_m = log_value_m + np.log1p(-np.exp(log_e_m - log_value_m))
        main_p = np.linalg.lstsq(reducible, rest_m, rcond=None)[0]
        starts.append(np.concatenate([main_p, irreducible_p]))
    return np.array(starts)


def _irreducible_starts(form: LawForm, points: Points) -> list[FloatArray]:
    """Irreducible terms below every observed loss."""
    y_m, log_value_m = points.y_m, points.log_value_m
    if not form.joint:
        return [np.array([log_value_m.min() + np.log(share)]) for share in _SHARES]
    floors = [log_value_m[y_m == y].min() for y in np.unique(y_m)]
    observed_eta = float(np.polyfit(np.unique(y_m), floors, 1)[0])
    etas = (*_ETAS, observed_eta)
    heights = [(eta, float((log_value_m - eta * y_m).min())) for eta in etas]
    return [np.array([height + np.log(share), eta]) for eta, height in heights for share in _SHARES]
