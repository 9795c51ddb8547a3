"""Writing shards beside the computation that makes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

from sae_pipeline.store import limit_to_one_thread

_PENDING: Final = 2
"""Tasks that may wait: bounds memory to that many shards beside the one being computed."""


class BackgroundTasks:
    """Runs tasks in order in one thread; an error in a task is raised at the next `submit` or at the end.

    Tensor operations in a task run on that thread alone. Were they divided among as many threads as the model's, each
    of the model's own operations would wait for a core.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "shard-writer", initializer=limit_to_one_thread)
        self._executor.submit(int).result()  # limited before other threads begin
        self._pending: deque[Future[None]] = deque()

    def submit(self, task: Callable[[], None]) -> None:
        """Queue a task, waiting first if too many are queued."""
        self._settle(_PENDING - 1)
        self._pending.append(self._executor.submit(task))

    def _settle(self, allowed: int) -> None:
        while len(self._pending) > allowed:
            self._pending.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._settle(0)
        finally:
            self._executor.shutdown(cancel_futures=True)
