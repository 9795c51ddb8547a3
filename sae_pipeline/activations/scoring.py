"""What a subject predicts: cross-entropy, logsumexp and KL per position, in float32 and a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

_CHUNK_VALUES: Final = 1 << 20
"""Logits in work at once (4 MiB in float32): bounds memory, and stays near the caches."""


def clean_scores(logits_clv: Tensor, ids_cl: Tensor) -> tuple[Tensor, Tensor]:
    """Score the untouched model.

    Args:
        logits_clv: logits [contexts, length, vocabulary] in any float dtype.
        ids_cl: token ids [contexts, length]; the target of a position is the next position's token.

    Returns:
        Cross-entropy in nats and logsumexp of the logits, both [contexts, length] float32 on the logits' device; the
        cross-entropy of the last position is NaN.
    """
    ce_cl, logsumexp_cl = _empty(ids_cl, logits_clv), _empty(ids_cl, logits_clv)
    targets_r = _targets(ids_cl, logits_clv)
    for rows, log_p_rv in _log_softmax(logits_clv):
        ce_cl.view(-1)[rows] = -_pick(log_p_rv, targets_r[rows])
        logsumexp_cl.view(-1)[rows] = logits_clv.flatten(0, 1)[rows].float().logsumexp(dim=-1)
    ce_cl[:, -1] = torch.nan
    return ce_cl, logsumexp_cl


def spliced_scores(clean_clv: Tensor, logits_clv: Tensor, ids_cl: Tensor) -> tuple[Tensor, Tensor]:
    """Score a model with a replaced activation against the untouched one.

    KL = Σ_v p_v (log p_v - log q_v) with p the untouched and q the changed model (paper §5.2); exactly 0 for equal
    logits. Pass clean logits of the same batch shape, or rounding differences between kernels are measured too.

    Args:
        clean_clv: logits of the untouched model [contexts, length, vocabulary].
        logits_clv: logits of the changed one, same shape.
        ids_cl: token ids [contexts, length].

    Returns:
        Cross-entropy of the changed model and KL, both in nats, [contexts, length] float32; the cross-entropy of the
        last position is NaN.
    """
    ce_cl, kl_cl = _empty(ids_cl, logits_clv), _empty(ids_cl, logits_clv)
    targets_r = _targets(ids_cl, logits_clv)
    for (rows, log_p_rv), (_, log_q_rv) in zip(_log_softmax(clean_clv), _log_softmax(logits_clv), strict=True):
        ce_cl.view(-1)[rows] = -_pick(log_q_rv, targets_r[rows])
        kl_rv = log_p_rv.exp() * (log_p_rv - log_q_rv)
        kl_cl.view(-1)[rows] = kl_rv.sum(dim=-1, dtype=torch.float64).float()
    ce_cl[:, -1] = torch.nan
    return ce_cl, kl_cl


def _log_softmax(logits_clv: Tensor) -> Iterator[tuple[slice, Tensor]]:
    logits_rv = logits_clv.flatten(0, 1)
    step = max(1, _CHUNK_VALUES // logits_rv.shape[1])
    for start in range(0, len(logits_rv), step):
        rows = slice(start, start + step)
        yield rows, logits_rv[rows].float().log_softmax(dim=-1)


def _targets(ids_cl: Tensor, logits_clv: Tensor) -> Tensor:
    return ids_cl.roll(-1, dims=1).flatten().to(logits_clv.device)


def _pick(log_p_rv: Tensor, targets_r: Tensor) -> Tensor:
    return log_p_rv.gather(1, targets_r[:, None])[:, 0]


def _empty(ids_cl: Tensor, logits_clv: Tensor) -> Tensor:
    return torch.empty(ids_cl.shape, dtype=torch.float32, device=logits_clv.device)
