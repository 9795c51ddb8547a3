"""Backfills of what reads codes alone, over a finished study: killed half-way, gone on with, asked for again.

`python -m tests.pipeline.backfilled FOLDER`, with the study's outputs in `<folder>/outputs`. The subject cannot be
loaded in any of it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from tests.pipeline.kills import STUDY, Trial, observe, preload
from tests.pipeline.moments import Moment

KILLED_IN = "eval_progressive"
PUBLISHED_FIRST = 3
WITHOUT_DOWNSTREAM = ("--set", "scaling.targets=[nmse]")


def metrics() -> list[str]:
    """Those that need neither the subject nor its probe tasks."""
    from sae_pipeline.evaluation import METRICS
    from sae_pipeline.study import PROBES

    return [name for name, metric in METRICS.items() if not metric.needs_subject and name != PROBES]


def command(outputs: Path) -> int:
    """`sae-pipeline backfill eval_… --missing` for one metric after another; the exit status of the first to fail."""
    from sae_pipeline import cli

    asked = "evaluation.metrics={" + ", ".join(f"{name}: {{}}" for name in metrics()) + "}"
    for name in metrics():
        given = ["--missing", "--study", str(STUDY), "--outputs", str(outputs), "--set", asked, *WITHOUT_DOWNSTREAM]
        if status := cli.main(["backfill", f"eval_{name}", *given]):
            return status
    return 0


def forbid_the_subject() -> None:
    """Whoever loads a model in this process, or in a child of it, fails."""
    import transformers

    from resources import SubjectResource
    from sae_pipeline import subjects
    from sae_pipeline.subjects import subject

    for owner, name in (
        (SubjectResource, "get"), (subjects, "load_subject"), (subject, "load_subject"),
        (transformers.PreTrainedModel, "from_pretrained"),
    ):  # fmt: skip
        setattr(owner, name, _forbidden)


def _forbidden(*_: object, **__: object) -> NoReturn:
    raise AssertionError("the subject was loaded")


def campaign(folder: Path) -> list[dict[str, Any]]:
    """How each of three backfills ended, with the state of the outputs after it."""
    preload()
    forbid_the_subject()
    trials = []
    for moments in ([Moment(KILLED_IN, "artefact", PUBLISHED_FIRST, "after")], [], []):
        outcome = Trial(folder, moments, command).wait()
        trials.append(asdict(outcome) | {"state": observe(folder / "outputs")})
    return trials


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "record.json").write_text(json.dumps(campaign(place)))
