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

METRICS = ("density", "progressive")
KILLED_IN = "progressive"
PUBLISHED_FIRST = 3
ASKED = (
    "--missing", "--study", str(STUDY), "--set", "scaling.targets=[nmse]",
    "--set", "evaluation.metrics={reconstruction: {}, density: {}, progressive: {}}",
)  # fmt: skip


def command(outputs: Path) -> int:
    """`sae-pipeline backfill eval_… --missing` for one metric after another; the exit status of the first to fail."""
    from sae_pipeline import cli

    for name in METRICS:
        if status := cli.main(["backfill", f"eval_{name}", *ASKED, "--outputs", str(outputs)]):
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
    for moments in ([Moment(f"eval_{KILLED_IN}", "pointer", PUBLISHED_FIRST, "after")], [], []):
        outcome = Trial(folder, moments, command).wait()
        trials.append(asdict(outcome) | {"state": observe(folder / "outputs")})
    return trials


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "record.json").write_text(json.dumps(campaign(place)))
