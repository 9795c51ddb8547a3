"""How training runs and when it ends (docs/training.md)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sae_pipeline.study.parts import EXECUTION_ONLY, Bytes, Part, Ratio, Seconds


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


class TrainingConfig(Part):
    """How training runs."""

    checkpoint_every: Seconds = Field(default=60.0, json_schema_extra=EXECUTION_ONLY)
    memory: Bytes | None = Field(default=None, json_schema_extra=EXECUTION_ONLY)
    milestones: Literal["log2"] | None = Field(default=None, json_schema_extra=EXECUTION_ONLY)
    stop_if: StopRule | None = Field(default=None, json_schema_extra=EXECUTION_ONLY)
    log: tuple[Literal["tensorboard", "wandb"], ...] = Field(default=(), json_schema_extra=EXECUTION_ONLY)
