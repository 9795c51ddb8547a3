"""How training runs and when it ends (docs/training.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from sae_pipeline.study.parts import EXECUTION_ONLY, Bytes, Part, Ratio, Seconds
from sae_pipeline.study.quantities import parse_count


class Stop(Part):
    """End a member before its budget: once the running average of its training NMSE has fallen by less than the share
    `converged` over the last share `window` of its tokens, it decays its rate (`schedule.decay_last`) and is done."""

    converged: Annotated[Ratio, Field(gt=0, lt=1)]
    window: Annotated[Ratio, Field(gt=0, lt=1)] = 0.25


class StopRule(Part):
    """Give up a member whose dead share exceeds `dead`, or its training NMSE `nmse`, once `after` of its budget is
    spent. It then leaves no artefact, so this is no part of an identity."""

    dead: Annotated[Ratio, Field(lt=1)] | None = None
    nmse: Ratio | None = None
    after: Annotated[Ratio, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _something_to_go_by(self) -> StopRule:
        if self.dead is None and self.nmse is None:
            raise ValueError("stop_if: give dead, nmse or both")
        return self


_LOG2, _MOST_HALVINGS = 8, 40


def _milestones(value: object) -> object:
    """Halvings of the budget as a number, token counts as a tuple."""
    if value == "log2":
        return _LOG2
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_HALVINGS:
        return value
    if isinstance(value, list | tuple) and value:
        return tuple(parse_count(item) for item in value)
    raise ValueError(f"{value!r}: write log2, a number of halvings from 1 to {_MOST_HALVINGS}, or a list of tokens")


Milestones = Annotated[int | tuple[int, ...], BeforeValidator(_milestones)]
Switch = Annotated[Literal[True] | None, BeforeValidator(lambda value: None if value is False else value)]
"""On or not set: what is switched off is in no identity."""


class TrainingConfig(Part):
    """How training runs.

    `milestones`: after how many tokens weights are kept, as a list; or a number m of halvings of the budget, of which
    the earliest is its 2^m-th part; `log2` is 8 of them.
    """

    checkpoint_every: Seconds = Field(default=60.0, json_schema_extra=EXECUTION_ONLY)
    memory: Bytes | None = Field(default=None, json_schema_extra=EXECUTION_ONLY)
    milestones: Milestones | None = None
    stop_if: StopRule | None = Field(default=None, json_schema_extra=EXECUTION_ONLY)
    log: tuple[Literal["tensorboard", "wandb"], ...] = Field(default=(), json_schema_extra=EXECUTION_ONLY)

    def milestones_of(self, tokens: int, batch: int) -> tuple[int, ...] | None:
        """Milestones of a budget in whole batches, rising: those within it; None if none are asked for."""
        if self.milestones is None:
            return None
        asked, end = self.milestones, tokens // batch * batch
        if not isinstance(asked, tuple):
            asked = tuple(tokens >> i for i in range(1, asked + 1))
        return tuple(sorted({whole for count in asked if 0 < (whole := count // batch * batch) < end}))
