"""Logistic regression by Newton's method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Floats = NDArray[np.float64]

GRADIENT_TOLERANCE = 1e-7
_MAX_STEPS = 100
_FLOOR = 1e-10  # curvature of rows that are certain: keeps the intercept's equation regular


@dataclass(frozen=True)
class LogisticFit:
    """P(label = 1 | x) = 1 / (1 + exp(-(x·w + b)))."""

    w_d: Floats
    b: float

    def logit(self, x_nd: Floats) -> Floats:
        """Logits of the rows of `x_nd`, `[n]`."""
        return np.asarray(x_nd @ self.w_d + self.b)


def fit_logistic(
    x_nd: Floats, label_n: NDArray[np.bool_], l2: float, *, start: LogisticFit | None = None
) -> LogisticFit:
    """Minimise the mean of -ln P(label) plus l2/2 ‖w‖²; the intercept is free.

    The penalty is that of scikit-learn's C = 1 / (n l2). Newton steps, halved until the loss falls, end when no
    component of the gradient exceeds `GRADIENT_TOLERANCE`.

    Args:
        x_nd: features.
        label_n: labels, both of which occur.
        l2: strength of the penalty, > 0, without which separable labels have no fit.
        start: where to begin, e.g. the fit of a stronger penalty.

    Raises:
        ValueError: one label is missing, `l2` is not positive, or there is no convergence.
    """
    if label_n.all() or not label_n.any() or l2 <= 0:
        raise ValueError(f"needs both labels and l2 > 0 (l2 = {l2}, {int(label_n.sum())} of {label_n.size} positive)")
    x = np.concatenate([x_nd, np.ones((len(x_nd), 1))], axis=1)
    penalty = np.append(np.full(x_nd.shape[1], l2), 0.0)
    theta = np.zeros(x.shape[1]) if start is None else np.append(start.w_d, start.b)
    for _ in range(_MAX_STEPS):
        p_n = _probability(x @ theta)
        gradient = x.T @ (p_n - label_n) / len(x) + penalty * theta
        if np.abs(gradient).max() < GRADIENT_TOLERANCE:
            return LogisticFit(theta[:-1], float(theta[-1]))
        curvature_n = np.maximum(p_n * (1 - p_n), _FLOOR) / len(x)
        hessian = (x * curvature_n[:, None]).T @ x + np.diag(penalty)
        step = cho_solve(cho_factor(hessian), gradient)
        theta = _shortened(x, label_n, penalty, theta, step, float(gradient @ step))
    raise ValueError(f"logistic regression on {x_nd.shape} did not converge in {_MAX_STEPS} steps; raise l2")


def _shortened(
    x: Floats, label_n: NDArray[np.bool_], penalty: Floats, theta: Floats, step: Floats, slope: float
) -> Floats:
    """Halve a step until the loss falls by a share of what the slope promises (Armijo's rule)."""
    before, scale = _loss(x, label_n, penalty, theta), 1.0
    while scale > 1e-8 and _loss(x, label_n, penalty, theta - scale * step) > before - 1e-4 * scale * slope:
        scale /= 2
    return theta - scale * step


def _loss(x: Floats, label_n: NDArray[np.bool_], penalty: Floats, theta: Floats) -> float:
    return float(cross_entropy(x @ theta, label_n).mean() + penalty @ theta**2 / 2)


def cross_entropy(logit_n: Floats, label_n: NDArray[np.bool_]) -> Floats:
    """-ln P(label) in nats of each row."""
    return np.asarray(np.logaddexp(0.0, np.where(label_n, -logit_n, logit_n)))


def _probability(logit_n: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -logit_n))
