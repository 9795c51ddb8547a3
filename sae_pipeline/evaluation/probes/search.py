"""The best of many features for a task, chosen on its training rows alone: linear readings of rows, or sparse codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.embedded.concepts.logistic import cross_entropy, fit_logistic
from sae_pipeline.evaluation.probes.columns import DenseColumns, Flags, SparseColumns
from sae_pipeline.evaluation.probes.newton import Fits, Floats, Ints, fit_columns

_BLOCK_VALUES: Final = 1 << 24
_SAME: Final = 1e-12  # a feature whose variance is this share of its mean square, or less, is constant


@dataclass(frozen=True)
class Best:
    """The feature with the lowest cross-entropy on the training rows.

    Attributes:
        feature: its number; None where none varies, and the probe knows the share of the labels alone.
        slope, intercept: of the logit over the feature's value.
        train_loss: mean of -ln P(label) over the training rows in nats.
    """

    feature: int | None
    slope: float
    intercept: float
    train_loss: float


class Features(Protocol):
    """n features of the rows of a task."""

    def best(self, label_r: Flags, ridge: float, screen: int | None) -> Best:
        """The best single feature; with `screen`, of those so many whose score test says most."""
        ...

    def ranked(self, label_r: Flags, count: int) -> Ints:
        """The `count` features, or fewer, whose means differ most between the labels, in standard deviations."""
        ...

    def train(self, features: Ints) -> Floats:
        """Values on the training rows, [r, features]."""
        ...

    def test(self, features: Ints) -> Floats:
        """Values on the test rows, [t, features]."""
        ...


class Readings:
    """Features W x of rows x, e.g. pre-activations: an offset does not change what a probe can do with a feature.

    Args:
        W_nd: directions.
        x_rd: training rows.
        x_td: test rows.
    """

    def __init__(self, W_nd: Tensor, x_rd: Tensor, x_td: Tensor) -> None:
        self._W_nd, self._x_td = W_nd.double(), x_td.double()
        self._mean_d = x_rd.double().mean(0)
        self._centred_rd = x_rd.double() - self._mean_d

    @cached_property
    def _sd_n(self) -> Tensor:
        """Standard deviation of every feature, from the rows' covariance: no feature is computed for it."""
        covariance_dd = self._centred_rd.T @ self._centred_rd / len(self._centred_rd)
        variance_n = torch.linalg.vecdot(self._W_nd @ covariance_dd, self._W_nd)
        least_n = _SAME * self._W_nd.square().sum(1) * (covariance_dd.trace() + self._mean_d.square().sum())
        return torch.where(variance_n > least_n, variance_n, 0.0).sqrt()

    def best(self, label_r: Flags, ridge: float, screen: int | None) -> Best:
        """See `Features`."""
        chosen = self._varying() if screen is None else np.sort(self.ranked(label_r, screen))
        step = max(1, _BLOCK_VALUES // len(label_r))
        parts = [self._fit(chosen[i : i + step], label_r, ridge) for i in range(0, len(chosen), step)]
        if not parts:
            return _constant(label_r)
        fits = Fits(*(np.concatenate(part) for part in zip(*((f.w_m, f.b_m, f.loss_m) for f in parts), strict=True)))
        at = int(np.argmin(fits.loss_m))
        feature = int(chosen[at])
        slope = float(fits.w_m[at]) / float(self._sd_n[feature])
        mean = float(self._W_nd[feature] @ self._mean_d)
        return Best(feature, slope, float(fits.b_m[at]) - slope * mean, float(fits.loss_m[at]))

    def _fit(self, chosen: Ints, label_r: Flags, ridge: float) -> Fits:
        index = torch.from_numpy(chosen).to(self._W_nd.device)
        x_mr = (self._W_nd[index] / self._sd_n[index, None]) @ self._centred_rd.T
        return fit_columns(DenseColumns.of(x_mr, label_r), ridge)

    def ranked(self, label_r: Flags, count: int) -> Ints:
        """See `Features`."""
        label = torch.from_numpy(label_r - label_r.mean()).to(self._W_nd.device)
        covariance_n = self._W_nd @ (self._centred_rd.T @ label)
        score_n = torch.where(self._sd_n > 0, covariance_n.abs() / self._sd_n, 0.0).cpu().numpy()
        return _largest(score_n, self._varying(), count)

    def _varying(self) -> Ints:
        return np.flatnonzero(self._sd_n.cpu().numpy())

    def train(self, features: Ints) -> Floats:
        """See `Features`."""
        return self._values(self._centred_rd + self._mean_d, features)

    def test(self, features: Ints) -> Floats:
        """See `Features`."""
        return self._values(self._x_td, features)

    def _values(self, x_rd: Tensor, features: Ints) -> Floats:
        index = torch.from_numpy(features).to(self._W_nd.device)
        return np.asarray((x_rd @ self._W_nd[index].T).cpu().numpy())


class SparseCodes:
    """Features that are codes: 0 on most rows.

    Args:
        codes_rn: of the training rows.
        codes_tn: of the test rows.
    """

    def __init__(self, codes_rn: sparse.csr_array, codes_tn: sparse.csr_array) -> None:
        self._train, self._test = codes_rn.tocsc(), codes_tn.tocsc()
        total_n, squares_n = (np.asarray(part.sum(axis=0)).ravel() for part in (self._train, self._train.power(2)))
        mean_n, square_n = total_n / codes_rn.shape[0], squares_n / codes_rn.shape[0]
        variance_n = square_n - mean_n**2
        self._mean_n = mean_n
        self._sd_n = np.sqrt(np.where(variance_n > _SAME * square_n, variance_n, 0.0))

    def best(self, label_r: Flags, ridge: float, screen: int | None = None) -> Best:
        """See `Features`; all features are fitted, since that costs no more than a screen."""
        chosen = np.flatnonzero(self._sd_n)
        if not len(chosen):
            return _constant(label_r)
        fits = fit_columns(SparseColumns.of(self._train[:, chosen], self._sd_n[chosen], label_r), ridge)
        at = int(np.argmin(fits.loss_m))
        feature = int(chosen[at])
        return Best(feature, float(fits.w_m[at] / self._sd_n[feature]), float(fits.b_m[at]), float(fits.loss_m[at]))

    def ranked(self, label_r: Flags, count: int) -> Ints:
        """See `Features`."""
        covariance_n = self._train.T @ (label_r - label_r.mean())
        score_n = np.divide(np.abs(covariance_n), self._sd_n, out=np.zeros_like(self._sd_n), where=self._sd_n > 0)
        return _largest(score_n, np.flatnonzero(self._sd_n), count)

    def train(self, features: Ints) -> Floats:
        """See `Features`."""
        return np.asarray(self._train[:, features].toarray(), np.float64)

    def test(self, features: Ints) -> Floats:
        """See `Features`."""
        return np.asarray(self._test[:, features].toarray(), np.float64)


def sparse_codes(autoencoder: Autoencoder, u_pd: Tensor) -> sparse.csr_array:
    """The codes of normalised rows [p, d] as a sparse array [p, n], float32."""
    n = autoencoder.config.n
    step = max(1, _BLOCK_VALUES // n)
    rows, columns, values = [], [], []
    for start in range(0, len(u_pd), step):
        codes = autoencoder.encode(u_pd[start : start + step])
        row_p = torch.repeat_interleave(torch.arange(len(codes)), codes.l0_b.cpu()) + start
        active = codes.values > 0
        rows.append(row_p.numpy())
        columns.append(codes.indices[active].cpu().numpy())
        values.append(codes.values[active].cpu().numpy())
    found = (np.concatenate(part) for part in (values, rows, columns))
    data, row, column = found
    return sparse.csr_array((data, (row, column)), shape=(len(u_pd), n))


@dataclass(frozen=True)
class SmallProbe:
    """A logistic regression on a few features: which, its loss on the training rows, its logits on the test rows."""

    features: Ints
    train_loss: float
    logit_t: Floats


def small_probes(
    features: Features, ranked: Ints, label_r: Flags, sizes: Sequence[int], ridge: float
) -> list[SmallProbe]:
    """Probes of the first k of `ranked` features, all of which vary, for every k of `sizes`.

    The features are standardised, and penalised as in `fit_columns`. Where fewer than k are given all are taken.
    """
    train, test = features.train(ranked), features.test(ranked)
    mean, sd = train.mean(axis=0), train.std(axis=0)
    train, test = (train - mean) / sd, (test - mean) / sd
    found = []
    for k in sizes:
        fit = fit_logistic(train[:, :k], label_r, ridge / len(label_r))
        loss = cross_entropy(fit.logit(train[:, :k]), label_r).mean()
        found.append(SmallProbe(ranked[:k], float(loss), fit.logit(test[:, :k])))
    return found


def _constant(label_r: Flags) -> Best:
    known = Fits.constant(1, len(label_r), int(label_r.sum()))
    return Best(None, 0.0, float(known.b_m[0]), float(known.loss_m[0]))


def _largest(score_n: Floats, among: Ints, count: int) -> Ints:
    """Of some features the `count` with the largest score, falling; the lower number first where two are equal."""
    order = np.argsort(-score_n[among], kind="stable")
    return np.asarray(among[order[:count]])
