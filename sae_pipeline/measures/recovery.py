"""How well a dictionary that is known was found."""

from __future__ import annotations

from torch import Tensor

from sae_pipeline.measures.directions import best_matching


def mean_correlation(dictionary_fd: Tensor, W_dec: Tensor) -> float:
    """MCC: the mean |cosine| between true directions [f, d] and decoder rows [n, d], each row used at most once.

    The matching is the best one (Hungarian algorithm). Raises ValueError if there are fewer rows than directions.
    """
    if len(W_dec) < len(dictionary_fd):
        raise ValueError(f"{len(W_dec)} latents cannot match {len(dictionary_fd)} directions; train at least as many")
    return float(best_matching(dictionary_fd, W_dec, absolute=True)[1].mean())
