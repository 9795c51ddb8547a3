"""Exact moments of activation rows: taken while a shard is hot, merged without loss over any number of shards."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]

_BLOCK_ROWS = 1024  # a block of float64 rows stays in the processor's cache over the passes made on it


@dataclass(frozen=True)
class Moments:
    """Moments of a set of rows, in float64.

    Rows with a NaN or an infinite value are counted in `non_finite` and enter nothing else. The unit row of x is
    u = (x - mean over d of x) / ‖x - mean over d of x‖, the paper's preprocessing (paper §1.4); 0 where x is constant.

    Attributes:
        count: finite rows.
        mean: [d] mean row.
        m2: [d] Σ (x - mean)²; exactly 0 where a dimension never changes.
        norm_sum: Σ ‖x‖.
        sq_sum: Σ ‖x‖².
        unit_mean: [d] mean of the unit rows.
        unit_m2: Σ ‖u - unit_mean‖².
        centred_norm_sum: Σ ‖x - mean over d of x‖.
        absmax: largest |value|.
        non_finite: rows left out.
    """

    count: int
    mean: Floats
    m2: Floats
    norm_sum: float
    sq_sum: float
    unit_mean: Floats
    unit_m2: float
    centred_norm_sum: float
    absmax: float
    non_finite: int

    @classmethod
    def empty(cls, d: int) -> Moments:
        """Moments of no rows, the neutral element of `merge`."""
        return cls(0, np.zeros(d), np.zeros(d), 0.0, 0.0, np.zeros(d), 0.0, 0.0, 0.0, 0)

    @classmethod
    def of(cls, x_rd: Tensor) -> Moments:
        """Take the moments of rows [r, d] of any float dtype, two passes over each block of rows."""
        size = min(_BLOCK_ROWS, len(x_rd))
        block_rd, scratch_rd = x_rd.new_empty(2, size, x_rd.shape[1], dtype=torch.float64)

        def part(start: int) -> Moments:
            n = min(_BLOCK_ROWS, len(x_rd) - start)
            rows_rd = x_rd[start : start + n]
            # From float16 by way of float32, which is exact: PyTorch's direct way takes three times as long.
            block_rd[:n].copy_(rows_rd.float() if rows_rd.dtype == torch.float16 else rows_rd)
            return _of_block(block_rd[:n], scratch_rd[:n])

        return cls.total(map(part, range(0, len(x_rd), _BLOCK_ROWS)), d=x_rd.shape[1])

    @classmethod
    def total(cls, parts: Iterable[Moments], *, d: int) -> Moments:
        """Merge any number of moments in their order."""
        return reduce(cls.merge, parts, cls.empty(d))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together (Chan, Golub & LeVeque 1979: the pairwise update of mean and M2)."""
        count = self.count + other.count
        share = other.count / count if count else 0.0
        cross = self.count * share
        shift, unit_shift = other.mean - self.mean, other.unit_mean - self.unit_mean
        return Moments(
            count=count,
            mean=self.mean + share * shift,
            m2=self.m2 + other.m2 + cross * shift**2,
            norm_sum=self.norm_sum + other.norm_sum,
            sq_sum=self.sq_sum + other.sq_sum,
            unit_mean=self.unit_mean + share * unit_shift,
            unit_m2=self.unit_m2 + other.unit_m2 + cross * float(unit_shift @ unit_shift),
            centred_norm_sum=self.centred_norm_sum + other.centred_norm_sum,
            absmax=max(self.absmax, other.absmax),
            non_finite=self.non_finite + other.non_finite,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values that keep every bit."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Moments:
        """The moments that `to_json` wrote."""
        vectors = {name: np.array(item, np.float64) for name, item in value.items() if isinstance(item, list)}
        return cls(**{**value, **vectors})


def _of_block(x_rd: Tensor, scratch_rd: Tensor) -> Moments:
    """Moments of a few rows; both tensors are written over, for new ones would cost more than the sums."""
    rows, d = x_rd.shape
    low, high = x_rd.aminmax()  # NaN wherever there is one
    if not bool((low.isfinite() & high.isfinite()).all()):
        x_rd = x_rd[torch.isfinite(x_rd.sum(dim=1))]  # float64 sums of what fits into float32 do not overflow
        if not len(x_rd):
            return replace(Moments.empty(d), non_finite=rows)
        low, high = x_rd.aminmax()
    count = len(x_rd)
    scratch_rd, first_d = scratch_rd[:count], x_rd[0].clone()
    norm_r = torch.linalg.vector_norm(x_rd, dim=1)
    # Shifting by the first row makes the spread of a dimension that never changes exactly 0.
    mean_d, apart_rd = _centred_(torch.sub(x_rd, first_d, out=scratch_rd))
    m2_d = apart_rd.square_().sum(dim=0)
    x_rd.sub_(x_rd.mean(dim=1, keepdim=True))
    centred_norm_r1 = torch.linalg.vector_norm(x_rd, dim=1, keepdim=True)
    x_rd.mul_(centred_norm_r1.masked_fill(centred_norm_r1 == 0, 1.0).reciprocal_())  # a third of what dividing takes
    unit_mean_d, apart_rd = _centred_(x_rd)
    return Moments(
        count=count,
        mean=(mean_d + first_d).cpu().numpy(),
        m2=m2_d.cpu().numpy(),
        norm_sum=float(norm_r.sum()),
        sq_sum=float(norm_r.square().sum()),
        unit_mean=unit_mean_d.cpu().numpy(),
        unit_m2=float(torch.linalg.vector_norm(apart_rd)) ** 2,
        centred_norm_sum=float(centred_norm_r1.sum()),
        absmax=max(-float(low), float(high)),
        non_finite=rows - count,
    )


def _centred_(x_rd: Tensor) -> tuple[Tensor, Tensor]:
    """The mean row, and the rows less it, which are written over."""
    mean_d = x_rd.mean(dim=0)
    return mean_d, x_rd.sub_(mean_d)
