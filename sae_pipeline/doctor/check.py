"""One finding, and a way to ask for it that never raises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

INSTALL = "make -B .venv/.installed, or pip install -c constraints.txt -e ."

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at, a word or two.
        level: `ok`; `warn`: works, but slower or with something missing; `fail`: a run would fail.
        found: what is the case.
        advice: what to do about it; empty where there is nothing to do.
    """

    name: str
    level: Level
    found: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f"\n{'':21}→ {self.advice}" if self.advice else ""
        return f"{self.level:6}{self.name:15}{self.found}{advice}"


def examine(checks: Iterable[tuple[str, Callable[[], Iterable[Check]]]]) -> Iterator[Check]:
    """The findings of named checks, one after another; a check that breaks is a finding itself."""
    for name, check in checks:
        try:
            yield from check()
        except ImportError as error:
            yield Check(name, "fail", f"cannot be looked at, a package is missing: {error}", INSTALL)
        except Exception as error:  # whatever is wrong with a machine, its doctor goes on
            yield Check(name, "fail", f"cannot be looked at: {type(error).__name__}: {error}")
