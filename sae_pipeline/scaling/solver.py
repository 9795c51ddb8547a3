"""Many small robust fits at once: minimise Σ w·Huber_δ(r) over a batch of problems of one shape.

One solver serves the starts of a fit, its profiles, its bootstrap resamples and the calibration of its intervals.
It stops where steps vanish or an objective no longer falls in its 13th digit, never on an absolute tolerance: that, on
a sum of Huber terms of order 1e-6 (let alone on their mean), ends a fit wherever it happens to stand (the failure in
Hoffmann et al. 2022).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.scaling.forms import FloatArray

IntArray = NDArray[np.intp]
Residuals = Callable[[FloatArray, IntArray], tuple[FloatArray, FloatArray]]
"""From parameters [r, p] of the problems numbered [r] to residuals [r, m] and their derivative [r, m, p]."""

_STEP_TOLERANCE = 1e-12
_LARGEST_STEP = 3.0
_RIDGE = 1e-13
_STALL = 1e-13
_STALLED_STEPS = 4


@dataclass(frozen=True)
class Solution:
    """Minimisers of r problems: parameters [r, p], objectives [r] (sums), and which of them came to rest."""

    theta_rp: FloatArray
    objective_r: FloatArray
    converged_r: NDArray[np.bool_]

    @property
    def best(self) -> int:
        """The index of the lowest objective."""
        return int(np.argmin(self.objective_r))


def huber(residual: FloatArray, delta: float) -> FloatArray:
    """r²/2 within ±δ, δ(|r| − δ/2) beyond (Huber 1964)."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def minimise(
    residuals: Residuals,
    start_rp: FloatArray,
    *,
    delta: float,
    weights_rm: FloatArray | None = None,
    free_pq: FloatArray | None = None,
    enough: float = 0.0,
    max_steps: int = 200,
) -> Solution:
    """Minimise the weighted Huber sum from `start_rp`, moving only within the column space of `free_pq`.

    A problem whose objective is below `enough` is left where it is.

    Newton's matrix counts only residuals within ±δ and is singular far from the optimum; the reweighted matrix
    (weights min(1, δ/|r|)) always descends but slowly. Their sum with an adaptive factor goes from the second to the
    first.
    """
    free = np.eye(start_rp.shape[1]) if free_pq is None else free_pq
    theta, moving = start_rp.copy(), np.arange(len(start_rp))
    r, jacobian = residuals(theta, moving)
    weights = np.ones_like(r) if weights_rm is None else weights_rm
    objective = _total(r, weights, delta)
    damping, stalled = np.ones(len(theta)), np.zeros(len(theta), dtype=np.int64)
    for _ in range(max_steps):
        at, w = theta[moving], weights[moving]
        step = _step(r[moving], jacobian[moving] @ free, w, delta, damping[moving]) @ free.T
        tried_r, tried_jacobian = residuals(at + step, moving)
        tried = _total(tried_r, w, delta)
        falls = tried <= objective[moving]
        stall = falls & (objective[moving] - tried <= _STALL * tried)
        taken = moving[falls]
        theta[taken], r[taken], objective[taken] = (at + step)[falls], tried_r[falls], tried[falls]
        jacobian[taken] = tried_jacobian[falls]
        damping[moving] = np.clip(np.where(falls, damping[moving] / 5.0, damping[moving] * 4.0), 1e-12, 1e12)
        stalled[moving] = np.where(stall, stalled[moving] + 1, np.where(falls, 0, stalled[moving]))
        small = np.abs(step).max(axis=1, initial=0.0) <= _STEP_TOLERANCE * (1.0 + np.abs(at).max(axis=1))
        moving = moving[~small & (stalled[moving] < _STALLED_STEPS) & (objective[moving] >= enough)]
        if not len(moving):
            break
    converged = np.ones(len(theta), dtype=bool)
    converged[moving] = False
    return Solution(theta, objective, converged)


def _total(r: FloatArray, weights: FloatArray, delta: float) -> FloatArray:
    total: FloatArray = (weights * huber(r, delta)).sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)


def _step(r: FloatArray, jacobian: FloatArray, weights: FloatArray, delta: float, damping: FloatArray) -> FloatArray:
    """One damped step [r, q] for each problem, no component longer than `_LARGEST_STEP`."""
    shrink = delta / np.maximum(np.abs(r), delta)
    gradient = np.einsum("rmq,rm->rq", jacobian, weights * shrink * r)
    blend = weights * ((np.abs(r) <= delta) + damping[:, None] * shrink)
    matrix = np.einsum("rmq,rm,rms->rqs", jacobian, blend, jacobian)
    n_free = matrix.shape[1]
    # the ridge keeps directions solvable that the data do not see (an irreducible term running off to zero)
    ridge = _RIDGE * np.trace(matrix, axis1=1, axis2=2) + 1e-300
    matrix = matrix + ridge[:, None, None] * np.eye(n_free)
    step = -np.linalg.solve(matrix, gradient[:, :, None])[:, :, 0]
    longest = np.abs(step).max(axis=1, keepdims=True, initial=0.0)
    capped: FloatArray = step * np.minimum(1.0, _LARGEST_STEP / np.maximum(longest, 1e-300))
    return capped
