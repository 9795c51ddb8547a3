"""The training log: sums kept on the device, read at few steps, one row each."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sae_pipeline.kernels import Losses

ROWS = 100  # regular rows of a run, besides those at powers of two
COLUMNS = (
    "step", "tokens", "nmse", "l0", "dead", "lr", "auxk_loss", "l1_loss", "skipped_steps", "tokens_per_s", "data_wait",
)  # fmt: skip
"""Columns of training.parquet.

nmse, l0, auxk_loss, l1_loss: means over the steps since the row before, of the weights in training (not their running
average); l1_loss is the recipe's sparsity penalty, whatever its form. dead: share of the latents. tokens_per_s and
data_wait (share of the time spent waiting for a batch) concern this process and are the only columns that differ
between equal runs.
"""
TIMING = ("tokens_per_s", "data_wait")


def is_logged(step: int, steps: int) -> bool:
    """Whether a row follows after `step` (counted from 1): powers of two, about 100 regular ones, the last."""
    return step & (step - 1) == 0 or step % max(1, steps // ROWS) == 0 or step == steps


@dataclass
class Log:
    """Rows so far and sums since the last of them. `sums` is float64 [5]: the four losses and the steps they cover."""

    sums: Tensor
    rows: list[dict[str, Any]] = field(default_factory=list)
    clock: Callable[[], float] = time.perf_counter
    waited_s: float = 0.0
    _tokens: int = 0
    _since: float | None = None

    def add(self, losses: Losses) -> None:
        """Count one step, unless it was not finite and so not applied; nothing is read back from the device."""
        one = torch.ones((), dtype=torch.float64, device=self.sums.device)
        terms = torch.stack([*(loss.to(self.sums) for loss in losses), one])
        self.sums += torch.where(losses.reconstruction.isfinite(), terms, 0.0)

    def tick(self, tokens: int, waited_s: float) -> None:
        """Count a batch of `tokens` rows for which `waited_s` seconds were spent waiting."""
        if self._since is None:
            self._since = self.clock() - waited_s
        self._tokens += tokens
        self.waited_s += waited_s

    def write(self, *, step: int, tokens: int, dead: float, lr: float, skipped_steps: int) -> dict[str, Any]:
        """Append the row that ends with `step` and start new sums."""
        nmse, auxk, l1, l0, count = self.sums.tolist()
        mean = {"nmse": nmse, "l0": l0, "auxk_loss": auxk, "l1_loss": l1}
        row: dict[str, Any] = {name: total / count if count else float("nan") for name, total in mean.items()}
        now = self.clock()
        elapsed_s = max(now - (self._since if self._since is not None else now), 1e-9)
        row |= {"step": step, "tokens": tokens, "dead": dead, "lr": lr, "skipped_steps": skipped_steps}
        row |= {"tokens_per_s": self._tokens / elapsed_s, "data_wait": self.waited_s / elapsed_s}
        self.rows.append({name: row[name] for name in COLUMNS})
        self.sums.zero_()
        self._tokens, self.waited_s, self._since = 0, 0.0, now
        return self.rows[-1]

    def to_parquet(self) -> bytes:
        """The rows as a parquet file."""
        buffer = io.BytesIO()
        pd.DataFrame(self.rows, columns=list(COLUMNS)).to_parquet(buffer, index=False)
        return buffer.getvalue()
