"""Progress of long work: a protocol every stage reports to, and a console that prints rate and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO


class Progress(Protocol):
    """Anything that can be told how far the work is; calls are cheap, so call often."""

    def update(self, done: float, total: float, unit: str, **info: object) -> None:
        """`done` of `total` in `unit` (say "tokens"); `info` holds current values worth showing."""
        ...


class Silent:
    """Progress that shows nothing."""

    def update(self, done: float, total: float, unit: str, **info: object) -> None:
        """Ignore the report."""


silent: Progress = Silent()


class Console:
    """One line per task on a text stream: share, count, rate and time left.

    A terminal sees the line rewritten at most every `interval_s` seconds; a log file gets a new line every
    `30 * interval_s`, so a long run stays readable there. The end of a task always prints.
    """

    def __init__(
        self,
        label: str = "",
        *,
        stream: TextIO | None = None,
        interval_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._stream, self._clock = label, stream or sys.stderr, clock
        self._live = self._stream.isatty()
        self._interval_s = interval_s if self._live else 30 * interval_s
        self._start: tuple[float, float] | None = None
        self._shown_at = float("-inf")
        self._done = 0.0
        self._width = 0

    def update(self, done: float, total: float, unit: str, **info: object) -> None:
        """Print if enough time has passed, if the work has ended, or if a new task has begun."""
        now = self._clock()
        if self._start is None or done < self._done:
            self._start = (now, done)
        self._done = done
        ended = done >= total
        if not ended and now - self._shown_at < self._interval_s:
            return
        self._shown_at = now
        self._print(self._line(now, done, total, unit, info), ended)
        if ended:
            self._start = None

    def _line(self, now: float, done: float, total: float, unit: str, info: dict[str, object]) -> str:
        assert self._start is not None
        elapsed_s, fresh = now - self._start[0], done - self._start[1]
        rate = fresh / elapsed_s if elapsed_s > 0 else 0.0
        parts = [f"{100 * done / total if total else 100:5.1f} %", f"{human(done)}/{human(total)} {unit}"]
        if rate > 0:
            left_s = (total - done) / rate
            parts.append(f"{human(rate)} {unit}/s")
            parts.append(f"{clock_text(left_s)} left" if done < total else f"took {clock_text(elapsed_s)}")
        parts += [f"{name} {_short(value)}" for name, value in info.items()]
        return "  ".join(([self._label] if self._label else []) + parts)

    def _print(self, line: str, ended: bool) -> None:
        if self._live:
            # Blanks wipe what a longer line before this one left behind.
            self._stream.write("\r" + line.ljust(self._width) + ("\n" if ended else ""))
            self._width = 0 if ended else len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def human(value: float) -> str:
    """A count with three or four digits and a suffix: 950, 1.20k, 33.5M."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # what three digits would round up to 1000 of the next smaller
            return f"{value / size:.3g}{suffix}"
    return f"{value:.4g}"


def clock_text(seconds: float) -> str:
    """A duration as 0:07, 12:30 or 3:02:11."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
