"""Which settings of a study this version does not act on: it refuses to run them and never passes over them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from sae_pipeline.store import PipelineError
from sae_pipeline.study import Study
from sae_pipeline.study.ahead import Keep, Promote, Retrain


def refuse_unsupported(study: Study) -> None:
    """Raise PipelineError naming every setting that would have no effect or no code behind it."""
    found = list(unsupported(study))
    if found:
        raise PipelineError(f"study {study.study!r} asks for what this version cannot do:\n  " + "\n  ".join(found))


def unsupported(study: Study) -> Iterator[str]:
    """Settings this version cannot honour, each with what to write instead."""
    from sae_pipeline.autoencoders import RECIPES
    from sae_pipeline.evaluation import METRICS

    for corpus in study.corpora:
        if corpus.since is not None:
            yield f"corpora: {corpus.name}.since; leave it out, all of its documents are read"
    yield from _activations(study)
    yield from _training(study)
    for grid in study.autoencoders.grids:
        if grid.recipe not in RECIPES:
            yield f"recipe {grid.recipe!r}; known: {', '.join(sorted(RECIPES))}"
    for metric in study.evaluation.metrics:
        if metric not in METRICS:
            yield f"metric {metric!r}; known: {', '.join(sorted(METRICS))}"
    yield from _rest(study)


def _activations(study: Study) -> Iterator[str]:
    if study.activations.outliers is not None and study.activations.outliers.action == "drop":
        yield "activations.outliers.action: drop; write action: flag, which counts and shows them and keeps every row"


def _training(study: Study) -> Iterator[str]:
    training = study.training
    if "wandb" in training.log:
        yield "training.log: wandb; write tensorboard"
    if "tensorboard" in training.log and importlib.util.find_spec("tensorboard") is None:
        yield "training.log: tensorboard, which is not installed; `pip install tensorboard`, or leave it out"


_CONTROL_STUDIES = {
    "gaussian_cov": "dataset: {null: gaussian_cov}",
    "random_weights_subject": "subject.weights: untrained",
}


def _rest(study: Study) -> Iterator[str]:
    for control in study.evaluation.controls:
        yield (
            f"evaluation.controls: {control} beside the real rows of one study; leave it out and run a second study, "
            f"with a name of its own and {_CONTROL_STUDIES[control]} (docs/nulls.md)"
        )
    given = {
        "evaluation.sets": study.evaluation.sets,
        "budget": study.budget,
        "report.compare_with": study.report.compare_with,
    }
    yield from (name for name, value in given.items() if value is not None)
    if study.retrain is not None:
        yield from _retrain(study.retrain)
    if "table" in study.scaling.forms:
        yield "scaling form 'table'; the points are always written, leave the list empty for no fits"


def _retrain(retrain: Retrain) -> Iterator[str]:
    """Of `retrain` only the time acts: what is stale is made anew, from scratch, with the study's own budgets."""
    given = {
        "when.new_tokens": retrain.when.new_tokens,
        "start: warm": retrain.start == "warm" or None,
        "tokens": retrain.tokens,
        "mix": retrain.mix,
        "promote": retrain.promote if retrain.promote != Promote() else None,
        "keep": retrain.keep if retrain.keep != Keep() else None,
    }
    yield from (f"retrain.{name}; leave it out" for name, value in given.items() if value is not None)
