"""Cosines between the rows of two matrices, a block at a time: never all rows with all rows in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_BLOCK_VALUES: Final = 1 << 22


def unit_rows(W_nd: Tensor) -> Tensor:
    """The rows at length one, float64 [n, d]; a row of zeros, which has no direction, stays zero."""
    return torch.nn.functional.normalize(W_nd.detach().double(), dim=1)


def random_directions(n: int, d: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """n unit vectors [n, d] drawn evenly from the sphere: what chance is measured with."""
    drawn = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return unit_rows(drawn).to(device)


def cosine_blocks(a_nd: Tensor, b_md: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Number of the first row and cosines [rows, m], float32, of rows of a with all rows of b, from the first on."""
    a_nd, b_md = unit_rows(a_nd).float(), unit_rows(b_md).float()
    step = max(1, _BLOCK_VALUES // max(1, len(b_md)))
    for start in range(0, len(a_nd), step):
        yield start, a_nd[start : start + step] @ b_md.T


@dataclass(frozen=True)
class Nearest:
    """Of rows a [n] and b [m] the nearest of the other: number and cosine.

    Attributes:
        cosine_n: largest cosine of each row of a with a row of b, float64.
        of_n: which row of b that is.
        cosine_m: the same of each row of b; `of_m`: which row of a.
    """

    cosine_n: Tensor
    of_n: Tensor
    cosine_m: Tensor
    of_m: Tensor

    @classmethod
    def of(cls, a_nd: Tensor, b_md: Tensor) -> Nearest:
        """One pass over the blocks. Raises ValueError if a or b has no rows, or their widths differ."""
        if not len(a_nd) or not len(b_md) or a_nd.shape[1] != b_md.shape[1]:
            raise ValueError(f"rows {tuple(a_nd.shape)} and {tuple(b_md.shape)} cannot be compared")
        best_m = torch.full((len(b_md),), -torch.inf, device=a_nd.device)
        of_m = torch.zeros(len(b_md), dtype=torch.int64, device=a_nd.device)
        rows = []
        for start, cosine_rm in cosine_blocks(a_nd, b_md):
            rows.append(cosine_rm.max(1))
            here_m = cosine_rm.max(0)
            better_m = here_m.values > best_m
            best_m = torch.where(better_m, here_m.values, best_m)
            of_m = torch.where(better_m, start + here_m.indices, of_m)
        cosine_n, of_n = (torch.cat(parts) for parts in zip(*rows, strict=True))
        return cls(cosine_n.double(), of_n, best_m.double(), of_m)

    @property
    def mutual_n(self) -> Tensor:
        """Mask [n] of the rows of a that are the nearest of their nearest."""
        return self.of_m[self.of_n] == torch.arange(len(self.of_n), device=self.of_n.device)


def best_matching(a_nd: Tensor, b_md: Tensor, *, absolute: bool = False) -> tuple[Tensor, Tensor]:
    """The one-to-one matching of rows with the largest sum of cosines (Hungarian algorithm).

    Time grows with the cube of the number of rows, memory with its square. With `absolute` signs do not count.

    Returns:
        Which row of b belongs to each row of a, int64 [n], −1 for those left over; its cosine (with `absolute` its
        size), float64 [n], 0 for those left over.
    """
    from scipy.optimize import linear_sum_assignment

    cosine_nm = (unit_rows(a_nd) @ unit_rows(b_md).T).cpu().numpy()
    if absolute:
        cosine_nm = abs(cosine_nm)
    row_p, column_p = linear_sum_assignment(cosine_nm, maximize=True)
    of_n, cosine_n = torch.full((len(a_nd),), -1), torch.zeros(len(a_nd), dtype=torch.float64)
    of_n[row_p] = torch.from_numpy(column_p)
    cosine_n[row_p] = torch.from_numpy(cosine_nm[row_p, column_p])
    return of_n, cosine_n
