"""The histogram of latent density, as numbers."""

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class DensityHistogram:
    """Histogram of log10 density of one autoencoder's latents on `n_tokens` held-out tokens.

    `edges_log10` (bins + 1) and `latents` (bins) count the latents that fired; `silent` those that never did.
    """

    edges_log10: tuple[float, ...]
    latents: tuple[float, ...]
    silent: int
    n_tokens: int

    @classmethod
    def of_curve(cls, curve: pd.DataFrame, n: int) -> "DensityHistogram":
        """From a `density_hist` curve (x lower edge, log10; y latents; n tokens) of an autoencoder with `n` latents."""
        ordered = curve.sort_values("x")
        lower = ordered["x"].to_numpy(dtype=np.float64)
        latents = ordered["y"].to_numpy(dtype=np.float64)
        edges = np.append(lower, 2 * lower[-1] - lower[-2])
        silent = n - round(float(latents.sum()))
        return cls(tuple(edges.tolist()), tuple(latents.tolist()), silent, int(ordered["n"].iloc[0]))

    @property
    def bound_log10(self) -> float:
        """log10 of 3/T: the 95 % upper bound on the density of a latent that never fired on T tokens."""
        return float(np.log10(3 / self.n_tokens))
