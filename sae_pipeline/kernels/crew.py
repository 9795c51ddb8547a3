"""Threads that share a step by parts: rows or latents are divided, and each part is worked on by one thread alone.

PyTorch divides every operation by itself and waits at its end for all threads. A sparse step has hundreds of short
operations and so would mostly wait. Here each thread of a crew runs whole stretches of operations on its own part of
the data, and waits at the end of a stretch, of which a step has about five.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from threading import Barrier
from typing import TypeVar

import torch

from sae_pipeline.store import limit_to_one_thread

Item = TypeVar("Item")
Result = TypeVar("Result")


class Crew:
    """`size` threads, of which one leads; PyTorch's operations take one thread in each. A crew of one has none."""

    def __init__(self, size: int) -> None:
        self.size = size
        if size > 1:
            self._leader = ThreadPoolExecutor(1, "lead", initializer=_work_alone)
            self._others = ThreadPoolExecutor(size - 1, "crew", initializer=_work_alone)
            meeting = Barrier(size)  # so that none is still being limited, and the process with it, when work begins
            wait([self._leader.submit(meeting.wait), *(self._others.submit(meeting.wait) for _ in range(size - 1))])

    def lead(self, work: Callable[[], Result]) -> Result:
        """Do the work on the leading thread and wait for its end, even where the wait is interrupted.

        The calling thread should not: PyTorch's threads, once woken by it, spin for work for some milliseconds.
        """
        if self.size == 1:
            return work()
        led = self._leader.submit(work)
        try:
            return led.result()
        finally:
            wait([led])

    def each(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """From within `lead`: the work on at most `size` items at once, the first on the leading thread; in order.

        An error in one is raised once no other is at work any more.
        """
        first, *rest = items
        started = [self._others.submit(work, item) for item in rest]
        try:
            done = work(first)
        finally:
            wait(started)
        return [done, *(future.result() for future in started)]

    def parts(self, count: int) -> list[slice]:
        """range(count) in as many equal parts as there are threads, without empty ones; count is at least 1."""
        bounds = [count * part // self.size for part in range(self.size + 1)]
        return [slice(start, stop) for start, stop in pairwise(bounds) if start < stop]


ALONE = Crew(1)


@cache
def crew_of(size: int) -> Crew:
    """The crew of this size, whose threads stay for as long as the process does."""
    return Crew(size) if size > 1 else ALONE


os.register_at_fork(after_in_child=crew_of.cache_clear)  # threads do not survive a fork


def _work_alone() -> None:
    limit_to_one_thread()
    torch.set_grad_enabled(False)  # which every thread decides for itself
