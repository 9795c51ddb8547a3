"""Logistic regressions with one feature each, all fitted at once by Newton's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TOLERANCE = 1e-10  # nats a row that the last step may still gain
_MAX_STEPS = 200
_ARMIJO = 1e-4
_SMALLEST_SCALE = 1e-10
_FLOOR = 1e-10  # curvature of a row that is certain: keeps the intercept's equation regular


class Sums(NamedTuple):
    """Of each of m fits, summed over its rows: the loss, its gradient by w and b, its Hessian; float64 [m]."""

    loss: Floats
    by_w: Floats
    by_b: Floats
    by_ww: Floats
    by_wb: Floats
    by_bb: Floats

    def take(self, index_i: Ints) -> Sums:
        """The sums of some of the fits."""
        return Sums(*(part[index_i] for part in self))


class Columns(Protocol):
    """m features in units of their standard deviations, over the same labelled rows."""

    n_rows: int
    n_positive: int

    def __len__(self) -> int: ...

    def sums(self, w_m: Floats, b_m: Floats) -> Sums:
        """The sums of the logits w x + b."""
        ...

    def start(self) -> Sums:
        """The sums at w = 0 and b = the log-odds of the labels, which take no exponential."""
        ...

    def take(self, index_i: Ints) -> Columns:
        """Some of the features."""
        ...


@dataclass(frozen=True)
class Fits:
    """P(label = 1 | x) = 1 / (1 + exp(-(w x + b))) for each of m features x in units of its standard deviation.

    `loss_m` is the mean of -ln P(label) over the rows in nats, without the penalty.
    """

    w_m: Floats
    b_m: Floats
    loss_m: Floats

    @classmethod
    def constant(cls, m: int, n_rows: int, n_positive: int) -> Fits:
        """What knows nothing but the share of the labels."""
        rate = n_positive / n_rows
        loss = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        return cls(np.zeros(m), np.full(m, np.log(rate / (1 - rate))), np.full(m, loss))


class _Step(NamedTuple):
    """A Newton step, to be taken off, and gradient · step: twice what it promises to gain."""

    w: Floats
    b: Floats
    slope: Floats

    def take(self, index_i: Ints) -> _Step:
        return _Step(*(part[index_i] for part in self))


def fit_columns(columns: Columns, ridge: float) -> Fits:
    """Minimise Σ -ln P(label) + ridge/2 w² for every feature by itself; the intercept is free.

    It is the objective of scikit-learn's LogisticRegression(C = 1 / ridge) on the standardised feature. Steps are
    halved until the objective falls (Armijo's rule) and end when the next one would gain less than 1e-10 nats a row;
    that one is still taken.

    Args:
        columns: the features; both labels occur.
        ridge: strength of the penalty, > 0, without which separable labels have no fit.
    """
    found = Fits.constant(len(columns), columns.n_rows, columns.n_positive)
    index, now = np.arange(len(columns)), columns.start()
    w, b = found.w_m.copy(), found.b_m.copy()
    for _ in range(_MAX_STEPS):
        step = _newton_step(now, w, ridge, columns.n_rows)
        done = step.slope / 2 <= _TOLERANCE * columns.n_rows
        last = np.flatnonzero(done)
        _take_last(found, index[last], w[last], b[last], now.take(last), step.take(last), columns.n_rows)
        if done.all():
            return found
        rest = np.flatnonzero(~done)
        if len(rest) < len(index):
            columns, index, now, step = columns.take(rest), index[rest], now.take(rest), step.take(rest)
            w, b = w[rest], b[rest]
        w, b, now = _descend(columns, w, b, now, step, ridge)
    found.w_m[index], found.b_m[index], found.loss_m[index] = w, b, now.loss / columns.n_rows
    return found


def _newton_step(now: Sums, w: Floats, ridge: float, n_rows: int) -> _Step:
    by_w, by_ww, by_bb = now.by_w + ridge * w, now.by_ww + ridge, now.by_bb + _FLOOR * n_rows
    determinant = by_ww * by_bb - now.by_wb**2
    step_w = (by_bb * by_w - now.by_wb * now.by_b) / determinant
    step_b = (by_ww * now.by_b - now.by_wb * by_w) / determinant
    return _Step(step_w, step_b, by_w * step_w + now.by_b * step_b)


def _take_last(found: Fits, index: Ints, w: Floats, b: Floats, now: Sums, step: _Step, n_rows: int) -> None:
    """Take a step so short that the loss behind it follows from its second-order expansion."""
    rise = now.by_w * step.w + now.by_b * step.b
    bend = now.by_ww * step.w**2 + 2 * now.by_wb * step.w * step.b + now.by_bb * step.b**2
    found.w_m[index], found.b_m[index] = w - step.w, b - step.b
    found.loss_m[index] = (now.loss - rise + bend / 2) / n_rows


def _descend(
    columns: Columns, w: Floats, b: Floats, now: Sums, step: _Step, ridge: float
) -> tuple[Floats, Floats, Sums]:
    """One step of every fit, halved until its objective falls by a share of what the slope promises."""
    before, scale = now.loss + ridge / 2 * w**2, np.ones(len(w))
    new_w, new_b = w - step.w, b - step.b
    new = columns.sums(new_w, new_b)
    while True:
        enough = new.loss + ridge / 2 * new_w**2 <= before - _ARMIJO * scale * step.slope
        short = np.flatnonzero(~enough & (scale > _SMALLEST_SCALE))
        if not len(short):
            return new_w, new_b, new
        scale[short] /= 2
        new_w[short] = w[short] - scale[short] * step.w[short]
        new_b[short] = b[short] - scale[short] * step.b[short]
        for part, value in zip(new, columns.take(short).sums(new_w[short], new_b[short]), strict=True):
            part[short] = value
