"""How much the labels of two concepts agree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sae_pipeline.embedded.concepts.probe_set import Flags


class Agreement:
    """Sums over tokens, from which the correlation of every two labels follows."""

    def __init__(self, n_concepts: int) -> None:
        self._both_kk = np.zeros((n_concepts, n_concepts))
        self._tokens = 0

    def add(self, labels_kt: Flags) -> None:
        """Count the tokens of one document."""
        counted = labels_kt.astype(np.float32)  # exact: the counts of a document stay below 2^24
        self._both_kk += counted @ counted.T
        self._tokens += labels_kt.shape[1]

    def phi(self) -> NDArray[np.float64]:
        """Correlation of every two labels over all tokens, `[k, k]`; 0 where one of them never varies."""
        mean_kk = self._both_kk / max(1, self._tokens)
        share_k = np.diag(mean_kk)
        covariance = mean_kk - np.outer(share_k, share_k)
        scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
