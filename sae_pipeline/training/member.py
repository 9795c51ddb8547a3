"""A member as it comes to training and leaves it: its spec and draft, what it minimises, how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from sae_pipeline.autoencoders import Autoencoder, recipe_of, settings_of
from sae_pipeline.dataset import Normaliser, Statistics
from sae_pipeline.kernels import Objective, Parameters
from sae_pipeline.store import Draft, PipelineError
from sae_pipeline.study import AutoencoderSpec

Status = Literal["running", "finished", "stopped", "diverged", "hopeless"]


class TrainingData(Protocol):
    """What training reads of a dataset."""

    @property
    def normaliser(self) -> Normaliser:
        """The normaliser its rows went through."""
        ...

    @property
    def statistics(self) -> Statistics:
        """Moments of its rows."""
        ...


@dataclass(frozen=True)
class Member:
    """One autoencoder to train, the draft that receives it, and the parent that a finetuned one starts from."""

    spec: AutoencoderSpec
    draft: Draft
    parent: Autoencoder | None = None


@dataclass(frozen=True)
class Outcome:
    """How a member ended.

    status: "finished" (files written), "stopped" (checkpoint written), "hopeless" (given up by a rule, see `error`;
    checkpoint written, to go on from if the rule is changed) or "diverged" (see `error`; the last checkpoint of a sound
    state stays, and the draft is not trained again).
    figures: for a finished member the content of its training.json.
    """

    status: Status
    step: int
    tokens: int
    figures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def check(spec: AutoencoderSpec) -> None:
    """Refuse a spec that cannot be trained; PipelineError saying what to change."""
    settings_of(spec, d=1)
    if spec.steps < 1:
        raise PipelineError(f"autoencoder {spec.key}: {spec.tokens} tokens do not fill one batch of {spec.batch}")


def objective_of(spec: AutoencoderSpec, data: TrainingData) -> Objective:
    """What a member minimises; PipelineError if the rows do not vary."""
    variance = data.statistics.total_variance
    if not (math.isfinite(variance) and variance > 0):
        raise PipelineError(f"the dataset's total variance is {variance}: its rows do not vary, nothing can be learned")
    recipe, settings = recipe_of(spec.recipe), settings_of(spec, data.normaliser.d)
    return Objective(
        recipe.activation(settings) if recipe.activation else None,
        1.0 / variance,
        spec.auxk_k or 0,
        spec.auxk_alpha,
        spec.dead_after_tokens,
        recipe.forward(settings) if recipe.forward else None,
        recipe.unit_rows,
        recipe.trains,
    )


def parent_of(member: Member, data: TrainingData) -> Parameters:
    """Parameters of the parent, as they are to be trained on; PipelineError if they do not fit."""
    parent, key = member.parent, member.spec.key
    if parent is None:
        raise PipelineError(
            f"autoencoder {key}: recipe {member.spec.recipe!r} starts from another autoencoder; give it"
        )
    if parent.config.k is not None:
        raise PipelineError(f"autoencoder {key}: its parent has a TopK, which no scale of a latent leaves as it is")
    if (parent.config.n, parent.normaliser) != (member.spec.n, data.normaliser):
        raise PipelineError(
            f"autoencoder {key}: its parent has n = {parent.config.n} and {parent.normaliser}, not {member.spec.n} "
            f"and the dataset's {data.normaliser}"
        )
    return parent.parameters.map(torch.Tensor.clone)
