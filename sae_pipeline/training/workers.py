"""Who steps whom: small members side by side on one thread each, large ones in turn on all threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from sae_pipeline.study import AutoencoderSpec
from sae_pipeline.training.run import Run

# Two threads make a step below this many multiply-adds (some tens of milliseconds on a core) 1.3 to 1.5 times as fast;
# members side by side, which wait for nothing, gain a factor of 1.9 (benchmarks/sweep.py).
SMALL = 1 << 31


def threads_for(spec: AutoencoderSpec, d: int) -> int:
    """Threads of a member's arithmetic: one for a small step, else all. Its companions have no say in it."""
    return 1 if spec.n * d * spec.batch < SMALL else torch.get_num_threads()


class Workers:
    """Steps many members on one batch. Within the context PyTorch's thread count is 1; it is put back at the end."""

    def __init__(self, device: torch.device) -> None:
        self._threads = torch.get_num_threads()
        self._on_cpu = device.type == "cpu"
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="train")

    def __enter__(self) -> Self:
        torch.set_num_threads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        torch.set_num_threads(self._threads)

    def advance(self, runs: Sequence[Run], x_bd: Tensor, waited_s: float) -> None:
        """One step of every run."""
        small = [run for run in runs if self._on_cpu and run.threads == 1]
        small.sort(key=lambda run: run.spec.n, reverse=True)  # the longest first, or it ends alone
        for _ in self._pool.map(lambda run: run.advance(x_bd, waited_s), small):
            pass
        for run in runs:
            if run not in small:
                torch.set_num_threads(run.threads)
                run.advance(x_bd, waited_s)
                torch.set_num_threads(1)
