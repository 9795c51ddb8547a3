"""How well x̂ stands for x, streamed over batches in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SUMS = ("n", "shifted_sq", "x_hat_sq", "error_sq", "dot", "cosine", "norm_ratio")


class Reconstruction:
    """Sums over tokens from which every figure of reconstruction follows; the order and size of batches do not matter.

    Before any token has been seen, every figure is NaN. Tokens with ‖x‖ = 0 count 0 in `cosine` and `l2_ratio`.
    """

    def __init__(self, d: int) -> None:
        self.d = d
        # Σ‖x−x̄‖² is computed from x − shift: without it a mean far larger than the spread cancels the digits away.
        self._shift_d: Tensor | None = None
        self._shifted_sum_d = torch.zeros(d, dtype=torch.float64)
        self._sums = dict.fromkeys(_SUMS, 0.0)

    def update(self, x_bd: Tensor, x_hat_bd: Tensor, weights: Tensor | None = None) -> None:
        """Add a batch of rows x and reconstructions x̂ [b, d]; `weights` [b] default to one a row."""
        if x_bd.shape != x_hat_bd.shape or x_bd.ndim != 2 or x_bd.shape[1] != self.d:
            raise ValueError(f"x {tuple(x_bd.shape)} and x̂ {tuple(x_hat_bd.shape)} must both be [rows, {self.d}]")
        x, x_hat = x_bd.detach().double(), x_hat_bd.detach().double()
        w = torch.ones(len(x), dtype=torch.float64, device=x.device) if weights is None else weights.double()
        if self._shift_d is None:
            self._shift_d = x.mean(0)
        shifted = x - self._shift_d
        x_hat_sq, dot = x_hat.square().sum(1), (x * x_hat).sum(1)
        norm, norm_hat = x.norm(dim=1), x_hat_sq.sqrt()
        tiny = torch.finfo(torch.float64).tiny
        rows = {
            "n": torch.ones_like(w),
            "shifted_sq": shifted.square().sum(1),
            "x_hat_sq": x_hat_sq,
            "error_sq": (x - x_hat).square().sum(1),
            "dot": dot,
            "cosine": dot / (norm * norm_hat).clamp_min(tiny),
            "norm_ratio": torch.where(norm > 0, norm_hat / norm.clamp_min(tiny), 0.0),
        }
        totals = (torch.stack([rows[name] for name in _SUMS]) @ w).tolist()
        for name, total in zip(_SUMS, totals, strict=True):
            self._sums[name] += total
        self._shifted_sum_d += (w @ shifted).cpu()

    @property
    def n(self) -> float:
        """Total weight of the rows seen."""
        return self._sums["n"]

    @property
    def nmse(self) -> float:
        """Σ‖x−x̂‖² / Σ‖x−x̄‖², with x̄ the mean of the rows seen (Gao et al. 2024 §2.1); predicting x̄ gives 1."""
        if not self.n:
            return math.nan
        centred = self._sums["shifted_sq"] - float(self._shifted_sum_d @ self._shifted_sum_d) / self.n
        return _ratio(self._sums["error_sq"], centred)

    @property
    def explained_variance(self) -> float:
        """1 − NMSE (the variance-weighted R²)."""
        return 1.0 - self.nmse

    @property
    def mse(self) -> float:
        """Mean of (x−x̂)² over rows and the d coordinates."""
        return _ratio(self._sums["error_sq"], self.n * self.d)

    @property
    def l2_ratio(self) -> float:
        """Mean of ‖x̂‖ / ‖x‖ over rows: below 1 means shrinkage."""
        return _ratio(self._sums["norm_ratio"], self.n)

    @property
    def relative_bias(self) -> float:
        """E‖x̂‖² / E[x·x̂] (Rajamanoharan et al. 2024, eq. 10): 1 is unbiased, below 1 means shrinkage."""
        return _ratio(self._sums["x_hat_sq"], self._sums["dot"])

    @property
    def cosine(self) -> float:
        """Mean cosine between x and x̂ over rows."""
        return _ratio(self._sums["cosine"], self.n)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
