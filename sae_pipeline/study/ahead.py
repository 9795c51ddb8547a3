"""Settings a study may already say and this version does not act on; `planning.support` refuses to run them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sae_pipeline.study.parts import Bytes, Count, Name, Part, Ratio


class EvaluationSource(Part):
    """An evaluation set: from named corpora or from the latest, with its size in rows."""

    from_: tuple[str, ...] | Literal["latest"] = Field(alias="from")
    tokens: Count


class NoWorse(Part):
    """Largest rise that a promotion tolerates on an evaluation set."""

    on: Name
    nmse: Ratio | None = None
    dce: Ratio | None = None


class Better(Part):
    """The metric that must improve on an evaluation set."""

    on: Name
    metric: Name


class Promote(Part):
    """When a retrained autoencoder takes over."""

    no_worse: NoWorse | None = None
    better: Better | None = None
    equal_l0: Ratio | None = None


class When(Part):
    """What starts a retraining; `schedule` is a cron expression of five fields (minute hour day month weekday)."""

    schedule: Annotated[str, Field(pattern=r"^\S+( \S+){4}$")] | None = None
    new_tokens: Count | None = None


class Keep(Part):
    """How many versions stay, and whether a map between their latents is kept."""

    versions: Count = 3
    latent_map: bool = False


class Retrain(Part):
    """Retraining on new data."""

    when: When
    start: Literal["warm", "cold"] = "cold"
    tokens: Count | None = None
    mix: dict[Literal["new", "replay"], Ratio] | None = None
    promote: Promote = Promote()
    keep: Keep = Keep()


class Budget(Part):
    """What a study may cost."""

    disk: Bytes | None = None
    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    on_excess: Literal["refuse", "warn"] = "refuse"
