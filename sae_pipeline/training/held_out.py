"""What an autoencoder does on held-out rows: the figures a finished run reports and its gate reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sae_pipeline.autoencoders import Autoencoder
from sae_pipeline.measures import Density, Reconstruction

ROWS = 1024


@dataclass(frozen=True)
class HeldOut:
    """Figures on rows not trained on: nmse, mean and largest L0, share of latents silent on them, and their number."""

    nmse: float
    mean_l0: float
    max_l0: int
    silent: float
    n_rows: int


def measure(autoencoder: Autoencoder, rows_xd: Tensor) -> HeldOut:
    """Encode and decode normalised rows [rows, d] in blocks."""
    reconstruction = Reconstruction(autoencoder.config.d)
    density = Density(autoencoder.config.n, autoencoder.device)
    max_l0 = 0
    for start in range(0, len(rows_xd), ROWS):
        u_bd = rows_xd[start : start + ROWS].to(autoencoder.device)
        codes = autoencoder.encode(u_bd)
        reconstruction.update(u_bd, autoencoder.decode(codes))
        density.update(codes.fired, len(u_bd))
        max_l0 = max(max_l0, int(codes.l0_b.max()))
    n_fired = int(density.counts_n.sum())
    silent = float(density.silent().double().mean())
    return HeldOut(reconstruction.nmse, n_fired / max(density.tokens, 1), max_l0, silent, density.tokens)
