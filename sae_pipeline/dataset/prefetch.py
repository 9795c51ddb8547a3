"""Run an iterator ahead of its consumer in a thread, with bounded memory and no thread left behind."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """An iterator over `make()` that computes up to `depth` items ahead in a background thread.

    Items made and not yet taken never exceed `depth`, the one in the making included. An exception in the thread is
    raised where the consumer asks for the item. `close` (also by `with`, by exhaustion, or when this object is dropped)
    closes the source and ends the thread.
    """

    def __init__(self, make: Callable[[], Iterator[T]], depth: int) -> None:
        self._state: _State[T] = _State(make, depth)
        # The thread must not keep this object alive, or dropping it could never end the thread.
        self._thread = threading.Thread(target=self._state.run, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            return self._state.take()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the thread and wait for it; safe to call again."""
        self._state.stop()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._state.stop()


@contextmanager
def _closing(source: Iterator[T]) -> Iterator[Iterator[T]]:
    try:
        yield source
    finally:
        if isinstance(source, Generator):
            source.close()


class _State(Generic[T]):
    def __init__(self, make: Callable[[], Iterator[T]], depth: int) -> None:
        self._make, self._depth = make, depth
        self._ready: deque[T] = deque()
        self._changed = threading.Condition()
        self._end: BaseException | None = None
        self._stopped = False

    def run(self) -> None:
        end: BaseException = StopIteration()
        try:
            with _closing(self._make()) as source:
                while self._wait_for_room():
                    self._put(next(source))
        except BaseException as error:  # handed to the consumer, StopIteration included
            end = error
        with self._changed:
            self._end = end
            self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._ready) < self._depth)
            return not self._stopped

    def _put(self, item: T) -> None:
        with self._changed:
            self._ready.append(item)
            self._changed.notify_all()

    def take(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._end is not None or self._stopped)
            if self._ready and not self._stopped:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            raise StopIteration if self._end is None else self._end

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()
