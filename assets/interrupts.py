"""Terminate, SIGTERM and Ctrl-C during work that must end between two steps, not inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import dagster as dg


@contextmanager
def interrupts_between_steps() -> Iterator[Callable[[], bool]]:
    """Hold SIGINT and SIGTERM back; yields what says whether one came, and raises for it at the end of the block.

    Dagster raises at whatever instruction the signal meets. In the midst of an optimiser step that would tear the
    state apart that a checkpoint is about to save, so work in this block asks by itself and returns early.

    Raises:
        DagsterExecutionInterruptedError: at the end, if a signal came; the run then counts as cancelled.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread alone
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise dg.DagsterExecutionInterruptedError
