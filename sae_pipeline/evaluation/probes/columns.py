"""Features of labelled rows, dense or sparse, and the sums over rows that their logistic regressions need."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from sae_pipeline.evaluation.probes.newton import Floats, Ints, Sums

Flags = NDArray[np.bool_]

_BLOCK_VALUES: Final = 1 << 16  # of one feature block: its temporaries stay in the processor's cache


class DenseColumns:
    """Features without zeros to speak of; on any device.

    Attributes:
        side_mr: each row's x, with its sign turned where the label is 0.
        sign_r: 1 where the label is 1, else -1.
    """

    def __init__(self, side_mr: Tensor, sign_r: Tensor) -> None:
        self.side_mr, self.sign_r = side_mr, sign_r
        self.n_rows, self.n_positive = len(sign_r), int((sign_r > 0).sum())

    @classmethod
    def of(cls, x_mr: Tensor, label_r: Flags) -> DenseColumns:
        """Of standardised features [m, r], float64."""
        sign_r = torch.from_numpy(np.where(label_r, 1.0, -1.0)).to(x_mr.device)
        return cls(x_mr * sign_r, sign_r)

    def __len__(self) -> int:
        return len(self.side_mr)

    def take(self, index_i: Ints) -> DenseColumns:
        """Some of the features."""
        return DenseColumns(self.side_mr[torch.from_numpy(index_i).to(self.side_mr.device)], self.sign_r)

    def start(self) -> Sums:
        """See `Columns`."""
        total_m, turned_m = self.side_mr @ self.sign_r, self.side_mr.sum(1)
        squares_m = torch.linalg.vecdot(self.side_mr, self.side_mr)
        sums_3m = torch.stack([total_m, squares_m, (total_m + turned_m) / 2])
        return sums_without_slope(sums_3m.cpu().numpy(), self.n_rows, self.n_positive)

    def sums(self, w_m: Floats, b_m: Floats) -> Sums:
        """See `Columns`."""
        step = max(1, _BLOCK_VALUES // self.n_rows) if self.side_mr.device.type == "cpu" else len(self)
        wb_m2 = torch.from_numpy(np.stack([w_m, b_m], axis=1)).to(self.side_mr.device)
        parts = [self._sums(a, wb_m2[i : i + step]) for i, a in self._blocks(step)]
        return Sums(*torch.cat(parts, dim=1).cpu().numpy())

    def _blocks(self, step: int) -> list[tuple[int, Tensor]]:
        return [(i, self.side_mr[i : i + step]) for i in range(0, len(self), step)]

    def _sums(self, side_mr: Tensor, wb_m2: Tensor) -> Tensor:
        # P(label) is the logistic function of the logit on the label's side.
        right_mr = torch.sigmoid(torch.addcmul(wb_m2[:, 1:] * self.sign_r, side_mr, wb_m2[:, :1]))
        wrong_mr = 1 - right_mr
        bend_mr = right_mr * wrong_mr
        lever_mr = bend_mr * side_mr
        parts = (
            -right_mr.log().sum(1),
            -torch.linalg.vecdot(wrong_mr, side_mr),
            -(wrong_mr @ self.sign_r),
            torch.linalg.vecdot(lever_mr, side_mr),
            lever_mr @ self.sign_r,
            bend_mr.sum(1),
        )
        return torch.stack(parts)


class SparseColumns:
    """Features that are 0 on most rows. Only what is not 0 is stored and summed; the zeros count.

    Attributes:
        x_p, sign_p: the values that are not 0, feature by feature, and the sides of their rows.
        length_m: how many of them each feature has, at least one; `positive_m` of them on rows with label 1.
    """

    def __init__(
        self, x_p: Floats, sign_p: Floats, length_m: Ints, positive_m: Floats, n_rows: int, n_positive: int
    ) -> None:
        self.x_p, self.sign_p, self.length_m, self.positive_m = x_p, sign_p, length_m, positive_m
        self.n_rows, self.n_positive = n_rows, n_positive
        self._end_m = np.cumsum(length_m)

    @classmethod
    def of(cls, codes: sparse.csc_array, scale_m: Floats, label_r: Flags) -> SparseColumns:
        """Of columns [r, m], none of them empty, each to be divided by its scale."""
        length_m = np.diff(codes.indptr).astype(np.int64)
        x_p = codes.data / np.repeat(scale_m, length_m)
        positive_p = label_r[codes.indices]
        positive_m = np.add.reduceat(positive_p, codes.indptr[:-1], dtype=np.float64)
        return cls(x_p, np.where(positive_p, 1.0, -1.0), length_m, positive_m, codes.shape[0], int(label_r.sum()))

    def __len__(self) -> int:
        return len(self.length_m)

    def take(self, index_i: Ints) -> SparseColumns:
        """Some of the features, in their order."""
        kept_p = np.repeat(_flags(index_i, len(self)), self.length_m)
        parts = self.x_p[kept_p], self.sign_p[kept_p], self.length_m[index_i], self.positive_m[index_i]
        return SparseColumns(*parts, self.n_rows, self.n_positive)

    def start(self) -> Sums:
        """See `Columns`."""
        start_m = self._end_m - self.length_m
        positive_p = np.where(self.sign_p > 0, self.x_p, 0.0)
        sums_3m = np.stack([np.add.reduceat(part_p, start_m) for part_p in (self.x_p, self.x_p**2, positive_p)])
        return sums_without_slope(sums_3m, self.n_rows, self.n_positive)

    def sums(self, w_m: Floats, b_m: Floats) -> Sums:
        """See `Columns`."""
        cuts = np.searchsorted(self._end_m, np.arange(_BLOCK_VALUES, self._end_m[-1], _BLOCK_VALUES))
        edges = np.unique(np.concatenate([[0], cuts, [len(self)]]))
        parts = [self._sums(a, b, w_m[a:b], b_m[a:b]) for a, b in pairwise(edges)]
        sums_6m = np.concatenate(parts, axis=1)
        self._add_zeros(sums_6m, b_m)
        return Sums(*sums_6m)

    def _sums(self, first: int, last: int, w_m: Floats, b_m: Floats) -> Floats:
        """The sums of the features `first` to `last` over the rows where they are not 0, [6, last - first]."""
        length_m, end_m = self.length_m[first:last], self._end_m[first:last]
        begin = int(end_m[0] - length_m[0])
        x_p, sign_p = self.x_p[begin : end_m[-1]], self.sign_p[begin : end_m[-1]]
        with np.errstate(over="ignore"):
            odds_p = np.exp(-sign_p * (np.repeat(w_m, length_m) * x_p + np.repeat(b_m, length_m)))
        right_p = 1 / (1 + odds_p)
        wrong_p = 1 - right_p
        bend_p = right_p * wrong_p
        wrong_p *= -sign_p
        lever_p = bend_p * x_p
        summed = (np.log1p(odds_p), wrong_p * x_p, wrong_p, lever_p * x_p, lever_p, bend_p)
        return np.stack([np.add.reduceat(part_p, end_m - length_m - begin) for part_p in summed])

    def _add_zeros(self, sums_6m: Floats, b_m: Floats) -> None:
        """Add the rows on which a feature is 0: their logit is b."""
        positive_m, zeros_m = self.n_positive - self.positive_m, self.n_rows - self.length_m
        with np.errstate(over="ignore"):
            odds_m = np.exp(-b_m)
        p_m, loss_m = 1 / (1 + odds_m), np.log1p(odds_m)
        sums_6m[0] += zeros_m * loss_m + (zeros_m - positive_m) * b_m
        sums_6m[2] += zeros_m * p_m - positive_m
        sums_6m[5] += zeros_m * p_m * (1 - p_m)


def _flags(index_i: Ints, m: int) -> Flags:
    flags = np.zeros(m, np.bool_)
    flags[index_i] = True
    return flags


def sums_without_slope(sums_3m: Floats, n_rows: int, n_positive: int) -> Sums:
    """The sums at w = 0 and b = the log-odds of the labels.

    Args:
        sums_3m: of every feature Σ x, Σ x², and Σ x over the rows with label 1.
        n_rows: rows.
        n_positive: rows with label 1.
    """
    total_m, squares_m, positive_m = sums_3m
    rate, same_m = n_positive / n_rows, np.ones_like(total_m)
    loss, bend = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)), rate * (1 - rate)
    return Sums(
        loss=n_rows * loss * same_m,
        by_w=rate * total_m - positive_m,
        by_b=0.0 * same_m,
        by_ww=bend * squares_m,
        by_wb=bend * total_m,
        by_bb=n_rows * bend * same_m,
    )
