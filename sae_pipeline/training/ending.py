"""When a member ends before its budget: its error has converged, or there is no hope for it.

Both are read off the rows of its log and nothing else. So a resumed run decides what one left alone decides, a rule for
hopeless members can be changed between two runs, and the audit can reckon the end again from what was published.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sae_pipeline.study import AutoencoderSpec, Stop, StopRule

HORIZON = 0.1  # share of the tokens so far that the running average of the NMSE looks back on
EARLIEST = 0.1  # of the budget: rows before are few and cover few batches


class Ending:
    """The end of a member as decided by the rows observed so far.

    Attributes:
        steps: optimiser steps at which it ends: its budget, until it converges.
        converged_step: the step at which it was found to have converged, or None.
        hopeless: why it is given up, or None.
    """

    def __init__(self, spec: AutoencoderSpec, rule: StopRule | None = None, rows: Iterable[Mapping[str, Any]] = ()):
        self.spec, self.rule, self.steps = spec, rule, spec.steps
        self.converged_step: int | None = None
        self.hopeless: str | None = None
        self._curve: list[tuple[int, float]] = []
        self._settled_step = _settled(spec)
        for row in rows:
            self.observe(row)

    def observe(self, row: Mapping[str, Any]) -> None:
        """Take in the next row of the log: step, nmse (NaN: passed over), dead."""
        step, nmse = int(row["step"]), float(row["nmse"])
        if math.isnan(nmse):
            return
        self._extend(step, nmse)
        if self.spec.stop is not None and self.converged_step is None and self._converged(step, self.spec.stop):
            self.converged_step = step
            self.steps = min(self.steps, math.ceil(step / (1.0 - self.spec.decay_last)))
        if self.rule is not None:
            self.hopeless = _hopeless(self.rule, step / self.spec.steps, nmse, float(row["dead"]))

    def _extend(self, step: int, nmse: float) -> None:
        """Average over steps in which the one at the share u of the run so far weighs u^(1/HORIZON − 1).

        So the average looks back on the same share of a run wherever it stands and however its rows are spaced.
        """
        before, average = self._curve[-1] if self._curve else (0, 0.0)
        kept = (before / step) ** (1.0 / HORIZON)
        self._curve.append((step, kept * average + (1.0 - kept) * nmse))

    def _converged(self, step: int, stop: Stop) -> bool:
        """Whether the average has fallen by too little since the last row that lies a window back or further.

        The rate must have been constant since: rows of its warm-up and decay tell of the schedule.
        """
        earlier = [point for point in self._curve if point[0] <= (1.0 - stop.window) * step]
        if not earlier or earlier[-1][0] < self._settled_step or step < EARLIEST * self.spec.steps:
            return False
        in_decay = self.spec.decay_last > 0 and step > (1.0 - self.spec.decay_last) * self.spec.steps
        return not in_decay and self._curve[-1][1] > (1.0 - stop.converged) * earlier[-1][1]


def _settled(spec: AutoencoderSpec) -> float:
    """The step from which on nothing but training moves the error: after warm-ups and the last resampling."""
    penalised = spec.l1 is not None or spec.target_l0 is not None
    shares = [*(spec.resample or ()), *([spec.l1_warmup] if penalised else [])]
    return max([float(spec.warmup_steps), *(share * spec.steps for share in shares)])


def _hopeless(rule: StopRule, spent: float, nmse: float, dead: float) -> str | None:
    if spent < rule.after:
        return None
    if rule.dead is not None and dead > rule.dead:
        return f"{100 * dead:.0f} % of its latents are dead after {100 * spent:.0f} % of its budget"
    if rule.nmse is not None and nmse > rule.nmse:
        return f"its training NMSE is {nmse:.3g} after {100 * spent:.0f} % of its budget"
    return None
