"""Rows whose dictionary is known: what an autoencoder should find, to test one and to learn on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Planted:
    """Rows [m, d] = codes [m, features] times a dictionary of unit rows [features, d], plus Gaussian noise."""

    rows_md: Tensor
    codes_mf: Tensor
    dictionary_fd: Tensor


def planted_rows(
    m: int, d: int, *, features: int, active: int, noise: float = 0.02, seed: int = 0, draw: int = 0
) -> Planted:
    """Draw m rows: each the sum of `active` random unit directions, weighted by 0.5 to 1.5, plus noise per value.

    The dictionary is a function of `seed` alone; `draw` picks other rows over the same dictionary, to hold out.
    Raises ValueError if a row asks for more directions than there are.
    """
    if not 0 < active <= features:
        raise ValueError(f"active = {active} must lie between 1 and features = {features}")
    generator = torch.Generator().manual_seed(seed)
    dictionary_fd = torch.nn.functional.normalize(torch.randn(features, d, generator=generator), dim=1)
    generator.manual_seed((seed + 1) * 1_000_003 + draw)
    chosen = torch.rand(m, features, generator=generator).topk(active, dim=1).indices
    codes_mf = torch.zeros(m, features).scatter(1, chosen, 0.5 + torch.rand(m, active, generator=generator))
    return Planted(codes_mf @ dictionary_fd + noise * torch.randn(m, d, generator=generator), codes_mf, dictionary_fd)
