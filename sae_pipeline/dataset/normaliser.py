"""How raw activations become what an autoencoder sees, and back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_pipeline.store import PipelineError

PER_TOKEN = ("paper", "layer_norm")
ONE_SCALAR = ("rms", "mean_norm", "none")
NAMES = PER_TOKEN + ONE_SCALAR

# A row whose spread is below this share of its norm is constant but for rounding: float32 has 2^-24 per value.
_FLAT = 2.0**-20

_BLOCK_ROWS = 2048  # rows normalised at once on a CPU, to stay in its cache


class Scale(NamedTuple):
    """What `normalise` took out of each row, shape (..., 1): x = u * norm + mean."""

    mean: Tensor
    norm: Tensor


@dataclass(frozen=True)
class Normaliser:
    """One of five normalisations of rows of width d.

    paper       u = (x - mean(x)) / ‖x - mean(x)‖, each token by itself (Gao et al. 2024, §2.1); ‖u‖ = 1
    layer_norm  `paper` times √d, so that ‖u‖ = √d
    rms         u = factor·x with one factor such that E‖u‖² = d over the training rows
    mean_norm   u = factor·x with one factor such that E‖u‖ = √d over the training rows
    none        u = x

    A constant row has no direction: `paper` and `layer_norm` give it norm 1, so it becomes (all but) zero and comes
    back exactly.
    """

    name: str
    d: int
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise PipelineError(f"normaliser {self.name!r} is unknown; use one of {', '.join(NAMES)}")
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise PipelineError(f"normaliser {self.name}: factor {self.factor} must be positive; are all rows zero?")

    @property
    def per_token(self) -> bool:
        """Whether each token has a mean and a norm of its own."""
        return self.name in PER_TOKEN

    @classmethod
    def fit(cls, name: str, d: int, *, mean_norm: float, mean_square_norm: float) -> Normaliser:
        """The normaliser of that name for rows of width d with E‖x‖ = `mean_norm` and E‖x‖² = `mean_square_norm`."""
        factors = {"layer_norm": lambda: d**0.5, "rms": lambda: _ratio(d, mean_square_norm) ** 0.5}
        factors["mean_norm"] = lambda: _ratio(d**0.5, mean_norm)
        return cls(name, d, factors.get(name, lambda: 1.0)())

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Normaliser:
        """The normaliser that `to_config` described."""
        return cls(config["name"], config["d"], config["factor"])

    def to_config(self) -> dict[str, Any]:
        """Name, width and factor as JSON."""
        return asdict(self)

    def normalise(self, x: Tensor) -> tuple[Tensor, Scale]:
        """Rows (..., d) in float32 to normalised rows of the same shape and what it takes to undo it."""
        if not self.per_token:
            scale = Scale(x.new_zeros(1), x.new_full((1,), 1 / self.factor))
            scale = Scale(*(part.expand(*x.shape[:-1], 1) for part in scale))
            return (x if self.factor == 1 else x * self.factor), scale
        mean = x.mean(-1, keepdim=True)
        centred = x - mean
        norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
        flat = norm <= _FLAT * self.d**0.5 * mean.abs()
        norm = torch.where(flat, 1.0, norm / self.factor)
        return centred / norm, Scale(mean, norm)

    def rows(self, raw_rd: Tensor) -> Tensor:
        """Stored rows (r, d) of any float dtype, normalised to float32; a row's bits do not depend on those beside it.

        In blocks on a CPU, to stay in its cache.
        """
        if raw_rd.device.type != "cpu":
            return self.normalise(raw_rd.float())[0]
        u_rd = torch.empty(raw_rd.shape, dtype=torch.float32)
        for start in range(0, len(raw_rd), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            u_rd[block] = self.normalise(raw_rd[block].float())[0]
        return u_rd

    def denormalise(self, u: Tensor, scale: Scale) -> Tensor:
        """Normalised rows (..., d) back to the raw scale, each by its own row of `scale`."""
        return u * scale.norm + scale.mean


def default_normaliser(norm: str, where: str) -> str:
    """The default for a site: `paper` for the residual stream of a LayerNorm model, otherwise `rms`.

    `norm` is the subject's ("layernorm" or "rmsnorm"), `where` the site's ("resid_post", "mlp_out", …).
    """
    return "paper" if norm == "layernorm" and where.startswith("resid") else "rms"


def _ratio(wanted: float, found: float) -> float:
    return wanted / found if found > 0 else math.nan
