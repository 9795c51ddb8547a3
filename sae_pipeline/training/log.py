"""The training log: sums kept on the device, read at few steps, one row each."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sae_pipeline.kernels import Losses

ROWS = 100  # regular rows of a run, besides those at powers of two
COLUMNS = (
    "step", "tokens", "end_tokens", "nmse", "l0", "dead", "lr", "auxk_loss", "l1_loss", "skipped_steps",
    "tokens_per_s", "flops_per_s", "data_wait", "eta_s",
)  # fmt: skip
"""Columns of training.parquet.

end_tokens: where the run ends as was known then: its budget, until it has converged. nmse, l0, auxk_loss, l1_loss:
means over the steps since the row before, of the weights in training (not their running average); l1_loss is the
recipe's sparsity penalty, whatever its form. dead: share of the latents. tokens_per_s, flops_per_s
(`cost.flops_per_token` of each), data_wait (share of the time spent waiting for a batch) and eta_s (seconds to
end_tokens at this rate) concern this process and are the only columns that differ between equal runs.
"""
TIMING = ("tokens_per_s", "flops_per_s", "data_wait", "eta_s")


def is_logged(step: int, steps: int) -> bool:
    """Whether a row follows after `step` (counted from 1): powers of two, about 100 regular ones, the last."""
    return step & (step - 1) == 0 or step % max(1, steps // ROWS) == 0 or step == steps


@dataclass
class Log:
    """Rows so far and sums since the last of them. `sums` is float64 [5]: the four losses and the steps they cover."""

    sums: Tensor
    flops_per_token: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    clock: Callable[[], float] = time.perf_counter
    waited_s: float = 0.0
    _tokens: int = 0
    _since: float | None = None

    @property
    def nmse(self) -> float:
        """Mean over the steps since the last row; NaN where none was applied. Reads from the device."""
        total, *_, count = self.sums.tolist()
        return total / count if count else float("nan")

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

    def write(
        self, *, step: int, tokens: int, end_tokens: int, dead: float, lr: float, skipped_steps: int
    ) -> dict[str, Any]:
        """Append the row that ends with `step` and start new sums."""
        nmse, auxk, l1, l0, count = self.sums.tolist()
        mean = {"nmse": nmse, "l0": l0, "auxk_loss": auxk, "l1_loss": l1}
        row: dict[str, Any] = {name: total / count if count else float("nan") for name, total in mean.items()}
        now = self.clock()
        elapsed_s = max(now - (self._since if self._since is not None else now), 1e-9)
        row |= {"step": step, "tokens": tokens, "end_tokens": end_tokens, "dead": dead, "lr": lr}
        row |= {"skipped_steps": skipped_steps}
        rate = self._tokens / elapsed_s
        row |= {"tokens_per_s": rate, "flops_per_s": rate * self.flops_per_token}
        row |= {"data_wait": self.waited_s / elapsed_s, "eta_s": (end_tokens - tokens) / rate}
        self.rows.append({name: row[name] for name in COLUMNS})
        self.sums.zero_()
        self._tokens, self.waited_s, self._since = 0, 0.0, now
        return self.rows[-1]

    def to_parquet(self) -> bytes:
        """The rows as a parquet file."""
        buffer = io.BytesIO()
        pd.DataFrame(self.rows, columns=list(COLUMNS)).to_parquet(buffer, index=False)
        return buffer.getvalue()


def shown(logs: Sequence[Log]) -> dict[str, float]:
    """What a progress line says of members in training: means of their last rows, and what they compute together."""
    rows = [log.rows[-1] for log in logs if log.rows]
    if not rows:
        return {}
    means = {name: sum(row[name] for row in rows) / len(rows) for name in ("nmse", "l0", "dead")}
    timed = [row for row in rows if "flops_per_s" in row]  # logs begun by an earlier version have none
    waited = sum(row["data_wait"] for row in timed) / max(len(timed), 1)
    return means | {"FLOP/s": sum(row["flops_per_s"] for row in timed), "data wait": waited}
