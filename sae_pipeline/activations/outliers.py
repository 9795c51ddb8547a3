"""Rows far longer than most: massive activations, counted in every shard against one limit for the whole site.

The limit is a multiple of the median ‖x‖ of the first rows of the training split. It is measured once, recorded, and
reused by every shard, whoever makes it; a later version of the same data takes it over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sae_pipeline.activations.errors import ActivationError
from sae_pipeline.activations.layout import HARVEST
from sae_pipeline.store import Artefact, Draft

OUTLIERS: Final = "outliers"
PREFIX_ROWS: Final = 4096
_BLOCK_ROWS: Final = 4096


@dataclass(frozen=True)
class OutlierLimit:
    """From which ‖x‖ on a row is an outlier.

    Attributes:
        median_norm: median ‖x‖ of the finite ones among the first `rows` rows, as stored.
        rows: rows that it was measured on.
        limit: `norm_over_median` times that.
    """

    median_norm: float
    rows: int
    limit: float

    @classmethod
    def measure(cls, x_rd: Tensor, norm_over_median: float) -> OutlierLimit:
        """The limit by the rows [r, d]; ActivationError where none is finite or most are zero."""
        norm_r = norms(x_rd)
        finite_r = norm_r[np.isfinite(norm_r)]
        median_norm = float(np.median(finite_r)) if finite_r.size else 0.0
        if not median_norm:
            raise ActivationError(
                f"activations.outliers: the first {len(norm_r)} rows have no median norm (not finite, or mostly zero); "
                "leave the setting out for this site's study"
            )
        return cls(median_norm, len(norm_r), norm_over_median * median_norm)

    @classmethod
    def of(cls, source: Draft | Artefact) -> OutlierLimit | None:
        """What `harvest.json` says; None where outliers are not looked for."""
        found = source.read_json(HARVEST).get(OUTLIERS)
        return None if found is None else cls(**found)

    def find(self, x_rd: Tensor) -> dict[str, Any]:
        """What a shard's record says of its rows [r, d]: `rows`, the numbers of the outliers, and `largest_norm`."""
        norm_r = norms(x_rd)
        finite_r = np.isfinite(norm_r)
        largest_norm = float(norm_r[finite_r].max()) if finite_r.any() else None
        return {"rows": np.flatnonzero(finite_r & (norm_r > self.limit)).tolist(), "largest_norm": largest_norm}


def norms(x_rd: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """‖x‖ of rows [r, d], [r] float64."""
    blocks = (x_rd[start : start + _BLOCK_ROWS].double() for start in range(0, len(x_rd), _BLOCK_ROWS))
    return torch.cat([block.norm(dim=1) for block in blocks]).numpy()


def settle_limit(draft: Draft, known: OutlierLimit | None, measure: Callable[[], OutlierLimit]) -> None:
    """Record the limit in a draft that has none: one that is `known` from an earlier version, or a measured one."""
    if OutlierLimit.of(draft) is None:
        limit = known or measure()
        draft.update_json(HARVEST, lambda record: record | {OUTLIERS: asdict(limit)})
