"""What one autoencoder in training consists of: parameters, moments, running average, counters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sae_pipeline.measures import Fired


@dataclass
class Parameters:
    """The tensors of an autoencoder, or tensors of the same names and shapes (gradients, moments, averages).

    W_enc (n, d) and W_dec (n, d) hold one row per latent; b_enc (n,); b_pre (d,). `extra` holds what a recipe has
    beyond these four.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_pre: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict)

    def named(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_pre": self.b_pre, **self.extra}

    @classmethod
    def of(cls, named: dict[str, Tensor]) -> Parameters:
        """The inverse of `named`."""
        rest = dict(named)
        shared = {name: rest.pop(name) for name in ("W_enc", "b_enc", "W_dec", "b_pre")}
        return cls(**shared, extra=rest)

    def map(self, function: Callable[[Tensor], Tensor]) -> Parameters:
        """New parameters, each tensor passed through `function`."""
        return Parameters.of({name: function(tensor) for name, tensor in self.named().items()})


@dataclass
class TrainState:
    """Everything a training step reads and changes; `count` (0-d, on the device) is that of `updates`."""

    params: Parameters
    first: Parameters
    second: Parameters
    average: Parameters | None
    fired: Fired
    count: Tensor

    @property
    def updates(self) -> int:
        """How many steps were applied (skipped ones are not); on a GPU, asking waits for the device."""
        return int(self.count)

    @updates.setter
    def updates(self, value: int) -> None:
        self.count.fill_(value)

    @classmethod
    def start(cls, params: Parameters, *, average: bool) -> TrainState:
        """Zero moments and counters around initialised parameters."""
        device = params.W_enc.device
        first, second = params.map(torch.zeros_like), params.map(torch.zeros_like)
        averages = params.map(torch.zeros_like) if average else None
        fired = Fired(len(params.W_enc), device)
        count = torch.zeros((), dtype=torch.int64, device=device)
        return cls(params, first, second, averages, fired, count)

    def averaged(self, decay: float, *, unit_rows: bool = True) -> Parameters:
        """The running average, corrected for its zero start, decoder rows brought back to unit norm.

        Gao et al. 2024 §A.5. Averages of unit rows are shorter than one, so the constraint, where there is one, is
        applied again.
        """
        if self.average is None or self.updates == 0:
            return self.params
        corrected = self.average.map(lambda tensor: tensor / (1.0 - decay**self.updates))
        if unit_rows:
            torch.nn.functional.normalize(corrected.W_dec, dim=1, out=corrected.W_dec)
        return corrected

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a dotted name: what a checkpoint holds. Loading is copying into these."""
        groups = {"params": self.params, "first": self.first, "second": self.second, "average": self.average}
        named = {f"{group}.{name}": t for group, p in groups.items() if p is not None for name, t in p.named().items()}
        return named | {"tokens_since_fired": self.fired.tokens_since_fired}
