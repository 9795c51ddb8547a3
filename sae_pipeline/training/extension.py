"""A longer budget without a restart: begin with the state that a shorter run was in before its rate began to decay.

Up to there the two runs are one, bit for bit: the batches, the rates and the windows of latents do not depend on the
budget. What would make them depend on it is refused (`study.autoencoder_spec`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from sae_pipeline.store import Artefact, Draft, PipelineError
from sae_pipeline.study import AutoencoderSpec
from sae_pipeline.training import checkpoint
from sae_pipeline.training.milestones import folder_of

BEFORE_DECAY, EXTENDS = "before_decay.safetensors", "extends.json"


def last_constant_step(steps: int, decay_last: float) -> int:
    """How many of its steps a run makes before its rate decays: all of them where it never does."""
    return math.floor(steps - decay_last * steps)


def take_over(draft: Draft, spec: AutoencoderSpec) -> None:
    """Give a new draft what the longest published run kept that differs from it in a smaller budget alone.

    Its state becomes the draft's checkpoint, its milestones up to there the draft's, and `extends.json` names it.
    Without such a run nothing is done.
    """
    found = list(_shorter(draft, spec))
    if not found:
        return
    artefact = max(found, key=lambda shorter: int(shorter.lineage["config"]["tokens"]))
    state = artefact.file(BEFORE_DECAY).read_bytes()
    draft.write_json(EXTENDS, {"identity": artefact.identity, "tokens": artefact.lineage["config"]["tokens"]})
    for tokens in _passed(spec, artefact):
        for name in (name for name in artefact.files if name.startswith(f"{folder_of(tokens)}/")):
            draft.write_bytes(name, artefact.file(name).read_bytes())
    draft.write_bytes(checkpoint.NAME, state)  # last: what comes before it is done again after a kill


def _shorter(draft: Draft, spec: AutoencoderSpec) -> Iterator[Artefact]:
    for path in sorted(draft.path.parent.glob(f"{draft.key}-*/{BEFORE_DECAY}")):
        with suppress(PipelineError):  # collected meanwhile, damaged or unpublished: training from the start serves too
            artefact = Artefact.open(path.parent)
            config = artefact.lineage["config"]
            same = artefact.key == draft.key and _but_budget(artefact.lineage) == _but_budget(draft.lineage)
            if same and config["tokens"] < spec.tokens and _passed(spec, artefact) <= set(config.get("milestones", ())):
                artefact.file(BEFORE_DECAY)
                yield artefact


def _passed(spec: AutoencoderSpec, artefact: Artefact) -> set[int]:
    """Milestones of a spec that the state an artefact kept has passed."""
    steps = last_constant_step(artefact.lineage["config"]["tokens"] // spec.batch, spec.decay_last)
    return {tokens for tokens in spec.milestones or () if tokens <= steps * spec.batch}


def _but_budget(record: dict[str, Any]) -> dict[str, Any]:
    """A lineage record without what follows from the budget."""
    config = {name: value for name, value in record["config"].items() if name not in ("tokens", "milestones")}
    return {**record, "config": config}
