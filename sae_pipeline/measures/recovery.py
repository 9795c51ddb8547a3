"""How well a dictionary that is known was found."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_correlation(dictionary_fd: Tensor, W_dec: Tensor) -> float:
    """MCC: the mean |cosine| between true directions [f, d] and decoder rows [n, d], each row used at most once.

    The matching is the best one (Hungarian algorithm). Raises ValueError if there are fewer rows than directions.
    """
    from scipy.optimize import linear_sum_assignment

    if len(W_dec) < len(dictionary_fd):
        raise ValueError(f"{len(W_dec)} latents cannot match {len(dictionary_fd)} directions; train at least as many")
    unit = torch.nn.functional.normalize
    overlap = (unit(dictionary_fd.double(), dim=1) @ unit(W_dec.double(), dim=1).T).abs().cpu().numpy()
    return float(overlap[linear_sum_assignment(-overlap)].mean())
