"""What a trainer is asked to do, and what it is asked for."""

from __future__ import annotations

import atexit
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Task:
    """Train n latents, k of them active, on `rows` rows of the file, over and over, `steps` steps in all.

    Rows are d wide, of unit norm; the first `held_out` of the file are not trained on. options: what sets one recipe
    of an adapter apart from another.
    """

    data: str
    held_out: int
    rows: int
    d: int
    n: int
    k: int
    batch: int
    steps: int
    seed: int
    threads: int
    options: dict[str, Any] = field(default_factory=dict)


class Trainer(Protocol):
    """An adapter's `Trainer(task, rows_xd)`; beside it, `scale(d)` is the norm at which the package wants its rows."""

    def step(self, x_bd: torch.Tensor) -> None:
        """One whole training step, as the package's own loop makes it."""
        ...

    def reconstruct(self, x_bd: torch.Tensor) -> torch.Tensor:
        """Rows as the autoencoder so far gives them back, [b, d]."""
        ...


def hold(context: AbstractContextManager[object]) -> None:
    """Enter a context for as long as the process lives."""
    held = ExitStack()
    held.enter_context(context)
    atexit.register(held.close)
