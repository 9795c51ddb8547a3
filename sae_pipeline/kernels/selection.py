"""Which entries of a row are among its k largest: compiled where that was built, else in PyTorch, to the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_pipeline.kernels import compiled

MAX_GROUP = 32  # entries that one group maximum may stand for
GROUPS_EACH = 8  # groups there must be for each of the k
_KEYS = {torch.float64: torch.int64, **compiled.KEYS}  # what compares faster


def candidates(scores_bn: Tensor, k: int, slack_b: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """A superset of the positive entries among the k largest of each row, whatever an error below the slack does.

    It holds every entry that is at least share · κ − slack and more than −slack, where κ is the k-th largest score of
    its row, or 0 if fewer than k are positive.

    Args:
        scores_bn: contiguous, no NaN.
        k: from 1 to n.
        slack_b: float32 (float64 for scores of float64), ≥ 0 and finite.
        share: from 0 to 1.

    Returns:
        How many there are of each row, [b] int64; their columns, flat, ascending within a row, int64.
    """
    library = compiled.library()
    if library is not None and scores_bn.dtype in compiled.KEYS:
        return compiled.candidates(library, scores_bn, k, slack_b, share)
    kth_b = _kth_of_maxima(scores_bn, k).to(slack_b.dtype)
    least_b = torch.maximum(share * kth_b - slack_b, torch.nextafter(-slack_b, torch.full_like(slack_b, torch.inf)))
    pairs = np.flatnonzero(_at_least(scores_bn, _round_up(least_b, scores_bn.dtype)))
    b, n = scores_bn.shape
    counts_b = np.diff(np.searchsorted(pairs, np.arange(b + 1) * n))
    return torch.from_numpy(counts_b), torch.from_numpy(pairs % n)


def largest(indptr: Tensor, values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest positive values of each row of a flat list, of equal ones those that come first.

    Args:
        indptr: where each row begins, [b + 1] int64.
        values: flat, no NaN.
        k: at least 1.

    Returns:
        How many each row keeps, [b] int64; which, as ascending places in `values`, int64.
    """
    library = compiled.library()
    if library is not None and values.dtype == torch.float32:
        return compiled.largest(library, indptr, values, k)
    counts_b = indptr.diff()
    valid_bm = torch.arange(max(1, int(counts_b.max()))) < counts_b[:, None]
    padded_bm = values.new_zeros(valid_bm.shape).masked_scatter_(valid_bm, values)
    kth_b1 = _kth(padded_bm, k)
    above_bm, equal_bm = padded_bm > kth_b1, padded_bm == kth_b1
    free_b1 = k - above_bm.sum(1, keepdim=True)
    kept_bm = above_bm.logical_or_(equal_bm & (equal_bm.cumsum(1) <= free_b1)).logical_and_(padded_bm > 0)
    return kept_bm.sum(1), torch.from_numpy(np.flatnonzero(kept_bm[valid_bm].numpy()))


def _kth_of_maxima(scores_bn: Tensor, k: int) -> Tensor:
    """The k-th largest maximum of groups of entries, or 0: at most κ, and near it where groups are many."""
    keys_bn = scores_bn.view(_KEYS[scores_bn.dtype])
    b, n = keys_bn.shape
    group = 1
    while group < MAX_GROUP and n % (2 * group) == 0 and n // (2 * group) >= GROUPS_EACH * k:
        group *= 2
    # Column c belongs to group c mod n / group: maxima of whole cache lines, not within one.
    maxima = keys_bn if group == 1 else keys_bn.view(b, group, n // group).amax(1)
    return _kth(maxima.view(scores_bn.dtype), k)[:, 0].clamp_(min=0)


def _kth(rows_bm: Tensor, k: int) -> Tensor:
    """The k-th largest of each row, [b, 1], or the least of fewer; where that is not positive, some such number."""
    place = max(0, rows_bm.shape[1] - k)
    keys_bm = rows_bm.view(_KEYS[rows_bm.dtype]).numpy()
    # NumPy partitions integers by vector instructions, some ten times faster than PyTorch's topk.
    return torch.from_numpy(np.partition(keys_bm, place, axis=1)[:, place, None]).view(rows_bm.dtype)


def _at_least(scores_bn: Tensor, least_b: Tensor) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which scores of each row reach its least, [b, n]."""
    if not bool((least_b > 0).all()):  # a negative float does not order as its integer does
        return (scores_bn >= least_b[:, None]).numpy()
    key = _KEYS[scores_bn.dtype]
    large_bn: np.ndarray[Any, np.dtype[np.bool_]] = scores_bn.view(key).numpy() >= least_b.view(key).numpy()[:, None]
    return large_bn


def _round_up(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest number of `dtype` not below each value."""
    rounded = values.to(dtype)
    above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return torch.where(rounded.to(values.dtype) < values, above, rounded)
